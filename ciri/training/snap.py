"""Training of what corrects painted masks: ``python -m ciri train snap``.

Only a decoder learns, from the shipped propagator's on; the encoders stay as they ship, so that the file is small and a
picture's features serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ciri.checkpoints import write_safetensors
from ciri.precision import choose_dtype, inference_copy
from ciri.progress import OnStep, ignore
from ciri.propagation.lite import SHIPPED, Decoder, LiteNetwork, load_lite
from ciri.propagation.snap import ARCHITECTURE, network_with, propagator_of, seen
from ciri.training.checks import check_numbers, check_sides
from ciri.training.film import Dice
from ciri.training.propagator import banks, learning_pace
from ciri.training.run import RunFolder, fit
from ciri.training.snap_data import Batch, Pictures
from ciri.training.snap_report import Examiner

#: A missed pixel of the target costs more than one that is covered in vain: it stays in the picture.
MISSED = 1.5
#: How far from either mask in pixels the answer counts: further off it is never in doubt.
NEARBY = 20


@dataclass(frozen=True)
class Settings:
    """Of one run.

    Attributes:
        data, out: the data folder and the run's folder.
        go_on_from: exported weights to begin with; None: the propagator's own decoder.
        minutes, plan_minutes: of this call and of all calls together.
        steps: most steps of all calls together.
        batch: pictures per step.
        rate: learning rate at the start.
        size: (height, width) of the pictures.
        window: (height, width) of what is trained on; divisible by 16.
        enlarged: least and most that pictures are enlarged by.
        seed: of everything random.
        workers: decoding threads.
        pool, reuse: pictures held, and draws of one before the next is made.
        look_every, log_every: steps between validations, and between rows of the curves.
    """

    data: Path
    out: Path
    go_on_from: Path | None = None
    minutes: float | None = None
    plan_minutes: float | None = None
    steps: int = 6000
    batch: int = 8
    rate: float = 3e-4
    size: tuple[int, int] = (240, 432)
    window: tuple[int, int] = (288, 384)
    enlarged: tuple[float, float] = (1.2, 2.0)
    seed: int = 1
    workers: int = 4
    pool: int = 400
    reuse: int = 4
    look_every: int = 250
    log_every: int = 20


class Trainer:
    """Decoder, average, optimiser, and one step."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        shipped = load_lite(SHIPPED)
        self.propagator = propagator_of(shipped)
        started = shipped if settings.go_on_from is None else network_with(settings.go_on_from)
        self.decoder = deepcopy(started.decoder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(self.decoder, multi_avg_fn=get_ema_multi_avg_fn(0.995))
        self.optimiser = torch.optim.AdamW(self.decoder.parameters(), settings.rate, weight_decay=1e-3)
        device = torch.device("cpu")
        self._eye = inference_copy(shipped, device, choose_dtype("auto", device))

    @property
    def averaged(self) -> Decoder:
        """The decoder that gets exported."""
        decoder = self.average.module
        assert isinstance(decoder, Decoder)
        return decoder

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"decoder": self.decoder, "average": self.average, "optimiser": self.optimiser}

    def step(self, batch: Batch, done: int, progress: float) -> Mapping[str, Tensor | float]:
        """Do one optimisation step and return what to log."""
        pace = learning_pace(done, progress)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate * pace
        losses = snap_losses(self.answer(self.decoder, batch), batch)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimiser.step()
        self.average.update_parameters(self.decoder)
        return {**{k: v.detach() for k, v in losses.items()}, "gradient norm": norm.detach()}

    def answer(self, decoder: Decoder, batch: Batch) -> Tensor:
        """Log odds (b, 1, h, w) of what was painted."""
        return 2 * decoded(self._eye, decoder, batch)


def decoded(eye: LiteNetwork, decoder: Decoder, batch: Batch) -> Tensor:
    """What a float32 decoder makes of the features that the encoders, in whatever precision, see."""
    values, features, hints = seen(eye, batch.frames.contiguous(memory_format=torch.channels_last), batch.painted)
    features.maps = tuple(m.float() for m in features.maps)
    odds: Tensor = decoder(values.float(), features, hints)
    return odds


def snap_losses(odds: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Entropy and overlap (Dice) where the answer may be in doubt."""
    either = torch.maximum(batch.painted, batch.truth)
    near = F.max_pool2d(either, 2 * NEARBY + 1, stride=1, padding=NEARBY)
    weight = near * (1 + (MISSED - 1) * batch.truth)
    entropy = F.binary_cross_entropy_with_logits(odds, batch.truth, reduction="none")
    found = odds.sigmoid() * near
    overlap, sizes = (x.sum((1, 2, 3)) for x in (found * batch.truth, found + batch.truth))
    dice = (1 - (2 * overlap + 100) / (sizes + 100)).mean()
    return {"entropy": (entropy * weight).sum() / weight.sum().clamp(min=1), "dice": 0.5 * dice}


def train_snap(settings: Settings, *, say: Callable[[str], None] = lambda text: None, on_step: OnStep = ignore) -> Path:
    """Train, continuing the run in ``settings.out`` if there is one; return the file of exported weights.

    Raises:
        TrainingError: impossible numbers, no data, a folder of another run, a loss that is not a number.
        CheckpointError: weights to begin with cannot be used, or the trained ones cannot be written at the end.
    """
    check_numbers(settings)
    check_sides("Windows", *settings.window, 16)
    trainer = Trainer(settings)
    run = RunFolder(settings.out, {"what": ARCHITECTURE, "seed": settings.seed, "size": list(settings.size)})
    training, held = banks(settings.data, settings.size, workers=settings.workers)
    say(f"{len(training.clips)} clips, {len(training.stills)} stills, {len(training.casts)} cut-out objects.")
    start = max(run.saved_steps(), default=0)
    # numbers far apart, so that a continued run does not see the first pictures again
    pool = Pictures(training, seed=settings.seed, start=start * 100, capacity=settings.pool, reuse=settings.reuse)
    pool.fill(4 * settings.batch)
    examiner = Examiner(held, run.samples, seed=settings.seed, window=settings.window)
    target = run.path / f"{ARCHITECTURE}.safetensors"

    def step(done: int, progress: float) -> Mapping[str, Tensor | float]:
        dice = Dice(settings.seed * 1_000_003 + done, "cpu")
        return trainer.step(pool.draw(settings.batch, settings.window, settings.enlarged, dice), done, progress)

    def look(done: int) -> Mapping[str, float]:
        values = examiner.look(lambda batch: trainer.answer(trainer.averaged, batch).sigmoid(), done)
        facts = {"steps": str(done), "seed": str(settings.seed), "propagator": trainer.propagator}
        facts |= {f"validation {name}": f"{value:.4f}" for name, value in values.items()}
        run.write_weights(done, lambda: export(trainer.averaged, target, facts))
        run.curves.draw()
        say(f"step {done}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
        return {f"held back {name}": value for name, value in values.items()}

    fit(
        run,
        trainer.parts(),
        step,
        steps=settings.steps,
        minutes=settings.minutes,
        plan_minutes=settings.plan_minutes,
        log_every=settings.log_every,
        look_every=settings.look_every,
        look=look,
        say=say,
        on_step=on_step,
    )
    for note in run.notes:
        say(note)
    run.finish()
    return target


def export(decoder: Decoder, target: Path, facts: Mapping[str, str]) -> None:
    """Write the weights, half precision."""
    state = {name: value.half().contiguous() for name, value in decoder.state_dict().items()}
    write_safetensors(target, state, {"architecture": ARCHITECTURE, "licence": "Apache-2.0", **facts})
