"""The noise of a clip: how strong it is in its darks and lights, and what it looks like.

The model is that of AV1's film grain synthesis (Norkin and Birkbeck, "Film Grain Synthesis for AV1 Video Codec", DCC
2018): for luma and both chromas, white noise through a filter each, as strong as a function of brightness says.

Dimensions: T frames, n blocks, L levels of brightness, h w pixels; planes are Y, Cb, Cr.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.flow.dis import one_way_flow
from ciri.progress import OnStep, ignore

#: Noise is measured in blocks of so many pixels a side, in so many pairs of frames, so many blocks of each.
BLOCK, PAIRS, BLOCKS = 16, 12, 1500
#: Where a block is in the next frame, optical flow says, on pictures of so many rows at most.
ROWS = 540
#: Blocks of less energy, a tenth of a grey level of 255 squared, show nothing: bars, and titles that were put in.
BLANK = (0.1 / 255) ** 2
#: So many levels of brightness are told apart. One needs so many blocks, of which this share, the flattest, are asked.
LEVELS, ENOUGH, FLATTEST = 8, 12, 0.2
#: This much of the energy of a block's texture may be in the difference, as blocks are found to the whole pixel only.
LEAKED = 0.15
#: A level is known where this share of the difference is noise. Noise is much the same everywhere, so a level is
#: believed up to so many times the energy that nine tenths of its blocks exceed, and up to so many times the deviation
#: of the level beside it.
PURE, EVEN, STEP = 0.6, 1.5, 1.5
#: Noise of a smaller deviation, in grey levels of 255, is rounding.
LEAST = 0.3

TO_PLANES = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@dataclass(frozen=True)
class Noise:
    """The noise of a clip.

    Attributes:
        deviation: float32 (3, L), its standard deviation in Y, Cb and Cr, of values in [0, 1], at L levels of luma that
            are spread evenly over [0, 1], from the first to the last.
        filters: float32 (3, 1, BLOCK - 1, BLOCK - 1): white noise of deviation 1 comes out of them with deviation 1 and
            the look of the clip's.
    """

    deviation: Tensor
    filters: Tensor

    def at(self, luma: Tensor) -> Tensor:
        """Return the deviations (3, h, w) where luma (h, w) has these values in [0, 1]."""
        deviation = self.deviation.to(luma.device)
        place = luma.clamp(0, 1) * (deviation.shape[1] - 1)
        below = place.floor().long().clamp(max=deviation.shape[1] - 2)
        return torch.lerp(deviation[:, below], deviation[:, below + 1], (place - below)[None])

    def __str__(self) -> str:
        """How strong it is, in words."""
        low, high = (255 * self.deviation[0]).aminmax()
        span = f"{high:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}, by brightness"
        return f"a standard deviation of {span}, in grey levels of 255"

    def sample(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Return noise (3, height, width) of deviation 1, on the processor."""
        margin = self.filters.shape[-1] - 1
        white = torch.randn(1, 3, height + margin, width + margin, generator=generator)
        return F.conv2d(white, self.filters.cpu(), groups=3)[0]


def to_planes(frame: Tensor) -> Tensor:
    """Return Y, Cb, Cr (3, h, w) of RGB (3, h, w), BT.601 with the full range."""
    return torch.einsum("pc,chw->phw", TO_PLANES.to(frame), frame)


def measure(frames: Tensor, aside: Tensor | None = None, *, on_step: OnStep = ignore) -> Noise | None:
    """Return the noise of a clip, or None if it has none that could be told from its texture.

    A block and what it became in the next frame have one texture and two noises, which are therefore in the difference
    of the two. The sum and the difference of two noises of one strength are independent: blocks that are chosen for
    being flat in the sum are not chosen for having little noise.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        aside: bool (T, H, W), what is not looked at, on any device.
        on_step: progress callback, told of each pair of frames; may raise to stop.
    """
    if len(frames) < 2 or min(frames.shape[2:]) < 2 * BLOCK:
        return None
    firsts = torch.linspace(0, len(frames) - 2, min(PAIRS, len(frames) - 1)).round().int().tolist()
    found = []
    for done, t in enumerate(firsts, 1):
        found.append(_pair(frames[t], frames[t + 1], None if aside is None else aside[t : t + 2].cpu()))
        on_step(done, len(firsts))
    luma, texture, difference = (torch.cat(parts) for parts in zip(*found, strict=True))
    return _model(luma, texture, difference)


