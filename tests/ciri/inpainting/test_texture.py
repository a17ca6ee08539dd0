"""Texture synthesis against periodic textures, whose continuation is known."""

import itertools

import pytest
import torch

from ciri.inpainting import texture
from ciri.inpainting.texture import _beliefs, common_offsets, synthesise
from tests.allocations import Allocations


def stripes(h=72, w=96, period=8):
    """Vertical stripes (3, h, w): the continuation into a hole is known exactly."""
    return (torch.arange(w) % period < period // 2).float().expand(3, h, w) * 0.8 + 0.1


def hole(h=72, w=96):
    missing = torch.zeros(h, w, dtype=torch.bool)
    missing[24:48, 32:60] = True
    return missing


def test_stripes_are_continued():
    picture, missing = stripes(), hole()
    spoiled = torch.where(missing, torch.tensor(0.5), picture)
    error = (synthesise(spoiled, missing) - picture).abs()[:, missing].mean()
    grey = (spoiled - picture).abs()[:, missing].mean()
    assert error < grey / 4


def test_known_pixels_stay_and_the_result_is_deterministic():
    picture, missing = torch.rand(3, 72, 96, generator=torch.Generator().manual_seed(3)), hole()
    one = synthesise(torch.where(missing, torch.tensor(0.5), picture), missing)
    two = synthesise(torch.where(missing, torch.tensor(0.5), picture), missing)
    assert torch.equal(one, two)
    assert torch.equal(one[:, ~missing], picture[:, ~missing])


def test_nothing_to_learn_from_still_gives_a_picture():
    for size in ((1, 1), (5, 3), (12, 60)):
        everything = torch.ones(size, dtype=torch.bool)
        assert torch.isfinite(synthesise(torch.rand(3, *size), everything)).all()
        almost = everything.clone()
        almost[0, 0] = False
        filled = synthesise(torch.full((3, *size), 0.25), almost)
        torch.testing.assert_close(filled, torch.full((3, *size), 0.25))


def test_no_scrap_of_something_else_is_put_into_an_even_ground():
    # hardly any sand is left around the hole, and there is much that is brighter and as even: foam was what fitted best
    generator = torch.Generator().manual_seed(5)
    picture = 0.02 * torch.randn(3, 120, 160, generator=generator)
    picture[:, :56] += torch.tensor([0.95, 0.97, 0.97])[:, None, None]
    picture[:, 56:] += torch.tensor([0.9, 0.75, 0.6])[:, None, None]
    missing = torch.zeros(120, 160, dtype=torch.bool)
    missing[64:112, 24:136] = True
    first_guess = torch.where(missing, torch.tensor([0.9, 0.75, 0.6])[:, None, None], picture)
    assert (synthesise(first_guess, missing) - picture).abs()[:, missing].amax() < 0.2


def test_matches_of_other_shades_leave_no_edges():
    # a slope has every shade once: each match is too dark or too bright by a little, and they meet in steps
    generator = torch.Generator().manual_seed(6)
    slope = torch.linspace(0.1, 0.9, 160).expand(3, 120, 160)
    picture = slope + 0.01 * torch.randn(3, 120, 160, generator=generator)
    missing = torch.zeros(120, 160, dtype=torch.bool)
    missing[30:90, 40:120] = True
    filled = synthesise(torch.where(missing, slope, picture), missing)
    smooth = torch.nn.functional.avg_pool2d(filled, (9, 1), stride=1)  # edges last from row to row, noise does not
    steepest = smooth.diff(dim=2)[:, 30:82, 40:120].abs().amax()
    assert steepest < 0.035


@pytest.mark.parametrize(("seed", "size"), [(1, (72, 96)), (2, (75, 101)), (3, (241, 321))])
def test_a_pattern_is_continued_exactly(seed, size):
    # one tile repeated: any shift by whole periods is right, and none other is
    tile = torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(seed))
    h, w = size
    picture = tile.repeat(1, h // 10 + 1, w // 12 + 1)[:, :h, :w]
    missing = torch.zeros(size, dtype=torch.bool)
    missing[h // 3 : h // 3 + h // 4, w // 3 : w // 3 + w // 4] = True
    filled = synthesise(torch.where(missing, torch.tensor(0.5), picture), missing)
    assert (filled - picture).abs().amax() < 0.02


def test_what_is_made_up_is_as_sharp_as_what_is_around_it():
    noise = torch.rand(3, 120, 160, generator=torch.Generator().manual_seed(7))
    missing = torch.zeros(120, 160, dtype=torch.bool)
    missing[40:80, 50:110] = True
    filled = synthesise(torch.where(missing, torch.tensor(0.5), noise), missing)
    assert filled[:, missing].std() > 0.8 * noise[:, missing].std()


def test_where_the_hole_is_larger_than_is_refined_the_choice_is_carried_up(monkeypatch):
    picture, missing = stripes(144, 192), torch.zeros(144, 192, dtype=torch.bool)
    missing[40:100, 60:130] = True
    monkeypatch.setattr(texture, "COARSEST", 1100)
    monkeypatch.setattr(texture, "FINEST", 500)
    filled = synthesise(torch.where(missing, torch.tensor(0.5), picture), missing)
    error = (filled - picture).abs()[:, missing].mean()
    assert torch.equal(filled[:, ~missing], picture[:, ~missing])
    assert error < 0.1


def test_the_commonest_offsets_are_those_of_the_pattern():
    tile = torch.rand(3, 11, 14, generator=torch.Generator().manual_seed(8))
    picture, missing = tile.repeat(1, 8, 8), torch.zeros(88, 112, dtype=torch.bool)
    missing[30:50, 40:60] = True
    found = common_offsets(picture, missing)
    assert len(found) >= 8
    assert (found % torch.tensor([11, 14]) == 0).all()
    assert not common_offsets(picture, torch.ones_like(missing)).numel()


def test_only_the_patches_that_are_compared_are_taken_out_of_the_picture():
    """Small holes far apart are looked at together: those of every place would be 64 times a large picture."""
    picture, missing = torch.rand(3, 540, 960), torch.zeros(540, 960, dtype=torch.bool)
    missing[20:40, 20:40] = missing[500:520, 920:940] = True
    with Allocations(32 * picture.nbytes) as large:
        assert len(common_offsets(picture, missing))
    assert not large.found


def test_beliefs_are_exact_where_there_is_no_loop():
    # four pixels in a row, three candidates each: all 81 choices can be tried
    generator = torch.Generator().manual_seed(9)
    price, cost = torch.rand(4, 3, generator=generator), torch.rand(3, 3, 3, generator=generator)
    first, second = torch.arange(3), torch.arange(1, 4)
    costs = {
        choice: float(sum(price[i, c] for i, c in enumerate(choice)))
        + float(sum(cost[i, choice[i], choice[i + 1]] for i in range(3)))
        for choice in itertools.product(range(3), repeat=4)
    }
    nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, 3))
    belief = _beliefs(price, [(first, second, cost), nothing], 60)
    assert tuple(belief.argmin(1).tolist()) == min(costs, key=costs.get)
    for pixel, candidate in itertools.product(range(4), range(3)):
        lowest = min(cost for choice, cost in costs.items() if choice[pixel] == candidate)
        relative = float(belief[pixel, candidate] - belief[pixel].min())
        assert relative == pytest.approx(lowest - min(costs.values()), abs=1e-4)
