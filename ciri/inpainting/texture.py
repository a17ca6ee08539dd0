"""Synthesis of what no frame shows, from the patches around it.

Coarse to fine, every missing pixel's patch is matched to a known patch (PatchMatch: Barnes et al., SIGGRAPH 2009, in
a form that updates all pixels at once), and every missing pixel becomes the weighted mean of what the matches of the
patches over it say (Wexler et al., "Space-Time Completion of Video", TPAMI 2007). In the end they are asked once more,
for differences instead of colours (Darabi et al., "Image Melding", SIGGRAPH 2012): where matches from two places meet,
neither of them has an edge, so none is made up there. Deterministic: the random search is seeded.

Patches alone agree on anything that agrees with itself: sea foam in the sand, somebody's back between gym mats. A match
is therefore also judged by how far its colour is from the smooth first guess, and how far away it lies. On sixty stills
with silhouettes cut out (``benchmarks/texture.py``) that was worth 2.3 dB, and asking for differences 0.8 dB; both are
seen at once.

Dimensions: q missing pixels, h w pixels, p values of a patch.
"""

from __future__ import annotations

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import extent
from ciri.inpainting.seam import correction

#: Side of a patch in pixels, and half of it.
PATCH = 5
RADIUS = PATCH // 2
#: Holes thinner than this (half width in pixels) get no texture: a smooth fill cannot be told from it.
THIN = 3.0
#: The pyramid is built until the hole's half width is at most this on its coarsest level.
COARSEST = 4.0
#: Rounds of matching and voting per level, and of propagation and random search per matching.
ROUNDS, SEARCHES = 3, 2
#: What a match pays beside the mean squared difference of the patches: so many times that of its middle pixel's colour
#: from the first guess, and of its distance squared, as a share of the area that is searched.
STRAYING, FAR = 3.0, 0.3
#: The first guess counts so much less on each finer level: it knows the layout and no detail.
FINER = 0.5
#: A match that costs so many times the median has 1/e of a perfect one's say. Less is sharper, and noisier.
DISCERNING = 0.25
#: How firmly voted colours are kept when differences are melded, so that faint casts do not add up over a large hole.
HOLD = 0.003
#: Rows of patches that are cut out at a time.
STRIP = 32
#: Known pixels around the hole in which matches are looked for: this many times the hole's half width, at least.
CONTEXT, LEAST_CONTEXT = 2.5, 24


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
    result[(slice(None), *box)] = _pyramid(frame[(slice(None), *box)], missing[box], deepest)
    return result


def _pyramid(image: Tensor, missing: Tensor, deepest: float) -> Tensor:
    levels = [(image, missing)]
    while deepest > COARSEST and min(levels[-1][1].shape) >= 6 * PATCH:
        finer, hole = levels[-1]
        weight = (~hole).to(finer)[None]
        total = F.avg_pool2d(weight, 2)
        # missing where half or more is; what is known of a coarse pixel is made of known fine pixels alone
        known = F.avg_pool2d(finer * weight, 2) / total.clamp(min=0.25)
        levels.append((torch.where(total > 0.5, known, F.avg_pool2d(finer, 2)), total[0] <= 0.5))
        deepest /= 2
    generator = torch.Generator().manual_seed(0)
    estimate, match = levels[-1][0], None
    for level, (known, hole) in reversed(list(enumerate(levels))):
        search = _Search(hole, generator, STRAYING * FINER ** (len(levels) - 1 - level))
        if not search.possible:
            estimate = known
            continue
        carried, match = match is not None, search.start(match)
        # the coarser level's matches, applied to this level's pixels, bring detail that no enlarged estimate has
        estimate = search.vote(known, match, torch.zeros(len(search.pixels))) if carried else known
        for _ in range(ROUNDS if level else 1):
            estimate, match, cost = search.round(estimate, match, known)
        if not level:
            estimate = search.meld(estimate, match, cost)
    return estimate


