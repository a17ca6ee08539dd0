"""Training the lite backbone: true masks first, then the dual curriculum of wrong masks and attention maps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ciri.checkpoints import write_safetensors
from ciri.errors import TrainingError
from ciri.inpainting.lite import ARCHITECTURE
from ciri.inpainting.lite_network import MULTIPLE, LiteConfig, LiteNetwork
from ciri.progress import OnStep, ignore
from ciri.training.backbone_settings import VARIANTS, Settings
from ciri.training.backbone_trainer import BackboneTrainer, candidate_maps, grow_batch
from ciri.training.checks import check_numbers, check_sides
from ciri.training.data import open_library
from ciri.training.distributed import Team, wait_for_all
from ciri.training.run import RunFolder, fit, open_run
from ciri.training.sample_sources import SampleFiles, SamplePool, SampleStream, Source
from ciri.training.samples import Batch, Part

__all__ = ["VARIANTS", "BackboneTrainer", "Settings", "candidate_maps", "export", "grow_batch", "train_backbone"]


def train_backbone(
    settings: Settings,
    *,
    team: Team | None = None,
    say: Callable[[str], None] = lambda text: None,
    on_step: OnStep = ignore,
) -> Path:
    """Train, continuing the run in ``settings.out`` if there is one; return the file of exported weights.

    Args:
        settings: of the run; its batch is that of each process.
        team: the processes of a distributed training; they need ``settings.device`` to be their own.
        say: told a sentence now and then.
        on_step: progress callback; may raise to stop.

    Raises:
        TrainingError: impossible numbers, no data, a folder of another run, or a loss that is
            not a number.
        CheckpointError: weights to begin with cannot be used, or the trained ones cannot be written at the end.
    """
    check_numbers(settings)
    check_sides("Clips", settings.height, settings.width, MULTIPLE)
    check_sides("Crops", *settings.crop, MULTIPLE)
    check_network(settings.config)
    team = team or Team(0, 1, settings.device)
    library = open_library(settings.data)
    if settings.held_back:
        library.check_scenes()
    # first, so that a setting that it refuses does not become that of the folder
    trainer = BackboneTrainer(settings)
    run = open_run(settings.out, settings.identity(), team)
    start = max(run.saved_steps(), default=0)
    stream = SampleStream(
        settings.data,
        (settings.height, settings.width),
        settings.length,
        seed=settings.seed,
        # numbers far apart, so that a continued run does not see the first samples again
        start=0 if settings.keep is not None else start if settings.workers == 0 else start * 100,
        share=(team.rank, team.size),
        predictions=settings.predictions,
    )
    pool = _source(settings, stream, team, on_step)
    held = held_back_batches(settings) if team.main else []
    if held:
        say(f"{len(held)} held-back clips; copying alone: {_copied(trainer.validate(held))}")
    pool.wait(min(settings.pool, 3 * settings.batch) if settings.workers else 1)

    def step(number: int, progress: float) -> Mapping[str, Tensor | float]:
        random = torch.Generator().manual_seed(settings.seed * 1_000_003 + number * team.size + team.rank)
        batch = pool.draw(settings.batch, settings.window, settings.crop, random, trainer.wrong_share(progress))
        batch = batch.to(settings.device)
        batch.colour_jitter(random)
        return {**trainer.step(batch, progress, number), "samples made": float(pool.made)}

    def look(done: int) -> Mapping[str, float]:
        values = trainer.validate(held, run.samples / f"{done:07d}.png")
        run.write_weights(done, lambda: export(trainer, run, done))
        run.curves.draw()
        shown = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        say(f"step {done}, {pool.made} samples: {shown}")
        return values

    try:
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
            device=settings.device,
            say=say,
            on_step=on_step,
        )
    finally:
        pool.close()
        for note in run.notes:
            say(note)
    run.finish()
    return weights_file(trainer, run)


def check_network(config: LiteConfig) -> None:
    """Raise TrainingError: a network without channels, or with fewer than no blocks."""
    channels = (config.half, config.quarter, config.eighth, config.sixteenth)
    if min(channels) < 1:
        raise TrainingError(f"--channels {','.join(map(str, channels))}: expected four numbers of 1 or more.")
    if config.deep < 0:
        raise TrainingError(f"--deep {config.deep}: expected 0 or more.")


def _copied(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} dB" for name, value in values.items() if name.endswith("copied"))


def _source(settings: Settings, stream: SampleStream, team: Team, on_step: OnStep) -> Source:
    """Where this run draws its batches from."""
    if settings.keep is not None:
        if not team.main:
            wait_for_all()  # the first process makes the files
        files = SampleFiles(stream, settings.keep, settings.pool, workers=settings.workers, on_step=on_step)
        if team.main:
            wait_for_all()
        return files
    return SamplePool(
        stream, workers=settings.workers, capacity=settings.pool, device=settings.device, reuse=settings.reuse
    )


def held_back_batches(settings: Settings) -> list[Batch]:
    """Make the validation clips, half with true masks, from scenes that are not trained on."""
    size = (settings.height, settings.width)
    stream = SampleStream(settings.data, size, settings.length, seed=0, held_back=True)
    maker, batches = stream.maker(), []
    for index in range(settings.held_back):
        stream.wrong = float(index % 2)
        sample = stream.sample(maker, index)
        if not index % 2:
            sample.masks[:, 1] = sample.masks[:, 0]
        # every third frame: neighbours say the same again
        some = Part(list(range(0, settings.length, 3)), slice(None), slice(None), flip=False)
        batches.append(Batch.of([sample.part(some)]).to(settings.device))
    return batches


def weights_file(trainer: BackboneTrainer, run: RunFolder) -> Path:
    """Where the weights are exported to."""
    return run.path / f"backbone_lite_{trainer.settings.variant}.safetensors"


def export(trainer: BackboneTrainer, run: RunFolder, step: int) -> Path:
    """Write the averaged weights with what made them in the header."""
    target = weights_file(trainer, run)
    save_network(trainer.average.network, target, {"variant": trainer.settings.variant, "steps": str(step)})
    return target


def save_network(network: LiteNetwork, target: Path, facts: Mapping[str, str]) -> None:
    """Write weights in fp16, as :func:`ciri.inpainting.lite.load_lite` reads them.

    Args:
        network: on any device.
        target: the file; replaced only once the new one is whole.
        facts: more for the header.

    Raises:
        CheckpointError: it cannot be written.
    """
    tensors = {name: value.half() for name, value in network.state_dict().items()}
    metadata = {
        "architecture": ARCHITECTURE,
        "config": json.dumps(network.config.to_dict()),
        "trained_for": "inactivation" if network.config.gate else "hard mask",
        "licence": "Apache-2.0",
        **facts,
    }
    write_safetensors(target, tensors, metadata)
