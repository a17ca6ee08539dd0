"""The learned attention: untrained it repeats the prediction; as shipped it finds what was missed, and the shadow."""

from unittest.mock import Mock

import pytest
import torch

from ciri.errors import CheckpointError, OutOfMemoryError
from ciri.frames import grow_mask
from ciri.inactivation import learned
from ciri.inactivation.attention_network import SHIPPED, AttentionNetwork, load_attention
from ciri.inactivation.fusion import fuse
from ciri.inactivation.learned import inactivation_map, learned_attention, shipped
from tests.ciri.inactivation.moving import moving_disc
from tests.unheard import Unheard


def overlap(a, b):
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / (a | b).sum())


def test_untrained_it_says_what_the_propagator_said_within_the_region():
    frames, masks, _ = moving_disc()
    soft = 0.9 * masks + 0.04
    found = learned_attention(frames, masks[:1], soft, AttentionNetwork().eval(), dilation=10)
    region = torch.cat([grow_mask((m[None] > 0.5).float(), 10) for m in soft])
    assert torch.allclose(found.target[1:], (0.94 * masks * region)[1:], atol=1e-5)  # what is faint is nothing
    assert torch.equal(found.target[0], masks[0]) and not found.shadow.any()


def test_a_part_that_was_missed_is_found_and_what_was_covered_in_vain_is_given_back():
    frames, masks, _ = moving_disc()
    wrong = masks.clone()
    for t in range(1, len(wrong)):
        columns = torch.nonzero(masks[t, 0].any(0)).flatten()
        wrong[t, :, :, int(columns[0]) : int(columns[0]) + 12] = 0  # a third of the disc
        wrong[t, :, 30:44, int(columns[-1]) : int(columns[-1]) + 9] = 1  # and a spot beside it
    found = learned_attention(frames, masks[:1], wrong, shipped(), dilation=14)
    before, after = overlap(wrong[1:], masks[1:]), overlap(found.target[1:], masks[1:])
    assert before < 0.75 and after > before + 0.12


def test_what_is_faint_counts_beside_the_prediction_and_further_off_only_what_is_certain():
    predicted = torch.zeros(1, 1, 12)
    predicted[..., :4] = torch.tensor([1.0, 1.0, 0.8, 0.3])
    found = torch.tensor([0.05, 0.2, 0.9, 0.4, 0.3, 0.3, 0.5, 0.75, 1.0, 0.0, 0.6, 0.1]).view(1, 1, 12)
    expected = torch.tensor([0.0, 1.0, 0.9, 0.4, 0.3, 0.0, 0.0, 0.5, 1.0, 0.0, 0.2, 0.0]).view(1, 1, 12)
    assert torch.allclose(learned.complemented(predicted, found, 2), expected)


def test_the_shadow_is_found_only_where_there_is_one():
    frames, masks, _ = moving_disc(shadow=0.45)
    with_it = learned_attention(frames, masks[:1], masks, shipped(), dilation=20)
    without = learned_attention(moving_disc()[0], masks[:1], masks, shipped(), dilation=20)
    below = torch.zeros_like(masks)
    below[:, :, 60:76] = grow_mask(masks, 0).amax(2, keepdim=True)
    dark = float(with_it.shadow[1:-1][below[1:-1] > 0].mean())
    assert dark > 0.25 and float((without.shadow > 0.5).float().mean()) < 0.005 < dark


def test_the_region_is_widened_where_something_goes_on_beyond_it():
    masks = torch.zeros(10, 1, 64, 96)
    masks[:, :, 24:40, 40:56] = 1
    region = learned.neighbourhood(masks, 8)

    def answers(reaching: int):
        """A shadow to the right as far as the region goes in some frames, and a short one in the others."""
        for t in range(10):
            shadow = torch.full((1, 1, 64, 96), -5.0)
            shadow[..., 24:40, 56 : 96 if t < reaching else 59] = 5
            yield learned._Answer(
                slice(0, 64), slice(0, 96), torch.zeros_like(shadow), shadow, region[t : t + 1], (64, 96)
            )

    assert learned._beyond(region, masks, list(answers(0)), 0, 8) is None
    assert learned._beyond(region, masks, list(answers(2)), 0, 8) is None  # too few of ten frames
    wider = learned._beyond(region, masks, list(answers(3)), 0, 8)
    assert torch.equal(wider[3:], region[3:])
    assert (wider[:3] >= region[:3]).all() and wider[0, 0, 32, 56 + 14] == 1 and wider[0, 0, 32, 56 + 17] == 0


