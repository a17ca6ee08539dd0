"""Which features the attention map compares: a network's coarsest ones, or local statistics where there is no network.

A network's encoder is asked as it is. The classical backbone has none; for it, cells of the frame are described by
their colours and gradients, in coordinates in which the surroundings of the annotated target are unremarkable: centred
on them and whitened by them. Without that, the cosine of two such descriptions is near 1 for any two cells.

Dimensions: n frames, c channels, h w cells, k palette colours, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import grow_mask, pad_to_multiple
from ciri.inactivation.gate import area_average
from ciri.inpainting.base import Backbone
from ciri.inpainting.driver import WindowBackbone
from ciri.inpainting.lite import LiteBackbone

#: Frames (N, 3, H, W) in [0, 1] to features (N, C, h, w), and the size of the picture that the features cover.
Encoder = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]

#: Pixels a cell of the local statistics is apart; each looks at twice that. Larger frames are shrunk first.
CELL, SHORT_SIDE = 8, 480
#: Colours that are told apart: half of them from the target, half from its surroundings; in units of 100 Lab.
PALETTE, COLOUR_WIDTH = 32, 0.06
#: Pixels around the target that count as its surroundings, and how near to it they begin.
SURROUNDINGS, RIM = 60, 4
#: Share of the mean variance that every direction is given: rare directions would otherwise count most.
SHRINKAGE = 0.1


def encoder_of(backbone: Backbone, frame: Tensor, mask: Tensor) -> Encoder:
    """Return what describes the frames of a clip for this backbone.

    The encoder of ``lite`` is not asked: three convolutions find the target's surroundings almost as similar to it as
    the target itself, and the map then widens the hole.

    Args:
        backbone: any; one that has an encoder is asked for its coarsest features before inactivation.
        frame: (1, 3, H, W) in [0, 1], the annotated frame.
        mask: (1, 1, H, W) in [0, 1], its annotation.
    """
    if isinstance(backbone, WindowBackbone):
        network, device = backbone.network, backbone.device
        return _sized(lambda x: network.encode(x.to(device) * 2 - 1)["out"].float(), backbone)
    encode = getattr(backbone, "encode", None)
    return LocalStatistics(frame, mask) if encode is None else _sized(lambda x: encode(x)[-1].float(), backbone)


def describe_encoder(backbone: Backbone) -> str:
    """Say whose features are compared, in the words of a report."""
    if isinstance(backbone, WindowBackbone) or hasattr(backbone, "encode"):
        return f"features of the encoder of {backbone.name}"
    if backbone.facts.trained_for:
        return f"colours and gradients, as the encoder of {backbone.name} is too shallow to tell the target"
    return f"colours and gradients, as {backbone.name} has no encoder"


def learned_beta(backbone: Backbone) -> float | None:
    """The b of Eq. 3 that a backbone's weights hold, None where nothing was learned.

    That of ``lite`` belongs to maps of its own features, which are not used (:func:`encoder_of`).
    """
    if isinstance(backbone, LiteBackbone):
        return None
    fusion = getattr(getattr(backbone, "network", None), "fusion", None)
    return None if fusion is None else float(fusion.beta.detach())


def _sized(encode: Callable[[Tensor], Tensor], backbone: Backbone) -> Encoder:
    """Bring frames to a size that the network takes: scaled to its fixed one, or padded."""
    facts = backbone.facts

    def encoder(frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
        height, width = frames.shape[2:]
        if facts.fixed_size is None:
            frames, _ = pad_to_multiple(frames, facts.needs_divisible_by)
            height, width = frames.shape[2:]
        elif facts.fixed_size != (height, width):
            frames = F.interpolate(frames, facts.fixed_size, mode="bilinear", antialias=True).clamp(0, 1)
        with torch.no_grad():
            return encode(frames), (height, width)

    return encoder


class LocalStatistics:
    """Describes cells by colour (Lab mean and spread, shares of a palette) and gradient (energy by orientation).

    Args:
        frame: (1, 3, H, W) in [0, 1], the annotated frame.
        mask: (1, 1, H, W) in [0, 1], its annotation.
    """

    def __init__(self, frame: Tensor, mask: Tensor) -> None:
        frame, mask = _shrunk(frame.cpu()), _shrunk(mask.cpu())
        near = grow_mask(mask, SURROUNDINGS) * (1 - (grow_mask(mask, RIM) > 0).float())
        if not (near > 0).any():  # the target fills the frame
            near = torch.ones_like(mask)
        lab = _lab(frame[0])
        self.palette = torch.cat([_palette(lab, mask[0, 0] > 0.5), _palette(lab, near[0, 0] > 0.5)])
        raw = self._describe(frame)
        weight = area_average(near, raw.shape[-2:])
        weight = weight / weight.sum()
        self.mean = (raw * weight).sum((-2, -1), keepdim=True)
        self.whiten = _whitening((raw - self.mean)[0].flatten(1), weight.flatten())

    def __call__(self, frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Features (N, C, h, w) of frames (N, 3, H, W) in [0, 1], on their device, and (H, W)."""
        raw = torch.cat([self._describe(_shrunk(frame[None].cpu())) for frame in frames])
        features = torch.einsum("dc,nchw->ndhw", self.whiten, raw - self.mean)
        return features.to(frames.device), (frames.shape[2], frames.shape[3])

    def _describe(self, frame: Tensor) -> Tensor:
        """Statistics (1, C, h, w) of a frame (1, 3, H, W) of the working size."""
        lab = _lab(frame[0])
        colours = torch.from_numpy(lab).permute(2, 0, 1)[None]
        # every second pixel both ways: most of the time would go here. The squared distance to each palette colour
        # lacks the pixel's own square, which the softmax does not see
        closeness = 2 * colours[0, :, ::2, ::2].movedim(0, -1) @ self.palette.T - (self.palette**2).sum(1)
        shares = _cells((closeness / (2 * COLOUR_WIDTH**2)).softmax(-1).movedim(-1, 0)[None], CELL // 2)
        mean = _cells(colours)
        spread = (_cells(colours**2) - mean**2).clamp(min=0).sqrt()
        # of shares, the root: their cosine is then how much two cells overlap in colour
        return torch.cat([mean, spread, _cells(_gradients(lab[..., 0])), shares.sqrt()], 1)


def _shrunk(image: Tensor) -> Tensor:
    """An image (1, C, H, W) whose shorter side is at most :data:`SHORT_SIDE`."""
    height, width = image.shape[2:]
    scale = SHORT_SIDE / min(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(image, size, mode="bilinear", antialias=True).clamp(0, 1)


def _lab(frame: Tensor) -> np.ndarray:
    """float32 (H, W, 3), Lab in units of 100, of a frame (3, H, W) in [0, 1]."""
    return cv2.cvtColor(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2LAB) / np.float32(100)


def _gradients(lightness: np.ndarray) -> Tensor:
    """(1, 4, H, W): the gradient's strength, shared between the two nearest of four orientations."""
    gx, gy = (cv2.Sobel(lightness, cv2.CV_32F, *d) / 4 for d in ((1, 0), (0, 1)))
    strength, angle = np.hypot(gx, gy), np.arctan2(gy, gx) % np.pi * (4 / np.pi)
    apart = np.abs(angle - np.arange(4, dtype=np.float32)[:, None, None])
    return torch.from_numpy(strength * np.clip(1 - np.minimum(apart, 4 - apart), 0, 1))[None]


def _cells(planes: Tensor, cell: int = CELL) -> Tensor:
    """Means over windows of two cells' side, one cell apart: (1, C, H, W) to (1, C, h, w)."""
    height, width = planes.shape[2:]
    right, below = -width % cell + cell // 2, -height % cell + cell // 2
    return F.avg_pool2d(F.pad(planes, (cell // 2, right, cell // 2, below), mode="replicate"), 2 * cell, cell)


def _palette(lab: np.ndarray, where: Tensor) -> Tensor:
    """Up to half of :data:`PALETTE` typical colours (k, 3) of some pixels (H, W)."""
    colours = np.ascontiguousarray(lab[where.numpy()])
    if not len(colours):
        return torch.zeros(0, 3)
    chosen = colours[np.random.default_rng(0).permutation(len(colours))[:4000]]
    cv2.setRNGSeed(0)  # the same clip, the same map
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1e-3)
    count = min(PALETTE // 2, len(chosen))
    return torch.from_numpy(cv2.kmeans(chosen, count, None, stop, 1, cv2.KMEANS_PP_CENTERS)[2])  # type: ignore[call-overload]


def _whitening(values: Tensor, weight: Tensor) -> Tensor:
    """The symmetric inverse root (c, c) of the shrunk covariance of centred values (c, n) with weights (n,)."""
    covariance = (values * weight) @ values.T
    level = covariance.trace() / len(covariance) + 1e-8
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * torch.eye(len(covariance))
    variances, directions = torch.linalg.eigh(covariance)
    return directions @ torch.diag(variances.clamp(min=1e-10).rsqrt()) @ directions.T
