"""Training the lite backbone: true masks first, then the dual curriculum of wrong masks and attention maps.

Dimensions: b clips, t frames, h w pixels.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ciri.errors import TrainingError
from ciri.frames import grow_mask
from ciri.inactivation.attention import attention_map, pool_target
from ciri.inactivation.curriculum import DualCurriculum
from ciri.inpainting.lite_network import LiteConfig, LiteNetwork
from ciri.progress import OnStep, ignore
from ciri.training.losses import (
    ADVERSARIAL,
    TemporalPatchDiscriminator,
    adversarial_loss,
    discriminator_loss,
    frame_psnr,
    gradient_difference,
    reconstruction,
)
from ciri.training.run import RunFolder, fit, write_atomically
from ciri.training.samples import GROW, Batch, SamplePool, SampleStream

#: What is trained: the paper's method, and the two rows of its ablation that it is compared with.
VARIANTS = ("ciri", "no-curriculum", "hard-mask")
#: Share of the plan that uses true masks only (the paper's pretraining).
PRETRAINING = 0.35
#: Share of samples whose copies are made with wrong masks at the end: good trackers are often right.
WRONG_AT_THE_END = 0.7


@dataclass(frozen=True)
class Settings:
    """Of one run. Sizes in pixels.

    Attributes:
        data, out: the data folder and the run's folder.
        device: of the training.
        variant: one of :data:`VARIANTS`.
        minutes, plan_minutes: of this call and of all calls together.
        steps: most steps of all calls together.
        batch, window: clips per step and frames per clip.
        height, width, length: of the samples.
        rate: learning rate at the start; it falls along a cosine.
        pretraining: share of the plan before the dual curriculum begins.
        adversarial_from: progress after which the discriminator joins (1 = never).
        workers: processes that make samples; 0 = none, reproducible to the bit.
        pool: samples held for reuse.
        reuse: how often each is drawn before workers replace it, where they are quicker than the training.
        init: exported weights to begin with.
    """

    data: Path
    out: Path
    device: str = "cpu"
    variant: str = "ciri"
    minutes: float | None = None
    plan_minutes: float | None = None
    steps: int = 100_000
    batch: int = 8
    window: int = 10
    height: int = 144
    width: int = 256
    length: int = 20
    rate: float = 4e-4
    pretraining: float = PRETRAINING
    adversarial_from: float = 1.0
    workers: int = 0
    pool: int = 512
    reuse: int = 0
    seed: int = 1
    init: Path | None = None
    config: LiteConfig = field(default_factory=LiteConfig)
    look_every: int = 500
    held_back: int = 24
    log_every: int = 20

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run."""
        return {"network": "backbone lite", "variant": self.variant, "seed": self.seed, **self.config.to_dict()}


