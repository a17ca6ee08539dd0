"""Synthesis of what no frame shows, from the picture around it.

Patches that look alike lie few distances apart: the pitch of a fence, the course of a wall (He and Sun, "Statistics of
Patch Offsets for Image Completion", ECCV 2012). Every missing pixel is therefore taken from the picture shifted by one
of the commonest of these offsets. Which one is chosen for all of them together, so that nobody sees where two shifts
meet (Pritch et al., "Shift-Map Image Editing", ICCV 2009): by belief propagation on a coarse picture, and again on each
finer one among what was likely before. In the end the pieces are joined in their differences instead of their colours
(Darabi et al., "Image Melding", SIGGRAPH 2012). What comes out is as sharp as what it was taken from. Deterministic:
the samples of patches are seeded.

Dimensions: n missing pixels, k candidates of each, e pairs of neighbours among them, h w pixels.
"""

from __future__ import annotations

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import extent
from ciri.inpainting.seam import correction

#: Holes thinner than this (half width in pixels) get no texture: a smooth fill cannot be told from it.
THIN = 3.0
#: Known pixels around the hole that are taken from: this many times the hole's half width, at least.
CONTEXT, LEAST_CONTEXT = 2.5, 24
#: The pyramid is built until so many pixels are missing on its coarsest level; where more are missing on a finer one,
#: the choice is only carried up.
COARSEST, FINEST = 2500, 40_000
#: Side of the patches that are compared, and how many values of them (principal components).
PATCH, COMPONENTS = 8, 24
#: Patches that are asked for those most like them, and among which these are looked for.
ASKED, ANSWERING = 2000, 12_000
#: Offsets that are used. Those shorter than so large a share of the picture's longer side only say that it is smooth.
OFFSETS, SHORT = 60, 1 / 15
#: Rounds of belief propagation on the coarsest level, and on each finer one.
ROUNDS, FINER_ROUNDS = 12, 6
#: The likeliest shifts of a pixel that are weighed again on the next finer level.
KEPT = 6
#: What a shift pays for bringing a pixel that is missing itself: more than any difference of colours costs. At the rim,
#: for a difference from the known neighbour, and for bringing a missing one beside it.
MISSING, RIM, MISSING_AT_RIM = 10.0, 2.0, 0.6
#: What a shift pays for every candidate before it, which was commoner or likelier: far from the rim nothing else may
#: speak for either.
LATER = 1e-6
#: How firmly colours are kept when pieces are joined, so that faint casts do not add up over a large hole.
HOLD = 0.003

RIGHT, DOWN = (0, 1), (1, 0)


def synthesise(frame: Tensor, missing: Tensor) -> Tensor:
    """Return the frame with its missing pixels made up from what is around them.

    Args:
        frame: float32 (3, H, W) in [0, 1].
        missing: bool (H, W); what the frame holds there is the first guess, best a smooth one.
    """
    depth = torch.from_numpy(cv2.distanceTransform(missing.byte().numpy(), cv2.DIST_L2, 3))
    deepest = float(depth.max())
    if deepest < THIN or missing.all():
        return frame
    box = extent(missing, max(LEAST_CONTEXT, int(CONTEXT * deepest)))
    result = frame.clone()
    result[(slice(None), *box)] = _fill(frame[(slice(None), *box)], missing[box])
    return result


def _fill(image: Tensor, missing: Tensor) -> Tensor:
    levels = [(image, missing)]
    while int(levels[-1][1].sum()) > COARSEST:
        levels.append(_halved(*levels[-1]))
    pieces, offsets = _Pieces(*levels[-1]), common_offsets(*levels[-1])
    if not len(offsets):
        return image
    shifts = pieces.choose(offsets.expand(len(pieces.pixels), -1, 2), ROUNDS)
    for level in reversed(levels[:-1]):
        pieces = _Pieces(*level)
        shifts = pieces.choose(pieces.candidates(shifts), FINER_ROUNDS if len(pieces.pixels) <= FINEST else 0)
    return pieces.joined(shifts[:, :, 0])


