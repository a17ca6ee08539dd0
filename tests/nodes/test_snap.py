"""What was painted, corrected by the node."""

import pytest
import torch

from ciri.errors import MaskError
from ciri.propagation.snap import shipped

HEIGHT, WIDTH = 96, 160


def scene():
    """Three frames of a bright disc on a dark, patterned ground; its mask, and one that is 6 pixels too wide."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    ground = 0.25 + 0.05 * torch.sin(x / 5) * torch.cos(y / 7)
    distance = ((y - 48) ** 2 + (x - 80) ** 2).float().sqrt()
    disc = (distance < 24).float()
    frame = torch.stack([torch.lerp(ground, torch.tensor(c), disc) for c in (0.9, 0.8, 0.2)], -1)
    return frame[None].repeat(3, 1, 1, 1), disc, (distance < 30).float()


def overlap(a, b):
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / (a | b).sum())


def test_a_mask_that_is_too_wide_is_moved_onto_the_edge(run):
    images, disc, wide = scene()
    output = run("CIRI_SnapMask", images=images, mask=wide, painted_frame=1, reach=10.0)
    mask, report, shown = output.args
    assert mask.shape == (1, HEIGHT, WIDTH) and mask.min() >= 0 and mask.max() <= 1
    assert overlap(wide, disc) < 0.7 and overlap(mask[0], disc) > 0.9
    assert "mask of frame 1" in report and "% less of it" in report
    assert shown.shape == (1, HEIGHT, WIDTH, 3)
    assert len(output.ui.as_dict()["images"]) == 1


def test_each_mask_of_a_batch_is_corrected_by_itself(run):
    images, _, wide = scene()
    other = torch.zeros_like(wide)
    other[4:16, 4:20] = 1
    both = run("CIRI_SnapMask", images=images, mask=torch.stack([wide, other]), painted_frame=-1, reach=10.0).args[0]
    for got, mask in zip(both, (wide, other), strict=True):
        assert torch.equal(got, run("CIRI_SnapMask", images=images, mask=mask, painted_frame=2, reach=10.0).args[0][0])


def test_it_is_what_the_library_makes(run):
    images, _, wide = scene()
    mask = run("CIRI_SnapMask", images=images, mask=wide, painted_frame=0, reach=10.0).args[0]
    assert torch.equal(mask, shipped().snap(images[0].permute(2, 0, 1), wide[None, None])[:, 0])


def test_nothing_moves_where_nothing_may(run):
    images, _, wide = scene()
    mask, report, _ = run("CIRI_SnapMask", images=images, mask=wide, painted_frame=0, reach=0.0).args
    assert torch.equal(mask[0], wide) and "on the object's edges already" in report


def test_bad_masks_and_frames_are_named(run):
    images, _, wide = scene()
    with pytest.raises(MaskError, match="painted mask is empty"):
        run("CIRI_SnapMask", images=images, mask=0 * wide, painted_frame=0, reach=10.0)
    with pytest.raises(MaskError, match="Frame number 3 is outside"):
        run("CIRI_SnapMask", images=images, mask=wide, painted_frame=3, reach=10.0)
    with pytest.raises(MaskError, match="aspect ratios differ"):
        run("CIRI_SnapMask", images=images, mask=wide[:, :96], painted_frame=0, reach=10.0)
