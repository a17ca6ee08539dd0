"""Heat maps, checked against what their definition says of single pixels."""

import pytest
import torch

from ciri.errors import MaskError
from ciri.heat import GROUND, heat


def clip(frames=2, height=12, width=20):
    return torch.rand((frames, 3, height, width), generator=torch.Generator().manual_seed(0))


def luminance(picture):
    return (picture * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(-3)


def test_without_heat_the_clip_is_grey_and_darker():
    frames = clip()
    got = heat(frames, torch.zeros(2, 1, 12, 20), legend=False)
    assert torch.allclose(got, (luminance(frames) * GROUND)[:, None].expand(-1, 3, -1, -1), atol=1e-6)


def test_more_heat_is_brighter_on_any_ground_and_1_hides_it():
    values = torch.linspace(0, 1, 21)[None, None, None].expand(2, 1, 12, 21)
    dark, light = (heat(torch.full((2, 3, 12, 21), level), values, legend=False) for level in (0.0, 0.5))
    steps = luminance(dark)[0, 0].diff()
    assert (steps > 0).all()
    # the hottest is yellow: much red and green, less blue, and the same on any ground
    assert torch.allclose(dark[0, :, 0, -1], light[0, :, 0, -1])
    red, green, blue = dark[0, :, 0, -1]
    assert red > 0.9 and green > 0.9 and blue < 0.8


def test_values_far_apart_have_colours_that_can_be_told_apart():
    values = torch.tensor([0.25, 0.5, 0.75, 1.0])[None, None, None]
    colours = heat(torch.full((1, 3, 1, 4), 0.5), values, legend=False)[0, :, 0].T
    apart = torch.cdist(colours, colours) + torch.eye(4)
    assert apart.min() > 0.25


def test_the_outline_runs_just_outside_the_mask():
    mask = torch.zeros(1, 1, 9, 9)
    mask[0, 0, 4, 4] = 1
    got = heat(torch.zeros(1, 3, 9, 9), torch.zeros(1, 1, 9, 9), outline=mask, legend=False)
    expected = torch.zeros(9, 9)
    for y, x in ((3, 4), (5, 4), (4, 3), (4, 5)):
        expected[y, x] = 1
    assert torch.equal(got[0, 0], expected)


def test_the_legend_stands_in_its_corner_only_and_shows_the_scale():
    frames, values = clip(2, 120, 200), torch.zeros(2, 1, 120, 200)
    plain, marked = heat(frames, values, legend=False), heat(frames, values)
    changed = (plain != marked).any(1)[0]
    assert changed[:8, 136:].any() and not changed[12:].any() and not changed[:, :100].any()
    row = marked[0, :, 6, 150:185]
    assert (luminance(row[:, None])[0].diff() > -1e-3).all(), "the scale rises from left to right"
    assert torch.equal(heat(frames[:, :, :20, :20], values[:, :, :20, :20]), plain[:, :, :20, :20]), (
        "no room, no legend"
    )


@pytest.mark.parametrize("shape", [(1, 1, 12, 20), (2, 1, 12, 21), (2, 12, 20)])
def test_maps_of_another_clip_are_refused(shape):
    with pytest.raises(MaskError, match="The maps have shape"):
        heat(clip(), torch.zeros(shape))
    with pytest.raises(MaskError, match="masks to outline"):
        heat(clip(), torch.zeros(2, 1, 12, 20), outline=torch.zeros(shape))


def test_inputs_are_not_changed():
    frames, values = clip(2, 120, 200), torch.rand(2, 1, 120, 200)
    kept = frames.clone(), values.clone()
    heat(frames, values, outline=values)
    assert torch.equal(frames, kept[0]) and torch.equal(values, kept[1])