def test_neighbours_agree_on_the_shadow():
    """It moves with the target: a gap is closed where it has to be, and what one frame alone shows is dropped."""
    masks, shadow = torch.zeros(2, 12, 1, 40, 80)
    for t in range(12):
        masks[t, :, 10 + t : 20 + t, 5 + 4 * t : 15 + 4 * t] = 1
        shadow[t, :, 21 + t : 25 + t, 5 + 4 * t : 15 + 4 * t] = 0.9
    gap = shadow.clone()
    gap[5] = 0
    gap[8, :, 2:6, 2:6] = 1
    steady = learned.steadied(gap, masks)
    assert torch.equal(steady > 0.5, shadow > 0.5) and not steady[8, :, 2:6, 2:6].any()
    masks[3] = 0
    assert not learned.steadied(gap, masks)[3].any()
    one = learned.steadied(shadow[:1], masks[:1])
    assert torch.equal(one > 0.5, shadow[:1] > 0.5)


def test_a_frame_without_a_mask_stays_without_one_and_steps_are_counted():
    frames, masks, _ = moving_disc(8)
    masks[5] = 0
    steps = []
    found = learned_attention(
        frames, masks[:1], masks, AttentionNetwork().eval(), dilation=6, on_step=lambda *s: steps.append(s)
    )
    assert not found.target[5].any() and not found.shadow[5].any() and found.target[4].any()
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]


def test_an_interrupt_is_heard_between_any_two_frames(monkeypatch):
    frames, masks, _ = moving_disc(10)
    unheard = Unheard()
    monkeypatch.setattr(learned, "_resized", unheard.counted(learned._resized))
    monkeypatch.setattr(learned, "_moved", unheard.counted(learned._moved))
    learned_attention(frames, masks[:1], masks, AttentionNetwork().eval(), dilation=6, on_step=unheard.on_step)
    # a frame's shadow is compared with those of its neighbours
    assert unheard.most == 2 * learned.STEADY + 1


def test_large_frames_are_looked_at_smaller_and_keep_the_prediction_s_edges():
    frames, masks, _ = moving_disc(3)
    large, wide = (torch.nn.functional.interpolate(x, scale_factor=4, mode="nearest") for x in (frames, masks))
    found = learned_attention(large, wide[:1], wide, AttentionNetwork().eval(), dilation=20)
    assert found.target.shape == wide.shape
    assert torch.equal(found.target[2] > 0.5, wide[2] > 0.5)


def test_long_clips_go_in_segments(monkeypatch):
    frames, masks, _ = moving_disc(40)
    whole = learned_attention(frames, masks[:1], masks, shipped(), dilation=8)
    monkeypatch.setattr(learned, "longest_segment", lambda *_: 25)
    parts = learned_attention(frames, masks[:1], masks, shipped(), dilation=8)
    # a copy may come from another frame than it would of the whole clip
    assert overlap(parts.target, whole.target) > 0.97


@pytest.mark.parametrize("size", [(1, 37, 53), (2, 5, 9), (3, 20, 200)])
def test_odd_clips(size):
    frames = torch.rand((size[0], 3, *size[1:]), generator=torch.Generator().manual_seed(5))
    masks = torch.zeros(size[0], 1, *size[1:])
    masks[..., 1:4, 1:4] = 1
    found = learned_attention(frames, masks[:1], masks, shipped(), dilation=3)
    assert found.target.shape == masks.shape and torch.isfinite(found.target).all() and found.target.max() <= 1


def test_the_map_is_equation_3_with_known_frames_kept():
    frames, masks, _ = moving_disc(6)
    network = shipped()
    found = learned_attention(frames, masks[:1], 0.8 * masks, network, dilation=12)
    found.target[3] = 0.8 * masks[3]
    beta = float(network.fusion.beta)
    for shadow in (False, True):
        got = inactivation_map(frames, masks[:1], 0.8 * masks, network, known=[3], shadow=shadow)
        assert torch.allclose(got, fuse(0.8 * masks, found.map(shadow=shadow), beta), atol=1e-6)


def test_a_shortage_of_memory_names_what_to_do(monkeypatch):
    frames, masks, _ = moving_disc(2)
    monkeypatch.setattr(learned, "Witness", Mock(side_effect=RuntimeError("can't allocate memory")))
    with pytest.raises(OutOfMemoryError, match="leave attention out"):
        inactivation_map(frames, masks[:1], masks, shipped())


def test_other_weights_are_refused():
    with pytest.raises(CheckpointError, match="expected attention_lite"):
        load_attention(SHIPPED.with_name("residue_lite.safetensors"))
