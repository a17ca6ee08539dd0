"""The nodes around the attention map: what they hand on is the library's, and their words are true."""

import pytest
import torch
import torch.nn.functional as F

from ciri.errors import CiriError, MaskError
from ciri.heat import heat
from ciri.inactivation.clip import complementary_attention
from ciri.inactivation.fusion import Fusion
from ciri.inactivation.learned import shipped
from ciri.inpainting.base import BackboneFacts
from tests.nodes.models import Grey
from tests.nodes.test_behaviour import clip, disc, shown_video


class Pools(Grey):
    """Grey, with an encoder: means over 8 x 8 pixels."""

    name = "pools"

    def encode(self, frames):
        return [F.avg_pool2d(frames, 8) - 0.5]


class Learned(Pools):
    """Pools, with a learned share of the masks."""

    def __init__(self):
        self.network = torch.nn.Module()
        self.network.fusion = Fusion(0.4)


def attend(run, **more):
    inputs = {"images": clip(), "first_mask": disc(), "masks": disc().repeat(4, 1, 1), "backbone": Pools()}
    return run("CIRI_ComplementaryAttention", **{**inputs, **more})


def test_attention_is_the_library_s_and_is_shown_as_heat(run):
    masks = disc().repeat(4, 1, 1)
    masks[3] = 0
    output = attend(run, masks=masks, painted_frame=-2, region=15.0)
    attention, report, shown = output.args
    frames = clip().movedim(-1, 1)
    expected = complementary_attention(frames, disc()[None, None], masks[:, None], Pools(), first_index=2, dilation=6)
    assert torch.equal(attention, expected[:, 0]) and attention.dtype == torch.float32
    assert torch.equal(shown, heat(frames, expected, outline=masks[:, None]).movedim(1, -1))
    assert shown_video(output).shape == (4, 40, 64, 3)
    inside = float(attention[masks > 0.5].mean())
    assert f"Mean attention {inside:.2f} inside the masks" in report
    assert "features of the encoder of pools" in report and "1 frames have an empty mask" in report


@pytest.mark.parametrize("shadow", [True, False])
def test_a_backbone_without_an_encoder_gets_the_learned_map(run, shadow):
    attention, report, _ = attend(run, backbone=Grey(), shadow=shadow).args
    frames, masks = clip().movedim(-1, 1), disc().repeat(4, 1, 1)[:, None]
    expected = complementary_attention(frames, disc()[None, None], masks, Grey(), shadow=shadow)
    assert torch.equal(attention, expected[:, 0])
    assert "what other frames show" in report


def test_of_what_is_kept_no_more_is_taken_than_the_masks_take(run):
    masks = 0.4 * disc().repeat(4, 1, 1)
    plain = attend(run, masks=masks, region=100.0).args[0]
    kept = torch.zeros(4, 40, 64)
    kept[1:, :, 32:] = 1
    attention = attend(run, masks=masks, region=100.0, kept=kept).args[0]
    assert (plain > masks)[kept > 0].any()
    assert torch.equal(attention, torch.where(kept > 0, torch.minimum(plain, masks), plain))


@pytest.mark.parametrize("backbone", [Pools(), Grey()])
def test_what_was_painted_beside_the_object_is_removed_too(run, backbone):
    """Propagate mask joins further objects with the first; attention is told of the first alone."""
    both = disc().repeat(4, 1, 1)
    both[:, 2:8, 50:60] = 1
    apart = attend(run, masks=both, backbone=backbone).args[0]
    together = attend(run, masks=both, first_mask=both[:1], backbone=backbone).args[0]
    assert torch.equal(apart, together)


@pytest.mark.parametrize("backbone", [Pools(), Grey()])
def test_masks_that_a_person_painted_again_are_believed(run, backbone):
    masks = disc().repeat(4, 1, 1)
    masks[2, 16:] = 0
    attended = attend(run, masks=masks, backbone=backbone, shadow=False).args[0]
    told = attend(run, masks=masks, backbone=backbone, shadow=False, key_frames="-2, -2").args[0]
    assert torch.equal(told[2], masks[2]) and not torch.equal(attended[2], masks[2])
    assert torch.equal(told[[0, 1, 3]], attended[[0, 1, 3]])
    with pytest.raises(MaskError, match="outside the clip"):
        attend(run, masks=masks, key_frames="4")


def test_a_network_of_a_fixed_size_is_asked_at_that_size(run):
    backbone = Pools()
    backbone.facts = BackboneFacts(fixed_size=(16, 24))
    assert attend(run, backbone=backbone).args[0].shape == (4, 40, 64)


@pytest.mark.parametrize("with_images", [True, False])
def test_fusion_is_equation_3(run, with_images):
    generator = torch.Generator().manual_seed(3)
    masks, attention = torch.rand((2, 4, 40, 64), generator=generator)
    images = {"images": clip()} if with_images else {}
    output = run("CIRI_FuseInactivation", masks=masks, attention=attention, beta=0.6, **images)
    fused, report, shown = output.args
    assert torch.allclose(fused, 0.6 * masks + 0.4 * attention, atol=1e-6)
    assert "beta 0.60, set by hand" in report
    ground = clip().movedim(-1, 1) if with_images else torch.zeros(4, 3, 40, 64)
    assert torch.equal(shown, heat(ground, fused[:, None], outline=masks[:, None]).movedim(1, -1))
    assert shown_video(output).shape == (4, 40, 64, 3)


