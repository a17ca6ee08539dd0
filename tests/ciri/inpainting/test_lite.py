import pytest
import torch
from safetensors.torch import save_file

from ciri.errors import CheckpointError
from ciri.inpainting.base import Backbone
from ciri.inpainting.lite import LiteBackbone, load_lite, windows
from ciri.inpainting.lite_guidance import Guidance, find_copies, guidance
from ciri.inpainting.lite_network import LiteConfig, LiteNetwork
from ciri.inpainting.remove import remove

SMALL = LiteConfig(half=8, quarter=8, eighth=16, sixteenth=16, deep=2, heads=2)


def pan(frames=6, height=48, width=64):
    """A texture that moves left by 3 pixels a frame, and a square target that stands still."""
    wide = torch.nn.functional.interpolate(
        torch.rand(1, 3, 12, 40, generator=torch.Generator().manual_seed(1)), size=(height, 160), mode="bicubic"
    )[0].clamp(0, 1)
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
    share = torch.softmax(torch.tensor([4.0, 0.0, 0.0]), 0)
    expected = share[0] * guide.base + share[1] * guide.before + share[2] * guide.after
    assert torch.allclose(out, expected, atol=1e-5)


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


@pytest.mark.parametrize(("count", "length", "overlap"), [(1, 16, 6), (16, 16, 6), (17, 16, 6), (50, 16, 6), (9, 4, 1)])
def test_windows_cover_every_frame_and_share_at_least_the_overlap(count, length, overlap):
    seen = 0
    for window, shared in windows(count, length, overlap):
        assert len(window) == min(length, count)
        assert window.start + shared == seen  # exactly what was filled before is shared
        assert shared >= overlap or window.start == 0
        seen = window.stop
    assert seen == count


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
    scales = LiteBackbone(LiteNetwork(SMALL), precision="fp32").encode(torch.rand(2, 3, 32, 48))
    assert [tuple(s.shape[-2:]) for s in scales] == [(16, 24), (8, 12), (4, 6)]


def test_weights_of_something_else_are_refused(tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="train backbone"):
        load_lite(file)
