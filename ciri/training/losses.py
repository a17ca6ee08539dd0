"""Losses of inpainting (paper Eq. 4-6), means over a batch; in a distributed training, over all processes' batches.

Dimensions: b clips, t frames, h w pixels; images (b, t, 3, h, w) in [0, 1], masks (b, t, 1, h, w).
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ciri.training.distributed import team_mean, team_size

#: Weight of the adversarial loss (paper Eq. 6); the reconstruction's is 1.
ADVERSARIAL = 0.01


def reconstruction(output: Tensor, clean: Tensor, region: Tensor, elsewhere: float = 0.1) -> Tensor:
    """Eq. 4, L1, with its weight where it matters: per pixel of the region, plus a little per pixel elsewhere."""
    error = (output - clean).abs()
    inside = (error * region).sum() / team_mean(3 * region.sum()).clamp(min=1)
    outside = (error * (1 - region)).sum() / team_mean(3 * (1 - region).sum()).clamp(min=1)
    return inside + elsewhere * outside


def gradient_difference(output: Tensor, clean: Tensor, region: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels, over the region: keeps edges where L1 alone blurs."""
    error = output - clean
    across = (error.diff(dim=-1).abs() * region[..., 1:]).sum()
    down = (error.diff(dim=-2).abs() * region[..., 1:, :]).sum()
    return (across + down) / team_mean(6 * region.sum()).clamp(min=1)


def frame_psnr(output: Tensor, clean: Tensor, mask: Tensor, floor: float = 0.0) -> Tensor:
    """PSNR in dB over the pixels under a binary mask, per frame that has any: (frames,).

    Args:
        floor: a mean squared error that is added to each frame's, so that in a loss frames that are nearly perfect
            already do not outweigh all others.
    """
    error = ((output - clean).square() * mask).sum((-3, -2, -1))
    pixels = 3 * mask.sum((-3, -2, -1))
    shown = pixels > 0
    return -10 * torch.log10((error[shown] / pixels[shown] + floor).clamp(min=1e-8))


def mean_over_frames(values: Tensor) -> Tensor:
    """The mean of (frames,), 0 where there is none: a batch may show no target at all."""
    frames = team_mean(torch.tensor(float(len(values)), device=values.device))
    return values.sum() / frames.clamp(min=1 / team_size())


class TemporalPatchDiscriminator(nn.Module):
    """Scores space-time patches of a clip as real or inpainted (T-PatchGAN; Chang et al., ICCV 2019).

    3D convolutions (3, 5, 5), stride (1, 2, 2), spectral normalisation on all but the last.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for c_in, c_out in itertools.pairwise(sizes):
            layers += [
                spectral_norm(nn.Conv3d(c_in, c_out, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False)),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv3d(sizes[-1], 1, (3, 5, 5), (1, 2, 2), (1, 2, 2)))

    def forward(self, clips: Tensor) -> Tensor:
        """(b, t, 3, h, w) in [0, 1] -> scores (b, 1, t, h / 64, w / 64)."""
        scores: Tensor = self.layers(clips.transpose(1, 2) * 2 - 1)
        return scores


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Eq. 5 for the discriminator, from scores; maximising it is minimising this."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def adversarial_loss(fake: Tensor) -> Tensor:
    """Eq. 5 for the network, in the form that does not saturate."""
    return F.softplus(-fake).mean()
