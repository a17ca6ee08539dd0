"""Fusing the two candidate maps into the inactivation map (paper Eq. 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ciri.errors import MaskError


def fuse(predicted: Tensor, attention: Tensor, beta: Tensor | float) -> Tensor:
    """Return M_iac = b M_pred + (1 - b) M_attn; all maps (T, 1, H, W) in [0, 1].

    The two may be on different devices; M_iac is where the predicted masks are.

    Raises:
        MaskError: the maps differ in shape, or b is a number outside [0, 1].
    """
    if predicted.shape != attention.shape:
        raise MaskError(
            f"The predicted masks have shape {tuple(predicted.shape)} and the attention maps {tuple(attention.shape)}; "
            "both have to come from the same clip."
        )
    if not isinstance(beta, Tensor) and not 0 <= beta <= 1:
        raise MaskError(f"beta is {beta}; expected a share in [0, 1].")
    return beta * predicted + (1 - beta) * attention.to(predicted.device)


def spared(found: Tensor, predicted: Tensor, kept: Tensor) -> Tensor:
    """Return a map (T, 1, H, W) that takes nothing more of what is to stay than the propagator's masks do.

    What stays differs from the scene behind it as the target does, so an attention map would take it back.

    Args:
        found, predicted: an attention map or M_iac, and M_pred.
        kept: what is to stay, as it was followed along with the target.

    The three may be on different devices; the map that comes out is where ``found`` is.

    Raises:
        MaskError: the maps differ in shape.
    """
    if not found.shape == predicted.shape == kept.shape:
        raise MaskError(
            f"What is to stay has shape {tuple(kept.shape)}, the masks {tuple(predicted.shape)} and the map "
            f"{tuple(found.shape)}; all have to come from the same clip."
        )
    predicted, kept = predicted.to(found.device), kept.to(found.device)
    return torch.where(kept > 0.5, torch.minimum(found, predicted), found)


class Fusion(nn.Module):
    """Eq. 3 with the learnable scalar b, kept in (0, 1) by a sigmoid."""

    def __init__(self, beta: float = 0.7) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(math.log(beta / (1 - beta))))

    @property
    def beta(self) -> Tensor:
        return self.logit.sigmoid()

    def forward(self, predicted: Tensor, attention: Tensor) -> Tensor:
        return fuse(predicted, attention, self.beta)
