import cv2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ciri.errors import CheckpointError, OutOfMemoryError
from ciri.frames import extent
from ciri.inpainting.base import Backbone
from ciri.inpainting.lite import LiteBackbone, Tiling, around, load_lite
from ciri.inpainting.lite_guidance import Guidance, find_copies, guidance
from ciri.inpainting.lite_network import (
    CANDIDATES,
    MULTIPLE,
    REACH,
    LiteConfig,
    LiteNetwork,
    candidates_of,
    shown_somewhere,
    soften,
    with_detail,
)
from ciri.inpainting.remove import remove

SMALL = LiteConfig(half=8, quarter=8, eighth=16, sixteenth=16, deep=2)


def pan(frames=6, height=48, width=64):
    """A texture that moves left by 3 pixels a frame, and a square target that stands still."""
    noise = torch.rand(1, 3, 12, 40, generator=torch.Generator().manual_seed(1))
    wide = torch.nn.functional.interpolate(noise, (height, max(160, width + 3 * frames)), mode="bicubic")[0].clamp(0, 1)
    clean = torch.stack([wide[:, :, 3 * t : 3 * t + width] for t in range(frames)])
    mask = torch.zeros(frames, 1, height, width)
    mask[:, :, 18:30, 28:37] = 1
    return clean, torch.where(mask > 0, torch.tensor([1.0, 0.0, 1.0])[:, None, None], clean), mask


def random_network(config=SMALL):
    torch.manual_seed(0)
    network = LiteNetwork(config)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.02 * torch.randn_like(p)
    return network


def guide_of(frames, mask):
    found = guidance(find_copies(frames, mask), range(len(frames)))
    return Guidance(*(getattr(found, n)[None] for n in found.__dataclass_fields__))


def test_copies_of_a_pan_show_what_is_behind():
    clean, frames, mask = pan()
    found = guidance(find_copies(frames, mask), range(6))
    hidden = (mask > 0).expand_as(clean)
    assert (found.base - clean)[~hidden].abs().max() == 0
    # the target is 9 px wide and 3 px a frame pass: the middle frames see all of it before or after
    assert (found.base[3] - clean[3])[hidden[3]].abs().mean() < 0.03
    assert (found.cues[:, :2] <= 1).all() and found.cues[3, :2].amax(0)[18:30, 28:37].min() > 0


def test_a_new_network_returns_nearly_the_copied_clip():
    _, frames, mask = pan()
    guide = guide_of(frames, mask)
    out = LiteNetwork(SMALL)(frames[None], guide, mask[None])
    share = torch.softmax(torch.tensor([3.0] + [0.0] * (CANDIDATES - 1)), 0)
    blended = (share[:, None, None, None] * candidates_of(guide)).sum(1)
    repaired = with_detail(blended, candidates_of(guide), guide.cues[0, :, :2])
    expected = torch.lerp(guide.base[0], repaired, shown_somewhere(guide))
    assert torch.allclose(out[0], expected, atol=1e-5)


def test_what_no_frame_shows_stays_as_it_was_synthesised():
    _, frames, _ = pan(2, 64, 96)
    mask = torch.zeros(2, 1, 64, 96)
    # two frames of a slow pan: the middle of a wide hole is never seen
    mask[:, :, 12:52, 20:76] = 1
    copies = find_copies(frames, mask)
    filled, base = LiteBackbone(random_network(), precision="fp32").inpaint(frames, mask), copies.fill
    found = guidance(copies, range(2)).cues[:, :2].amax(1) > 0
    near = torch.nn.functional.max_pool2d(found.float()[:, None], 13, 1, 6)[:, 0] > 0
    never = (mask[:, 0] > 0) & ~near
    assert never.any() and found.any()
    changed = (filled - base).abs().amax(1)
    assert changed[never].max() < 1e-6 and changed[found & (mask[:, 0] > 0)].max() > 1e-3


