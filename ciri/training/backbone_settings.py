"""What a training of the lite backbone is made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciri.inpainting.lite_network import LiteConfig

#: What is trained: the paper's method, and the two rows of its ablation that it is compared with.
VARIANTS = ("ciri", "no-curriculum", "hard-mask")
#: Share of the plan that uses true masks only (the paper's pretraining).
PRETRAINING = 0.35


@dataclass(frozen=True)
class Settings:
    """Of one run. Sizes in pixels.

    Attributes:
        data, out: the data folder and the run's folder.
        device: of the training.
        variant: one of :data:`VARIANTS`.
        minutes, plan_minutes: of this call and of all calls together.
        steps: most steps of all calls together.
        batch, window: clips per step and frames of each.
        height, width, length: of the samples.
        crop: height and width of what is cut out of them for a step.
        rate: learning rate at the start; it falls along a cosine.
        pretraining: share of the plan before the dual curriculum begins.
        perceptual: weight of the perceptual loss.
        adversarial_from: progress after which the discriminator joins (1 = never).
        workers: processes that make samples; 0 = none, reproducible to the bit.
        pool: samples held for reuse.
        keep: folder in which as many samples are made first and kept, instead of held in memory and replaced.
        reuse: how often each is drawn before workers replace it, where they are quicker than the training.
        init: exported weights to begin with.
        predictions: propagator whose masks are among the wrong ones, or "" for made-up ones only.
    """

    data: Path
    out: Path
    device: str = "cpu"
    variant: str = "ciri"
    minutes: float | None = None
    plan_minutes: float | None = None
    steps: int = 100_000
    batch: int = 8
    window: int = 3
    height: int = 240
    width: int = 432
    length: int = 12
    crop: tuple[int, int] = (128, 192)
    rate: float = 1e-3
    pretraining: float = PRETRAINING
    perceptual: float = 0.1
    adversarial_from: float = 1.0
    workers: int = 0
    pool: int = 512
    keep: Path | None = None
    reuse: int = 0
    seed: int = 1
    init: Path | None = None
    predictions: str = ""
    config: LiteConfig = field(default_factory=LiteConfig)
    look_every: int = 500
    held_back: int = 24
    log_every: int = 20

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run."""
        return {"network": "backbone lite", "variant": self.variant, "seed": self.seed, **self.config.to_dict()}
