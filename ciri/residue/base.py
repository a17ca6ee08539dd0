"""What a residue detector is: it says where in an inpainted frame something of the removed target is left (Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Box(NamedTuple):
    """A rectangle of whole pixels; it may reach outside the frame.

    Attributes:
        x, y: its first column and row.
        width, height: last minus first column or row, plus one.
    """

    x: int
    y: int
    width: int
    height: int

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of its middle, in the coordinates in which pixel i covers i to i + 1."""
        return self.x + self.width / 2, self.y + self.height / 2


class Removal(NamedTuple):
    """How the target was removed from some frames: what tells a fill from a part that was never covered.

    Attributes:
        filmed: float32 (N, 3, H, W) in [0, 1], the frames before.
        masks: float32 (N, 1, H, W) in [0, 1], where the target was taken to be.
        inpainted: float32 (N, 3, H, W) in [0, 1], what came out. The frames that are asked about may be others: a new
            attempt has to convince by what it shows, not by having changed more.
    """

    filmed: Tensor
    masks: Tensor
    inpainted: Tensor


@runtime_checkable
class ResidueDetector(Protocol):
    """A frozen Siamese network: one look at the target in the annotated frame, then a response for any other frame.

    Attributes:
        name: short name, as in :mod:`ciri.residue.registry`.
        threshold: tau, the response below which nothing counts: the 99th percentile of the responses on clean
            removals. It is kept with the weights.
        device: where it computes.
    """

    name: str
    threshold: float
    device: torch.device

    def template(self, frame: Tensor, mask: Tensor) -> Any:
        """Look at the target once.

        Args:
            frame: float32 (3, H, W) in [0, 1], the annotated frame as it was filmed.
            mask: float32 (1, H, W) in [0, 1], the target in it.

        Returns:
            something for :meth:`detect`, detached from any graph.

        Raises:
            MaskError: the mask shows no target.
        """
        ...

    def detect(self, template: Any, frames: Tensor, boxes: Sequence[Box], removal: Removal | None = None) -> Tensor:
        """Return logits (N, 1, h, w) of "this belongs to the target", spread evenly over each box's search window.

        The window is :func:`ciri.residue.crops.search_window` of the box. The result can be differentiated with
        respect to the frames; the weights are frozen.

        Args:
            template: what :meth:`template` returned.
            frames: float32 (N, 3, H, W) in [0, 1], inpainted.
            boxes: where the target was in each of them.
            removal: how it was removed from each of them, for detectors that make use of it; no gradient flows there.
        """
        ...
