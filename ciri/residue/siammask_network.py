"""SiamMask, the published Siamese tracker that Eq. 7 takes its features from, for its own checkpoints.

21.5 M parameters, state dict as published. Dimensions: b pairs of a template (127 pixels a side) and a search (255).
"""

from __future__ import annotations

import os
from typing import NamedTuple

from torch import Tensor, nn

from ciri.checkpoints import load_strictly, read_state_dict
from ciri.residue.siammask_heads import CorrelationHead, Refine
from ciri.residue.siammask_trunk import Trunk, TrunkMaps

#: Sides of the crops that the network was trained on, in pixels.
TEMPLATE, SEARCH = 127, 255
#: Anchor boxes per cell.
ANCHORS = 5
#: Side of the coarse mask that the mask head gives for every cell.
COARSE_MASK = 63

_REFINE = "refine_model."


class Response(NamedTuple):
    """What the heads say of a search.

    Attributes:
        classes: (b, 10, 25, 25), (class, anchor) with the class slowest; class 1 = target.
        boxes: (b, 20, 25, 25), (dx dy dw dh, anchor) with the anchor fastest.
        correlation: (b, 256, 25, 25) of the mask head, which the refinement takes.
    """

    classes: Tensor
    boxes: Tensor
    correlation: Tensor

    def scores(self) -> Tensor:
        """Probability of the target by (anchor, row, column), (b, 5, 25, 25)."""
        return self.classes.unflatten(1, (2, ANCHORS)).softmax(1)[:, 1]


class _Proposals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls = CorrelationHead(2 * ANCHORS)
        self.loc = CorrelationHead(4 * ANCHORS)


class _Masks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = CorrelationHead(COARSE_MASK**2)


class SiamMask(nn.Module):
    """Trunk, heads and (in the "sharp" variant) refinement.

    Crops are **BGR in 0..255**, as the authors trained it: no mean is subtracted, nothing is divided.

    Args:
        sharp: with the refinement module; the authors' base variant has none.
    """

    name = "siammask"

    def __init__(self, *, sharp: bool = True) -> None:
        super().__init__()
        self.features = Trunk()
        self.rpn_model = _Proposals()
        self.mask_model = _Masks()
        self.refine_model = Refine() if sharp else None
        self.eval()

    def train(self, mode: bool = True) -> SiamMask:
        """Batch norm uses its stored statistics always, also while weights are tuned: a few crops are no batch."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def encode(self, crops: Tensor) -> tuple[TrunkMaps, Tensor]:
        """(b, 3, 127 or 255, the same) -> maps and the adjusted map, (b, 256, 7, 7) or (b, 256, 31, 31)."""
        encoded: tuple[TrunkMaps, Tensor] = self.features(crops)
        return encoded

    def respond(self, template: Tensor, search: Tensor) -> Response:
        """Compare adjusted maps, (b, 256, 7, 7) and (b, 256, 31, 31)."""
        mask = self.mask_model.mask
        return Response(
            self.rpn_model.cls(template, search),
            self.rpn_model.loc(template, search),
            mask.correlation(template, search),
        )

    def coarse_masks(self, correlation: Tensor) -> Tensor:
        """Mask logits for every cell, (b, 63 * 63, 25, 25)."""
        masks: Tensor = self.mask_model.mask.head(correlation)
        return masks


def load_siammask(path: str | os.PathLike[str]) -> SiamMask:
    """Return the network with the weights of a published checkpoint, of the sharp or the base variant.

    The authors' code is MIT-licensed; their weights carry no licence of their own, so they are not shipped here.

    Raises:
        CheckpointError: unreadable, or another model's weights.
    """
    state, _ = read_state_dict(path)
    network = SiamMask(sharp=any(key.startswith(_REFINE) for key in state))
    load_strictly(network, state, model="siammask", path=path)
    return network