def test_softening_is_a_gaussian_blur():
    image = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(3))
    expected = cv2.GaussianBlur(image[0].permute(1, 2, 0).numpy(), (25, 25), 4.0, borderType=cv2.BORDER_REPLICATE)
    assert (soften(image, 4.0)[0].permute(1, 2, 0) - torch.from_numpy(expected)).abs().max() < 1e-3
    assert torch.allclose(soften(torch.full((1, 1, 9, 9), 0.3), 1.5), torch.tensor(0.3))


def test_half_precision_fills_as_full_precision_does():
    """On any processor: those without fast bf16 compute it too, slowly, and never choose it themselves."""
    _, frames, mask = pan(height=96, width=128)
    full, half = (load_lite(precision=precision).inpaint(frames, mask) for precision in ("fp32", "bf16"))
    away = (full - half).abs()[mask.expand_as(full) > 0]
    assert 0 < away.max() < 0.03 and away.mean() < 2e-3


def test_half_precision_does_not_round_the_colours_it_blends():
    frames, mask = pan()[1:]
    guide = guide_of(frames, mask)
    with torch.autocast("cpu", torch.bfloat16):
        candidates, shown = candidates_of(guide), shown_somewhere(guide)
    assert torch.equal(candidates, candidates_of(guide)) and torch.equal(shown, shown_somewhere(guide))


def test_the_network_does_not_see_inactivated_pixels():
    """Where everything near is inactivated, a change of the target changes nothing; without inactivation it does."""
    _, frames, mask = pan()
    network, guide = random_network(), guide_of(frames, mask)
    everywhere = torch.ones_like(mask)
    other = frames.clone()
    other[mask.expand_as(frames) > 0] = 0.2
    with torch.no_grad():
        same = network(frames[None], guide, everywhere[None]), network(other[None], guide, everywhere[None])
        differ = network(frames[None], guide, 0 * everywhere[None]), network(other[None], guide, 0 * everywhere[None])
    assert torch.equal(*same)
    assert not torch.allclose(*differ)


def test_a_gradient_reaches_the_map():
    _, frames, mask = pan()
    soft = (0.5 * mask[None]).requires_grad_()
    random_network()(frames[None], guide_of(frames, mask), soft).sum().backward()
    assert soft.grad.abs().sum() > 0


def test_the_hard_mask_variant_masks_the_picture():
    _, frames, mask = pan()
    network = random_network(LiteConfig(**{**SMALL.to_dict(), "gate": False}))
    other = frames.clone()
    other[mask.expand_as(frames) > 0] = 0.2
    with torch.no_grad():
        guide = guide_of(frames, mask)
        assert torch.equal(network(frames[None], guide, mask[None]), network(other[None], guide, mask[None]))


def test_clips_of_a_batch_do_not_mix():
    _, frames, mask = pan()
    network, guide = random_network().eval(), guide_of(frames, mask)
    two = Guidance(*(torch.cat([x, x.flip(-1)]) for x in (getattr(guide, n) for n in guide.__dataclass_fields__)))
    with torch.no_grad():
        alone = network(frames[None], guide, mask[None])
        both = network(torch.stack([frames, frames.flip(-1)]), two, torch.stack([mask, mask.flip(-1)]))
    assert torch.allclose(both[:1], alone, atol=1e-5)


@pytest.mark.parametrize("at", [(0, 0), (100, 150), (200, 300), (255, 383)])
def test_the_part_around_a_hole_reaches_as_far_as_the_picture_bears_on_it(at):
    covered = torch.zeros(256, 384, dtype=torch.bool)
    covered[at] = True
    for part, place, side in zip(around(covered), at, (256, 384), strict=True):
        assert part.start % MULTIPLE == 0 and (part.stop - part.start) % MULTIPLE == 0
        assert part.start <= max(place - REACH, 0) and part.stop >= min(place + REACH + 1, side)
        assert part.stop - part.start <= 2 * REACH + 2 * MULTIPLE


