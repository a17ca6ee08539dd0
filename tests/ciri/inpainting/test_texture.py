"""Texture synthesis against periodic textures, whose continuation is known."""

import torch

from ciri.inpainting.texture import synthesise


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
