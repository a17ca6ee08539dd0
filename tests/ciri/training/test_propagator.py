"""Training of the small propagator: synthesis against colours that tell the truth, the read against the engine's."""

import json
import shlex
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ciri import cli
from ciri.errors import CheckpointError, CiriError, TrainingError
from ciri.propagation.base import MaskTrack
from ciri.propagation.engine import MemoryPropagator
from ciri.propagation.flow import FlowPropagator
from ciri.propagation.lite import SHIPPED, LiteNetwork, load_lite
from ciri.propagation.memory import read
from ciri.training import propagator as training
from ciri.training import propagator_pool, synth_vos
from ciri.training.data import CutOut, Library, open_library
from ciri.training.film import Dice, compress
from ciri.training.located import locate, read_placements, together
from ciri.training.propagator import Settings, learning_pace, train
from ciri.training.propagator_clips import read_batch, segmentation_loss, unroll
from ciri.training.propagator_data import load_bank
from ciri.training.propagator_pool import COMPOSITES, LENGTH, HintedPool, hinted_clip, spoil, stack
from ciri.training.propagator_report import Examiner, jaccard
from ciri.training.synth_vos import Recipe, Sample, synthesise
from tests.pretended_gpu import pretended_gpu

HEIGHT, WIDTH = 96, 160


