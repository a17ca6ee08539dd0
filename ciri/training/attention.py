"""Training of the attention network: ``python -m ciri train attention``.

The dual curriculum of the paper (Eq. 2) decides what it is shown as prediction: true masks first, the propagator's
later. Examples are made once and kept, by other processes while this one trains on those that are there.

Dimensions: n examples of a batch, h w pixels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ciri.checkpoints import load_strictly, write_safetensors
from ciri.inactivation.attention_network import (
    ARCHITECTURE,
    AttentionConfig,
    AttentionNetwork,
    load_attention,
    log_odds,
)
from ciri.inactivation.curriculum import Curriculum
from ciri.inactivation.evidence import Evidence
from ciri.progress import OnStep, ignore
from ciri.training.attention_data import Example, fill_folder, load, unpack
from ciri.training.attention_report import validate
from ciri.training.beside import makers
from ciri.training.checks import check_numbers
from ciri.training.data import open_library
from ciri.training.propagator import learning_pace
from ciri.training.run import RunFolder, fit

#: A missed pixel of the target costs more than one that is covered in vain: it stays in the picture.
MISSED = 1.5
#: A pixel of shadow counts so many times, as few scenes have one and few pixels of them.
SHADOWED = 3.0
#: Eq. 2 for this network, in epochs of 30. True masks teach it no correction, so it is shown wrong ones early.
CURRICULUM = Curriculum(1, 6)
EPOCHS = 30
#: Weight of the overlap (Dice) beside the entropy.
DICE = 0.5
#: Share of examples from which all copies are taken away: there is not always another frame that shows something.
WITHOUT_COPIES = 0.1
#: Seconds between looks for new examples.
PATIENCE = 20.0


@dataclass(frozen=True)
class Settings:
    """Of one run.

    Attributes:
        data, out: the data folder and the run's folder.
        keep: where the examples are kept; None: in the run's folder.
        init: exported weights to begin with.
        minutes, plan_minutes: of this call and of all calls together.
        steps: most steps of all calls together.
        batch: examples per step.
        rate: learning rate at the start.
        scenes, held: scenes that are made, and held-back ones.
        first: scenes that training waits for.
        workers: processes that make examples beside; 0: all are made before training, in this process.
        seed: of everything random.
        look_every, log_every: steps between validations, and between rows of the curves.
        size, length: (height, width) in pixels and frames of the scenes.
        window: (height, width) of what is trained on, in pixels.
        config: sizes of the network.
    """

    data: Path
    out: Path
    keep: Path | None = None
    init: Path | None = None
    minutes: float | None = None
    plan_minutes: float | None = None
    steps: int = 6000
    batch: int = 12
    rate: float = 1e-3
    scenes: int = 400
    held: int = 36
    first: int = 40
    workers: int = 1
    seed: int = 1
    look_every: int = 250
    log_every: int = 25
    size: tuple[int, int] = (240, 432)
    length: int = 24
    window: tuple[int, int] = (160, 224)
    config: AttentionConfig = field(default_factory=AttentionConfig)

    @property
    def samples(self) -> Path:
        """Where the examples are."""
        return self.keep or self.out / "examples"


@dataclass
class Batch:
    """Of n examples; see :class:`ciri.training.attention_data.Example`."""

    evidence: Evidence
    target: Tensor
    shadow: Tensor


class Bank:
    """The examples that are there, in memory."""

    def __init__(self, settings: Settings, *, held_back: bool) -> None:
        self.pattern = f"{'held' if held_back else 'train'}_{settings.seed}_*.npz"
        self.folder, self.window, self.files = settings.samples, settings.window, set[Path]()
        self.examples: list[Example] = []

    def refresh(self, most: int) -> None:
        """Read the files that are new, up to so many in all."""
        for file in sorted(self.folder.glob(self.pattern))[:most]:
            if file not in self.files:
                self.files.add(file)
                self.examples += load(file)

    def has(self, wanted: int, most: int) -> bool:
        """Whether so many files are there (of ``most``), and an example among them; reads the new ones."""
        self.refresh(most)
        return len(self.files) >= min(wanted, most) and bool(self.examples)

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        """A random batch of windows."""
        chosen = [self.examples[int(i)] for i in rng.integers(len(self.examples), size=count)]
        pairs = [cut_window(example, self.window, rng) for example in chosen]
        evidence = unpack(torch.from_numpy(np.stack([e for e, _ in pairs])))
        answer = torch.from_numpy(np.stack([a for _, a in pairs])).float() / 255
        if rng.random() < 0.5:
            light = float(rng.uniform(0.8, 1.2)), float(rng.uniform(-0.1, 0.1))
            for image in (evidence.frame, evidence.before, evidence.after):
                image.mul_(light[0]).add_(light[1]).clamp_(0, 1)
        for i in np.flatnonzero(rng.random(count) < WITHOUT_COPIES):
            for part in (evidence.before, evidence.after, evidence.cues):
                part[int(i)] = 0
        return Batch(evidence, answer[:, :1], answer[:, 1:])


def cut_window(example: Example, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random window (height, width) of evidence and answer, possibly mirrored."""
    places = [
        int(rng.integers(side - wanted + 1)) for side, wanted in zip(example.evidence.shape[1:], size, strict=True)
    ]
    rows, columns = (slice(place, place + wanted) for place, wanted in zip(places, size, strict=True))
    pair = example.evidence[:, rows, columns], example.answer[:, rows, columns]
    return (pair[0][..., ::-1].copy(), pair[1][..., ::-1].copy()) if rng.random() < 0.5 else pair


