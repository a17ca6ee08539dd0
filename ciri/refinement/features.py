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
    """What the shipped detector's encoder makes of a crop, at an eighth of its size.

    Args:
        detector: its weights are used as they are, not copied.
    """

    name = "lite"
    fill: tuple[float, float, float] = MEAN

    def __init__(self, detector: LiteDetector) -> None:
        self.detector = detector

    def __call__(self, crops: Tensor) -> Tensor:
        """RGB (n, 3, s, s) in [0, 1], s a multiple of 16 -> (n, 40, s/8, s/8); differentiable."""
        return self.detector.features(crops.to(self.detector.device))


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
