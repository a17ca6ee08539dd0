"""What enters the contextual loss: the annotated target and the predicted region of a frame, as feature vectors.

The predicted region has to depend on the soft mask in a way that can be differentiated; the box around it is data.

- Image space (the paper's X^pred): what is outside the mask is painted over, and the crop goes through the extractor.
- Kept features (far cheaper): the untouched crop goes through the extractor once, and the mask only weighs its cells.

Dimensions: n cells, c channels, h w pixels, s pixels of a crop's side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import CiriError
from ciri.refinement.contextual import Order, contextual_loss
from ciri.residue.base import Box
from ciri.residue.crops import crop, window_around

#: Side of the crops in pixels. At stride 4 that is 1024 cells; four times as many are 16 times the work.
SIZE = 128
#: The box of a frame is this much larger than that of its first mask: what was missed has to be inside to be gained.
MARGIN = 1.3


class FeatureExtractor(Protocol):
    """Frozen features in which appearance is compared: VGG-19's, or a smaller network's.

    Attributes:
        name: short name.
        fill: RGB in [0, 1], painted over what does not belong to a region.
    """

    name: str
    fill: tuple[float, float, float]

    def __call__(self, crops: Tensor) -> Tensor:
        """RGB (N, 3, s, s) in [0, 1], on any device -> (N, c, h, w), cells spread evenly over the crop.

        The result is on the device where the features are computed.
        """
        ...


def enlarged(box: Box, factor: float = MARGIN) -> Box:
    """A box that is so many times larger, about the same centre."""
    return window_around(box, factor, isotropic=False)


def image_space_points(
    extractor: FeatureExtractor, frame: Tensor, mask: Tensor, box: Box, *, size: int = SIZE
) -> Tensor:
    """Vectors (n, c) of the region of a frame, from the frame with everything else painted over.

    Gradients reach the mask through the picture. Which cells are taken (more than half of the cell is inside) is not
    differentiated, so a region can only lose or gain within them.

    Args:
        frame: float32 (3, h, w) in [0, 1].
        mask: float32 (1, h, w) in [0, 1].
        box: the crop.
        size: its side after resizing, in pixels.

    Returns:
        (n, c); n is 0 where no cell is taken.
    """
    fill = frame.new_tensor(extractor.fill)
    shown = mask * frame + (1 - mask) * fill[:, None, None]
    features = extractor(crop(shown[None], [box], size, fill))
    taken = cell_weights(mask.detach(), box, (features.shape[2], features.shape[3]), size=size) > 0.5
    return features[0].flatten(1).T[taken.to(features.device)]


def cell_weights(mask: Tensor, box: Box, grid: tuple[int, int], *, size: int = SIZE) -> Tensor:
    """How much of each cell of a crop belongs to a mask (1, h, w): (n,) in [0, 1], row by row; differentiable."""
    resized = crop(mask[None], [box], size, mask.new_zeros(1))
    return F.adaptive_avg_pool2d(resized, grid).flatten()


@dataclass(frozen=True)
class Crop:
    """Features of an untouched crop, computed once.

    Attributes:
        points: (n, c), detached.
        grid: rows and columns, n in all.
        box: where it was cut.
        size: side in pixels of what went through the extractor.
    """

    points: Tensor
    grid: tuple[int, int]
    box: Box
    size: int

    def weights(self, mask: Tensor) -> Tensor:
        """How much of each cell belongs to a mask (1, h, w) of the whole frame: (n,), differentiable."""
        return cell_weights(mask, self.box, self.grid, size=self.size)


@torch.no_grad()
def keep_features(extractor: FeatureExtractor, frame: Tensor, box: Box, *, size: int = SIZE) -> Crop:
    """Return the features of a box of a frame (3, h, w) in [0, 1], as they are without any mask."""
    features = extractor(crop(frame[None], [box], size, frame.new_tensor(extractor.fill))).float()
    return Crop(features[0].flatten(1).T.contiguous(), (features.shape[2], features.shape[3]), box, size)


class Comparison:
    """The contextual loss of one frame's mask: everything that does not depend on that mask is computed once.

    Args:
        template: features about the target in the annotated frame.
        template_mask: float32 (1, h, w), the annotated mask.
        frame: features of the frame, of a box that leaves room to grow (:func:`enlarged`).
        order: as :func:`ciri.refinement.contextual.contextual_loss` takes it.

    Raises:
        CiriError: the annotated mask is empty in the template's box, or features of two extractors.
    """

    def __init__(self, template: Crop, template_mask: Tensor, frame: Crop, *, order: Order = "symmetric") -> None:
        self.frame, self.order = frame, order
        weights = template.weights(template_mask.detach()).to(template.points)
        inside = weights > 0
        if not inside.any():
            raise CiriError(
                "The annotated mask is empty where the target's features were taken. Paint the object on the frame."
            )
        self._points, self._weights = template.points[inside], weights[inside]

    def loss(self, mask: Tensor) -> Tensor:
        """Return Eq. 8 for a soft mask, float32 (1, h, w) in [0, 1] of the whole frame; gradients reach the mask."""
        loss = contextual_loss(
            self.frame.points,
            self._points,
            prediction_weights=self.frame.weights(mask).to(self.frame.points),
            template_weights=self._weights,
            order=self.order,
        )
        return loss.to(mask.device)


def informative(losses: list[float], tolerance: float = 1.5) -> list[bool]:
    """Which frames' contextual loss says something: those not above the clip's median by more than the tolerance.

    Where a target has changed its looks, the loss pulls the mask to the parts that still look like the annotated frame.
    """
    numbers = [loss for loss in losses if math.isfinite(loss)]
    if not numbers:
        return [False] * len(losses)
    limit = float(torch.tensor(numbers).median()) + tolerance
    return [math.isfinite(loss) and loss <= limit for loss in losses]
