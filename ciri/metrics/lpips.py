"""LPIPS: how different two pictures look to a network (AlexNet, version 0.1).

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018. The weights are a
user's: the trunk is the published AlexNet (``alexnet-owt-*.pth``), the linear layers are the authors' ``alex.pth``; one
file that holds both does as well.

Dimensions: t frames, c channels, h w pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.checkpoints import load_strictly, read_state_dict
from ciri.errors import CheckpointError
from ciri.metrics.local import Box
from ciri.metrics.similarity import check_pair

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_WIDTHS = (64, 192, 384, 256, 256)
#: Indices into the trunk: AlexNet is compared after each of its five ReLUs.
_RELUS = (1, 4, 7, 9, 11)
#: With a shorter side, nothing is left of a picture for the deepest layers.
_LEAST_SIDE = 31


class _Linear(nn.Module):
    """A 1x1 convolution under the published key, ``model.1``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        weighted: Tensor = self.model(x)
        return weighted


class LPIPS(nn.Module):
    """AlexNet's features, normalised, compared and weighted."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, 1, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, 1, 1),
            nn.ReLU(),
        )
        for index, channels in enumerate(_WIDTHS):
            self.add_module(f"lin{index}", _Linear(channels))
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    def layers(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Weighted squared differences of each layer, (1, 1, h', w'), of two pictures (1, 3, h, w) in [0, 1]."""
        found: list[Tensor] = []
        both = (torch.cat([first, second]).to(self.shift) * 2 - 1 - self.shift) / self.scale
        for index, layer in enumerate(self.features):
            both = layer(both)
            if index in _RELUS:
                a, b = (both / (both.square().sum(1, keepdim=True).sqrt() + 1e-10)).split(1)
                found.append(self.get_submodule(f"lin{len(found)}")((a - b).square()))
        return found

    def distance(self, result: Tensor, clean: Tensor, boxes: Sequence[Box | None] | None = None) -> Tensor:
        """Return LPIPS of every frame, float64 (T,): 0 for equal pictures, larger for more different ones.

        Not-a-number where a side is shorter than 31 pixels.

        Args:
            result, clean: floating (T, 3, H, W) in [0, 1].
            boxes: the local variant: the distance map, brought to the frame's size, is averaged over each frame's
                box; not-a-number where there is none.

        Raises:
            ClipError: the clips cannot be compared.
        """
        check_pair(result, clean)
        if min(result.shape[2:]) < _LEAST_SIDE:
            return torch.full((len(result),), torch.nan, dtype=torch.float64)
        rows = []
        with torch.inference_mode():
            for index, (a, b) in enumerate(zip(result, clean, strict=True)):
                maps = self.layers(a[None], b[None])
                if boxes is None:
                    rows.append(sum(float(m.mean()) for m in maps))
                elif (box := boxes[index]) is None:
                    rows.append(float("nan"))
                else:
                    full = [F.interpolate(m, a.shape[1:], mode="bilinear", align_corners=False)[0, 0] for m in maps]
                    rows.append(sum(float(m[box.slices].mean()) for m in full))
        return torch.tensor(rows, dtype=torch.float64)


def load_lpips(*paths: str | os.PathLike[str], device: torch.device | str = "cpu") -> LPIPS:
    """Load LPIPS from one file, or from the trunk's and the linear layers' files in any order.

    Raises:
        CheckpointError: unreadable, or together not LPIPS on AlexNet.
    """
    if not paths:
        raise CheckpointError("LPIPS needs weight files: AlexNet's (alexnet-owt-*.pth) and LPIPS's own (alex.pth).")
    state: dict[str, Tensor] = {}
    for path in paths:
        state |= read_state_dict(path)[0]
    network = LPIPS()
    load_strictly(
        network, state, model="LPIPS (AlexNet)", path=" + ".join(os.fspath(path) for path in paths), drop="classifier."
    )
    return network.to(device).eval().requires_grad_(False)
