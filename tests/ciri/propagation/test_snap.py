"""Painted masks moved onto edges: the window, what is never touched, and the files."""

import pytest
import torch

from ciri.errors import CheckpointError, MaskError
from ciri.propagation import snap
from ciri.propagation.flow import FlowPropagator
from ciri.propagation.lite import LiteNetwork, load_lite
from ciri.propagation.snap import SHIPPED, Snapper, described, network_with, propagator_of, seen, shipped, snapped
from ciri.training.snap import export

HEIGHT, WIDTH = 120, 200


class Stub:
    """Takes the two outermost pixels of a mask off, and remembers what it was shown."""

    def __init__(self):
        self.seen = []

    def snap(self, frame, masks, *, reach=0.1):
        self.seen.append((float(frame.mean()), masks.clone()))
        return -torch.nn.functional.max_pool2d(-masks, 5, 1, 2)


def picture():
    """A bright square on a dark ramp, (3, H, W), and its mask (1, 1, H, W)."""
    ramp = torch.linspace(0.1, 0.4, WIDTH).expand(3, HEIGHT, WIDTH).clone()
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 40:80, 70:120] = 1
    ramp[0][mask[0, 0] > 0], ramp[1][mask[0, 0] > 0], ramp[2][mask[0, 0] > 0] = 0.9, 0.5, 0.2
    return ramp, mask


def widened(mask, pixels):
    return torch.nn.functional.max_pool2d(mask, 2 * pixels + 1, 1, pixels)


def overlap(a, b):
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("pixels", [0, 3, 6])
def test_the_shipped_network_finds_a_plain_edge(pixels):
    frame, mask = picture()
    paint = widened(mask, pixels)
    result = shipped().snap(frame, paint)
    assert result.shape == mask.shape and result.dtype == torch.float32
    assert overlap(result, mask) > 0.9


def test_far_from_what_was_painted_there_is_nothing():
    frame, mask = picture()
    mask[:] = 0
    mask[..., 4:12, 4:12] = 1
    result = shipped().snap(frame, mask)
    reach = round(snap.OUTWARDS * snap.REACH * HEIGHT)
    assert not result[..., 12 + reach :, :].any() and not result[..., 12 + reach :].any()


def test_the_window_and_its_size():
    mask = torch.zeros(240, 432)
    mask[100:140, 200:230] = 1
    assert snap._window(mask) == (36, 136, 204, 294)
    mask[0, 431] = 1
    top, _, bottom, right = snap._window(mask)
    assert (top, right) == (0, 432) and bottom == 240
    # as far as it goes, enlarged as the propagator enlarges; large windows shrink to what fits
    assert snap._working_size(100, 120) == (192, 240) and snap._working_size(104, 121) == (208, 240)
    h, w = snap._working_size(1080, 1920)
    assert h % 16 == w % 16 == 0 and h * w < 1.1 * snap.LARGEST and abs(w / h - 1920 / 1080) < 0.05
    assert snap._working_size(3, 900)[0] >= 32


def test_masks_of_other_sizes_positions_and_kinds():
    frame, mask = picture()
    for paint in (mask * 0, mask * 0.4):
        assert torch.equal(shipped().snap(frame, paint), paint)
    one = mask * 0
    one[..., 60, 100] = 1
    assert (shipped().snap(frame, one) > 0.5).any()  # a dot is never lost
    touching = torch.ones_like(mask)
    touching[..., :2, :] = 0
    assert shipped().snap(frame, touching).shape == mask.shape
    half = shipped().snap(frame, mask.half())
    assert torch.equal(half, shipped().snap(frame, mask))


def test_what_it_erases_altogether_comes_back_as_it_was():
    network = network_with(SHIPPED)
    with torch.no_grad():
        network.decoder.predict4.bias.fill_(-50.0)
    frame, mask = picture()
    assert torch.equal(Snapper(network, precision="fp32").snap(frame, mask), mask)


def test_an_edge_moves_no_further_than_it_may():
    frame, mask = picture()
    paint = widened(mask, 20)
    for reach in (0.0, 0.05, 0.1, 1.0):
        result = shipped().snap(frame, paint, reach=reach)
        pixels = round(reach * HEIGHT)
        kept = -widened(-paint, pixels) > 0.5  # a square's edge moves as the largest of both distances does
        beyond = widened(paint, round(snap.OUTWARDS * reach * HEIGHT)) < 0.5
        assert (result[kept] > 0.5).all() and not (result[beyond] > 0.5).any()
        if reach == 0:
            assert torch.equal(result, paint)
    assert overlap(result, mask) > overlap(paint, mask)


def test_depth_is_the_distance_to_the_nearest_pixel_of_the_other_kind():
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[5:20, 0:16] = True
    inside, outside = snap.beyond(mask, 4.5, 2.5)
    ys, xs = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    for deep, of, distance in ((inside, mask, 4.5), (outside, ~mask, 2.5)):
        others = torch.stack([ys[~of], xs[~of]], 1)
        nearest = torch.cdist(torch.stack([ys[of], xs[of]], 1), others).amin(1)
        expected = torch.zeros_like(of)
        expected[of] = nearest > distance
        assert torch.equal(deep, expected)
    assert snap.beyond(torch.ones(4, 4, dtype=torch.bool), 3, 3)[0].all()