def test_working_on_the_part_around_the_hole_changes_next_to_nothing():
    """Against the network on the whole frame."""
    _, frames, mask = pan(3, 192, 256)
    network = random_network()
    found = LiteBackbone(network, precision="fp32").inpaint(frames, mask)
    guide = guide_of(frames, mask)
    with torch.no_grad():
        whole = network(frames[None], guide, mask[None])[0].clamp(0, 1)
    hidden = (mask > 0).expand_as(frames)
    base = find_copies(frames, mask).fill
    assert (found - whole)[hidden].abs().max() < 0.05 * (whole - base)[hidden].abs().max()
    assert torch.equal(found[~hidden], frames[~hidden])


def short_of_memory(backbone, most, error):
    """Let a backbone's network fail above so many pixels; returns the sizes that it was called with."""
    forward, sizes = backbone.network.forward, []

    def fails_above(frames, *rest):
        sizes.append(tuple(frames.shape[-2:]))
        if sizes[-1][0] * sizes[-1][1] > most:
            raise error
        return forward(frames, *rest)

    backbone.network.forward = fails_above
    return sizes


def two_holes():
    """Frames of 192 x 256 and a mask with a large hole and a small one."""
    clean, _, _ = pan(3, 192, 256)
    mask = torch.zeros(3, 1, 192, 256)
    mask[:, :, 60:140, 80:180] = mask[:, :, 20:30, 20:40] = 1
    return torch.where(mask > 0, torch.tensor([1.0, 0.0, 1.0])[:, None, None], clean), mask


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory"), MemoryError()]
)
@pytest.mark.parametrize("most", [160 * 192, 128 * 128])
def test_a_frame_is_filled_in_tiles_when_memory_runs_out(error, most):
    """The shipped network sees further than the tiles' margin of 48 pixels, but hardly: half a grey level of 255."""
    frames, mask = two_holes()
    whole, backbone = load_lite(precision="fp32").inpaint(frames, mask), load_lite(precision="fp32")
    sizes = short_of_memory(backbone, most, error)
    tiled = backbone.inpaint(frames, mask)
    hidden, base = (mask > 0).expand_as(frames), find_copies(frames, mask).fill
    assert (tiled - whole).abs().max() < 0.5 / 255
    assert (tiled - whole).abs()[hidden].mean() < 0.02 * (whole - base).abs()[hidden].mean()
    assert torch.equal(tiled[~hidden], frames[~hidden])
    # what has become small stays small: the frames after the first are not tried whole again
    tries = [i for i, (height, width) in enumerate(sizes) if height * width > most]
    assert tries[0] == 0 and len(tries) <= 3 and (len(sizes) - 1 - tries[-1]) % 3 == 0
    # and the next run begins as this one did
    backbone.inpaint(frames[:1], mask[:1])
    assert sizes.count(sizes[0]) == 2


@pytest.mark.parametrize("gate", [True, False])
def test_tiles_of_a_network_that_looks_at_single_pixels_are_exact(gate):
    """Nothing is left out, filled twice, or filled from what a failed try has written."""
    frames, mask = two_holes()
    backbone = LiteBackbone(LiteNetwork(LiteConfig(**{**SMALL.to_dict(), "gate": gate})), precision="fp32")
    whole = backbone.inpaint(frames, mask)
    sizes = short_of_memory(backbone, 128 * 128, MemoryError())
    # a new network blends by the same share everywhere; what differs is the order of sums
    torch.testing.assert_close(backbone.inpaint(frames, mask), whole, rtol=0, atol=1e-6)
    assert len(sizes) > 10


def test_running_out_of_memory_for_good_names_the_knobs():
    _, frames, mask = pan(2, 96, 128)
    backbone = LiteBackbone(LiteNetwork(SMALL), precision="fp32")
    sizes = short_of_memory(backbone, 64 * 64, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemoryError, match=r"lite filled 128x96 frames.*crop.*lower resolution"):
        backbone.inpaint(frames, mask)
    assert 1 <= len(sizes) < 8


