"""Training of the shipped propagator: ``python -m ciri train propagator``.

What is learnt is to correct the masks that the classical propagator carries through clips, from a memory of where the
target was. Three stages in one schedule: windows of 3, 4 and 6 frames, in which the network lives with its own
mistakes. Clips are composites and annotated objects, synthesised on the device and kept for a while.

Dimensions: b clips, t frames, h w pixels, q positions of one frame, n stored positions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ciri.errors import TrainingError
from ciri.progress import OnStep, ignore
from ciri.propagation.lite import LiteNetwork, load_lite
from ciri.training.checks import check_numbers, check_sides
from ciri.training.data import Library, open_library
from ciri.training.film import Dice
from ciri.training.located import read_placements, together
from ciri.training.propagator_clips import roughen, segmentation_loss, unroll
from ciri.training.propagator_data import Bank, load_bank
from ciri.training.propagator_pool import HintedPool
from ciri.training.propagator_report import Examiner, card, export
from ciri.training.propagator_weights import Average, faster_layout, load_exported, load_pretrained, mean_with
from ciri.training.run import RunFolder, fit

#: The pretrained encoder moves more slowly than what starts from nothing.
ENCODER_RATE = 0.25
#: Every so-manyth scene, still and object is held back; of the data pack that keeps two annotated clips to validate on.
HELD_EVERY = 13
#: Of a window of the least side, 16 pixels, enlarging leaves one.
MOST_ENLARGED = 16


@dataclass(frozen=True)
class Stage:
    """A part of the schedule.

    Attributes:
        until: progress at which it ends.
        frames: of the windows.
        batch: clips per step, as a share of ``Settings.batch``.
    """

    until: float
    frames: int
    batch: float


SCHEDULE = (Stage(0.4, 3, 1.35), Stage(0.75, 4, 1.0), Stage(1.0, 6, 0.65))


@dataclass(frozen=True)
class Settings:
    """What a run is made with.

    Attributes:
        data: folder of the data pack, DAVIS or YouTube-VOS.
        out: the run's folder; training continues there if it exists.
        init: pretrained EfficientNet-Lite0 (.safetensors or .pth, with the original key names); None starts from noise.
        go_on_from: exported weights to begin with, where the checkpoints of an earlier run are lost.
        average_with: exported weights; what this run exports is the mean of its own and these.
        own_share: how much the run's own weights count in that mean.
        device: "cuda", "cuda:1", "cpu".
        minutes: stop this call after so many minutes.
        plan_minutes: minutes of the whole plan, all calls together; the schedule runs over them.
        steps: most steps of the whole plan.
        batch: clips per step in the second stage.
        rate: learning rate of the parts that start from nothing.
        height, width: frame size; divisible by 16.
        window: height and width of the windows that are trained on; divisible by 16, at most the frame size.
        enlarge: clips are enlarged by up to so much before they are trained on.
        seed: of weights, synthesis and split.
        workers: threads that decode and make clips; 0: everything in turn, reproducible.
        pool: clips held for reuse.
        reuse: draws of a clip before the next one is made.
        clip_frames: read at most so many frames per clip.
        look_every: steps between validations.
    """

    data: Path
    out: Path
    init: Path | None = None
    go_on_from: Path | None = None
    average_with: Path | None = None
    own_share: float = 0.5
    device: str = "cpu"
    minutes: float | None = None
    plan_minutes: float | None = None
    steps: int = 20_000
    batch: int = 32
    rate: float = 5e-4
    height: int = 240
    width: int = 432
    window: tuple[int, int] = (176, 256)
    enlarge: float = 1.0
    seed: int = 1
    workers: int = 16
    pool: int = 400
    reuse: int = 12
    clip_frames: int | None = None
    look_every: int = 500


def train(settings: Settings, *, say: Callable[[str], None] = lambda text: None, on_step: OnStep = ignore) -> Path:
    """Train, or continue; return the path of the exported weights.

    Args:
        settings: see :class:`Settings`.
        say: receives sentences for the person who watches.
        on_step: progress callback; if it raises, the state is saved first.

    Raises:
        TrainingError: impossible numbers, no data, no such device, a folder of another run,
            a loss that is not a number.
        CheckpointError: weights to begin with cannot be used, or the trained ones cannot be written at the end.
    """
    check_numbers(settings)
    check_sides("Frames", settings.height, settings.width, 16)
    check_sides("Windows", *settings.window, 16)
    if not 1 <= settings.enlarge <= MOST_ENLARGED:
        raise TrainingError(
            f"Clips are to be enlarged by up to {settings.enlarge}; expected 1 (as they are) to {MOST_ENLARGED}."
        )
    if not 0 <= settings.own_share <= 1:
        raise TrainingError(f"The run's own share of the mean is {settings.own_share}; expected 0 to 1.")
    device = _device(settings.device)
    torch.manual_seed(settings.seed)
    network = _network(settings)
    run = RunFolder(
        settings.out,
        {"what": "propagator lite", "seed": settings.seed, "size": [settings.height, settings.width]},
    )
    began = time.monotonic()
    size, workers, most = (settings.height, settings.width), settings.workers, settings.clip_frames
    training, held = banks(settings.data, size, device=device, workers=workers, clip_frames=most)
    material = (
        f"{len(training.clips)} clips, {len(training.stills)} stills, {len(training.casts)} cut-out objects, "
        f"{len(training.tracks)} objects annotated in place"
    )
    say(f"{material}: {training.frames.nbytes / 1e9:.1f} GB of frames in {time.monotonic() - began:.0f} s.")
    for note in (training.skipped + held.skipped)[:5]:
        say(f"Skipped: {note}")

    layout = faster_layout(network.to(device), settings.height, settings.width)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    average = Average(network)
    optimiser = _optimiser(network, settings.rate)
    say(f"The network runs {'channels last' if layout == torch.channels_last else 'channels first'}.")
    start = max(run.saved_steps(), default=0)
    # numbers far apart, so that a continued run does not see the first clips again
    pool = HintedPool(
        training,
        seed=settings.seed,
        start=start * 100,
        capacity=settings.pool,
        reuse=settings.reuse,
        workers=settings.workers,
    )
    pool.fill(4 * settings.batch)
    trainer = Trainer(network, average, optimiser, pool, settings, layout)
    examiner = Examiner(held, run.samples, seed=settings.seed)

    def look(step: int) -> Mapping[str, float]:
        result = average.network
        if settings.average_with is not None:
            result = mean_with(result, settings.average_with, own_share=settings.own_share)
        values = examiner.look(result, step)
        facts = {**_facts(settings, step, values), "material": material}
        facts["weights"] = f"{sum(p.numel() for p in result.parameters()) / 1e6:.1f}"

        def write() -> None:
            export(result, run.path / "propagator_lite.safetensors", facts)
            (run.path / "propagator_lite.md").write_text(card(facts))

        run.write_weights(step, write)
        say(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
        return values

    spent = (time.monotonic() - began) / 60  # decoding is part of the minutes that were asked for
    try:
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
            say=say,
            on_step=on_step,
        )
    finally:
        pool.close()
    for note in run.notes:
        say(note)
    run.finish()
    say(f"{done} steps done, {trainer.seconds_per_step():.3f} s per step at the end; the weights are in {run.path}.")
    return run.path / "propagator_lite.safetensors"


class Trainer:
    """One optimisation step after another, by the schedule."""

    def __init__(
        self,
        network: LiteNetwork,
        average: Average,
        optimiser: torch.optim.Optimizer,
        pool: HintedPool,
        settings: Settings,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.layout = layout
        self.network, self.average, self.optimiser = network, average, optimiser
        self.pool, self.settings = pool, settings
        self.device = pool.bank.frames.device
        self._rates = [group["lr"] for group in optimiser.param_groups]
        self._times: list[float] = []

    def step(self, done: int, progress: float) -> dict[str, Tensor | float]:
        """Do one step; ``progress`` in [0, 1] chooses the stage and the learning rate."""
        stage = next(s for s in SCHEDULE if progress <= s.until)
        dice = Dice(self.settings.seed * 1_000_003 + done, self.device)
        batch = max(2, round(self.settings.batch * stage.batch))
        height, width = self.settings.height, self.settings.width
        window = (min(self.settings.window[0], height), min(self.settings.window[1], width))
        sample, hints = self.pool.draw(batch, stage.frames, window, dice, enlarge=self.settings.enlarge)
        pace = learning_pace(done, progress)
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * pace

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = unroll(
                self.network,
                sample.frames,
                roughen(sample.masks[:, 0], dice),
                hints,
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
        made = {"frames per clip": stage.frames, "clips made": float(self.pool.made)}
        return {**losses, "gradient norm": norm, "rate": pace * self._rates[-1], **made}

    def seconds_per_step(self) -> float:
        """Mean of the last steps."""
        return (self._times[-1] - self._times[0]) / (len(self._times) - 1) if len(self._times) > 1 else 0.0


def learning_pace(done: int, progress: float) -> float:
    """Factor of the learning rate: 100 steps of warming up, then a cosine down to 2 %."""
    return min(1.0, (done + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


def _network(settings: Settings) -> LiteNetwork:
    """The network as training finds it; all weight files are read now, not after an hour."""
    network = LiteNetwork(folded=False)
    if settings.go_on_from is not None:
        load_exported(network, settings.go_on_from)
    elif settings.init is not None:
        load_pretrained(network.encoder, settings.init)
    if settings.average_with is not None:
        load_lite(settings.average_with)
    return network


def banks(
    data: Path,
    size: tuple[int, int],
    *,
    device: torch.device | str = "cpu",
    workers: int,
    clip_frames: int | None = None,
) -> tuple[Bank, Bank]:
    """Decode the training part of a data folder, and the held-back part.

    Args:
        data: of the data pack, DAVIS or YouTube-VOS.
        size: (height, width) of the frames; divisible by 16.
        device, workers, clip_frames: as for :func:`load_bank`.

    Raises:
        TrainingError: not enough to train on.
    """
    library, placements = open_library(data), read_placements(data)
    library.check_scenes()

    def load(part: Library) -> Bank:
        return load_bank(
            part,
            placements,
            height=size[0],
            width=size[1],
            device=device,
            workers=workers,
            clip_frames=clip_frames,
        )

    kept, held = together(*library.split(HELD_EVERY), placements)
    return load(kept), load(held)


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


def command_of(settings: Settings) -> str:
    """The command of a run, without what is as usual and what does not change the weights."""
    usual, options = Settings(settings.data, settings.out), []
    named = ("steps", "batch", "rate", "enlarge", "own_share", "seed", "pool", "reuse", "workers", "clip_frames")
    for name in (*named, "plan_minutes"):
        value = getattr(settings, name)
        if value not in (getattr(usual, name), math.inf):
            options.append(f"--{name.replace('_', '-')} {value:.15g}")
    if (settings.height, settings.width) != (usual.height, usual.width):
        options.append(f"--size {settings.width}x{settings.height}")
    if settings.window != usual.window:
        options.append(f"--window {settings.window[1]}x{settings.window[0]}")
    init = f" --init {settings.init.name}" if settings.init and not settings.go_on_from else ""
    for name in ("go_on_from", "average_with"):
        file: Path | None = getattr(settings, name)
        if file is not None:
            init += f" --{name.replace('_', '-')} {file.name}"
    return " \\\n    ".join([f"python -m ciri train propagator --data DATA --out RUN{init}", " ".join(options)]).rstrip(
        " \\\n"
    )


def _facts(settings: Settings, step: int, values: Mapping[str, float]) -> dict[str, str]:
    """What the weight file says of its making."""
    return {
        "steps": str(step),
        "command": command_of(settings),
        "seed": str(settings.seed),
        "frame_size": f"{settings.width}x{settings.height}",
        "init": "EfficientNet-Lite0, ImageNet (Apache-2.0)" if settings.init else "none",
        "licence": "Apache-2.0",
        **{f"validation {name}": f"{value:.4f}" for name, value in values.items()},
    }