def _pair(first: Tensor, second: Tensor, aside: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks of a frame (3, h, w) and where they are in the next one; none from what is put aside, (2, h, w).

    Returns their luma (n,), the energy of their sum (n,) and their difference (n, 3, BLOCK, BLOCK), both without what
    is plane in them and divided by the root of 2.
    """
    h, w = first.shape[1:]
    step = max(BLOCK, round((h * w / BLOCKS) ** 0.5))
    top, left = torch.cartesian_prod(*(torch.arange(0, side - BLOCK + 1, step) for side in (h, w))).unbind(1)
    shift = _displacement(first, second, top + BLOCK // 2, left + BLOCK // 2)
    there_top, there_left = top + shift[1], left + shift[0]
    inside = (there_top >= 0) & (there_top <= h - BLOCK) & (there_left >= 0) & (there_left <= w - BLOCK)
    places = ((top[inside], left[inside]), (there_top[inside], there_left[inside]))
    here, there = (_blocks(to_planes(frame).cpu(), *at) for frame, at in zip((first, second), places, strict=True))
    luma = here[:, 0].mean((1, 2))
    both, difference = _without_plane((here + there) / 2**0.5), _without_plane((here - there) / 2**0.5)
    texture = both[:, 0].square().mean((1, 2))
    # bars and titles were put in later
    usable = texture > BLANK
    if aside is not None:
        for mask, at in zip(aside, places, strict=True):
            usable &= ~_blocks(mask[None], *at).flatten(1).any(1)
    return luma[usable], texture[usable], difference[usable]


def _displacement(first: Tensor, second: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Whole pixels (2, n), x and y, by which the places (y, x) of a frame move until the next."""
    h, w = first.shape[1:]
    scale = min(1.0, ROWS / h)
    size = (max(1, round(h * scale)), max(1, round(w * scale)))
    pair = torch.stack([first, second]).float()
    if size != (h, w):
        pair = F.interpolate(pair, size, mode="area")
    flow = one_way_flow(pair[0], pair[1])
    at = ((y * size[0] / h).long(), (x * size[1] / w).long())
    ratio = torch.tensor([w / size[1], h / size[0]])
    return (flow[:, at[0], at[1]] * ratio[:, None]).round().long()


def _blocks(planes: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """The blocks (n, 3, BLOCK, BLOCK) of planes (3, h, w) that begin there."""
    along = torch.arange(BLOCK)
    return planes[:, (top[:, None] + along)[:, :, None], (left[:, None] + along)[:, None]].transpose(0, 1)


def _without_plane(blocks: Tensor) -> Tensor:
    """Blocks less the plane that fits each best: a gradient of the sky, a change of light."""
    ramp = torch.linspace(-1, 1, BLOCK).expand(BLOCK, BLOCK).flatten()
    basis = torch.stack([torch.ones(BLOCK**2), ramp, ramp.view(BLOCK, BLOCK).T.flatten()])
    basis = basis / basis.norm(dim=1, keepdim=True)
    flat = blocks.flatten(2)
    return (flat - (flat @ basis.T) @ basis).view_as(blocks)


def _model(luma: Tensor, texture: Tensor, difference: Tensor) -> Noise | None:
    """What blocks say of a clip's noise; arguments as :func:`_pair` returns them."""
    energy = difference.square().mean((2, 3))
    believed = torch.zeros(len(luma), dtype=torch.bool)
    variance, most = torch.zeros(3, LEVELS), torch.full((3, LEVELS), float("inf"))
    known = torch.zeros(LEVELS, dtype=torch.bool)
    level = (luma * (LEVELS - 1)).round().long()
    for number in range(LEVELS):
        members = (level == number).nonzero()[:, 0]
        if len(members) < ENOUGH:
            continue
        flattest = members[texture[members].argsort()[: max(ENOUGH // 2, round(FLATTEST * len(members)))]]
        leaked = LEAKED * (texture[flattest] - energy[flattest, 0]).clamp(min=0)
        share = (1 - leaked / energy[flattest, 0].clamp(min=1e-12)).clamp(min=0)
        most[:, number] = EVEN * energy[members].quantile(0.1, dim=0)
        if share.median() >= PURE:
            known[number] = True
            variance[:, number] = (energy[flattest] * share[:, None]).median(0).values
            believed[flattest[share >= PURE]] = True
    if not known.any():
        return None
    deviation = _spread(variance.sqrt(), known, most.sqrt())
    if deviation[0, known].max() < LEAST / 255:
        return None
    return Noise(deviation, _filters(difference[believed]))


def _spread(deviation: Tensor, known: Tensor, most: Tensor) -> Tensor:
    """Deviations (3, L) of all levels from those that are known (L,), none of them above its most (3, L)."""
    apart = (torch.arange(LEVELS)[:, None] - torch.arange(LEVELS)).abs()
    nearest = apart.masked_fill(~known, LEVELS).argmin(1)
    deviation = torch.minimum(deviation[:, nearest], most)
    # black and white have little noise, which tells nothing of the levels beside them
    inner = known & (torch.arange(LEVELS) % (LEVELS - 1) > 0)
    if not inner.any():
        return deviation
    # the second least: one level may be that of something that was put in later
    bounds = (deviation[:, None] * STEP**apart)[..., inner].sort(2).values
    return torch.minimum(deviation, bounds[..., min(1, bounds.shape[2] - 1)])


def _filters(noise: Tensor) -> Tensor:
    """Filters (3, 1, BLOCK - 1, BLOCK - 1) that give white noise the spectrum of these blocks (n, 3, BLOCK, BLOCK).

    The spectrum is that of the autocovariance, tapered (Blackman and Tukey): the blocks' own would take what is beyond
    an edge for what is at the opposite one.
    """
    noise = noise / noise.square().mean((2, 3), keepdim=True).sqrt().clamp(min=1e-10)
    power = torch.fft.fft2(noise, s=(2 * BLOCK, 2 * BLOCK)).abs().square().mean(0)
    lags = torch.cat([torch.arange(BLOCK // 2), -torch.arange(BLOCK // 2, 0, -1)])
    pairs, taper = BLOCK - lags.abs(), torch.cos(math.pi * lags / BLOCK).square()
    covariance = torch.fft.ifft2(power).real[:, lags][:, :, lags] / (pairs[:, None] * pairs)
    spectrum = torch.fft.fft2(covariance * taper[:, None] * taper).real.clamp(min=0)
    kernel = torch.fft.fftshift(torch.fft.ifft2(spectrum.sqrt()).real, dim=(1, 2))[:, 1:, 1:]
    return (kernel / kernel.flatten(1).norm(dim=1)[:, None, None])[:, None]
