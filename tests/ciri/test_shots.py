"""Cuts between scenes that are made here, and what looks like one and is none."""

import numpy as np
import pytest
import torch

from ciri.inactivation.learned import learned_attention, shipped
from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.remove import remove
from ciri.progress import ignore
from ciri.refinement.product import repaint
from ciri.refinement.settings import RefinementSettings
from ciri.shots import INTERRUPTION, find_cuts, shots

HEIGHT, WIDTH = 96, 160


def scene(seed: int, count: int = 8, pan: int = 2):
    """A clip (T, 3, H, W) of a wall of bricks of all sizes and colours, that a camera pans over."""
    random = np.random.default_rng(seed)
    wall = np.full((HEIGHT, WIDTH + pan * count, 3), 0.5, np.float32)
    for _ in range(400):
        (y, x), (high, wide) = random.integers(0, wall.shape[:2]), random.integers(4, 24, 2)
        wall[y : y + high, x : x + wide] = random.random(3)
    ground = torch.from_numpy(wall).permute(2, 0, 1)[None]
    return torch.cat([ground[..., pan * t : pan * t + WIDTH] for t in range(count)])


@pytest.mark.parametrize("other", [1, 2, 3])
@pytest.mark.parametrize("at", [1, 5])
def test_a_cut_is_found_between_scenes(other, at):
    clip = torch.cat([scene(0)[:at], scene(other)])
    assert find_cuts(clip) == [at] and find_cuts(clip.flip(0)) == [8]
    assert shots(clip) == [list(range(at)), list(range(at, at + 8))]


def test_colours_alone_make_a_cut():
    grey = torch.full((4, 1, HEIGHT, WIDTH), 0.5) * scene(0)[:4, :1]
    red, green = (torch.cat([x, y, 0 * grey], 1) for x, y in ((grey, 0 * grey), (0 * grey, grey.flip(3))))
    assert float((red.mean(1) - green.flip(3).mean(1)).abs().max()) == 0  # as bright as each other, mirrored
    assert find_cuts(torch.cat([red, green])) == [4]


def test_what_moves_or_brightens_is_no_cut():
    assert find_cuts(scene(0)) == []
    clip = torch.cat([scene(0, pan=0)[:4], scene(0, pan=24)])  # the camera is flung round
    assert find_cuts(clip) == []
    flash = scene(0)
    flash[4] = (1.6 * flash[4] + 0.1).clamp(0, 1)
    assert find_cuts(flash) == []
    filled = scene(0)
    filled[4:, :, 20:80, 30:110] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]  # something comes in, large and near
    assert float((filled[4] - filled[3]).abs().mean()) > 0.1 and find_cuts(filled) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_clips_of_few_frames(count):
    assert find_cuts(scene(0)[:count]) == []
    assert find_cuts(scene(0)[:count] * 0) == []
    assert find_cuts(torch.rand(3, 3, 8, 9)[:count]) in ([], [1], [2], [1, 2])  # so small that flow pads it


def test_a_blank_stretch_is_a_shot_and_what_goes_on_after_it_is_one_with_what_was_before():
    first, second = scene(0), scene(1)
    black = torch.zeros(2, 3, HEIGHT, WIDTH)
    assert shots(torch.cat([first[:4], black, first[4:]])) == [[0, 1, 2, 3, 6, 7, 8, 9], [4, 5]]
    assert shots(torch.cat([first[:4], black, second])) == [[0, 1, 2, 3], [4, 5], list(range(6, 14))]
    assert shots(torch.cat([first[:4], second[:3], first[4:]])) == [[0, 1, 2, 3, 7, 8, 9, 10], [4, 5, 6]]
    # whatever came last before the interruption
    twice = torch.cat([first[:4], second[:4], first[4:6], second[4:]])
    assert shots(twice) == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7, 10, 11, 12, 13]]
    long = torch.cat([first[:4], second[:1].expand(INTERRUPTION + 1, -1, -1, -1), first[4:]])
    assert len(shots(long)) == 3


@pytest.mark.parametrize("bar", [(0, 54), (12, 0)])
def test_black_bars_are_no_part_of_the_picture(bar):
    clip = torch.cat([scene(0), scene(2)])
    high, wide = bar
    clip[..., :high, :] = clip[..., HEIGHT - high :, :] = 0
    clip[..., :wide] = clip[..., WIDTH - wide :] = 0
    assert find_cuts(clip) == [8] and find_cuts(clip[:8]) == []


def test_the_search_can_be_stopped():
    def stop(done, total):
        assert done == 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shots(scene(0), on_step=stop)


def holes(count: int):
    masks = torch.zeros(count, 1, HEIGHT, WIDTH)
    masks[:, :, 30:60, 60:100] = 1
    return masks


def test_a_shot_is_filled_from_itself():
    first, second = scene(0), scene(1)
    backbone = FlowBackbone()
    for clip, parts in (
        (torch.cat([first, second]), (slice(0, 8), slice(8, 16))),
        (torch.cat([first[:4], second[:2], first[4:]]), ([0, 1, 2, 3, 6, 7, 8, 9], slice(4, 6))),
    ):
        masks = holes(len(clip))
        steps: list[tuple[int, int]] = []
        filled = remove(clip, masks, backbone, on_step=lambda *step, to=steps: to.append(step))
        for at in parts:
            assert torch.equal(filled[at], remove(clip[at], masks[at], backbone))
        shares = [done / total for done, total in steps]
        assert shares == sorted(shares) and shares[-1] == 1
        # also where the last shot has nothing to fill
        masks[-2:], steps[:] = 0, []
        remove(clip, masks, backbone, on_step=lambda *step, to=steps: to.append(step))
        assert steps[-1][0] == steps[-1][1]


def test_what_changed_in_one_shot_is_painted_again_there_alone():
    first, second = scene(0), scene(1)
    clip = torch.cat([first[:4], second[:5], first[4:]])
    masks, backbone, settings = holes(13), FlowBackbone(), RefinementSettings()
    given = remove(clip, masks, backbone)
    masks[2, :, 20:30, 60:100] = 1
    again = repaint(clip, masks, given, [2], backbone, settings, ignore)
    assert torch.equal(again[4:9], given[4:9])
    own = [0, 1, 2, 3, 9, 10, 11, 12]
    assert torch.equal(again[own], remove(clip[own], masks[own], backbone))


def test_attention_looks_for_what_is_behind_the_target_in_its_own_shot():
    first, second = scene(0), scene(1)
    clip = torch.cat([first, second])
    masks = holes(16)
    clip = torch.where(masks > 0, torch.tensor([0.9, 0.1, 0.8])[:, None, None], clip)
    found = learned_attention(clip, masks[:1], masks, shipped(), dilation=12)
    alone = learned_attention(clip[:8], masks[:1], masks[:8], shipped(), dilation=12)
    assert torch.equal(found.target[:8], alone.target) and torch.equal(found.shadow[:8], alone.shadow)
