"""The published networks through remove(): sizes, lengths and masks that no network likes, on weights from a seed.

What a network paints means nothing here; that it gets what it can take, that every pixel away from the pasted region
stays, and that the region is filled, does not depend on the weights.
"""

import pytest
import torch

from ciri.errors import MaskError
from ciri.frames import feather_alpha, grow_mask
from ciri.inpainting.driver import WindowBackbone
from ciri.inpainting.dstt import DSTT
from ciri.inpainting.e2fgvi import E2FGVIHQ
from ciri.inpainting.fuseformer import FuseFormer
from ciri.inpainting.remove import remove
from ciri.inpainting.sttn import STTN
from ciri.inpainting.windows import Schedule

GROW, FEATHER = 2, 3


@pytest.fixture(scope="module", params=[DSTT, STTN, E2FGVIHQ], ids=lambda network: network.name)
def backbone(request):
    return prepared(request.param)


def prepared(network):
    torch.manual_seed(0)
    return WindowBackbone(network().eval().requires_grad_(False), schedule=Schedule(2, 3, 2))


def clip(length, height, width):
    frames = torch.rand(length, 3, height, width, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(length, 1, height, width)
    masks[..., height // 4 : height // 2, width // 4 : width // 2] = 1
    return frames, masks


def check(frames, masks, backbone, **options):
    """Remove; what is outside the pasted region has to stay, what is inside has to change. Returns the result."""
    result = remove(frames, masks, backbone, grow=GROW, feather=FEATHER, **options)
    assert result.shape == frames.shape and result.dtype == frames.dtype
    assert result.min() >= 0 and result.max() <= 1
    outside = (feather_alpha(grow_mask(masks, GROW), FEATHER) == 0).expand_as(frames)
    inside = (masks > 0).expand_as(frames)
    assert torch.equal(result[outside], frames[outside])
    assert (result[inside] != frames[inside]).float().mean() > 0.9
    return result


@pytest.mark.parametrize("size", [(37, 53), (61, 109), (1, 2), (9, 130)])
def test_sizes_that_no_network_likes(backbone, size):
    frames, masks = clip(2, *size)
    if min(size) < 9:
        masks[..., :1, :1] = 1
    check(frames, masks, backbone)


def test_a_small_window_in_a_large_frame(backbone):
    frames, masks = clip(1, 290, 500)
    masks.zero_()
    masks[:, :, 280:290, :9] = 1
    check(frames, masks, backbone)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_clips_shorter_than_a_window(backbone, length):
    check(*clip(length, 48, 60), backbone)


def test_a_mask_that_covers_some_frames_whole(backbone):
    frames, masks = clip(5, 48, 60)
    masks[2:4] = 1
    check(frames, masks, backbone)


def test_a_mask_that_covers_every_frame_is_filled_all_the_same(backbone):
    frames, masks = clip(2, 48, 60)
    check(frames, torch.ones_like(masks), backbone)


def test_a_target_that_leaves_leaves_its_frames_untouched(backbone):
    frames, masks = clip(8, 48, 60)
    masks[3:] = 0
    result = check(frames, masks, backbone)
    assert torch.equal(result[3:], frames[3:])


def test_a_map_of_another_size_is_refused(backbone):
    frames, masks = clip(2, 48, 60)
    with pytest.raises(MaskError, match=r"\(2, 1, 48, 59\); expected \(2, 1, 48, 60\)"):
        remove(frames, masks[..., :59], backbone)


def test_an_interrupt_in_mid_window_changes_nothing(backbone):
    class Stop(Exception):
        pass

    frames, masks = clip(4, 48, 60)
    before, seen = frames.clone(), []

    def stop(done, total):
        seen.append(done)
        if len(seen) > 3:
            raise Stop

    with pytest.raises(Stop):
        remove(frames, masks, backbone, on_step=stop)
    assert seen[-1] == 0, "the first window had ended"
    assert torch.equal(frames, before)
    check(frames, masks, backbone)


def test_a_network_of_one_size_takes_any_clip():
    frames, masks = clip(1, 37, 53)
    check(frames, masks, prepared(FuseFormer))


def test_e2fgvi_hq_sees_what_its_released_program_shows_it(monkeypatch):
    """Masked frames, with their flip appended below and at the right, cropped to multiples of 60 x 108."""
    frames, masks = clip(2, 61, 150)
    masks[:, :, 50:] = 1
    backbone = WindowBackbone(E2FGVIHQ(), published=True)
    seen = []

    def encode(x):
        seen.append(x)
        return {"out": torch.zeros(len(x), 1, 1, 1)}

    monkeypatch.setattr(backbone.network, "encode", encode)
    monkeypatch.setattr(backbone, "_flows", lambda *_: torch.zeros(1, 2, 2, 30, 54))
    monkeypatch.setattr(backbone.network, "decode_window", lambda f, n, _: torch.zeros(1, n, 3, 120, 216))
    remove(frames, masks, backbone, grow=0, crop=False)
    expected = (frames * 2 - 1) * (1 - masks)
    expected = torch.cat([expected, expected.flip(2)], 2)[:, :, :120]
    expected = torch.cat([expected, expected.flip(3)], 3)[..., :216]
    assert torch.equal(torch.cat(seen), expected)
