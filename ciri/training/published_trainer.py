"""One step of fine-tuning a published backbone with curricular inactivation (paper 3.2).

Eq. 1 gates the encoder's features at the named points in all frames, references included; Eq. 2 moves both branches
from true masks to predictions and attention maps; Eq. 3 fuses them with a learnable b; Eq. 4-6 are the losses.

Dimensions: b windows, t frames, h w pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ciri.checkpoints import sha256
from ciri.errors import TrainingError
from ciri.frames import grow_mask
from ciri.inactivation.attention import attention_map, pool_target
from ciri.inactivation.curriculum import DualCurriculum
from ciri.inactivation.fusion import Fusion
from ciri.inpainting.discriminator import Discriminator
from ciri.inpainting.driver import FLOW_MARGIN
from ciri.inpainting.e2fgvi import E2FGVI
from ciri.inpainting.load import NETWORKS, load_backbone
from ciri.training.distributed import average_gradients
from ciri.training.losses import adversarial_loss, discriminator_loss, frame_psnr
from ciri.training.published_data import Windows
from ciri.training.samples import GROW

#: b has one number to move and starts at a guess: at the networks' rate it would stay there. Our choice.
FUSION_RATE = 50.0


@dataclass(frozen=True)
class Settings:
    """Of one run. The defaults are the paper's, where it gives a number.

    Attributes:
        model: one of :data:`ciri.inpainting.load.NETWORKS`.
        init: checkpoint to begin with, published or trained here.
        data, out: the data folder and the run's folder.
        device: of this process.
        epochs: of fine-tuning; an epoch is as many windows as there are clips.
        steps: most optimisation steps; None: what the epochs come to.
        minutes: stop this call after so many minutes; the epochs stay what they are.
        batch: windows per step and process.
        local, references: frames of a window (E2FGVI's numbers).
        length: frames of the composites that windows are taken from.
        height, width: in pixels.
        rate: learning rate; a tenth of it after every ``decay_epochs``.
        adversarial: weight of the adversarial loss (Eq. 6); 0 leaves the discriminator out.
        flow: weight of E2FGVI's own loss on its flow.
        gate_points: where Eq. 1 acts.
        predictions: propagator whose masks are among the wrong ones, or "".
        workers: processes that make windows.
    """

    model: str
    init: Path
    data: Path
    out: Path
    device: str = "cpu"
    epochs: float = 30
    steps: int | None = None
    minutes: float | None = None
    batch: int = 8
    local: int = 5
    references: int = 3
    length: int = 24
    height: int = 240
    width: int = 432
    rate: float = 2e-5
    decay_epochs: float = 20
    adversarial: float = 0.01
    flow: float = 1.0
    gate_points: tuple[str, ...] = ("out",)
    predictions: str = ""
    workers: int = 0
    seed: int = 1
    look_every: int = 500
    held_back: int = 8
    log_every: int = 20

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run."""
        return {"network": f"backbone {self.model}", "seed": self.seed, "gate points": list(self.gate_points)}


class PublishedTrainer:
    """The network, its discriminator and their optimisers.

    Raises:
        TrainingError: an unknown model or gate point, or a size that the network does not take.
        CheckpointError: the checkpoint is of another model, or unusable.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.model not in NETWORKS:
            raise TrainingError(f"There is no model {settings.model!r}; choose one of {', '.join(NETWORKS)}.")
        torch.manual_seed(settings.seed)
        self.settings, device = settings, settings.device
        self.network = load_backbone(settings.init, expected=(settings.model,), precision="fp32").network
        self.init_digest = sha256(settings.init)
        unknown = [point for point in settings.gate_points if point not in self.network.stages()]
        if unknown or not settings.gate_points:
            raise TrainingError(
                f"{settings.model} has no gate point {', '.join(unknown) or '(none given)'}; "
                f"it has {', '.join(self.network.stages())}."
            )
        self.network.check_size(settings.height, settings.width)
        self.network.gate_points = settings.gate_points
        if not hasattr(self.network, "fusion"):
            self.network.fusion = Fusion()
        self.network.to(device).train().requires_grad_(True)
        if torch.device(device).type == "cuda":
            self.network.precision = torch.bfloat16
        # the flow that the weights know before training: it says what the flow of the clean clip is
        self.first_flow: nn.Module | None = None
        if isinstance(self.network, E2FGVI):
            self.first_flow = copy.deepcopy(self.network.update_spynet).eval().requires_grad_(False)
        self.critic = Discriminator(64 if settings.model == "sttn" else 32).to(device)
        for parameter in self.critic.parameters():
            nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.normal_(parameter, 0.0, 0.02)
        fusion: Fusion = self.network.fusion  # type: ignore[assignment]
        own = [p for name, p in self.network.named_parameters() if not name.startswith("fusion.")]
        groups = [{"params": own, "pace": 1.0}, {"params": list(fusion.parameters()), "pace": FUSION_RATE}]
        self.fusion = fusion
        self.optimiser = torch.optim.Adam(groups, settings.rate, betas=(0.0, 0.99))
        self.critic_optimiser = torch.optim.Adam(
            [{"params": list(self.critic.parameters()), "pace": 1.0}], settings.rate, betas=(0.0, 0.99)
        )

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        first = {"first flow": self.first_flow} if self.first_flow is not None else {}
        return {
            "network": self.network,
            "critic": self.critic,
            "optimiser": self.optimiser,
            "critic optimiser": self.critic_optimiser,
            **first,
        }

    def rate(self, progress: float) -> float:
        """The learning rate: a tenth after every so many epochs."""
        decays = int(progress * self.settings.epochs / self.settings.decay_epochs)
        return float(self.settings.rate * 0.1**decays)

    def step(self, batch: Windows, progress: float) -> Mapping[str, Tensor | float]:
        """Do one optimisation step at a progress in [0, 1] of all epochs; return what to log."""
        settings, rate = self.settings, self.rate(progress)
        for group in [*self.optimiser.param_groups, *self.critic_optimiser.param_groups]:
            group["lr"] = rate * group["pace"]
        output, inactivation, flows = self.fill(batch, progress)
        target = batch.clean * 2 - 1
        losses = {"l1": (output - target).abs().mean()}
        total = losses["l1"]
        if flows is not None and settings.flow:
            losses["flow"] = self._flow_loss(flows, target)
            total = total + settings.flow * losses["flow"]
        if settings.adversarial:
            self._teach_critic(output.detach(), target, losses)
            self.critic.requires_grad_(False)
            losses["adversarial"] = adversarial_loss(self.critic(output))
            self.critic.requires_grad_(True)
            total = total + settings.adversarial * losses["adversarial"]
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        average_gradients(self.network.parameters())
        # measured, not clipped: a norm that is no number stops the run before such weights are saved
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), math.inf)
        self.optimiser.step()
        return {
            **{name: value.detach() for name, value in losses.items()},
            "rate": rate,
            "gradient norm": norm,
            "beta": self.fusion.beta.detach(),
            "inactivated share": inactivation.detach().mean(),
        }

    def fill(self, batch: Windows, progress: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the network on what the curriculum shows it at a progress in [0, 1].

        Returns:
            All frames (b, t, 3, h, w) in (-1, 1), M_iac (b, t, 1, h, w), and the flows between local frames, if any.
        """
        network, local = self.network, self.settings.local
        b, t = batch.frames.shape[:2]
        frames = batch.frames.flatten(0, 1) * 2 - 1
        features = network.encode(torch.cat([frames, batch.painted.flatten(0, 1) * 2 - 1]))
        maps = candidate_maps(batch, features["out"].float(), progress)
        inactivation = grow_mask(self.fusion(*maps).flatten(0, 1), GROW)
        gated = network.gate({name: feature[: b * t] for name, feature in features.items()}, inactivation)
        gated = gated.unflatten(0, (b, t))
        if not isinstance(network, E2FGVI):
            return network.decode_window(gated, t), inactivation.unflatten(0, (b, t)), None
        # as the driver does it: grey holes for the flow network, with a rim, and no gradient to the map
        hole = (grow_mask(inactivation.detach(), FLOW_MARGIN) > 0.5).float()
        grey = (frames * (1 - hole)).unflatten(0, (b, t))[:, :local]
        flows = network.flows(grey[:, :-1].flatten(0, 1), grey[:, 1:].flatten(0, 1)).unflatten(0, (b, local - 1))
        return network.decode_window(gated, local, flows, t), inactivation.unflatten(0, (b, t)), flows

    def _flow_loss(self, flows: Tensor, target: Tensor) -> Tensor:
        """L1 between the flows (b, l - 1, 2, 2, h, w) and those of the clean clip, the sum of both directions."""
        local, network = flows.shape[1] + 1, self.network
        if local == 1 or self.first_flow is None:
            return flows.sum()
        clean = target[:, :local]
        own, network.update_spynet = network.update_spynet, self.first_flow
        try:
            with torch.no_grad():
                wanted = network.flows(clean[:, :-1].flatten(0, 1), clean[:, 1:].flatten(0, 1))
        finally:
            network.update_spynet = own
        return 2 * (flows.flatten(0, 1) - wanted).abs().mean()

    def _teach_critic(self, fake: Tensor, real: Tensor, losses: dict[str, Tensor]) -> None:
        losses["critic"] = discriminator_loss(self.critic(real), self.critic(fake))
        self.critic_optimiser.zero_grad(set_to_none=True)
        losses["critic"].backward()
        average_gradients(self.critic.parameters())
        self.critic_optimiser.step()

    @torch.no_grad()
    def validate(self, batches: list[Windows]) -> tuple[dict[str, float], list[list[Tensor]]]:
        """Local PSNR in dB with the masks and maps of the curriculum's end, and (frame, filled, clean) to look at."""
        self.network.eval()
        values, rows = [], []
        for batch in batches:
            filled = ((self.fill(batch, 1.0)[0] + 1) / 2).clamp(0, 1)
            values.append(frame_psnr(filled, batch.clean, batch.true))
            rows.append([clip[0, 0] for clip in (batch.frames, filled, batch.clean)])
        self.network.train()
        means = torch.cat(values) if values else torch.zeros(0)
        return ({"held back psnr": float(means.mean())} if len(means) else {}), rows


def candidate_maps(batch: Windows, features: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """Return (M_c^pred, M_c^attn), (b, t, 1, h, w), of Eq. 2.

    Args:
        batch: b windows of t frames.
        features: (b t + b, c, h / 4, w / 4), not gated: of all frames, then of the painted ones.
        progress: of the curriculum, [0, 1].
    """
    b, t = batch.true.shape[:2]
    clips = features[: b * t].unflatten(0, (b, t))
    attention = [
        attention_map(clip, pool_target(painted[None], mask), predicted)
        for clip, painted, mask, predicted in zip(
            clips, features[b * t :], batch.painted_mask, batch.predicted, strict=True
        )
    ]
    return DualCurriculum().candidates(batch.true, batch.predicted, torch.stack(attention), progress)
