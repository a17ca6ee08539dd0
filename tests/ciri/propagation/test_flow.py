"""The classical propagator on clips whose true masks are known because they are drawn here."""

import cv2
import numpy as np
import pytest
import torch

from ciri.errors import CiriError, MaskError
from ciri.numbering import ranges
from ciri.propagation import registry
from ciri.propagation.base import Propagator
from ciri.propagation.flow import FlowPropagator

SIZE = (96, 128)


def texture(seed, shape, low, high, grain=2.0):
    """Smooth coloured noise between two colours, float32 (H, W, 3)."""
    noise = np.random.default_rng(seed).standard_normal((*shape, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), grain)
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return np.float32(low) + noise * (np.float32(high) - np.float32(low))


def draw(centres, *, radii=None, size=SIZE, shift=(1.0, 0.5), seed=0, radius=16):
    """A textured disc over a textured background that moves by ``shift`` a frame.

    Args:
        centres: (x, y) of the disc in each frame, or None where it is absent.
        radii: its radius in each frame; the texture scales with it.

    Returns:
        frames (T, 3, H, W) and true masks (T, 1, H, W).
    """
    h, w = size
    wide = texture(seed, (h + 120, w + 120), (0.0, 0.2, 0.1), (0.5, 0.8, 0.5))
    skin = texture(seed + 1, (201, 201), (0.5, 0.1, 0.2), (1.0, 0.5, 0.7))
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    frames, masks = [], []
    for index, centre in enumerate(centres):
        frame = cv2.remap(wide, x + 20 + shift[0] * index, y + 20 + shift[1] * index, cv2.INTER_LINEAR)
        mask = np.zeros((h, w), bool)
        if centre is not None:
            r = radii[index] if radii else radius
            dx, dy = (x - centre[0]) / r, (y - centre[1]) / r
            mask = dx**2 + dy**2 <= 1
            painted = cv2.remap(skin, 100 + 20 * dx, 100 + 20 * dy, cv2.INTER_LINEAR)
            frame = np.where(mask[..., None], painted, frame)
        frames.append(frame)
        masks.append(mask)
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack(masks))[
        :, None
    ]


def overlap(track, masks):
    """Intersection over union of every frame; 1 where both are empty."""
    got = track.probs > 0.5
    union = (got | masks).flatten(1).sum(1)
    return torch.where(union > 0, (got & masks).flatten(1).sum(1) / union.clamp(min=1), 1.0)


def crossing(count=9):
    return [(30 + 5 * t, 40 + 2 * t) for t in range(count)]


def run(frames, masks, keys, **options):
    return FlowPropagator(**options).propagate(frames, masks[keys].float(), keys)


def test_it_is_a_propagator_without_weights():
    propagator = registry.build("flow")
    assert isinstance(propagator, Propagator)
    assert propagator.name == "flow" and list(propagator.parameters_to_refine()) == []


def test_an_unknown_name_or_option_is_refused_with_the_known_ones():
    with pytest.raises(CiriError, match="flow"):
        registry.build("no-such-thing")
    with pytest.raises(CiriError, match="no_such_option"):
        registry.build("flow", no_such_option=1)
    with pytest.raises(CiriError, match="64"):
        registry.build("flow", working_size=8)


@pytest.mark.parametrize("keys", [[0], [4], [8], [0, 8], [7, 1]], ids=str)
def test_a_moving_disc_over_a_moving_background(keys):
    frames, masks = draw(crossing())
    track = run(frames, masks, keys)
    assert overlap(track, masks).min() >= 0.9
    assert track.confidence.min() > 0.6 and (track.confidence[keys] == 1).all()
    assert (track.probs[keys] == masks[keys].float()).all()
    assert track.notes == []


def test_a_disc_that_moves_affinely():
    frames, masks = draw([(40 + 3 * t, 48) for t in range(9)], radii=[14 * 1.05**t for t in range(9)])
    assert overlap(run(frames, masks, [0]), masks).min() >= 0.9


def test_a_clip_larger_than_the_working_size_keeps_its_resolution():
    frames, masks = draw([(60 + 6 * t, 70 + 2 * t) for t in range(5)], size=(160, 224), radius=30)
    track = run(frames, masks, [0], working_size=112)
    assert track.probs.shape == (5, 1, 160, 224)
    assert overlap(track, masks).min() >= 0.9


def test_a_target_that_leaves_and_returns():
    path = [(30 - 12 * t, 48) for t in range(5)] + [None] * 3 + [(-18 + 12 * t, 48) for t in range(6)]
    frames, masks = draw(path, shift=(0.5, 0))
    present = masks.flatten(1).sum(1)
    gone = [int(i) for i in torch.nonzero(present == 0).flatten()]
    track = run(frames, masks, [0])
    assert gone and (track.confidence[gone] == 0).all()
    assert not track.probs[gone].any()
    assert set(gone) <= set(track.lost_frames())
    assert ranges(track.lost_frames()) in track.notes[0]
    back = [t for t in range(gone[-1] + 1, len(path)) if present[t] > 0.8 * present[0]]
    assert back and overlap(track, masks)[back].min() >= 0.8
    assert track.confidence[back].min() > 0.5


