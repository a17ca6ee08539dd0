"""Fine-tuning a published backbone with curricular inactivation: ``python -m ciri train backbone --model NAME``.

The paper's second stage: the published weights stand for its first, 150 epochs of random masks. The exported file
loads like the published one and gates instead of masking.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ciri.checkpoints import write_safetensors
from ciri.progress import OnStep, ignore
from ciri.training.backbone_trainer import write_sheet
from ciri.training.checks import check_numbers, check_sides
from ciri.training.data import open_library
from ciri.training.distributed import Team
from ciri.training.published_data import Numbers, Windows, WindowSamples, load_windows
from ciri.training.published_trainer import PublishedTrainer, Settings
from ciri.training.run import RunFolder, fit, open_run

__all__ = ["PublishedTrainer", "Settings", "export", "train_published"]


def train_published(
    settings: Settings,
    *,
    team: Team | None = None,
    say: Callable[[str], None] = lambda text: None,
    on_step: OnStep = ignore,
) -> Path:
    """Train, continuing the run in ``settings.out`` if there is one; return the file of exported weights.

    Args:
        settings: of the run.
        team: the processes of a distributed training; they need ``settings.device`` to be their own.
        say: told a sentence now and then.
        on_step: progress callback; may raise to stop.

    Raises:
        TrainingError: impossible numbers, no data, a folder of another run, windows that do not fit,
            a loss that is not a number.
        CheckpointError: the checkpoint cannot be used, or the weights cannot be written at the end.
    """
    check_numbers(settings)
    check_sides("Clips", settings.height, settings.width)
    team = team or Team(0, 1, settings.device)
    samples = window_samples(settings)
    if settings.held_back:
        open_library(settings.data).check_scenes()
    trainer = PublishedTrainer(settings)
    run = open_run(settings.out, settings.identity(), team)
    epoch = max(1, math.ceil(len(samples.library.clips or samples.library.stills) / (settings.batch * team.size)))
    planned = max(1, round(settings.epochs * epoch))
    # fewer steps are a part of the plan, so that a short run shows how the long one begins
    steps = planned if settings.steps is None else min(planned, settings.steps)
    windows: list[Iterator[dict[str, Tensor]]] = []
    held = held_back_windows(settings) if team.main else []
    say(f"{settings.model}: {planned} steps, {epoch} an epoch of {settings.epochs:g}; {steps} of them in this run.")
    if samples.library.skipped:
        say(f"{len(samples.library.skipped)} places of the data were skipped; the first: {samples.library.skipped[0]}")

    def step(number: int, progress: float) -> Mapping[str, Tensor | float]:
        if not windows:
            # only now is it known where the run goes on: its newest checkpoint may not be readable
            windows.append(load_windows(samples, Numbers(number, steps, settings.batch, team), settings.workers))
        batch = Windows.of(next(windows[0]), settings.device)
        # by steps alone: a training that is stopped by the clock is not at the end of its curriculum
        return trainer.step(batch, number / planned)

    def look(done: int) -> Mapping[str, float]:
        values, rows = trainer.validate(held)
        write_sheet(run.samples / f"{done:07d}.png", rows)
        run.write_weights(done, lambda: export(trainer, run, done))
        run.curves.draw()
        say(f"step {done}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
        return values

    try:
        fit(
            run,
            trainer.parts(),
            step,
            steps=steps,
            minutes=settings.minutes,
            log_every=settings.log_every,
            look_every=settings.look_every,
            save_minutes=10,
            look=look,
            device=settings.device,
            on_step=on_step,
        )
    finally:
        for note in run.notes:
            say(note)
    run.finish()
    return weights_file(trainer, run)


def window_samples(settings: Settings, *, held_back: bool = False) -> WindowSamples:
    """The windows of a run."""
    return WindowSamples(
        settings.data,
        (settings.height, settings.width),
        settings.length,
        settings.local,
        settings.references,
        seed=settings.seed if not held_back else 0,
        held_back=held_back,
        predictions=settings.predictions if not held_back else "",
    )


def held_back_windows(settings: Settings) -> list[Windows]:
    """Windows of clips that are not trained on, the same in every run, one a batch."""
    if not settings.held_back:
        return []
    numbers = Numbers(0, settings.held_back, 1, Team(0, 1, settings.device))
    loaded = load_windows(window_samples(settings, held_back=True), numbers, 0)
    return [Windows.of(parts, settings.device) for parts in loaded]


def weights_file(trainer: PublishedTrainer, run: RunFolder) -> Path:
    """Where the weights are exported to."""
    return run.path / f"{trainer.settings.model}_ciri.safetensors"


def export(trainer: PublishedTrainer, run: RunFolder, step: int) -> Path:
    """Write the weights under their published names, with b, the gate points and their origin in the header.

    Raises:
        CheckpointError: the file cannot be written; the one before is whole, and so are the run's checkpoints.
    """
    settings, target = trainer.settings, weights_file(trainer, run)
    state = {name: value for name, value in trainer.network.state_dict().items() if not name.startswith("fusion.")}
    metadata = {
        "architecture": settings.model,
        "trained_for": "inactivation",
        "gate_points": json.dumps(list(settings.gate_points)),
        "beta": f"{float(trainer.fusion.beta.detach()):.8f}",
        "steps": str(step),
        "made_from": f"{Path(settings.init).name} (sha256 {trainer.init_digest})",
        "licence": f"that of the weights it was made from: {trainer.network.facts.licence}",
    }
    write_safetensors(target, state, metadata)
    return target