class Average(nn.Module):
    """Exponential moving average of a network's weights, with a warm start."""

    def __init__(self, network: LiteNetwork, decay: float = 0.999) -> None:
        super().__init__()
        self.network, self.decay = copy.deepcopy(network).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network: LiteNetwork, step: int) -> None:
        """Move towards the network."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)


class BackboneTrainer:
    """The network, its optimisers, and one step of training."""

    def __init__(self, settings: Settings) -> None:
        if settings.variant not in VARIANTS:
            raise TrainingError(f"The variant is {settings.variant!r}; expected one of {', '.join(VARIANTS)}.")
        self.settings = settings
        torch.manual_seed(settings.seed)
        config = replace(settings.config, gate=settings.variant != "hard-mask")
        self.network = LiteNetwork(config)
        if settings.init is not None:
            from ciri.inpainting.lite import load_lite

            self.network.load_state_dict(load_lite(settings.init).network.state_dict())
        device = settings.device
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Average(self.network)
        self.critic = TemporalPatchDiscriminator().to(device)
        fused = torch.device(device).type == "cuda"
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), settings.rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=fused
        )
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), 1e-4, betas=(0.0, 0.99), fused=fused)
        self.model: nn.Module = self.network

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "network": self.network,
            "average": self.average,
            "critic": self.critic,
            "optimiser": self.optimiser,
            "critic optimiser": self.critic_optimiser,
        }

    def autocast(self) -> torch.autocast:
        """bf16 on a GPU, full precision elsewhere."""
        kind = torch.device(self.settings.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")

    def curriculum(self, progress: float) -> float:
        """Progress in the dual curriculum, [0, 1]; 0 in pretraining and in variants without it."""
        if self.settings.variant != "ciri":
            return 0.0
        pretraining = self.settings.pretraining
        return max(0.0, (progress - pretraining) / max(1 - pretraining, 1e-9))

    def wrong_share(self, progress: float) -> float:
        """Share of samples whose copies are made with wrong masks: copying needs a yes or no, so alpha becomes odds."""
        return WRONG_AT_THE_END * (1 - DualCurriculum().predicted.alpha(30 * self.curriculum(progress)))

    def step(self, batch: Batch, progress: float, number: int) -> Mapping[str, Tensor | float]:
        """Do one optimisation step and return what to log."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate * _schedule(progress, number)
        with self.autocast():
            output, inactivation = self.fill(batch, progress)
        region = torch.maximum(batch.true, (inactivation > 0.02).float())
        psnr = _mean(frame_psnr(output, batch.clean, batch.true))
        losses = {
            "l1": reconstruction(output, batch.clean, region),
            "gradient": gradient_difference(output, batch.clean, region),
            "psnr": psnr,
        }
        # decibels count a gain on easy frames as much as on hard ones, which L1 hardly sees
        total = losses["l1"] + 0.3 * losses["gradient"] - 0.004 * psnr
        if progress >= self.settings.adversarial_from:
            total = total + ADVERSARIAL * self._adversarial(output, batch, losses)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 0.5)
        self.optimiser.step()
        self.average.update(self.network, number)
        with torch.no_grad():
            gain = psnr - _mean(frame_psnr(batch.guide.base, batch.clean, batch.true))
        logged = {name: value.detach() for name, value in losses.items()}
        return {
            **logged,
            "gain over copying": gain,
            "gradient norm": norm.detach(),
            "beta": self.network.fusion.beta.detach(),
        }

    def fill(self, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        """Run the network on what the curriculum shows it; return the output and M_iac."""
        if self.settings.variant == "hard-mask":
            mask = grow_batch(batch.true)
            return self.model(batch.frames, batch.guide, mask), mask
        network = self.network
        scales = network.encode(batch.frames.flatten(0, 1))
        maps = candidate_maps(batch, scales[-1], self.curriculum(progress))
        inactivation = grow_batch(network.fusion(*maps))
        return self.model(batch.frames, batch.guide, inactivation, scales), inactivation

    def _adversarial(self, output: Tensor, batch: Batch, losses: dict[str, Tensor]) -> Tensor:
        fake = torch.lerp(batch.clean, output, batch.true)
        with self.autocast():
            real_score, fake_score = self.critic(batch.clean), self.critic(fake.detach())
            losses["critic"] = discriminator_loss(real_score.float(), fake_score.float())
        self.critic_optimiser.zero_grad(set_to_none=True)
        losses["critic"].backward()
        self.critic_optimiser.step()
        self.critic.requires_grad_(False)
        with self.autocast():
            losses["adversarial"] = adversarial_loss(self.critic(fake).float())
        self.critic.requires_grad_(True)
        return losses["adversarial"]

    @torch.no_grad()
    def validate(self, batches: list[Batch], samples: Path | None = None) -> dict[str, float]:
        """Local PSNR in dB of copying and of the averaged network, on true and on wrong masks."""
        network, names = self.average.network, ("true", "predicted")
        result: dict[str, list[Tensor]] = {}
        sheet = []
        for batch in batches:
            kind = names[int(bool((batch.predicted != batch.true).any()))]
            scales = network.encode(batch.frames.flatten(0, 1))
            mask = batch.predicted
            if self.settings.variant != "hard-mask":
                maps = candidate_maps(batch, scales[-1], 1.0)
                mask = network.fusion(*maps)
            with self.autocast():
                output = network(batch.frames, batch.guide, grow_batch(mask), scales).clamp(0, 1)
            for name, image in (("copied", batch.guide.base), ("filled", output)):
                result.setdefault(f"held back {kind} {name}", []).append(frame_psnr(image, batch.clean, batch.true))
            sheet.append([x[0, len(x[0]) // 2] for x in (batch.frames, batch.guide.base, output, batch.clean)])
        if samples is not None:
            _write_sheet(samples, sheet[:12])
        means = {name: float(torch.cat(values).mean()) for name, values in result.items()}
        for kind in names:
            if f"held back {kind} filled" in means:
                means[f"held back {kind} gain"] = means[f"held back {kind} filled"] - means[f"held back {kind} copied"]
        return means


def candidate_maps(batch: Batch, features: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """Return (M_c^pred, M_c^attn), (b, t, 1, h, w), at a progress of the dual curriculum.

    Args:
        batch: with true and predicted masks.
        features: (b t, c, h/8, w/8), coarsest encoder features before inactivation.
        progress: 0 = true masks only.
    """
    curriculum = DualCurriculum()
    if curriculum.attention.alpha(progress * curriculum.epochs) == 1.0:
        return batch.true, batch.true
    b, t = batch.true.shape[:2]
    attention = []
    for clip, true, predicted in zip(features.float().unflatten(0, (b, t)), batch.true, batch.predicted, strict=True):
        # the window's first frame stands for the clip's annotated one, or the first that shows the target
        seen = torch.nonzero(true.flatten(1).sum(1) > 0).flatten()
        if not len(seen):
            attention.append(torch.zeros_like(predicted))
            continue
        target = pool_target(clip[seen[:1]], true[seen[:1]])
        attention.append(attention_map(clip, target, predicted))
    return curriculum.candidates(batch.true, batch.predicted, torch.stack(attention), progress)


def grow_batch(mask: Tensor) -> Tensor:
    """Dilate (b, t, 1, h, w) as removal does."""
    return grow_mask(mask.flatten(0, 1), GROW).unflatten(0, mask.shape[:2])


def _mean(values: Tensor) -> Tensor:
    """The mean, 0 where there is none: a batch may show no target at all."""
    return values.sum() / max(1, len(values))


def _schedule(progress: float, number: int) -> float:
    """Share of the learning rate: a short ramp up, then a cosine to a hundredth."""
    return min(1.0, (number + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def _write_sheet(file: Path, rows: list[list[Tensor]]) -> None:
    """Frame, copied, filled and clean side by side, one sample a row."""
    pictures = [torch.cat([image.float().cpu() for image in row], -1) for row in rows]
    sheet = (torch.cat(pictures, -2).permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy()
    cv2.imwrite(str(file), np.ascontiguousarray(sheet[..., ::-1]))


def train_backbone(
    settings: Settings, *, say: Callable[[str], None] = lambda text: None, on_step: OnStep = ignore
) -> Path:
    """Train, continuing the run in ``settings.out`` if there is one; return the file of exported weights.

    Args:
        settings: of the run.
        say: told a sentence now and then.
        on_step: progress callback; may raise to stop.

    Raises:
        TrainingError: no data, a folder of another run, or a loss that is not a number.
    """
    run = RunFolder(settings.out, settings.identity())
    trainer = BackboneTrainer(settings)
    start = max(run.saved_steps(), default=0)
    size = (settings.height, settings.width)
    if start and settings.workers == 0:
        stream = SampleStream(settings.data, size, settings.length, seed=settings.seed, start=max(0, start))
    else:
        # numbers far apart, so that a continued run does not see the first samples again
        stream = SampleStream(settings.data, size, settings.length, seed=settings.seed, start=start * 100)
    pool = SamplePool(
        stream, workers=settings.workers, capacity=settings.pool, device=settings.device, reuse=settings.reuse
    )
    held = held_back_batches(settings)
    say(f"{len(held)} held-back clips; copying alone: {_copied(trainer.validate(held))}")
    pool.wait(min(settings.pool, 3 * settings.batch) if settings.workers else 1)
    state = {"progress": 0.0}

    def step(number: int, progress: float) -> Mapping[str, Tensor | float]:
        state["progress"] = progress
        random = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
        batch = pool.draw(settings.batch, settings.window, random, trainer.wrong_share(progress))
        batch.colour_jitter(random)
        return {**trainer.step(batch, progress, number), "samples made": float(pool.made)}

    def look(done: int) -> Mapping[str, float]:
        values = trainer.validate(held, run.samples / f"{done:07d}.png")
        export(trainer, run, done)
        run.curves.draw()
        shown = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        say(f"step {done}, {100 * state['progress']:.0f} %, {pool.made} samples: {shown}")
        return values

    try:
        done = fit(
            run,
            trainer.parts(),
            step,
            steps=settings.steps,
            minutes=settings.minutes,
            plan_minutes=settings.plan_minutes,
            log_every=settings.log_every,
            look_every=settings.look_every,
            look=look,
            device=settings.device,
            on_step=on_step,
        )
    finally:
        pool.close()
        for note in run.notes:
            say(note)
    return export(trainer, run, done)


def _copied(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} dB" for name, value in values.items() if name.endswith("copied"))


def held_back_batches(settings: Settings) -> list[Batch]:
    """Make the validation clips, half with true masks, from scenes that are not trained on."""
    size = (settings.height, settings.width)
    stream = SampleStream(settings.data, size, settings.window, seed=0, held_back=True)
    maker, batches = stream.maker(), []
    for index in range(settings.held_back):
        stream.wrong = float(index % 2)
        sample = stream.sample(maker, index)
        if not index % 2:
            sample.masks[:, 1] = sample.masks[:, 0]
        batches.append(Batch.of([sample.to(settings.device)]))
    return batches


def export(trainer: BackboneTrainer, run: RunFolder, step: int) -> Path:
    """Write the averaged weights, fp16, with what made them in the header."""
    network = trainer.average.network
    target = run.path / f"backbone_lite_{trainer.settings.variant}.safetensors"
    tensors = {name: value.half().contiguous().cpu() for name, value in network.state_dict().items()}
    metadata = {
        "architecture": "ciri.lite",
        "config": json.dumps(network.config.to_dict()),
        "trained_for": "inactivation" if network.config.gate else "hard mask",
        "variant": trainer.settings.variant,
        "steps": str(step),
        "licence": "Apache-2.0",
    }
    write_atomically(target, lambda file: save_file(tensors, file, metadata))
    return target
