"""Fades, flashes and dips of light, laid over clips without; and what changes a picture otherwise."""

import pytest
import torch

from ciri.exposure import LEAST, evened, exposure
from ciri.inactivation.learned import learned_attention, shipped
from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.remove import remove
from tests.ciri.inactivation.moving import moving_disc
from tests.ciri.test_shots import holes, scene

LIGHT = {
    "fade-out": [1, 1, 1, 1, 1, 0.75, 0.5, 0.25],
    "fade-in": [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1],
    "dip": [1, 1, 1, 0.5, 0.6, 1, 1, 1],
    "two levels": [1, 1, 1, 1, 0.6, 0.6, 0.6, 0.6],
}


def lit(clip, kind):
    return clip * torch.tensor(LIGHT[kind]).view(-1, 1, 1, 1)


@pytest.mark.parametrize("pan", [2, 6])
@pytest.mark.parametrize("kind", LIGHT)
def test_the_light_of_every_frame_is_measured(kind, pan):
    clip, light = lit(scene(0, pan=pan), kind), torch.tensor(LIGHT[kind])
    found = exposure(clip)
    assert torch.allclose(found, light / light.median(), rtol=0.02)
    assert torch.allclose(evened(clip, found), (clip / found.view(-1, 1, 1, 1)).clamp(max=1))


def test_frames_are_not_brightened_without_bounds():
    clip = scene(0) * torch.tensor([1, 1, 1, 1, 0.5, 0.25, 0.1, 0.05]).view(-1, 1, 1, 1)
    assert float(exposure(clip)[-1]) == pytest.approx(LEAST)


def test_what_moves_changes_no_light():
    assert exposure(scene(0)) is None and exposure(scene(0, pan=12)) is None
    assert exposure(scene(0)[:1]) is None and exposure(scene(0) * 0) is None
    clip = scene(0)
    for t in range(8):  # something dark comes in, until it fills half of the picture
        clip[t, :, :, : 10 * t] = 0.05
    assert exposure(clip) is None
    assert evened(clip, None) is clip


def test_light_that_is_unsure_is_left_alone():
    """Another scene, dimmer: what the light did there nobody can tell. In a clip that is cut that is no one's task."""
    clip = torch.cat([lit(scene(0), "dip"), 0.4 * scene(3)])
    assert exposure(clip) is None and exposure(clip[:8]) is not None


@pytest.mark.parametrize("kind", LIGHT)
def test_a_clip_whose_light_changes_is_filled_as_one_whose_light_does_not(kind):
    masks, target = holes(8), torch.tensor([0.9, 0.1, 0.8])[:, None, None]
    clip = torch.where(masks > 0, target, scene(0, pan=6))  # all that is hidden is shown in some frame
    steady = remove(clip, masks, FlowBackbone())
    filled = remove(lit(clip, kind), masks, FlowBackbone())
    error = (filled - lit(steady, kind)).abs().mul(masks).sum() / (3 * masks.sum())
    assert float(error) < 0.002
    # away from the target, the clip bit for bit
    away = (torch.nn.functional.max_pool2d(masks, 17, 1, 8) == 0).expand_as(clip)
    assert torch.equal(filled[away], lit(clip, kind)[away])


def test_attention_does_not_take_a_fade_for_a_target():
    masks, target = holes(8), torch.tensor([0.9, 0.1, 0.8])[:, None, None]
    clip = torch.where(masks > 0, target, scene(0))
    steady = learned_attention(clip, masks[:1], masks, shipped(), dilation=12).map(shadow=True)
    faded = learned_attention(lit(clip, "fade-out"), masks[:1], masks, shipped(), dilation=12).map(shadow=True)
    assert float((faded - steady).abs().sum() / masks.sum()) < 0.1


def test_a_target_that_was_painted_in_a_dark_frame_is_known_again():
    clip, masks, _ = moving_disc()
    wrong = masks.clone()
    for mask in wrong[1:]:
        columns = torch.nonzero(mask[0].any(0)).flatten()
        mask[..., int(columns[0]) : int(columns[0]) + 12] = 0  # a third of it
        mask[:, 30:44, int(columns[-1]) : int(columns[-1]) + 9] = 1  # and a spot beside it
    fade = torch.ones(len(clip), 1, 1, 1)
    fade[:4, 0, 0, 0] = torch.tensor([0.2, 0.4, 0.6, 0.8])
    found, usual = (learned_attention(x, masks[:1], wrong, shipped(), dilation=14).target for x in (clip * fade, clip))
    mistaken, mistaken_usually = (int(((x > 0.5) != (masks > 0.5)).sum()) for x in (found, usual))
    assert mistaken < 1.2 * mistaken_usually
