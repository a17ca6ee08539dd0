"""Masks that drop out, through the node."""

import pytest
import torch

from ciri.errors import MaskError
from ciri.propagation.flow import FlowPropagator
from tests.nodes.test_behaviour import shown_video
from tests.nodes.test_residue import CUT, FRAMES, HEIGHT, WIDTH, scene


def bridge(run, images, masks):
    return run("CIRI_BridgeMasks", images=images, masks=masks, propagator=FlowPropagator())


@pytest.mark.parametrize("left", [34, 0])
def test_a_part_and_all_of_a_mask_come_back(run, left):
    images, first, masks = scene()
    masks[CUT, left:] = 0
    output = bridge(run, images, masks)
    bridged, report, shown = output.args
    others = [t for t in range(FRAMES) if t != CUT]
    assert torch.equal(bridged[others], masks[others])
    assert (bridged[CUT] >= masks[CUT]).all()
    wrong = ((bridged[CUT] > 0.5) != (first[0] > 0.5)).sum() / first[0].sum()
    assert wrong < 0.1 < (first[0] - masks[CUT]).sum() / first[0].sum()
    assert f"dropped out in frames {CUT}: flow bridged" in report
    assert shown.shape == shown_video(output).shape == (FRAMES, HEIGHT, WIDTH, 3)
    # the magenta of the given mask, and the green of the outline where the new one ends
    assert (shown[0, 24, 48] - images[0, 24, 48])[2] > 0.1
    below = shown[CUT, 48:50, 40:56].mean((0, 1))
    assert below[1] > below[0] + 0.2


def test_whole_masks_come_back_as_they_are(run):
    images, first, _ = scene()
    whole = first.repeat(FRAMES, 1, 1)
    bridged, report, _ = bridge(run, images, whole).args
    assert torch.equal(bridged, whole) and "No mask drops out." in report
    # one mask for the whole clip
    bridged, report, _ = bridge(run, images, first).args
    assert torch.equal(bridged, whole) and "used for all 6 frames" in report


def test_empty_masks_stay_empty(run):
    images, _, masks = scene()
    bridged, report, _ = bridge(run, images, 0 * masks).args
    assert bridged.sum() == 0 and "No mask drops out." in report


def test_another_number_of_masks_is_named(run):
    images, _, masks = scene()
    with pytest.raises(MaskError, match="5 masks but the clip has 6 frames"):
        bridge(run, images, masks[:5])
