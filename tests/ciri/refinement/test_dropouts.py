"""Masks that lose a part, or everything, for a few frames, and masks that are smaller for another reason."""

import pytest
import torch

from ciri.refinement.dropouts import dropouts, short_runs
from tests.ciri.refinement.scenes import Scene

LENGTH = 12


def scene(**options):
    return Scene(count=LENGTH, **options)


def discs(radii, x=lambda t: 40 + 2 * t):
    """Masks of a disc that moves, with a radius for every frame."""
    rows, columns = torch.arange(64.0)[:, None], torch.arange(96.0)[None]
    return torch.stack(
        [(((rows - 32) ** 2 + (columns - x(t)) ** 2).sqrt() <= r).float()[None] for t, r in enumerate(radii)]
    )


@pytest.mark.parametrize("at", [(3,), (4, 5, 6), (2, 8, 9), (10, 11), (0, 1)])
@pytest.mark.parametrize("columns", [6, 9, 30])
def test_a_part_that_is_missing_for_some_frames_is_noticed(at, columns):
    given = scene().cut(at=at, columns=columns)
    assert dropouts(given) == list(at)


def test_what_is_steadily_smaller_or_missing_for_long_is_no_dropout():
    grows = discs([14 + 0.3 * t for t in range(LENGTH)])
    assert dropouts(grows) == [] and dropouts(grows.flip(0)) == []
    assert dropouts(scene().cut(at=range(3, 10))) == []
    assert dropouts(scene().true) == []
    assert dropouts(scene().true[:1]) == [] and dropouts(0 * scene().true) == []


def test_a_mask_that_is_known_is_no_dropout_and_is_compared_with():
    given = scene().cut(at=(0, 4, 8))
    assert dropouts(given) == [0, 4, 8] and dropouts(given, {0, 8}) == [4]
    # it lacks nothing that the known ones have
    assert dropouts(scene().cut(at=(3, 4, 5)), {3, 5}) == []


def test_a_thinner_rim_is_no_dropout():
    radii = [18.0] * LENGTH
    radii[5] = 17.0
    areas = (discs(radii) > 0.5).flatten(1).sum(1)
    assert areas[5] < 0.93 * areas[4]
    assert dropouts(discs(radii)) == []


@pytest.mark.parametrize("at", [(4, 5, 6), (5, 6, 7)])
def test_a_target_that_comes_closer_may_lack_a_part_and_still_cover_more_than_before(at):
    radii = [14 * 1.03**t for t in range(LENGTH)]
    masks, columns = discs(radii, x=lambda t: 44), torch.arange(96)
    for t in at:
        masks[t, :, :, columns < 44 - 0.5 * radii[t]] = 0
    areas = (masks > 0.5).flatten(1).sum(1)
    assert areas[at[-1]] > 0.93 * areas[: at[0]].max()
    assert dropouts(masks) == list(at)
    # one that goes away is the same in reverse
    assert dropouts(masks.flip(0)) == sorted(LENGTH - 1 - t for t in at)


def test_masks_are_compared_wherever_the_target_is():
    radii = [15.0] * LENGTH
    masks = discs(radii, x=lambda t: 20 + 5 * t)
    assert dropouts(masks) == []
    masks[6, :, :30] = 0
    assert dropouts(masks) == [6]
    # a large clip is compared at a smaller scale
    assert dropouts(torch.nn.functional.interpolate(masks, scale_factor=8)) == [6]


def test_short_runs():
    assert short_runs([9, 1, 2, 3, 7], 3) == [1, 2, 3, 7, 9]
    assert short_runs(range(4), 3) == [] and short_runs([]) == []
