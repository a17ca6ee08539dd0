"""Training of the shipped residue detector: ``python -m ciri train residue``.

The encoder stays as ImageNet left it, so its maps are computed once; what is trained, projections and decoder, is
small enough for one processor core. A second process makes samples while the first one trains on those that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ciri.checkpoints import write_safetensors
from ciri.progress import OnStep, ignore
from ciri.propagation.lite_encoder import Lite0Encoder
from ciri.residue.lite import ARCHITECTURE, ResidueNetwork, load_lite
from ciri.training.beside import makers
from ciri.training.checks import check_numbers
from ciri.training.data import open_library
from ciri.training.propagator import learning_pace
from ciri.training.propagator_weights import load_pretrained
from ciri.training.residue_bank import Bank, Batch, respond
from ciri.training.residue_material import Material, fill_folder, pool_files
from ciri.training.residue_report import answers, matching, measure, trained, write_sheets
from ciri.training.run import RunFolder, fit

#: Exponent of the focal loss, and the largest weight of a positive cell.
FOCUS, HEAVIEST = 2.0, 20.0
#: One sample in so many is answered without being told how the target was removed, and one with a mask that claims
#: too much, so that both can happen.
MISLED = 8
#: Share of a batch that is drawn among samples with residue.
RESIDUE_SHARE = 0.6


@dataclass(frozen=True)
class Settings:
    """Of one run.

    Attributes:
        data, out: the data folder and the run's folder.
        init: pretrained EfficientNet-Lite0 (.safetensors or .pth, with the original key names).
        go_on_from: exported weights to begin with.
        minutes, plan_minutes: of this call and of all calls together.
        steps: most steps of all calls together.
        batch: samples per step.
        rate: learning rate at the start.
        files: pool files that the second process makes at most.
        first: pool files that training waits for.
        held: pool files of held-back composites.
        workers: 0: all samples are made before training, in this process; else a second process makes them.
        seed: of everything random.
        look_every: steps between validations.
        log_every: steps between rows of the curves.
        size, length: (height, width) in pixels and frames of the composites.
        each: composites per pool file.
    """

    data: Path
    out: Path
    init: Path
    go_on_from: Path | None = None
    minutes: float | None = None
    plan_minutes: float | None = None
    steps: int = 4000
    batch: int = 32
    rate: float = 2e-3
    files: int = 60
    first: int = 4
    held: int = 6
    workers: int = 1
    seed: int = 1
    look_every: int = 200
    log_every: int = 10
    size: tuple[int, int] = (240, 432)
    length: int = 8
    each: int = 16

    @property
    def pool(self) -> Path:
        """Where the samples are."""
        return self.out / "pool"

    @property
    def material(self) -> Material:
        """What they are made of."""
        return Material(self.data, self.size, self.length, self.each)


def residue_loss_of_sample(logits: Tensor, label: Tensor, sure: Tensor) -> dict[str, Tensor]:
    """Return the parts of the training loss: focal entropy, Dice, and quiet where there is nothing to be found.

    Args:
        logits, label, sure: (n, 1, h, w); cells that are not sure do not count.
    """
    response = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    share = float((label * sure).sum() / sure.sum().clamp(min=1))
    weight = 1 + (min(HEAVIEST, 1 / max(share, 1e-3)) - 1) * label
    focal = weight * (response - label).abs() ** FOCUS * entropy * sure
    clear = sure * ((label <= 0.1) | (label >= 0.3)).float()
    overlap = (response * label * clear).sum((1, 2, 3))
    sizes = ((response + label) * clear).sum((1, 2, 3))
    enough = (label.sum((1, 2, 3)) > 2).float()
    dice = (enough * (1 - 2 * overlap / (sizes + 1))).sum() / enough.sum().clamp(min=1)
    nothing = (label.amax((1, 2, 3)) < 0.05).float()
    quiet = (nothing * (response * sure).mean((1, 2, 3))).sum() / nothing.sum().clamp(min=1)
    return {"focal": focal.sum() / sure.sum().clamp(min=1), "dice": dice, "quiet": quiet}


class Trainer:
    """Network, average, optimiser, and one step."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.network = pretrained(settings.init)
        if settings.go_on_from is not None:
            self.network.load_state_dict(load_lite(settings.go_on_from)[0].state_dict())
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        learnt = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(learnt, settings.rate, weight_decay=1e-3)

    @property
    def averaged(self) -> ResidueNetwork:
        """The network that gets exported."""
        network = self.average.module
        assert isinstance(network, ResidueNetwork)
        return network

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"network": self.network, "average": self.average, "optimiser": self.optimiser}

    def step(self, batch: Batch, done: int, progress: float) -> Mapping[str, Tensor | float]:
        """Do one optimisation step and return what to log."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate * learning_pace(done, progress)
        ignorant, deceived = (range((done + shift) % MISLED, len(batch.label), MISLED) for shift in (0, MISLED // 2))
        logits = respond(self.network, batch, ignorant=ignorant, deceived=deceived)
        losses = residue_loss_of_sample(logits, batch.label, batch.sure)
        total = losses["focal"] + 0.5 * losses["dice"] + losses["quiet"]
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.average.update_parameters(self.network)
        return {**{name: value.detach() for name, value in losses.items()}, "gradient norm": norm.detach()}


def pretrained(init: Path) -> ResidueNetwork:
    """Return a network with the ImageNet encoder, folded and frozen.

    Raises:
        TrainingError: see :func:`ciri.training.propagator_weights.load_pretrained`.
    """
    encoder = Lite0Encoder()
    load_pretrained(encoder, init)
    network = ResidueNetwork(folded=False)
    wanted = network.encoder.state_dict()
    network.encoder.load_state_dict({k: v for k, v in encoder.state_dict().items() if k in wanted})
    network.fold()
    network.encoder.requires_grad_(False)
    return network


def train_residue(
    settings: Settings, *, say: Callable[[str], None] = lambda text: None, on_step: OnStep = ignore
) -> Path:
    """Train, continuing the run in ``settings.out`` if there is one; return the file of exported weights.

    Raises:
        TrainingError: impossible numbers, no data, no pretrained encoder, a folder of another run,
            a loss that is not a number.
        CheckpointError: weights to begin with cannot be used, or the trained ones cannot be written at the end.
    """
    check_numbers(settings)
    open_library(settings.data).check_scenes()
    run = RunFolder(settings.out, {"what": ARCHITECTURE, "seed": settings.seed})
    trainer = Trainer(settings)
    bank, held = Bank(trainer.network), Bank(trainer.network, keep_pictures=True)
    target = run.path / "residue_lite.safetensors"

    def step(done: int, progress: float) -> Mapping[str, Tensor | float]:
        if done % 25 == 0:
            _take_new(bank, settings, held_back=False)
        random = torch.Generator().manual_seed(settings.seed * 1_000_003 + done)
        return {**trainer.step(_draw(bank, settings.batch, random), done, progress), "samples": float(len(bank))}

    def look(done: int) -> Mapping[str, float]:
        _take_new(held, settings, held_back=True)
        found = answers(held, trained(trainer.averaged))
        values = measure(held, found)
        write_sheets(run.samples, f"{done:06d}", held, found)
        facts = _facts(settings, done, len(bank), values)
        run.write_weights(done, lambda: export(trainer.averaged, target, found.threshold, facts))
        run.curves.draw()
        for complaint in others.complaints():
            say(f"No more samples are made: {complaint}")
        say(f"step {done}, {len(bank)} samples, {len(held)} held back: {_in_words(values)}")
        return {f"held back {name}": value for name, value in values.items()}

    with makers(_make, settings, min(1, settings.workers)) as others:
        others.wait(lambda: _take_new(held, settings, held_back=True) >= 1)
        first = min(settings.first, settings.files)
        others.wait(lambda: _take_new(bank, settings, held_back=False) >= first)
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
    say(f"The same samples, part matching without training: {_in_words(measure(held, answers(held, matching)))}")
    return target


def export(network: ResidueNetwork, target: Path, threshold: float, facts: Mapping[str, str]) -> None:
    """Write the weights, half precision, with the threshold."""
    state = {name: value.half() for name, value in network.state_dict().items()}
    write_safetensors(target, state, {"architecture": ARCHITECTURE, "threshold": f"{threshold:.4f}", **facts})


def _facts(settings: Settings, steps: int, samples: int, values: Mapping[str, float]) -> dict[str, str]:
    return {
        "steps": str(steps),
        "samples": str(samples),
        "seed": str(settings.seed),
        "init": "EfficientNet-Lite0, ImageNet (Apache-2.0), frozen",
        "licence": "Apache-2.0",
        **{f"validation {name}": f"{value:.4f}" for name, value in values.items()},
    }


def _in_words(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _draw(bank: Bank, count: int, random: torch.Generator) -> Batch:
    """Draw sample numbers, more often such with residue than they occur."""
    numbers = []
    groups = [torch.nonzero(x).flatten() for x in (~bank.with_residue, bank.with_residue)]
    for _ in range(count):
        group = groups[int(torch.rand((), generator=random) < RESIDUE_SHARE)]
        group = group if len(group) else torch.arange(len(bank))
        numbers.append(int(group[int(torch.randint(len(group), (), generator=random))]))
    return bank.batch(numbers)


def _take_new(bank: Bank, settings: Settings, *, held_back: bool) -> int:
    """Encode the files that are new; return how many there are."""
    for file in pool_files(settings.pool, seed=settings.seed, held_back=held_back):
        if file not in bank.files:
            bank.add(file)
    return len(bank.files)


def _make(settings: Settings, i: int, n: int, go_on: Callable[[], bool]) -> None:
    """Make the held-back samples, then those to train with; one process makes all."""
    for held_back, files in ((True, settings.held), (False, settings.files)):
        fill_folder(settings.pool, settings.material, seed=settings.seed, held_back=held_back, files=files, go_on=go_on)