class Trainer:
    """Network, average, optimiser, and one step."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.network = AttentionNetwork(settings.config)
        if settings.init is not None:
            state = load_attention(settings.init).state_dict()
            load_strictly(self.network, state, model=f"{ARCHITECTURE} in these sizes", path=settings.init)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.995))
        self.optimiser = torch.optim.AdamW(self.network.parameters(), settings.rate, weight_decay=1e-3)

    @property
    def averaged(self) -> AttentionNetwork:
        """The network that gets exported."""
        network = self.average.module
        assert isinstance(network, AttentionNetwork)
        return network

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"network": self.network, "average": self.average, "optimiser": self.optimiser}

    def step(self, batch: Batch, done: int, progress: float) -> Mapping[str, Tensor | float]:
        """Do one optimisation step and return what to log."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate * learning_pace(done, progress)
        evidence = batch.evidence
        evidence.predicted = CURRICULUM.blend(batch.target, evidence.predicted, progress * EPOCHS)
        losses = attention_losses(self.network, batch)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.average.update_parameters(self.network)
        beta = self.network.fusion.beta.detach()
        return {**{k: v.detach() for k, v in losses.items()}, "gradient norm": norm.detach(), "beta": beta}


def attention_losses(network: AttentionNetwork, batch: Batch) -> dict[str, Tensor]:
    """Entropy and overlap of target and shadow, and the entropy of the fused map, which teaches b."""
    region, target, shadow = batch.evidence.region, batch.target, batch.shadow
    correction, shadow_odds = network(batch.evidence)
    odds = log_odds(batch.evidence.predicted) + correction
    weight = region * (1 + (MISSED - 1) * target)
    # the outermost rim of a shadow is a matter of taste
    clear = region * (1 - target) * ((shadow <= 0.02) | (shadow >= 0.5)).float() * (1 + (SHADOWED - 1) * shadow)

    def mean(loss: Tensor, weight: Tensor) -> Tensor:
        return (loss * weight).sum() / weight.sum().clamp(min=1)

    def dice(odds: Tensor, true: Tensor, weight: Tensor) -> Tensor:
        found = odds.sigmoid() * weight
        overlap, sizes = (x.sum((1, 2, 3)) for x in (found * true, found + true * weight))
        return (1 - (2 * overlap + 50) / (sizes + 50)).mean()

    fused = network.fusion(batch.evidence.predicted, odds.detach().sigmoid())
    entropy = F.binary_cross_entropy_with_logits
    return {
        "target": mean(entropy(odds, target, reduction="none"), weight),
        "target dice": DICE * dice(odds, target, region),
        "shadow": mean(entropy(shadow_odds, shadow, reduction="none"), clear),
        "shadow dice": DICE * dice(shadow_odds, shadow, (clear > 0).float()),
        "fused": 0.3 * mean(F.binary_cross_entropy(fused.clamp(1e-4, 1 - 1e-4), target, reduction="none"), region),
    }


# ------------------------------------------------------------------------------------------------- the run


def train_attention(
    settings: Settings, *, say: Callable[[str], None] = lambda text: None, on_step: OnStep = ignore
) -> Path:
    """Train, continuing the run in ``settings.out`` if there is one; return the file of exported weights.

    Raises:
        TrainingError: impossible numbers, no data, a folder of another run, a loss that is not a number.
        CheckpointError: weights to begin with cannot be used, or the trained ones cannot be written at the end.
    """
    check_numbers(settings)
    open_library(settings.data).check_scenes()
    run = RunFolder(settings.out, {"what": ARCHITECTURE, "seed": settings.seed, **settings.config.to_dict()})
    trainer = Trainer(settings)
    bank, held = Bank(settings, held_back=False), Bank(settings, held_back=True)
    target = run.path / f"{ARCHITECTURE}.safetensors"
    looked = [0.0]

    def step(done: int, progress: float) -> Mapping[str, Tensor | float]:
        if time.monotonic() - looked[0] > PATIENCE:
            bank.refresh(settings.scenes)
            looked[0] = time.monotonic()
        rng = np.random.default_rng([settings.seed, 7, done])
        return {**trainer.step(bank.draw(settings.batch, rng), done, progress), "examples": float(len(bank.examples))}

    def look(done: int) -> Mapping[str, float]:
        held.refresh(settings.held)
        values = validate(trainer.averaged, held.examples, run.samples / f"{done:06d}.jpg")
        facts = {"steps": str(done), "examples": str(len(bank.examples)), "seed": str(settings.seed)}
        facts |= {f"validation {name}": f"{value:.4f}" for name, value in values.items()}
        run.write_weights(done, lambda: export(trainer.averaged, target, facts))
        run.curves.draw()
        for complaint in others.complaints():
            say(f"No more examples are made: {complaint}")
        say(f"step {done}, {len(bank.examples)} examples: " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
        return {f"held back {name}": value for name, value in values.items()}

    with makers(_make, settings, settings.workers) as others:
        others.wait(lambda: held.has(1, settings.held))
        others.wait(lambda: bank.has(settings.first, settings.scenes))
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


def export(network: AttentionNetwork, target: Path, facts: Mapping[str, str]) -> None:
    """Write the weights, half precision, with the sizes."""
    state = {name: value.half() for name, value in network.state_dict().items()}
    config = json.dumps(network.config.to_dict())
    write_safetensors(target, state, {"architecture": ARCHITECTURE, "config": config, "licence": "Apache-2.0", **facts})


def _make(settings: Settings, i: int, n: int, go_on: Callable[[], bool]) -> None:
    """Write every n-th scene, from the i-th on: the held-back ones, then those to train with."""
    for held_back, scenes in ((True, settings.held), (False, settings.scenes)):
        fill_folder(
            settings.samples,
            settings.data,
            seed=settings.seed,
            held_back=held_back,
            scenes=scenes,
            part=(i, n),
            go_on=go_on,
            size=settings.size,
            length=settings.length,
        )