def texture(seed, height=2 * HEIGHT, width=2 * WIDTH):
    noise = np.random.default_rng(seed).normal(size=(height // 16, width // 16, 3)).astype(np.float32)
    return np.clip(128 + 50 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(
        np.uint8
    )


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A data pack at twice the bank's size; one object is cut out of a still and one out of the clip."""
    root = tmp_path_factory.mktemp("pack")
    for folder in ("images", "video", "objects/still", "objects/seq/walker"):
        (root / folder).mkdir(parents=True)
    disc = np.zeros((80, 96), np.uint8)
    cv2.ellipse(disc, (48, 40), (44, 36), 0, 0, 360, 255, -1)
    names = [f"still{i}" for i in range(12)]
    for i, name in enumerate(names):
        cv2.imwrite(str(root / f"images/{name}.png"), texture(i))
        content = texture(i)[60:140, 100:196] if i == 0 else texture(90 + i)[:80, :96]
        cv2.imwrite(str(root / f"objects/still/{name}.png"), np.dstack([content, disc]))
    writer = cv2.VideoWriter(str(root / "video/walk.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (2 * WIDTH, 2 * HEIGHT))
    wide = texture(50, width=4 * WIDTH)
    for t in range(8):
        writer.write(np.ascontiguousarray(wide[:, 12 * t : 12 * t + 2 * WIDTH]))
    writer.release()
    for t in (0, 2, 4):
        window = wide[60:140, 12 * t + 120 : 12 * t + 216]
        cv2.imwrite(str(root / f"objects/seq/walker/{t:03d}.png"), np.dstack([window, disc]))
    manifests = {
        "images": [{"file": f"{n}.png"} for n in names],
        "objects/still": [{"file": f"{n}.png"} for n in names],
        "objects/seq": [{"name": "walker", "source": "someone/walk-film.mp4"}],
        "video": [{"file": "walk.mp4", "scene": "walk", "source": "someone+walk-film.mp4"}],
    }
    for folder, entries in manifests.items():
        (root / folder / "manifest.json").write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="module")
def placements(pack):
    return locate(open_library(pack), pack)


def test_objects_are_found_where_they_were_cut_out(pack, placements):
    found = {p.cutout: p for p in placements}
    still, walker = found["still0"], found["walker"]
    assert abs(still.scale - 1) < 0.02 and abs(still.x - 100) <= 2 and abs(still.y - 60) <= 2
    assert walker.picture == "walk" and walker.frames == (0, 2, 4)
    assert abs(walker.x - 120) <= 2 and abs(walker.y - 60) <= 2
    # the other objects show what is in none of the pictures
    assert set(found) == {"still0", "walker"}
    assert read_placements(pack) == placements
    mask = still.mask(np.full((80, 96), 255, np.uint8), 2 * HEIGHT, 2 * WIDTH)
    assert mask[100, 148] == 255 and mask[40].max() == 0 and mask[:, 80].max() == 0


def test_a_located_object_stays_on_the_side_of_its_picture(pack, placements):
    library = open_library(pack)
    kept, held = together(*library.split(3), placements)
    pictures = {file.stem for file in held.stills} | {clip.name for clip in held.clips}
    for place in placements:
        side, other = (held, kept) if place.picture in pictures else (kept, held)
        assert [c.name for c in side.cutouts].count(place.cutout) == 1
        assert place.cutout not in {c.name for c in other.cutouts}
    assert {c.name for c in [*kept.cutouts, *held.cutouts]} == {c.name for c in library.cutouts}


@pytest.fixture(scope="module")
def bank(pack, placements):
    return load_bank(open_library(pack), placements, height=HEIGHT, width=WIDTH, device="cpu", workers=2)


def test_the_bank_holds_the_material(bank):
    assert bank.frames.shape == (8 + 12, 3, HEIGHT, WIDTH) and bank.clips == [(0, 8)] and len(bank.stills) == 12
    assert sorted(len(index) for index, _ in bank.tracks) == [1, 3]
    ((frames, masks),) = [t for t in bank.tracks if len(t[0]) == 3]
    assert frames == [0, 2, 4]
    # the window of the moving object is fixed: so is its mask here
    assert torch.equal(bank.masks[masks[0]], bank.masks[masks[1]]) and bank.masks[masks[0], 50, 84] == 255
    # colours are multiplied by alpha
    assert int(bank.sprites[:, :3][(bank.sprites[:, 3:] == 0).expand(-1, 3, -1, -1)].max()) == 0


@pytest.mark.parametrize("content", ['[{"cutout":', '[{"frames": [0], "size": 3}]', "[1]", '{"a": 1}'])
def test_damaged_placements_are_refused_in_words(tmp_path, content):
    (tmp_path / "located.json").write_text(content)
    with pytest.raises(TrainingError, match=r"located\.json is damaged; 'python -m ciri train locate"):
        read_placements(tmp_path)


def test_locating_passes_over_what_cannot_be_read_and_asks_first_whether_it_can_write(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    library = Library(stills=[tmp_path / "a.png"], cutouts=[CutOut("a", (tmp_path / "a.png",))])
    assert locate(library, tmp_path) == read_placements(tmp_path) == []
    assert library.skipped == [f"{tmp_path / 'a.png'} is not a readable RGBA image of 8 bits."]
    monkeypatch.setattr(CutOut, "images", lambda self: pytest.fail("searched before"))
    with pytest.raises(OSError, match="nowhere"):
        locate(library, tmp_path / "nowhere")


def write_sparsely_annotated(root, side=24, clips=1):
    """YouTube-VOS with all frames of a clip: a square moves by 2 pixels a frame, every 5th frame is annotated."""
    for clip in range(clips):
        for part in ("JPEGImages", "Annotations"):
            (root / "train" / part / f"clip{clip}").mkdir(parents=True)
        for t in range(16):
            image, mask = texture(7 + clip, 64, 96), np.zeros((64, 96), np.uint8)
            mask[20 : 20 + side, 10 + 2 * t : 10 + 2 * t + side] = 128
            image[mask > 0] = (0, 0, 255)
            cv2.imwrite(str(root / f"train/JPEGImages/clip{clip}/{t:05d}.jpg"), image)
            if t % 5 == 0:
                cv2.imwrite(str(root / f"train/Annotations/clip{clip}/{t:05d}.png"), mask)
    return root


def test_a_sparsely_annotated_clip_gives_a_track_of_its_annotated_frames(tmp_path):
    library = open_library(write_sparsely_annotated(tmp_path))
    bank = load_bank(library, [], height=64, width=96, device="cpu", workers=1)
    assert bank.clips == [(0, 16)] and [frames for frames, _ in bank.tracks] == [[0, 5, 10, 15]]
    for frame, mask in zip(*bank.tracks[0], strict=True):
        red = bank.frames[frame, 0].int() - bank.frames[frame, 1].int() > 128
        assert ((bank.masks[mask] > 127) ^ red).float().mean() < 0.02
    # it is also what is pasted into other scenes
    assert bank.casts == [(0, 4)]
    shorter = load_bank(library, [], height=64, width=96, device="cpu", workers=1, clip_frames=8)
    assert [frames for frames, _ in shorter.tracks] == [[0, 5]]


def test_annotations_without_an_object_to_be_seen_are_refused(tmp_path):
    library = open_library(write_sparsely_annotated(tmp_path, side=4))
    with pytest.raises(TrainingError, match="No annotation of the 1 clips shows an object of 60 pixels"):
        load_bank(library, [], height=64, width=96, device="cpu", workers=1)


def test_the_mask_is_where_the_target_is_seen(bank, monkeypatch):
    """Scenes are black, targets come without others: then every bright pixel is target, and no other is."""
    monkeypatch.setattr(synth_vos, "film", lambda frames, dice: frames)
    black = replace(bank, frames=torch.zeros_like(bank.frames), sprites=bank.sprites.clone())
    black.sprites[:, :3] = black.sprites[:, 3:]
    recipe = Recipe(4, annotated=0.0, crowd=0.0, union=0.0, twin=0.0, blur=0.0, leave=0.5)
    sample = synthesise(black, recipe, 12, Dice(5, "cpu"))
    # the recolouring of sprites keeps them above a third
    seen = sample.frames.mean(2, keepdim=True) > 0.35
    assert sample.usable.sum() >= 6
    scores = jaccard(seen, sample.masks > 0.5)[sample.usable]
    assert float(scores.mean()) > 0.85
    outside = seen & (sample.masks < 0.5)
    assert float(outside.float().mean()) < 0.01
    assert float(sample.masks.sum((2, 3, 4)).std(1)[sample.usable].mean()) > 5, "targets move and change"


def test_company_is_about_the_target(bank, monkeypatch):
    """Every object is white over black scenes: what is bright and no target is company, sprite or scene's object."""
    monkeypatch.setattr(synth_vos, "film", lambda frames, dice: frames)
    white = replace(bank, frames=torch.zeros_like(bank.frames), sprites=bank.sprites.clone())
    white.sprites[:, :3] = white.sprites[:, 3:]
    for index, masks in white.tracks:
        white.frames[index] = white.masks[masks][:, None].expand(-1, 3, -1, -1)
    recipe = Recipe(4, annotated=0.0, crowd=0.0, union=0.0, twin=0.0, blur=0.0, leave=0.0, camera=0.0, company=1.0)

    def about(**options):
        """The share of clips in whose first and last frame others are seen close to the target, and of others there."""
        sample = synthesise(white, replace(recipe, **options), 24, Dice(3, "cpu"))
        others = (sample.frames.mean(2, keepdim=True) > 0.35).float()
        near, rims = (F.max_pool2d(sample.masks.flatten(0, 1), 2 * r + 1, 1, r).view_as(others) for r in (30, 3))
        others = others * (1 - rims)
        seen = ((others * near).sum((2, 3, 4)) > 50).float().mean(0)
        return float(seen[0]), float(seen[-1]), float((others * near).sum() / others.sum())

    first, last, share = about()
    assert first > 0.6 and last > 0.5 and share > 0.7
    # what is in the scene anyhow
    assert about(company=0.0)[0] < 0.3


def test_annotated_objects_move_with_their_scene(bank, monkeypatch):
    """Mask and picture of an annotated scene go through the same deformation: paint the object white to see it."""
    monkeypatch.setattr(synth_vos, "film", lambda frames, dice: frames)
    white = replace(bank, frames=torch.zeros_like(bank.frames))
    for index, masks in white.tracks:
        white.frames[index] = white.masks[masks][:, None].expand(-1, 3, -1, -1)
    for moving in (0.0, 1.0):
        recipe = Recipe(4, annotated=1.0, moving=moving, camera=1.0, crowd=0.0, union=0.0)
        sample = synthesise(white, recipe, 6, Dice(2, "cpu"))
        assert torch.equal(sample.frames[:, :, :1] > 0.5, sample.masks > 0.5)
        assert sample.usable.any()


def test_the_same_seed_makes_the_same_clips(bank):
    one, two, other = (synthesise(bank, synth_vos.CLIPS, 2, Dice(seed, "cpu")) for seed in (1, 1, 2))
    assert torch.equal(one.frames, two.frames) and torch.equal(one.masks, two.masks)
    assert not torch.equal(one.frames, other.frames)
    assert 0 <= float(one.frames.min()) and float(one.frames.max()) <= 1
    assert set(one.masks.unique().tolist()) <= {0.0, 1.0}


def test_compression_keeps_the_picture_and_loses_detail():
    frames = torch.rand(2, 1, 3, 32, 48)
    pressed = compress(frames, Dice(0, "cpu"))
    smooth = torch.full_like(frames, 0.5)
    assert 1e-3 < float((pressed - frames).abs().mean()) < 0.1
    assert torch.allclose(compress(smooth, Dice(0, "cpu")), smooth, atol=0.02)


def test_the_batched_read_is_the_engines_read():
    torch.manual_seed(0)
    keys, values, query = torch.randn(2, 8, 50), torch.randn(2, 5, 50), torch.randn(2, 8, 30)
    batched = read_batch(keys, values, query, 7)
    for b in range(2):
        single = read(keys[b].T.contiguous(), values[b].T[None].contiguous(), query[b].T.contiguous(), 7)
        assert torch.allclose(batched[b].T, single[0], atol=1e-5)


@pytest.mark.parametrize(("every", "keep_last"), [(5, True), (2, False), (1, False)])
def test_training_propagates_as_the_engine_does(every, keep_last):
    """The same network, clip and memory policy: the unrolled clip and the engine agree on every frame."""
    torch.manual_seed(1)
    network = LiteNetwork().eval()
    # a head that begins at zero would hide what memory answers
    torch.nn.init.normal_(network.decoder.predict4.weight, std=0.1)
    frames, first = torch.rand(1, 5, 3, 48, 64), torch.zeros(1, 1, 48, 64)
    first[..., 10:30, 12:40] = 1
    # in whole 255ths, as the engine keeps them
    hints = torch.randint(0, 256, (1, 5, 2, 48, 64)) / 255
    hints[:, :, 1:] = 0.5

    class Guide:
        def propagate(self, clip, masks, keys, *, on_step):
            return MaskTrack(hints[0, :, :1], torch.full((5,), 0.5))

    with torch.no_grad():
        ours = torch.sigmoid(2 * unroll(network, frames, first, hints, every=every, keep_last=keep_last))[0]
    engine = MemoryPropagator(
        network,
        precision="fp32",
        memory_every=every,
        include_last=keep_last,
        crop_decoding=False,
        store_above=None,
        guide=Guide(),
    )
    track = engine.propagate(frames[0], first, [0])
    assert torch.allclose(track.probs[1:], ours, atol=2e-4)


@pytest.fixture(scope="module")
def clips(bank):
    made = [hinted_clip(bank, Dice(seed, "cpu"), FlowPropagator()) for seed in range(12)]
    return [clip for clip in made if clip is not None]


def test_clips_come_with_the_masks_that_were_carried_through_them(clips):
    assert len(clips) >= 6
    assert {len(c.frames) for c in clips} <= {LENGTH, 3}
    for clip in clips:
        assert clip.hints.shape == clip.masks.shape == (len(clip.frames), HEIGHT, WIDTH)
        assert torch.equal(clip.hints[0] > 127, clip.masks[0] > 127) and clip.certainty[0] == 1
    # on the whole they are right, and not everywhere
    samples = [stack([clip], len(clip.frames)) for clip in clips]
    scores = torch.cat([jaccard(hints[:, 1:, :1] > 0.5, s.masks[:, 1:] > 0.5)[0] for s, hints in samples])
    assert 0.3 < float(scores.mean()) < 0.999


def test_real_frames_between_annotated_ones_are_walked_through(bank, monkeypatch):
    monkeypatch.setattr(propagator_pool, "film", lambda frames, dice: frames)
    walked = []

    class Watcher:
        def propagate(self, frames, masks, keys):
            walked.append(frames)
            return MaskTrack(
                torch.arange(len(frames)).view(-1, 1, 1, 1).expand(-1, 1, HEIGHT, WIDTH) / 10, torch.ones(99)
            )

    clip = hinted_clip(bank, Dice(1, "cpu"), Watcher(), recipe=replace(COMPOSITES, annotated=1.0))
    # annotated are frames 0, 2 and 4 of the film, or backwards
    assert len(walked[0]) == 5 and [int(h.max()) for h in clip.hints] == [0, 51, 102]
    film = bank.frames[:5].float() / 255
    assert any(torch.equal(walked[0], turned) for turned in (film, film.flip(0), film.flip(-1), film.flip(0, -1)))


def test_windows_hold_the_target_and_keep_hints_in_place(bank, clips):
    pool = HintedPool(bank, seed=1)
    # hints that tell where and when they come from
    for clip in clips:
        marked = replace(clip, hints=clip.masks, certainty=torch.arange(len(clip.frames)) / 100)
        pool.clips.append(marked)
    pool.made = 10**9
    sample, hints = pool.draw(40, 3, (48, 64), Dice(3, "cpu"))
    assert sample.frames.shape == (40, 3, 3, 48, 64) and sample.usable.float().mean() > 0.8
    times = (100 * hints[:, :, 1].amax((2, 3))).round()
    kept = [i for i in range(40) if torch.equal(hints[i, :, :1], sample.masks[i])]
    assert len(kept) > 15
    for i in kept:
        seen = sample.masks[i].amax((1, 2, 3)) > 0
        assert sample.masks[i, 0].any() and bool((times[i][seen][1:] > times[i][seen][:-1]).all())


def test_enlarged_windows_show_less_of_the_clip_larger(bank, clips):
    clip = replace(clips[0], hints=clips[0].masks)
    # a ramp tells which part is seen, and how large
    ramp = (torch.arange(WIDTH) / WIDTH * 255).byte().expand(len(clip.frames), 3, HEIGHT, WIDTH)
    pool = HintedPool(bank, seed=1)
    pool.clips.append(replace(clip, frames=ramp))
    pool.made = 10**9
    sample, hints = pool.draw(60, 2, (48, 64), Dice(3, "cpu"), enlarge=2.0)
    assert sample.frames.shape == (60, 2, 3, 48, 64) and set(sample.masks.unique().tolist()) <= {0.0, 1.0}
    slopes = (sample.frames[:, 0, 0, 24, 40] - sample.frames[:, 0, 0, 24, 24]).abs() / 16 * WIDTH
    assert 0.45 < slopes.min() < 0.65 and 0.85 < slopes.max() < 1.1
    unspoiled = [i for i in range(60) if bool(((hints[i, :, 0] > 0.5) == (sample.masks[i, :, 0] > 0.5)).all())]
    assert len(unspoiled) > 20


def test_spoiled_hints_are_of_every_kind_and_the_rest_is_left_alone():
    masks = torch.zeros(200, 2, 1, 48, 64)
    masks[..., 16:32, 20:44] = 1
    hints = torch.cat([masks, torch.ones_like(masks)], 2)
    spoiled = spoil(masks, hints, Dice(2, "cpu"))
    same = (spoiled == hints).flatten(1).all(1)
    empty = (spoiled == 0).flatten(1).all(1)
    wrong = ~same & ~empty
    assert 0.5 < float(same.float().mean()) < 0.7 and 0.03 < float(empty.float().mean()) < 0.2
    areas = spoiled[wrong, :, :1].sum((1, 2, 3, 4)) / masks[0].sum()
    assert areas.min() < 0.8 and areas.max() > 1.2
    assert torch.equal(hints[:, :, :1], masks), "the given hints are not written to"


def test_the_pool_makes_clips_as_they_are_used_up(bank):
    pool = HintedPool(bank, seed=1, capacity=3, reuse=2)
    pool.fill(2)
    first = pool.made
    for step in range(4):
        pool.draw(2, 3, (48, 64), Dice(step, "cpu"))
    assert pool.made == max(first, 4) and len(pool.clips) <= 3
    again = HintedPool(bank, seed=1, capacity=3, reuse=2, workers=2)
    again.fill(2)
    assert torch.equal(again.clips[0].frames, pool.clips[0].frames) or pool.made > 3
    again.close()


def test_a_kind_without_a_clip_is_not_examined(bank, tmp_path):
    full = replace(bank, masks=torch.full_like(bank.masks, 255))
    assert any(len(index) > 2 for index, _ in full.tracks)
    examiner = Examiner(full, tmp_path, seed=1, count=1, length=3)
    values = examiner.look(LiteNetwork(folded=False), 7)
    assert set(values) == {"J pasted", "J pasted, hints", "J pasted, without hints"}
    assert [file.name for file in tmp_path.iterdir()] == ["pasted_000007.jpg"]


def test_the_loss_is_least_at_the_truth_and_ignores_unusable_clips():
    masks = (torch.rand(2, 3, 1, 16, 16) > 0.5).float()
    sample = Sample(torch.zeros(2, 3, 3, 16, 16), masks, torch.tensor([True, False]))
    logits = (20 * masks[:, 1:] - 10).requires_grad_()
    right = segmentation_loss(logits, sample, bootstrap=1.0)
    assert all(float(value.detach()) < 0.01 for value in right.values())
    wrong = segmentation_loss(torch.zeros_like(logits), sample, bootstrap=1.0)
    assert float(wrong["cross entropy"]) == pytest.approx(np.log(2), rel=1e-5)
    inverse = segmentation_loss(-logits, sample, bootstrap=0.0)
    sum(inverse.values()).backward()
    assert logits.grad[0].abs().sum() > 0 and logits.grad[1].abs().sum() == 0


def test_bootstrapping_looks_at_the_hardest_pixels():
    masks, logits = torch.zeros(1, 2, 1, 10, 10), torch.full((1, 1, 1, 10, 10), -20.0)
    logits[..., 0, :5] = 1.0
    sample = Sample(torch.zeros(1, 2, 3, 10, 10), masks, torch.tensor([True]))
    hard = float(np.log1p(np.exp(2.0)))
    assert float(segmentation_loss(logits, sample, bootstrap=0.0)["cross entropy"]) == pytest.approx(0.05 * hard)
    expected = 5 * hard / 15
    assert float(segmentation_loss(logits, sample, bootstrap=1.0)["cross entropy"]) == pytest.approx(expected)


def test_the_learning_rate_warms_up_and_comes_down():
    assert learning_pace(0, 0.0) == pytest.approx(0.01)
    assert learning_pace(1000, 0.0) == pytest.approx(1.0)
    assert learning_pace(1000, 1.0) == pytest.approx(0.02)


def test_a_run_is_trained_continued_and_exported(pack, placements, tmp_path):
    said = []
    settings = Settings(
        pack, tmp_path / "run", height=64, width=96, window=(48, 64), batch=1, steps=1, workers=2, look_every=10
    )
    train(settings, say=said.append)
    weights = train(replace(settings, steps=2), say=said.append)
    steps = sorted(int(f.stem.split("_")[1]) for f in (tmp_path / "run/checkpoints").iterdir())
    assert steps == [1, 2] and "2 steps done" in said[-1]
    network = load_lite(weights)
    text = weights.with_suffix(".md").read_text()
    assert "2 steps at 96x64" in text and "| pasted | 0." in text and "| pasted, hints | 0." in text
    assert network.state_dict().keys() == LiteNetwork().state_dict().keys()
    assert list((tmp_path / "run/samples").glob("pasted_*.jpg")) and (tmp_path / "run/curves.png").exists()
    mean = train(replace(settings, steps=2, average_with=SHIPPED))
    assert f"--average-with {SHIPPED.name}" in mean.with_suffix(".md").read_text()
    name = "decoder.out2.weight"
    ours, theirs, both = (n.state_dict()[name] for n in (network, load_lite(SHIPPED), load_lite(mean)))
    torch.testing.assert_close(both, (ours + theirs) / 2, atol=1e-3, rtol=1e-3)
    with pytest.raises(TrainingError, match="another run"):
        train(replace(settings, seed=9))


def test_a_full_disk_does_not_end_a_training(pack, placements, tmp_path, monkeypatch):
    sizes = dict(height=64, width=96, window=(48, 64), batch=2, pool=8, workers=0, look_every=1)
    settings, said, exports = Settings(pack, tmp_path, steps=2, **sizes), [], []
    written = training.export

    def full(network, file, facts):
        exports.append(int(facts["steps"]))
        raise CheckpointError(f"{file} could not be written: no space left on device")

    monkeypatch.setattr(training, "export", full)
    with pytest.raises(CheckpointError, match="trained weights could not be written.*the same command again"):
        train(settings, say=said.append)
    assert exports == [1, 2, 2], "after both looks, and once more at the end"
    assert any("The weights of step 1 could not be written" in note and "went on" in note for note in said)
    monkeypatch.setattr(training, "export", written)
    assert load_lite(train(settings)) and (tmp_path / "propagator_lite.md").exists()


def test_a_run_on_a_graphics_card(pack, placements, tmp_path):
    sizes = dict(height=64, width=96, window=(48, 64), batch=2, pool=8, steps=2, workers=0, look_every=2)
    with pretended_gpu() as device:
        weights = train(Settings(pack, tmp_path, device=str(device), enlarge=2.0, **sizes))
    assert "--enlarge 2 " in weights.with_suffix(".md").read_text()


def test_what_cannot_be_trained_is_refused(pack, tmp_path):
    for sides in ({"height": 50, "width": 96}, {"window": (50, 96)}):
        with pytest.raises(TrainingError, match="divisible by 16"):
            train(Settings(pack, tmp_path / "a", **sides))
    for wrong, words in (({"enlarge": 0.5}, "enlarged by up to 0.5"), ({"own_share": 2.0}, "expected 0 to 1")):
        with pytest.raises(TrainingError, match=words):
            train(Settings(pack, tmp_path / "a", **wrong))
    with pytest.raises(TrainingError, match="EfficientNet-Lite0"):
        train(Settings(pack, tmp_path / "b", height=64, width=96, workers=2, init=tmp_path / "missing.safetensors"))
    with pytest.raises(TrainingError, match="cannot be used"):
        train(Settings(pack, tmp_path / "c", device="cuda:99"))


@pytest.mark.parametrize("name", ["init", "go_on_from", "average_with"])
def test_weights_are_looked_for_before_the_data_is_read(tmp_path, name):
    # what is averaged with was opened at the first look only, and the others after hours of decoding
    file = tmp_path / "gone.safetensors"
    with pytest.raises(CiriError, match=r"gone\.safetensors"):
        train(Settings(tmp_path / "no data", tmp_path / "run", **{name: file}))
    assert not (tmp_path / "run").exists()


def test_the_card_s_command_makes_the_same_settings_again(tmp_path, monkeypatch):
    # each size is the other's usual one, and a seed has more digits than a rate
    made = dict(height=176, width=256, window=(240, 432), seed=1234567, steps=300, rate=1.5e-4, batch=4)
    written = training.command_of(Settings(tmp_path, tmp_path, **made))
    got = []
    monkeypatch.setattr(training, "train", lambda settings, **_: got.append(settings) or tmp_path)
    assert cli.main(shlex.split(written.replace("\\\n", " "))[3:]) == 0
    assert {name: getattr(got[0], name) for name in made} == made
