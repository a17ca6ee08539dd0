"""Which features the contextual loss compares: VGG-19's where a person has the file, else those of the detector."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ciri.refinement.regions import FeatureExtractor
from ciri.refinement.vgg import MEAN, load_vgg19
from ciri.residue.base import ResidueDetector
from ciri.residue.lite import LiteDetector


class DetectorFeatures:
    """What the shipped detector's encoder makes of a crop.

    Args:
        detector: its weights are used as they are, not copied.
        level: 0, 1 or 2, for features at 1/4, 1/8 or 1/16 of the crop. The finest say best how large a region is:
            of seven sizes the symmetric loss chose the right one in 7, 2 and 0 of 14 composites, and VGG-19 with random
            weights in 3 (benchmarks/contextual_features.py). Coarse cells at an edge hold target and background.
    """

    fill: tuple[float, float, float] = MEAN

    def __init__(self, detector: LiteDetector, level: int = 0) -> None:
        self.detector, self.level = detector, level
        self.name = f"lite, 1/{4 << level}"

    def __call__(self, crops: Tensor) -> Tensor:
        """RGB (n, 3, s, s) in [0, 1], s a multiple of 16 -> (n, 24, s/4, s/4) at level 0; differentiable."""
        return self.detector.network.encode(crops.to(self.detector.device))[self.level]


def extractor_for(
    detector: ResidueDetector | None,
    vgg: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> FeatureExtractor | None:
    """Return what appearance is compared in, or None if there is nothing to compare it in.

    Args:
        detector: of it the encoder is used where no file is given.
        vgg: a VGG-19 weight file (:func:`ciri.refinement.vgg.load_vgg19`): the paper's features.
        device: where VGG-19 runs.

    Raises:
        CheckpointError: the file cannot be used.
    """
    if vgg is not None:
        return load_vgg19(vgg, device=device)
    return DetectorFeatures(detector) if isinstance(detector, LiteDetector) else None