def test_the_report_of_the_fusion_counts_what_was_added_and_what_was_given_back(run):
    masks, attention = torch.zeros(2, 10, 20), torch.zeros(2, 10, 20)
    masks[:, :, :4] = 1  # a fifth: not confirmed at beta 0.4, so given back
    attention[:, :, 10:15] = 1  # a quarter: added
    report = run("CIRI_FuseInactivation", masks=masks, attention=attention, beta=0.4).args[1]
    assert "Touched beyond the masks: 25.00% of the picture; given back inside them: 20.00%" in report


def test_a_learned_beta_counts_instead_of_the_slider(run):
    masks, attention = torch.ones(2, 8, 8), torch.zeros(2, 8, 8)
    fused, report, _ = run("CIRI_FuseInactivation", masks=masks, attention=attention, beta=0.9, backbone=Learned()).args
    assert torch.allclose(fused, torch.tensor(0.4)) and "beta 0.40, learned in training" in report
    fused, report, _ = run("CIRI_FuseInactivation", masks=masks, attention=attention, beta=0.9, backbone=Pools()).args
    assert torch.allclose(fused, torch.tensor(0.9)) and "set by hand" in report
    report = run("CIRI_FuseInactivation", masks=masks, attention=attention, backbone=Grey()).args[1]
    assert f"beta {float(shipped().fusion.beta):.2f}, learned in training" in report


def test_one_mask_is_held_for_the_clip_and_a_mask_without_batch_works(run):
    fused = run("CIRI_FuseInactivation", masks=disc(), attention=disc()[None], images=clip(), beta=0.7).args[0]
    assert torch.allclose(fused, disc().expand(4, -1, -1))


@pytest.mark.parametrize("with_images", [True, False])
def test_masks_of_any_type_and_shape_are_fused(run, with_images):
    masks = disc().repeat(4, 1, 1)
    images = {"images": clip()} if with_images else {}
    expected = run("CIRI_FuseInactivation", masks=masks, attention=masks, **images).args
    types = [masks.half(), masks.bfloat16(), masks.double(), masks.bool(), masks.to(torch.uint8), masks[:, None]]
    for given in types:
        fused, _, shown = run("CIRI_FuseInactivation", masks=given, attention=given, **images).args
        assert torch.equal(fused, expected[0]) and torch.equal(shown, expected[2])


def test_without_a_clip_a_single_mask_or_map_is_held_for_the_other(run):
    one, several = disc(), torch.rand((4, 40, 64), generator=torch.Generator().manual_seed(5))
    fused, report, shown = run("CIRI_FuseInactivation", masks=one, attention=several, beta=0.6).args
    assert torch.allclose(fused, 0.6 * one + 0.4 * several, atol=1e-6) and len(shown) == 4
    assert "One mask was given, so it was used for all 4 frames." in report
    fused, report, _ = run("CIRI_FuseInactivation", masks=several, attention=one[None], beta=0.6).args
    assert torch.allclose(fused, 0.6 * several + 0.4 * one, atol=1e-6)
    assert "One attention map was given" in report


def test_inputs_are_not_changed(run):
    images, masks = clip(), disc().repeat(4, 1, 1)
    kept = images.clone(), masks.clone()
    attention = attend(run, images=images, masks=masks).args[0]
    kept_attention = attention.clone()
    run("CIRI_FuseInactivation", masks=masks, attention=attention, images=images)
    assert torch.equal(images, kept[0]) and torch.equal(masks, kept[1]) and torch.equal(attention, kept_attention)


def test_interrupt_stops_within_a_step_and_the_next_run_is_whole(run):
    import comfy.model_management as management

    expected = attend(run).args[0]
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        attend(run)
    assert torch.equal(attend(run).args[0], expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"first_mask": torch.zeros(1, 40, 64)}, r"first mask is empty .*MaskEditor"),
        ({"first_mask": torch.zeros(1, 64, 64)}, "LoadImage gives for an image"),
        ({"first_mask": disc().repeat(2, 1, 1)}, "first_mask holds 2 masks"),
        ({"masks": disc().repeat(3, 1, 1)}, "holds 3 masks but the clip has 4 frames"),
        ({"painted_frame": 4}, "Frame number 4 is outside the clip"),
        ({"images": clip() * float("nan")}, "Frame 0 of the clip holds values that are not numbers"),
    ],
)
def test_attention_answers_bad_input_in_words(run, inputs, message):
    with pytest.raises(CiriError, match=message):
        attend(run, **inputs)


def test_fusion_answers_bad_input_in_words(run):
    with pytest.raises(MaskError, match="attention map holds 3 masks but the clip has 4 frames"):
        run("CIRI_FuseInactivation", masks=torch.rand(4, 8, 8), attention=torch.rand(3, 8, 8))
    with pytest.raises(MaskError, match="attention map is 16x8 but the frames are 8x8"):
        run("CIRI_FuseInactivation", masks=torch.rand(4, 8, 8), attention=torch.rand(4, 8, 16))