def _halved(image: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """The next coarser level; missing where half or more is, and what is known is made of known pixels alone."""
    weight = (~missing).to(image)[None]
    total = F.avg_pool2d(weight, 2, ceil_mode=True)
    known = F.avg_pool2d(image * weight, 2, ceil_mode=True) / total.clamp(min=0.25)
    return torch.where(total > 0.5, known, F.avg_pool2d(image, 2, ceil_mode=True)), total[0] <= 0.5


def common_offsets(image: Tensor, missing: Tensor) -> Tensor:
    """Return int64 (k, 2), (y, x), the commonest offsets between patches that look alike; the commonest first.

    Args:
        image: float32 (3, h, w).
        missing: bool (h, w); patches that hold any of these are left out.
    """
    _, h, w = image.shape
    side = min(PATCH, h, w)
    across = w - side + 1
    where = torch.nonzero(F.max_pool2d(missing.float()[None, None], side, 1).flatten() == 0).flatten()
    if len(where) < 2:
        return torch.zeros(0, 2, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    where = where[torch.randperm(len(where), generator=generator)[:ANSWERING]]
    y, x = where // across, where % across
    # views: the patches of all places together are 64 times the picture
    patches = image.unfold(1, side, 1).unfold(2, side, 1)[:, y, x].transpose(0, 1).flatten(1)
    patches = patches - patches.mean(0)
    variance = patches.T @ patches
    patches = patches @ torch.linalg.eigh(variance).eigenvectors[:, -COMPONENTS:]
    asked = patches[:ASKED]
    apart = patches.square().sum(1) - 2 * asked @ patches.T  # but for a constant of each patch that asks
    least = max(2, round(SHORT * max(h, w)))
    near = ((y[:ASKED, None] - y).abs() < least) & ((x[:ASKED, None] - x).abs() < least)
    lowest, alike = apart.masked_fill_(near, torch.inf).min(1)
    alike = alike[lowest.isfinite()]
    asking = torch.nonzero(lowest.isfinite()).flatten()
    offset = torch.stack([y[alike] - y[asking], x[alike] - x[asking]], 1)
    votes = torch.zeros(2 * h + 1, 2 * w + 1)
    for sign in (1, -1):  # what is alike there is alike here
        votes.index_put_(tuple((sign * offset + torch.tensor([h, w])).T), torch.ones(len(offset)), accumulate=True)
    votes = torch.from_numpy(cv2.GaussianBlur(votes.numpy(), (0, 0), 1.0))
    peaks = torch.nonzero((F.max_pool2d(votes[None, None], 5, 1, 2)[0, 0] == votes) & (votes > 0))
    order = votes[peaks[:, 0], peaks[:, 1]].argsort(descending=True, stable=True)
    return peaks[order[:OFFSETS]] - torch.tensor([h, w])


class _Pieces:
    """The missing pixels of one level, and what shifts bring to them; a shift is (y, x) from a pixel to its source."""

    def __init__(self, image: Tensor, missing: Tensor) -> None:
        self.image, self.missing = image, missing
        self.h, self.w = missing.shape
        self.pixels = torch.nonzero(missing)
        self.table = image.reshape(3, -1).T.contiguous()
        self.number = torch.full((self.h, self.w), -1)
        self.number[missing] = torch.arange(len(self.pixels))

    def candidates(self, coarser: Tensor) -> Tensor:
        """Return int64 (n, k, 2), what the coarser level's likeliest shifts (h, w, KEPT, 2) become here.

        These are the likeliest at the pixel itself and one pixel around it, those beside it, and the next likely ones.
        """
        limit = torch.tensor(coarser.shape[:2]) - 1
        parent = (self.pixels // 2).clamp(max=limit)
        own = 2 * coarser[parent[:, 0], parent[:, 1]]
        around = torch.cartesian_prod(torch.tensor([0, -1, 1]), torch.tensor([0, -1, 1]))
        beside = torch.tensor([[0, -1], [0, 1], [-1, 0], [1, 0]])
        y, x = (parent[:, None] + beside).clamp(min=torch.zeros_like(limit), max=limit).unbind(-1)
        return torch.cat([own[:, :1] + around, 2 * coarser[y, x, 0], own[:, 1:]], 1)

    def choose(self, candidates: Tensor, rounds: int) -> Tensor:
        """Return the KEPT likeliest shifts of every pixel, int64 (h, w, KEPT, 2), 0 where nothing is missing.

        Args:
            candidates: int64 (n, k, 2), shifts that each missing pixel may take, the likelier ones first.
            rounds: of belief propagation; 0 prefers the first candidates that bring known pixels.
        """
        price = torch.where(self._known(self.pixels[:, None] + candidates), 0.0, MISSING)
        if rounds:
            price += self._seen_at_the_rim(candidates) + LATER * torch.arange(candidates.shape[1])
            price = _beliefs(price, [self._pairs(candidates, step) for step in (RIGHT, DOWN)], rounds)
        order = price.argsort(dim=1, stable=True)[:, torch.arange(KEPT).clamp(max=candidates.shape[1] - 1)]
        shifts = torch.zeros(self.h, self.w, KEPT, 2, dtype=torch.int64)
        shifts[self.missing] = candidates.gather(1, order[..., None].expand(-1, -1, 2))
        shifts[:, :, 0] = self._spread(shifts[:, :, 0])
        return shifts

    def joined(self, shift: Tensor) -> Tensor:
        """Return the picture (3, h, w) with what the shifts (h, w, 2) bring, joined in its differences.

        Where a shift brings a missing pixel, the first guess stays.
        """
        source = self.pixels + shift[self.missing]
        pasted = self.image.clone()
        pasted[:, self.missing] = torch.where(self._known(source), self._colours(source).T, pasted[:, self.missing])
        mismatches = []
        for down, right in (RIGHT, DOWN):
            near, far = self.missing[: self.h - down, : self.w - right], self.missing[down:, right:]
            first = torch.nonzero(near | far)
            second = first + torch.tensor([down, right])
            wanted, say = torch.zeros(len(first), 3), torch.zeros(len(first), 1)
            for end in (first, second):
                own = shift[end[:, 0], end[:, 1]]
                said = self._colours(second + own) - self._colours(first + own)
                counts = self.missing[end[:, 0], end[:, 1]] & self._known(first + own) & self._known(second + own)
                wanted += torch.where(counts[:, None], said, 0.0)
                say += counts[:, None]
            y, x = first.T
            present = pasted[:, y + down, x + right] - pasted[:, y, x]
            mismatch = torch.zeros(3, *near.shape)
            mismatch[:, y, x] = torch.where(say[:, 0] > 0, (wanted / say.clamp(min=1)).T - present, 0.0)
            mismatches.append(mismatch)
        return pasted + correction(mismatches[0], mismatches[1], self.missing, torch.full(self.missing.shape, HOLD))

    def _seen_at_the_rim(self, candidates: Tensor) -> Tensor:
        """What shifts pay (n, k) for meeting known neighbours with other colours than theirs."""
        price = torch.zeros(candidates.shape[:2])
        for step in (RIGHT, DOWN):
            for sign in (1, -1):
                beside = self.pixels + sign * torch.tensor(step)
                rim = self._known(beside)
                wanted, source = self._colours(beside[rim])[:, None], beside[rim][:, None] + candidates[rim]
                apart = RIM * (self._colours(source) - wanted).square().mean(-1)
                price[rim] += torch.where(self._known(source), apart, MISSING_AT_RIM)
        return price

    def _pairs(self, candidates: Tensor, step: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers (e,) of missing pixels and of the missing ones beside them, and what pairs pay (e, k, k).

        What is paid is the squared difference of what the two shifts bring to the two pixels: nothing if equal.
        """
        beside = self.pixels + torch.tensor(step)
        inside = (beside < torch.tensor([self.h, self.w])).all(1)
        first = torch.nonzero(inside).flatten()
        second = self.number[beside[inside, 0], beside[inside, 1]]
        first, second = first[second >= 0], second[second >= 0]

        def brought(by: Tensor) -> Tensor:
            shifts = candidates[by]
            return torch.cat([self._colours(self.pixels[at][:, None] + shifts) for at in (first, second)], -1)

        one, two = brought(first), brought(second)
        price = one.square().sum(-1)[:, :, None] + two.square().sum(-1)[:, None] - 2 * one @ two.transpose(1, 2)
        return first, second, price.clamp_(min=0).div_(3)

    def _spread(self, shift: Tensor) -> Tensor:
        """Give pixels whose shift brings a missing pixel the shift of a neighbour that does better, if there is one."""
        for _ in range(max(self.h, self.w)):
            known = torch.zeros_like(self.missing)
            known[self.missing] = self._known(self.pixels + shift[self.missing])
            lost = self.missing & ~known
            if not lost.any():
                break
            before = shift
            for step in (RIGHT, DOWN):
                for sign in (1, -1):
                    roll = tuple(sign * s for s in step)
                    takes = lost & torch.roll(known, roll, (0, 1))
                    shift = torch.where(takes[..., None], torch.roll(before, roll, (0, 1)), shift)
            if torch.equal(before, shift):
                break
        return shift

    def _flat(self, where: Tensor) -> Tensor:
        y, x = where.unbind(-1)
        return y.clamp(0, self.h - 1) * self.w + x.clamp(0, self.w - 1)

    def _colours(self, where: Tensor) -> Tensor:
        return self.table[self._flat(where)]

    def _known(self, where: Tensor) -> Tensor:
        inside = ((where >= 0) & (where < torch.tensor([self.h, self.w]))).all(-1)
        return inside & ~self.missing.flatten()[self._flat(where)]


def _beliefs(price: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]], rounds: int) -> Tensor:
    """What every candidate costs a pixel and, as far as messages have come, all others: (n, k).

    Min-sum belief propagation (Felzenszwalb and Huttenlocher, "Efficient Belief Propagation for Early Vision", IJCV
    2006), damped by half.

    Args:
        price: (n, k), of each candidate by itself.
        pairs: per axis, of :meth:`_Pieces._pairs`.
        rounds: in each, every pixel tells its neighbours.
    """
    heard = price.new_zeros(2 * len(pairs), *price.shape)
    for _ in range(rounds):
        for axis, (first, second, cost) in enumerate(pairs):
            back, forth = 2 * axis, 2 * axis + 1  # what the first of a pair hears from the second, and the reverse
            told = ((price + heard.sum(0) - heard[back])[first][:, :, None] + cost).amin(1)
            heard[forth, second] = (heard[forth, second] + told - told.amin(1, keepdim=True)) / 2
            told = ((price + heard.sum(0) - heard[forth])[second][:, None] + cost).amin(2)
            heard[back, first] = (heard[back, first] + told - told.amin(1, keepdim=True)) / 2
    return price + heard.sum(0)
