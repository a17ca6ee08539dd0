"""What the attention map compares: the right features of each kind of backbone, and local statistics where none are."""

import pytest
import torch
import torch.nn.functional as F

from ciri.errors import MaskError
from ciri.frames import as_pair
from ciri.inactivation.attention import attention_map, pool_target
from ciri.inactivation.clip import complementary_attention
from ciri.inactivation.features import (
    CELL,
    LocalStatistics,
    _cells,
    _gradients,
    _whitening,
    describe_encoder,
    encoder_of,
    learned_beta,
)
from ciri.inactivation.fusion import Fusion
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.driver import WindowBackbone
from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.sttn import STTN


class Pools:
    """A backbone whose coarsest features are means over 8 x 8 pixels, of frames that divide by it."""

    name = "pools"

    def __init__(self, fixed=None):
        self.facts = BackboneFacts(needs_divisible_by=8, fixed_size=fixed)

    def encode(self, frames):
        assert frames.shape[2] % 8 == 0 and frames.shape[3] % 8 == 0
        return [F.avg_pool2d(frames, 2), F.avg_pool2d(frames, 8) - 0.5]


def scene(frames=4, height=64, width=96, seed=0):
    """A red and yellow chequered square that moves over grey-green noise: the clip and its masks."""
    generator = torch.Generator().manual_seed(seed)
    clip = 0.3 + 0.3 * torch.rand((frames, 3, height, width), generator=generator)
    clip[:, 0] *= 0.7
    masks = torch.zeros(frames, 1, height, width)
    for index in range(frames):
        masks[index, :, 20:44, 12 + 12 * index : 36 + 12 * index] = 1
    y, x = torch.meshgrid(torch.arange(height) // 6, torch.arange(width) // 6, indexing="ij")
    colours = torch.where((x + y) % 2 == 0, torch.tensor(0.9), torch.tensor(0.1))
    target = torch.stack([torch.full_like(colours, 0.9), colours, torch.full_like(colours, 0.1)])
    return torch.where(masks > 0, target, clip), masks


def test_local_statistics_find_a_target_of_several_colours_wherever_it_moved():
    frames, masks = scene()
    map_ = complementary_attention(frames, masks[:1], masks, FlowBackbone(), dilation=20)
    for found, mask in zip(map_[1:], masks[1:], strict=True):
        inner = F.max_pool2d(1 - mask[None], 9, 1, 4)[0] == 0
        far = F.max_pool2d(mask[None], 17, 1, 8)[0] == 0
        assert found[inner].min() > 0.6 and found[far].max() < 0.35 and found[far].mean() < 0.1


def test_surroundings_are_unremarkable_in_their_own_coordinates():
    """Mean 0 and no direction of a variance above 1 / (1 - 0.1), as far as a few cells can tell."""
    frames, masks = scene()
    source = LocalStatistics(frames[:1], masks[:1])
    features, covered = source(frames[:1])
    away = F.max_pool2d(masks[:1], 25, 1, 12)[..., CELL // 2 :: CELL, CELL // 2 :: CELL] == 0
    cells = features[0].flatten(1)[:, away.flatten()]
    assert covered == (64, 96) and features.shape[2:] == (8, 12)
    assert cells.mean(1).abs().max() < 0.6
    assert torch.linalg.eigvalsh(cells.cov()).max() < 1.6


def test_whitening_is_the_inverse_root_of_the_shrunk_covariance():
    generator = torch.Generator().manual_seed(1)
    values, weight = torch.randn((5, 400), generator=generator), torch.full((400,), 1 / 400)
    values = (values * torch.tensor([3.0, 1, 0.5, 2, 1])[:, None]) - values.mean(1, keepdim=True)
    covariance = values @ values.T / 400
    shrunk = 0.9 * covariance + 0.1 * covariance.trace() / 5 * torch.eye(5)
    white = _whitening(values, weight)
    assert torch.allclose(white @ shrunk @ white, torch.eye(5), atol=1e-4)


def test_cells_are_means_over_overlapping_windows():
    plane = torch.rand((1, 2, 20, 27), generator=torch.Generator().manual_seed(2))
    got = _cells(plane)
    assert got.shape == (1, 2, 3, 4)
    assert torch.allclose(got[0, :, 1, 1], plane[0, :, 4:20, 4:20].mean((1, 2)), atol=1e-6)


def test_gradients_are_shared_between_neighbouring_orientations():
    ramp = torch.arange(40, dtype=torch.float32).repeat(30, 1)
    across, down = _gradients(ramp.numpy())[0], _gradients(ramp.T.contiguous().numpy())[0]
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose(across[inner], torch.tensor([2.0, 0, 0, 0])[:, None, None].expand_as(across[inner]))
    assert torch.allclose(down[inner], torch.tensor([0.0, 0, 2, 0])[:, None, None].expand_as(down[inner]))
    noise = torch.rand(30, 40, generator=torch.Generator().manual_seed(3))
    gy, gx = (F.pad(noise[None, None], (1, 1, 1, 1), mode="reflect") for _ in range(2))
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None] / 4
    strength = (F.conv2d(gx, kernel) ** 2 + F.conv2d(gy, kernel.transpose(2, 3)) ** 2).sqrt()[0, 0]
    assert torch.allclose(_gradients(noise.numpy())[0].sum(0)[1:-1, 1:-1], strength[1:-1, 1:-1], atol=1e-5)


def test_a_published_network_lends_its_coarsest_features_before_any_mask():
    torch.manual_seed(0)
    backbone = WindowBackbone(STTN().eval())
    frames, masks = scene(1, 70, 110)
    features, covered = encoder_of(backbone, frames, masks)(frames)
    rows, columns = as_pair(backbone.network.facts.needs_divisible_by)
    assert covered == (70 + -70 % rows, 110 + -110 % columns)
    with torch.no_grad():
        padded = F.pad(frames, (0, covered[1] - 110, 0, covered[0] - 70), mode="replicate")
        expected = backbone.network.encode(padded * 2 - 1)["out"]
    assert features.shape == expected.shape
    inside = (..., slice(0, 12), slice(0, 22))  # how the border is padded is the backbone's affair
    assert torch.allclose(features[inside], expected[inside], atol=1e-5)
    assert "encoder of sttn" in describe_encoder(backbone) and "no encoder" in describe_encoder(FlowBackbone())


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


def test_large_frames_are_described_at_a_smaller_size():
    frames = torch.rand(1, 3, 960, 500)
    masks = torch.zeros(1, 1, 960, 500)
    masks[..., 100:300, 100:300] = 1
    features, covered = LocalStatistics(frames, masks)(frames)
    assert covered == (960, 500) and features.shape[2:] == (-(-922 // CELL), 480 // CELL)


def test_masks_that_are_not_the_clip_s_are_refused():
    frames, masks = scene()
    with pytest.raises(MaskError, match="expected one and 4 masks of 64x96"):
        complementary_attention(frames, masks[:1], masks[:3], Pools())
    with pytest.raises(MaskError, match="empty"):
        complementary_attention(frames, masks[:1] * 0, masks, Pools())


def test_the_learned_beta_is_read_from_the_network():
    class Network:
        fusion = None

    backbone = FlowBackbone()
    assert learned_beta(backbone) is None
    backbone.network = Network()
    backbone.network.fusion = Fusion(0.35)
    assert learned_beta(backbone) == pytest.approx(0.35)
