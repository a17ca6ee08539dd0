"""A perceptual loss: how differently a network that was trained to recognise things sees two pictures.

Pixel losses are best served by a blur wherever the truth is uncertain; features of edges and textures are not. The
distance is that of LPIPS (Zhang et al., CVPR 2018: features normalised per cell, squared difference) without its
learned weights, on the first stages of EfficientNet-Lite0, of which the shipped residue detector holds a copy.

Dimensions: n images, h w pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ciri.inactivation.gate import area_average
from ciri.residue.lite import SHIPPED, load_lite
from ciri.training.distributed import team_mean

#: Blocks of the encoder up to its map at 1/8.
BLOCKS = 5
#: Length that is added to every feature vector's: flat cells have next to none, and their direction says nothing.
FLAT = 0.1


class PerceptualLoss(nn.Module):
    """Distance of pictures in the features of a frozen encoder at 1/2, 1/4 and 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = load_lite(SHIPPED)[0].encoder
        self.encoder.blocks = self.encoder.blocks[:BLOCKS]
        self.requires_grad_(False)

    def forward(self, output: Tensor, clean: Tensor, region: Tensor) -> Tensor:
        """Mean distance over a region, a scalar >= 0; differentiable by the output.

        In a distributed training it is taken over all processes' regions.

        Args:
            output, clean: (n, 3, h, w) in [0, 1], h and w multiples of 8.
            region: (n, 1, h, w) in [0, 1].
        """
        with torch.no_grad():
            wanted = self._features(clean)
        distance = output.new_zeros(())
        for found, there in zip(self._features(output), wanted, strict=True):
            weight = area_average(region, found.shape[-2:])
            apart = (found - there).square().sum(1, keepdim=True)
            distance = distance + (apart * weight).sum() / team_mean(weight.sum()).clamp(min=1)
        return distance / len(wanted)

    def _features(self, images: Tensor) -> list[Tensor]:
        return [x / (x.square().sum(1, keepdim=True) + FLAT**2).sqrt() for x in self.encoder(images)]