def test_other_errors_pass_at_once():
    _, frames, mask = pan(2)
    backbone = LiteBackbone(LiteNetwork(SMALL), precision="fp32")
    sizes = short_of_memory(backbone, 0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        backbone.inpaint(frames, mask)
    assert len(sizes) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4))
def test_tiles_split_what_is_covered(seed, halvings):
    generator = torch.Generator().manual_seed(seed)
    covered = torch.rand(112, 160, generator=generator) > 0.5
    top, left = (int(torch.randint(0, n, (), generator=generator)) for n in (100, 150))
    covered[:top], covered[:, :left] = False, False
    covered[top, left] = True
    tiling, sides = Tiling(), [200]
    for _ in range(halvings):
        if tiling.halve(covered):
            sides.append(tiling.side)
    assert sides == sorted(set(sides), reverse=True)
    tiles = list(tiling.tiles(covered))
    assert torch.equal(torch.stack(tiles).sum(0), covered.long()) and all(tile.any() for tile in tiles)
    assert all(s.stop - s.start <= sides[-1] for tile in tiles for s in extent(tile))


def test_a_long_clip_is_filled_in_segments():
    _, frames, mask = pan(40)
    calls = []
    backbone = LiteBackbone(LiteNetwork(SMALL), precision="fp32", memory=1)
    backbone.before_run = lambda *size: calls.append(size)
    one = LiteBackbone(LiteNetwork(SMALL), precision="fp32")
    steps = []
    out = backbone.inpaint(frames, mask, on_step=lambda d, t: steps.append(d / t))
    assert calls == [(48, 64)] and steps == sorted(steps) and steps[-1] == 1
    # the copies of this pan lie a few frames away, well within a segment
    assert (out - one.inpaint(frames, mask)).abs().mean() < 2e-3


def test_a_clip_without_a_hole_comes_back():
    _, frames, mask = pan(3)
    assert torch.equal(LiteBackbone(LiteNetwork(SMALL), precision="fp32").inpaint(frames, 0 * mask), frames)


def test_the_backbone_fills_a_clip_of_any_length_and_leaves_the_rest():
    for count in (1, 5, 23):
        _, frames, mask = pan(count)
        backbone = LiteBackbone(LiteNetwork(SMALL), precision="fp32")
        assert isinstance(backbone, Backbone)
        done = []
        out = remove(frames, mask, backbone, on_step=lambda d, t, done=done: done.append(d / t))
        assert out.shape == frames.shape and torch.isfinite(out).all()
        assert torch.equal(out[:, :, :8], frames[:, :, :8])
        assert done == sorted(done) and done[-1] == 1


def test_encode_gives_three_scales():
    scales = LiteNetwork(SMALL).encode(torch.rand(2, 3, 32, 48))
    assert [tuple(s.shape[-2:]) for s in scales] == [(16, 24), (8, 12), (4, 6)]


def test_weights_of_something_else_are_refused(tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="train backbone"):
        load_lite(file)


def test_detail_comes_back_where_copies_are_not_trusted():
    base = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(4))
    candidates = torch.stack([base, base, base, soften(base, 1.5), soften(base, 4.0)], 1)
    blurred, trust = soften(base, 1.5), torch.zeros(1, 2, 32, 48)
    trust[:, 1, :, 24:] = 1
    found = with_detail(blurred, candidates, trust)
    assert torch.equal(found[..., 24:], blurred[..., 24:])
    # half of the way, of what is finer than the widest blur
    fine = (base - soften(base, 4.0)) - (blurred - soften(blurred, 4.0))
    torch.testing.assert_close(found[..., :24], (blurred + 0.5 * fine)[..., :24])
    # the fill itself loses nothing, and is given nothing
    torch.testing.assert_close(with_detail(base, candidates, trust), base)
