"""One step of training the lite backbone, and its validation.

Dimensions: b clips, t frames, h w pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ciri.checkpoints import load_strictly
from ciri.errors import TrainingError
from ciri.frames import grow_mask
from ciri.inactivation.attention import attention_map, pool_target
from ciri.inactivation.curriculum import DualCurriculum
from ciri.inpainting.lite import ARCHITECTURE, load_lite
from ciri.inpainting.lite_network import LiteNetwork
from ciri.training.backbone_settings import VARIANTS, Settings
from ciri.training.distributed import average_gradients
from ciri.training.losses import (
    ADVERSARIAL,
    TemporalPatchDiscriminator,
    adversarial_loss,
    discriminator_loss,
    frame_psnr,
    gradient_difference,
    mean_over_frames,
    reconstruction,
)
from ciri.training.perceptual import PerceptualLoss
from ciri.training.samples import GROW, Batch

#: Mean squared error that counts as perfect in the loss: 40 dB.
FLOOR = 1e-4
#: Share of samples whose copies are made with wrong masks at the end: good trackers are often right.
WRONG_AT_THE_END = 0.7


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
    """The network, its optimisers, and one step of training.

    Raises:
        TrainingError: an unknown variant.
        CheckpointError: weights to begin with that cannot be read, or are of another network or other sizes.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.variant not in VARIANTS:
            raise TrainingError(f"The variant is {settings.variant!r}; expected one of {', '.join(VARIANTS)}.")
        self.settings = settings
        torch.manual_seed(settings.seed)
        config = replace(settings.config, gate=settings.variant != "hard-mask")
        self.network = LiteNetwork(config)
        if settings.init is not None:
            state = load_lite(settings.init).network.state_dict()
            load_strictly(self.network, state, model=f"{ARCHITECTURE} in these sizes", path=settings.init)
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
        self.perceptual = PerceptualLoss().to(device) if settings.perceptual > 0 else None

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
        psnr = mean_over_frames(frame_psnr(output, batch.clean, batch.true, FLOOR))
        losses = {
            "l1": reconstruction(output, batch.clean, region),
            "gradient": gradient_difference(output, batch.clean, region),
            "psnr": psnr,
        }
        # decibels count a gain on easy frames as much as on hard ones, which L1 hardly sees
        total = losses["l1"] + 0.3 * losses["gradient"] - 0.004 * psnr
        if self.perceptual is not None:
            seen = self.perceptual(output.flatten(0, 1), batch.clean.flatten(0, 1), region.flatten(0, 1))
            losses["perceptual"] = seen
            total = total + self.settings.perceptual * seen
        if progress >= self.settings.adversarial_from:
            total = total + ADVERSARIAL * self._adversarial(output, batch, losses)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        average_gradients(self.network.parameters())
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 0.5)
        self.optimiser.step()
        self.average.update(self.network, number)
        with torch.no_grad():
            gain = psnr - mean_over_frames(frame_psnr(batch.guide.base, batch.clean, batch.true, FLOOR))
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
        average_gradients(self.critic.parameters())
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
            write_sheet(samples, sheet[:12])
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


def _schedule(progress: float, number: int) -> float:
    """Share of the learning rate: a short ramp up, then a cosine to a hundredth."""
    return min(1.0, (number + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def write_sheet(file: Path, rows: list[list[Tensor]]) -> None:
    """Write pictures (3, h, w) in [0, 1], such as frame, copied, filled and clean, side by side, one sample a row."""
    if not rows:
        return
    pictures = [torch.cat([image.float().cpu() for image in row], -1) for row in rows]
    sheet = (torch.cat(pictures, -2).permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy()
    cv2.imwrite(str(file), np.ascontiguousarray(sheet[..., ::-1]))