def test_nothing_is_found_where_only_background_follows():
    """The target never returns: every later frame is lost, none is guessed."""
    path = [(20 - 12 * t, 48) for t in range(4)] + [None] * 5
    frames, masks = draw(path)
    track = run(frames, masks, [0])
    assert not track.probs[4:].any() and not track.confidence[4:].any()


def test_a_scene_cut_is_reported_as_lost():
    frames, masks = draw(crossing(5))
    other, _ = draw([None] * 4, seed=9)
    # another scene: other texture, and other colours
    clip = torch.cat([frames, other.flip(1) * 0.5])
    track = FlowPropagator().propagate(clip, masks[:1].float(), [0])
    assert overlap(track, torch.cat([masks, torch.zeros(4, 1, *SIZE, dtype=torch.bool)])).min() >= 0.9
    assert track.lost_frames() == [5, 6, 7, 8]
    assert "cut" in track.notes[0] and "frame 5" in track.notes[0]
    backwards = FlowPropagator().propagate(clip.flip(0), masks[:1].float(), [8])
    assert backwards.lost_frames() == [0, 1, 2, 3] and "frame 4" in backwards.notes[0]


@pytest.mark.parametrize(("height", "width"), [(37, 53), (8, 8), (1, 9), (9, 1), (240, 17)])
def test_odd_and_tiny_sizes(height, width):
    frames = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 2, width // 2] = 1
    track = FlowPropagator().propagate(frames, mask, [1])
    assert track.probs.shape == (3, 1, height, width) and track.confidence.shape == (3,)
    assert torch.isfinite(track.probs).all() and track.probs.min() >= 0 and track.probs.max() <= 1
    assert (track.probs[1] == mask[0]).all() and track.confidence[1] == 1


def test_a_small_target_in_a_small_frame():
    frames, masks = draw([(15 + 2 * t, 18 + t) for t in range(6)], size=(37, 53), radius=6, shift=(0.3, 0))
    assert overlap(run(frames, masks, [0]), masks).min() >= 0.75


def test_a_still_pair_of_pixels_stays():
    frames, _ = draw([None] * 4, shift=(0, 0))
    frames[:, :, 40:42, 60] = torch.tensor([1.0, 0.0, 1.0])[None, :, None]
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., 40:42, 60] = 1
    track = FlowPropagator().propagate(frames, mask, [0])
    inside = track.probs[:, 0, 40:42, 60].amin(1)
    lost = set(track.lost_frames())
    # so few pixels may be given up, but then it has to say so, and nothing else may be marked
    assert all(inside[t] > 0.5 or t in lost for t in range(4))
    assert ((track.probs > 0.5).flatten(1).sum(1) <= 30).all()


def test_one_frame_is_its_own_mask():
    frames, masks = draw([(30, 40)])
    seen = []
    track = FlowPropagator().propagate(frames, masks.float(), [0], on_step=lambda d, t: seen.append((d, t)))
    assert (track.probs == masks.float()).all() and track.confidence.tolist() == [1.0]
    assert seen[-1] == (1, 1)


def test_a_step_is_reported_for_each_frame_and_may_stop_the_work():
    frames, masks = draw(crossing(5))
    seen = []
    FlowPropagator().propagate(frames, masks[:1].float(), [0], on_step=lambda d, t: seen.append((d, t)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    class Stop(Exception):
        pass

    calls = []

    def stop(done, total):
        calls.append(done)
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        FlowPropagator().propagate(frames, masks[:1].float(), [0], on_step=stop)
    assert calls == [1, 2]


def test_inputs_stay_as_they_were_and_a_second_run_gives_the_same():
    frames, masks = draw(crossing(5))
    key = masks[:1].float()
    kept = frames.clone(), key.clone()
    propagator = FlowPropagator()
    first, second = propagator.propagate(frames, key, [0]), propagator.propagate(frames, key, [0])
    assert torch.equal(frames, kept[0]) and torch.equal(key, kept[1])
    assert torch.equal(first.probs, second.probs) and torch.equal(first.confidence, second.confidence)
    with torch.inference_mode():
        inferred = propagator.propagate(frames.clone(), key.clone(), [0])
    assert torch.equal(first.probs, inferred.probs)


def test_annotations_that_cannot_be_used_are_refused():
    frames, masks = draw(crossing(3))
    with pytest.raises(MaskError, match="empty"):
        FlowPropagator().propagate(frames, torch.zeros(1, 1, *SIZE), [0])
    with pytest.raises(MaskError, match="whole frame"):
        FlowPropagator().propagate(frames, torch.ones(1, 1, *SIZE), [0])
    with pytest.raises(MaskError, match="outside the clip"):
        FlowPropagator().propagate(frames, masks[:1].float(), [7])