def _patches(image: Tensor) -> Tensor:
    """Return the patch around every pixel of an image (3, h, w): float32 (h w, p)."""
    _, h, w = image.shape
    padded = F.pad(image[None], (RADIUS,) * 4, mode="replicate")
    patches = image.new_empty(h * w, 3 * PATCH * PATCH)
    # in strips: patches are the largest thing here, and turning them all at once would hold them twice
    for top in range(0, h, STRIP):
        bottom = min(top + STRIP, h)
        patches[top * w : bottom * w] = F.unfold(padded[..., top : bottom + 2 * RADIUS, :], PATCH)[0].T
    return patches


class _Search:
    """Matching and voting on one level of the pyramid; matches are a dense (h, w, 2) field of (y, x)."""

    def __init__(self, hole: Tensor, generator: torch.Generator, straying: float) -> None:
        self.hole, self.generator, self.straying = hole, generator, straying
        self.h, self.w = hole.shape
        self.pixels = torch.nonzero(hole)
        # patches may reach over the picture's edge, which is repeated outwards: a hole beside it has few others
        self.usable = F.max_pool2d(hole.float()[None, None], PATCH, stride=1, padding=RADIUS)[0, 0] == 0
        self.possible = bool(self.usable.any()) and len(self.pixels) > 0
        self.sources = torch.nonzero(self.usable)

    def start(self, coarser: Tensor | None) -> Tensor:
        """Return a first match per pixel: the coarser level's, carried up, or a random one."""
        pick = torch.randint(len(self.sources), (self.h, self.w), generator=self.generator)
        match = self.sources[pick]
        if coarser is None:
            return match
        y, x = torch.meshgrid(torch.arange(self.h), torch.arange(self.w), indexing="ij")
        above = coarser[(y // 2).clamp(max=coarser.shape[0] - 1), (x // 2).clamp(max=coarser.shape[1] - 1)]
        carried = above * 2 + torch.stack([y % 2, x % 2], -1)
        return torch.where(self._is_usable(carried)[..., None], carried, match)

    def round(self, image: Tensor, match: Tensor, first_guess: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the image (3, h, w), the matches and their costs (q,) after one matching and one voting."""
        patches, colours = _patches(image), first_guess.reshape(3, -1).T.contiguous()
        missing = self.pixels[:, 0] * self.w + self.pixels[:, 1]
        wanted, guessed = patches[missing], colours[missing]

        def cost(candidate: Tensor) -> Tensor:
            found = candidate[:, 0] * self.w + candidate[:, 1]
            apart = (patches[found] - wanted).square().mean(1)
            straying = (colours[found] - guessed).square().mean(1)
            away = (candidate - self.pixels).square().sum(1) / (self.h * self.w)
            return apart + self.straying * straying + FAR * away

        best = match[self.pixels[:, 0], self.pixels[:, 1]]
        lowest = cost(best)
        field = match.clone()
        for _ in range(SEARCHES):
            for candidate in self._candidates(field, best):
                candidate = torch.where(self._is_usable(candidate)[:, None], candidate, best)
                price = cost(candidate)
                better = price < lowest
                best = torch.where(better[:, None], candidate, best)
                lowest = torch.where(better, price, lowest)
            field[self.pixels[:, 0], self.pixels[:, 1]] = best
        return self.vote(image, field, lowest), field, lowest

    def _candidates(self, field: Tensor, best: Tensor) -> list[Tensor]:
        """Return the neighbours' matches, moved along, and random ones ever closer to the best."""
        limit = torch.tensor([self.h - 1, self.w - 1])
        result = []
        for step in (1, 4):
            for offset in ((0, step), (0, -step), (step, 0), (-step, 0)):
                shift = torch.tensor(offset)
                beside = (self.pixels + shift).clamp(min=torch.zeros_like(limit), max=limit)
                result.append(field[beside[:, 0], beside[:, 1]] - (beside - self.pixels))
        radius = max(self.h, self.w) / 2
        while radius >= 1:
            jitter = (torch.rand(len(best), 2, generator=self.generator) * 2 - 1) * radius
            result.append(best + jitter.round().long())
            radius /= 2.5
        return result

    def _is_usable(self, where: Tensor) -> Tensor:
        y, x = where.unbind(-1)
        inside = (y >= 0) & (y < self.h) & (x >= 0) & (x < self.w)
        return inside & self.usable[y.clamp(0, self.h - 1), x.clamp(0, self.w - 1)]

    def vote(self, image: Tensor, field: Tensor, cost: Tensor) -> Tensor:
        """Return the image with each missing pixel the mean of what the matches of the patches over it say."""
        result = image.clone()
        result[:, self.pixels[:, 0], self.pixels[:, 1]] = self._mean(image, field, self._say(cost), self.pixels)[0].T
        return result

    def meld(self, image: Tensor, field: Tensor, cost: Tensor) -> Tensor:
        """Return the voted image with the differences between neighbours, too, as the matches have them.

        Where the matches disagree, the voted colours have edges that are in none of them.
        """
        say, mismatches = self._say(cost), []
        for down, right in ((0, 1), (1, 0)):
            first = torch.nonzero(self.hole[: self.h - down, : self.w - right] | self.hole[down:, right:])
            wanted, total = self._mean(image, field, say, first, torch.tensor([down, right]))
            y, x = first.unbind(1)
            present = image[:, y + down, x + right] - image[:, y, x]
            mismatch = torch.zeros(3, self.h - down, self.w - right)
            mismatch[:, y, x] = torch.where(total[:, 0] > 0, wanted.T - present, 0.0)
            mismatches.append(mismatch)
        return image + correction(mismatches[0], mismatches[1], self.hole, torch.full(self.hole.shape, HOLD))

    def _say(self, cost: Tensor) -> Tensor:
        """Return what say (h, w) the patch around each missing pixel has, from its match's cost (q,)."""
        say = torch.zeros(self.h, self.w)
        scale = cost.median() * DISCERNING + 1e-6
        say[self.pixels[:, 0], self.pixels[:, 1]] = torch.exp(-cost / scale) + 1e-6
        return say

    def _mean(
        self, image: Tensor, field: Tensor, say: Tensor, pixels: Tensor, step: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what the matches of the patches over some pixels (n, 2) say of them, and how much say they have.

        Args:
            image: (3, h, w).
            field: the matches, (h, w, 2).
            say: (h, w), of the patch around each pixel.
            pixels: (y, x) of the pixels asked for.
            step: if given, (y, x) to a neighbour: asked for is how much its colour differs, of patches over both.

        Returns:
            float32 (n, 3), the weighted mean, and (n, 1), the weights' sum.
        """
        limit = torch.tensor([self.h - 1, self.w - 1])
        colours, total = torch.zeros(len(pixels), 3), torch.zeros(len(pixels), 1)
        table = image.reshape(3, -1).T.contiguous()

        def colour(where: Tensor) -> Tensor:
            where = where.clamp(min=torch.zeros_like(limit), max=limit)  # of a patch over the edge
            return table[where[:, 0] * self.w + where[:, 1]]

        for dy in range(-RADIUS, RADIUS + 1):
            for dx in range(-RADIUS, RADIUS + 1):
                offset = torch.tensor([dy, dx])
                if step is not None and int((offset - step).abs().max()) > RADIUS:
                    continue
                centre = (pixels + offset).clamp(min=torch.zeros_like(limit), max=limit)
                source = field[centre[:, 0], centre[:, 1]] - (centre - pixels)
                said = colour(source) if step is None else colour(source + step) - colour(source)
                weight = say[centre[:, 0], centre[:, 1]][:, None]
                colours += weight * said
                total += weight
        return colours / total.clamp(min=1e-12), total
