"""The residue detector ``siammask``: part matching on the features of the published tracker, nothing trained here.

A cell of an inpainted frame is residue where it looks more like cells of the target than like cells of the target's
surroundings in the annotated frame: the mean cosine similarity to the three nearest target cells, minus the same for
the background. Background that resembles the target resembles other background as well, and cancels out.

How large a difference means something depends on weights and scene, so the annotated frame itself says it: there we
know what is target. The difference that 99 % of its background stay below is made the threshold's response, and the
one that is usual for its target the response 0.9. For this, cells are not compared with themselves or neighbours.

Only the mechanism could be tested, with made-up weights and scenes: the published weights were not at hand, so nothing
is claimed of how well it finds residue with them. The detector ``lite`` has measured numbers in its card.

Dimensions: n crops, m cells of a crop, k cells of a bank, c channels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ciri.frames import check_annotation
from ciri.precision import choose_dtype
from ciri.residue.base import Box, Removal
from ciri.residue.crops import crop, search_window, target_box
from ciri.residue.parts import NEAREST, choose_cells, mean_of_largest
from ciri.residue.siammask_network import SEARCH, load_siammask
from ciri.residue.siammask_trunk import Trunk

#: Response at the difference that the annotated frame's background stays below, and at the one usual for its target.
BACKGROUND_RESPONSE, TARGET_RESPONSE = 0.3, 0.9
_QUANTILE = 0.99
#: Differences of the two kinds are taken to be at least so far apart: where they are not, nothing is called residue.
_LEAST_GAP = 0.05
#: Pixels of the crop by which the target is dilated before background is looked for.
_HALO = 5
#: Cells that are kept of each kind.
_MOST_CELLS = 256
#: Cells along a crop: stride 8, the first centred on pixel 7.
_CELLS, _STRIDE, _FIRST = 31, 8, 7
#: Pixels of the crop per cell of the result.
_FINENESS = 3


@dataclass(frozen=True)
class Bank:
    """What one feature map says of the annotated frame; all vectors have length 1.

    Attributes:
        target, background: (k, c).
        offset, slope: from differences of similarities to logits.
    """

    target: Tensor
    background: Tensor
    offset: float
    slope: float

    def logits(self, cells: Tensor) -> Tensor:
        """Cells (..., c) of length 1 -> (...)."""
        difference = nearest(self.target @ cells.mT) - nearest(self.background @ cells.mT)
        return (difference - self.offset) * self.slope + _logit(BACKGROUND_RESPONSE)


@dataclass(frozen=True)
class Template:
    """What the detector keeps of the annotated frame.

    Attributes:
        banks: for p2 and for the adjusted map.
        fill: (3,), the frame's mean colour, for what is outside.
    """

    banks: tuple[Bank, Bank]
    fill: Tensor


class SiamMaskDetector:
    """A :class:`ciri.residue.base.ResidueDetector`.

    Args:
        trunk: SiamMask's feature extractor with trained weights; it is frozen.
        precision: "auto", "fp32", "bf16" or "fp16", for the trunk; similarities are float32 always.
    """

    name = "siammask"
    #: By the calibration, what 1 % of the annotated frame's own background exceeds; not measured on clean removals.
    threshold = BACKGROUND_RESPONSE

    def __init__(self, trunk: Trunk, *, device: torch.device | str = "cpu", precision: str = "auto") -> None:
        self.device = torch.device(device)
        self.dtype = choose_dtype(precision, self.device)
        self.trunk = trunk.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.trunk.requires_grad_(False)

    @torch.no_grad()
    def template(self, frame: Tensor, mask: Tensor) -> Template:
        """See :class:`ciri.residue.base.ResidueDetector`.

        The target and its surroundings are both cut at the scale of a search, which fragments are compared at.
        """
        check_annotation(mask[None])
        box = target_box(mask)
        assert box is not None  # the check above
        window = search_window(box)
        frame, mask = frame.to(self.device).float(), mask.to(self.device).float()
        fill = frame.mean((1, 2))
        cut = crop(mask[None], [window], SEARCH, mask.new_zeros(1))
        around = F.max_pool2d(cut, 2 * _HALO + 1, 1, _HALO)
        inside = crop(torch.ones_like(mask)[None], [window], SEARCH, mask.new_zeros(1))
        # what is outside the frame is neither
        target, background = choose_cells(_share(cut), _share(around) + (_share(inside) < 1 - 1e-4), _MOST_CELLS)
        if not len(background):
            # the target fills all of it: nothing can be told from anything, so nothing is called residue
            background = target
        p2, adjusted = (bank_of(cells[0], target, background) for cells in self.features(frame[None], [window], fill))
        return Template((p2, adjusted), fill)

    def detect(
        self, template: Template, frames: Tensor, boxes: Sequence[Box], removal: Removal | None = None
    ) -> Tensor:
        """See :class:`ciri.residue.base.ResidueDetector`; returns (N, 1, 85, 85). The removal is not looked at."""
        maps = self.features(frames.to(self.device), [search_window(box) for box in boxes], template.fill)
        levels = [bank.logits(cells) for bank, cells in zip(template.banks, maps, strict=True)]
        return over_the_window(torch.stack(levels).mean(0))

    def features(self, frames: Tensor, windows: Sequence[Box], fill: Tensor) -> tuple[Tensor, Tensor]:
        """Cells of windows of frames (N, 3, H, W), float32 (N, m, c) of length 1: of p2, and of the adjusted map."""
        # BGR in 0..255 is what the network was trained on
        crops = crop(frames.float(), windows, SEARCH, fill).flip(1) * 255
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            maps = self.trunk.maps(crops.contiguous(memory_format=torch.channels_last))
            adjusted = self.trunk.adjusted(maps.p3)
        p2, reduced = (F.normalize(rearrange(m.float(), "n c h w -> n (h w) c"), dim=-1) for m in (maps.p2, adjusted))
        return p2, reduced


def build_siammask(weights: str | os.PathLike[str], **options: str | torch.device) -> SiamMaskDetector:
    """Return the detector with the weights of a published checkpoint, of the sharp or the base variant.

    Args:
        weights: the file; of it only the feature extractor is used.
        options: ``device`` and ``precision``, see :class:`SiamMaskDetector`.

    Raises:
        CheckpointError: see :func:`ciri.residue.siammask_network.load_siammask`.
    """
    return SiamMaskDetector(load_siammask(weights).features, **options)  # type: ignore[arg-type]


def bank_of(cells: Tensor, target: Tensor, background: Tensor) -> Bank:
    """Keep the cells (m, c) with the given numbers, and calibrate by them."""
    of_target, of_background = cells[target], cells[background]

    def differences(numbers: Tensor) -> Tensor:
        similarities = []
        for bank in (target, background):
            neighbours = _neighbours(numbers, bank)
            # a target of a few cells has nobody but neighbours
            neighbours[neighbours.all(1)] = False
            similarities.append(nearest((cells[bank] @ cells[numbers].T).masked_fill(neighbours.T, -1)))
        return similarities[0] - similarities[1]

    offset = float(differences(background).quantile(_QUANTILE))
    gap = max(float(differences(target).median()) - offset, _LEAST_GAP)
    return Bank(of_target, of_background, offset, (_logit(TARGET_RESPONSE) - _logit(BACKGROUND_RESPONSE)) / gap)


def nearest(similarities: Tensor) -> Tensor:
    """Mean of the largest similarities (..., k, m) of k remembered cells to each of m."""
    return mean_of_largest(similarities, NEAREST, -2)


def over_the_window(cells: Tensor) -> Tensor:
    """Values of cells (n, m) -> maps (n, 1, 85, 85) that are spread evenly over the window, as the cells are not."""
    grid = cells.unflatten(1, (1, _CELLS, _CELLS))
    # one value per pixel from the first cell's centre to the last one's, the outermost ones repeated to the border
    length = _STRIDE * (_CELLS - 1) + 1
    pixels = F.interpolate(grid, (length, length), mode="bilinear", align_corners=True)
    return F.avg_pool2d(F.pad(pixels, (_FIRST,) * 4, mode="replicate"), _FINENESS)


def _share(image: Tensor) -> Tensor:
    """Mean of a crop (1, 1, 255, 255) over the pixels about each cell's centre, (31, 31)."""
    first, last = _FIRST - _STRIDE // 2, _FIRST - _STRIDE // 2 + _CELLS * _STRIDE
    return F.avg_pool2d(image[..., first:last, first:last], _STRIDE)[0, 0]


def _neighbours(first: Tensor, second: Tensor) -> Tensor:
    """Which of two lists of cell numbers are the same cell or adjacent, bool (len(first), len(second))."""
    rows = (first[:, None] // _CELLS - second // _CELLS).abs()
    columns = (first[:, None] % _CELLS - second % _CELLS).abs()
    return torch.maximum(rows, columns) <= 1


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
