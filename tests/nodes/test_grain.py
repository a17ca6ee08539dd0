"""The node that matches grain is what the library does, on ComfyUI's tensors."""

import pytest
import torch

from ciri.errors import ClipError
from ciri.grain import match_grain

COUNT, HEIGHT, WIDTH = 4, 128, 192


def scene(deviation=6 / 255):
    """A still ramp with noise, and the same with a smooth rectangle; (T, H, W, 3)."""
    clean = torch.linspace(0.2, 0.8, WIDTH)[:, None].expand(COUNT, HEIGHT, WIDTH, 3)
    images = (clean + deviation * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    filled = images.clone()
    filled[:, 32:96, 48:144] = clean[:, 32:96, 48:144]
    return images, filled


def test_it_is_what_the_library_makes(run):
    images, filled = scene()
    result, report = run("CIRI_MatchGrain", images=images, inpainted=filled, grain=0.5, feather=2).args
    clips = (clip.movedim(-1, 1) for clip in (images, filled))
    assert torch.equal(result, match_grain(*clips, strength=0.5, feather=2)[0].movedim(1, -1))
    assert torch.equal(result[:, :32], images[:, :32]) and not torch.equal(result, filled)
    assert "got the grain of the clip: a standard deviation of " in report


@pytest.mark.parametrize(("deviation", "strength", "words"), [(0.0, 1.0, "no grain"), (0.03, 0.0, "adds nothing")])
def test_where_nothing_is_added_the_report_says_why(run, deviation, strength, words):
    images, filled = scene(deviation)
    result, report = run("CIRI_MatchGrain", images=images, inpainted=filled, grain=strength, feather=3).args
    assert torch.equal(result, filled) and words in report


def test_it_takes_alpha_and_one_frame(run):
    images, filled = scene()
    with_alpha = torch.cat([images, torch.ones_like(images[..., :1])], -1)
    result = run("CIRI_MatchGrain", images=with_alpha, inpainted=filled, grain=1.0, feather=3).args[0]
    assert result.shape == images.shape and not torch.equal(result, filled)
    result, report = run("CIRI_MatchGrain", images=images[:1], inpainted=filled[:1], grain=1.0, feather=3).args
    assert torch.equal(result, filled[:1]) and "no grain" in report


def test_another_clip_is_refused(run):
    images, filled = scene()
    with pytest.raises(ClipError, match="both have to be the same clip"):
        run("CIRI_MatchGrain", images=images, inpainted=filled[1:], grain=1.0, feather=3)
