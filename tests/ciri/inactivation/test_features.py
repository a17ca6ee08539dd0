"""What the attention map rests on: the right features of each kind of backbone, and the learned map where none are."""

import pytest
import torch
import torch.nn.functional as F

from ciri.errors import MaskError, OutOfMemoryError
from ciri.frames import as_pair
from ciri.inactivation.attention import attention_map, pool_target
from ciri.inactivation.clip import complementary_attention
from ciri.inactivation.features import (
    describe_attention,
    encoder_of,
    learned_beta,
)
from ciri.inactivation.fusion import Fusion
from ciri.inactivation.learned import learned_attention, shipped
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.driver import WindowBackbone
from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.sttn import STTN


class Pools:
    """A backbone whose coarsest features are means over 8 x 8 pixels, of frames that divide by it."""

    name = "pools"

    def __init__(self, fixed=None):
        self.facts = BackboneFacts(needs_divisible_by=8, fixed_size=fixed)
        self.looked = 0

    def encode(self, frames):
        self.looked += 1
        assert frames.shape[2] % 8 == 0 and frames.shape[3] % 8 == 0
        return [F.avg_pool2d(frames, 2), F.avg_pool2d(frames, 8) - 0.5]


def scene(frames=4, height=64, width=96, seed=0):
    """An orange square that moves over grey-green noise: the clip and its masks."""
    generator = torch.Generator().manual_seed(seed)
    clip = 0.3 + 0.3 * torch.rand((frames, 3, height, width), generator=generator)
    masks = torch.zeros(frames, 1, height, width)
    for index in range(frames):
        masks[index, :, 20:44, 12 + 12 * index : 36 + 12 * index] = 1
    return torch.where(masks > 0, torch.tensor([0.9, 0.4, 0.1])[:, None, None], clip), masks


def test_a_published_network_lends_its_coarsest_features_before_any_mask():
    torch.manual_seed(0)
    backbone = WindowBackbone(STTN().eval())
    frames, _ = scene(1, 70, 110)
    features, covered = encoder_of(backbone)(frames)
    rows, columns = as_pair(backbone.network.facts.needs_divisible_by)
    assert covered == (70 + -70 % rows, 110 + -110 % columns)
    with torch.no_grad():
        padded = F.pad(frames, (0, covered[1] - 110, 0, covered[0] - 70), mode="replicate")
        expected = backbone.network.encode(padded * 2 - 1)["out"]
    assert features.shape == expected.shape
    inside = (..., slice(0, 12), slice(0, 22))  # how the border is padded is the backbone's affair
    assert torch.allclose(features[inside], expected[inside], atol=1e-5)
    assert "encoder of sttn" in describe_attention(backbone) and encoder_of(FlowBackbone()) is None


@pytest.mark.parametrize("fixed", [None, (32, 48)])
def test_the_map_is_that_of_the_whole_clip_at_once(fixed):
    frames, masks = scene(3, 60, 90)
    got = complementary_attention(frames, masks[1:2], masks, Pools(fixed), first_index=1, dilation=6)
    if fixed is None:
        wide, maps = F.pad(frames, (0, 6, 0, 4), mode="replicate"), F.pad(masks, (0, 6, 0, 4))
    else:
        wide, maps = F.interpolate(frames, fixed, mode="bilinear", antialias=True), masks
    features = F.avg_pool2d(wide, 8) - 0.5
    expected = attention_map(features, pool_target(features[1:2], maps[1:2]), maps, dilation=6)[..., :60, :90]
    assert torch.allclose(got, expected, atol=1e-5) and expected.max() > 0.9


def test_the_region_is_a_sixteenth_of_the_height_by_default():
    frames, masks = scene(2)
    assert torch.equal(
        complementary_attention(frames, masks[:1], masks, Pools()),
        complementary_attention(frames, masks[:1], masks, Pools(), dilation=4),
    )


def test_a_frame_without_a_mask_is_not_looked_at():
    frames, masks = scene()
    masks[2] = 0
    steps = []
    got = complementary_attention(frames, masks[:1], masks, Pools(), on_step=lambda *s: steps.append(s))
    assert not got[2].any() and got[1].any() and steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_odd_scenes_have_a_map_too():
    for size in ((1, 37, 53), (2, 5, 9)):
        frames = torch.rand((size[0], 3, *size[1:]), generator=torch.Generator().manual_seed(5))
        masks = torch.zeros(size[0], 1, *size[1:])
        masks[..., 1:4, 1:4] = 1
        got = complementary_attention(frames, masks[:1], masks, FlowBackbone())
        assert got.shape == masks.shape and torch.isfinite(got).all() and got.max() <= 1
    black = torch.zeros(1, 3, 40, 40)
    everywhere = torch.ones(1, 1, 40, 40)
    assert torch.isfinite(complementary_attention(black, everywhere, everywhere, FlowBackbone())).all()


@pytest.mark.parametrize("fixed", [None, (32, 48)])
def test_room_is_made_once_for_frames_of_the_size_that_the_encoder_sees(fixed):
    frames, masks = scene(3, 60, 90)
    backbone, calls = Pools(fixed), []
    backbone.before_run = lambda *size: calls.append((*size, backbone.looked))
    complementary_attention(frames, masks[:1], masks, backbone)
    assert calls == [(*(fixed or (64, 96)), 0)] and backbone.looked == 4


@pytest.mark.parametrize(
    "shortage", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: you tried to allocate")]
)
def test_a_shortage_of_memory_names_what_to_do(monkeypatch, shortage):
    torch.manual_seed(0)
    backbone = WindowBackbone(STTN().eval())
    frames, masks = scene(2)

    def fails(frames):
        raise shortage

    monkeypatch.setattr(backbone.network, "encode", fails)
    with pytest.raises(OutOfMemoryError, match="encoder of sttn .* 96x64.* Shrink the frames, .*lite or optical flow"):
        complementary_attention(frames, masks[:1], masks, backbone)
    shortage = ValueError("a fault of the program")
    with pytest.raises(ValueError, match="a fault"):
        complementary_attention(frames, masks[:1], masks, backbone)


def test_masks_that_are_not_the_clip_s_are_refused():
    frames, masks = scene()
    with pytest.raises(MaskError, match="expected one and 4 masks of 64x96"):
        complementary_attention(frames, masks[:1], masks[:3], Pools())
    with pytest.raises(MaskError, match="empty"):
        complementary_attention(frames, masks[:1] * 0, masks, Pools())


def test_the_learned_beta_is_read_from_the_network():
    class Network:
        fusion = None

    backbone = Pools()
    assert learned_beta(backbone) is None
    backbone.network = Network()
    backbone.network.fusion = Fusion(0.35)
    assert learned_beta(backbone) == pytest.approx(0.35)


def test_a_backbone_without_an_encoder_gets_the_learned_map_and_its_beta():
    frames, masks = scene()
    got = complementary_attention(frames, masks[:1], masks, FlowBackbone(), dilation=9, shadow=False)
    expected = learned_attention(frames, masks[:1], masks, shipped(), dilation=9)
    assert torch.equal(got, expected.target)
    with_shadow = complementary_attention(frames, masks[:1], masks, FlowBackbone(), dilation=9)
    assert torch.equal(with_shadow, torch.maximum(expected.target, expected.shadow))
    assert learned_beta(FlowBackbone()) == pytest.approx(float(shipped().fusion.beta))
