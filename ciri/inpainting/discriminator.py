"""T-PatchGAN, the discriminator of the video inpainting family (Chang et al., ICCV 2019; as trained with E2FGVI)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils import spectral_norm


class Discriminator(nn.Module):
    """Judges overlapping space-time patches of a clip by 3-D convolutions over time, height and width.

    The first five layers are normalised by their largest singular value (one power iteration per forward pass in
    training mode), the last is not. There is no final sigmoid: losses are hinge losses.

    Args:
        width: channels of the first layer; 32 for E2FGVI, FuseFormer and DSTT, 64 for STTN.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for level, (c, out) in enumerate(pairwise(widths)):
            last = level == 5
            padding = (1, 1, 1) if level == 0 else (1, 2, 2)
            conv = nn.Conv3d(c, out, (3, 5, 5), (1, 2, 2), padding, bias=last)
            layers += [conv] if last else [spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.conv = nn.Sequential(*layers)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) in [-1, 1] to patch scores (B, T, 4 * width, about H/64, about W/64).

        FuseFormer, DSTT and STTN judge all frames of a batch as one clip: pass them as (1, B * T, 3, H, W).
        """
        return self.conv(clips.transpose(1, 2)).transpose(1, 2)