def test_a_part_of_which_nothing_would_be_left_stays_whole():
    painted = torch.zeros(20, 30, dtype=torch.bool)
    painted[2:8, 2:8], painted[2:8, 12:18], painted[15, 25] = True, True, True
    found = torch.zeros_like(painted)
    found[4, 4] = found[18, 2] = True  # one pixel of the first part, and one of none
    expected = painted.clone()
    expected[:, :10] = False
    assert torch.equal(snap._lost_parts(painted, found), expected)
    assert not snap._lost_parts(painted, painted).any() and not snap._lost_parts(0 * found > 0, found).any()


def test_it_is_one_decoding_of_the_window():
    """Against the network run by hand on a window that needs no resizing."""
    network = network_with(SHIPPED)
    frame, mask = picture()
    top, left, bottom, right = snap._window(mask[0, 0])
    size = snap._working_size(bottom - top, right - left)
    images = [
        torch.nn.functional.interpolate(x[..., top:bottom, left:right], size=size, mode="bilinear", antialias=True)
        for x in (frame[None], mask)
    ]
    with torch.no_grad():
        expected = torch.sigmoid(2 * network.decode(*seen(network, *images)))
    got = Snapper(network, precision="fp32").snap(frame, mask, reach=1.0)[..., top:bottom, left:right]
    expected = torch.nn.functional.interpolate(expected, size=got.shape[-2:], mode="bilinear")
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_every_mask_is_corrected_on_its_own_frame_but_what_goes_along():
    frames = torch.stack([torch.full((3, HEIGHT, WIDTH), value) for value in (0.1, 0.5, 0.9)])
    _, mask = picture()
    stub = Stub()
    result, kept, notes = snapped(frames, torch.cat([mask, mask, mask]), [1, 1, -1], stub, keep=mask[0])
    assert [round(value, 1) for value, _ in stub.seen] == [0.5, 0.9, 0.5]
    assert result.shape == (3, 1, HEIGHT, WIDTH) and kept.shape == (1, 1, HEIGHT, WIDTH)
    assert [int(one.sum()) for one in result] == [36 * 46, 40 * 50, 36 * 46]
    less = round(100 * (1 - 36 * 46 / (40 * 50)))
    assert len(notes) == 2 and f"mask of frame 2 was moved onto the object's edges: {less} % less" in notes[1]
    assert described(mask[0], mask[0], frame=0) == ""
    assert snapped(frames, mask, [0], stub)[1] is None


def test_masks_that_cannot_be_are_refused_as_elsewhere():
    frames, mask = torch.rand(3, 3, HEIGHT, WIDTH), picture()[1]
    with pytest.raises(MaskError, match="first mask is empty"):
        snapped(frames, 0 * mask, [0], Stub())
    with pytest.raises(MaskError, match="1 annotated masks but 2"):
        snapped(frames, mask, [0, 1], Stub())


def test_the_pipeline_follows_and_spares_what_was_corrected(monkeypatch):
    from ciri import pipeline
    from ciri.inpainting.flow import FlowBackbone

    seen = {}

    def follow(propagator, frames, masks, numbers, *, keep, on_step):
        seen.update(masks=masks, keep=keep)
        return propagator.propagate(frames, masks, numbers)

    monkeypatch.setattr(pipeline, "follow", follow)
    frame, mask = picture()
    frames = frame[None].repeat(3, 1, 1, 1)
    keep = torch.zeros_like(mask)
    keep[..., 90:110, 10:40] = 1
    removal = pipeline.remove_object(
        frames, mask, propagator=FlowPropagator(), backbone=FlowBackbone(), keep=keep, snapper=Stub()
    )
    assert seen["masks"].sum() == 36 * 46 and seen["keep"].sum() == 16 * 26
    assert removal.masks.probs[0].sum() == 36 * 46 and "moved onto the object's edges" in removal.notes[0]


def test_weights_of_another_propagator_or_another_network_are_refused(tmp_path):
    torch.manual_seed(0)
    facts = {"propagator": "123"}
    export(LiteNetwork().decoder, tmp_path / "snap.safetensors", facts)
    with pytest.raises(CheckpointError, match=r"trained with another propagator \(123\).*train snap"):
        network_with(tmp_path / "snap.safetensors")
    with pytest.raises(CheckpointError, match="expected snap_lite"):
        network_with(snap.PROPAGATOR)
    export(
        LiteNetwork().decoder, tmp_path / "snap.safetensors", {"propagator": propagator_of(load_lite(snap.PROPAGATOR))}
    )
    assert isinstance(network_with(tmp_path / "snap.safetensors"), LiteNetwork)
