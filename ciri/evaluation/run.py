"""Running every method on every case; what was done before an interruption is not done again.

Masks, results and their scores are kept under the output folder::

    masks/PROPAGATOR/CASE/00000.png    run.json
    results/METHOD/CASE/00000.png      scores.json
    features/METHOD/CASE.safetensors   I3D features, for VFID

A JSON file is written last, and holds a key made of all that its result depends on (files of the case, weights,
settings, version): a result without it, with another key, or without its pictures, is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ciri import __version__
from ciri.errors import CiriError, EvaluationError
from ciri.evaluation.cases import Case, Material, load
from ciri.evaluation.features import stored_features
from ciri.evaluation.machine import stopwatch
from ciri.evaluation.methods import ATTENDED, TRUE_MASKS, Method, Models
from ciri.evaluation.scores import Networks, Scores, check_result, score
from ciri.evaluation.store import key_of, read_json, stamp_of, write_json
from ciri.inactivation.learned import inactivation_map, shipped
from ciri.inpainting.remove import remove
from ciri.media import read_clip, write_clip
from ciri.metrics.warping import Motion, motion_of
from ciri.pipeline import propagate
from ciri.progress import OnStep, ignore, part
from ciri.refinement.features import extractor_for
from ciri.refinement.refine import refine
from ciri.refinement.settings import RefinementSettings


@dataclass(frozen=True)
class Settings:
    """What all methods share.

    Attributes:
        limit: use only so many frames of each case.
        grow, feather: as in :func:`ciri.inpainting.remove.remove`.
    """

    limit: int | None = None
    grow: int = 4
    feather: int = 3


@dataclass
class Record:
    """One method on one case.

    Attributes:
        case, method: which.
        scores: values per frame.
        timing: stage -> {"wall", "cpu"} seconds; empty for results that were made elsewhere.
        frames, size: length, and (width, height) in pixels.
        features: I3D features of the result and, under "clean ...", of the clean clip; empty without I3D.
        notes: about this result.
    """

    case: str
    method: Method
    scores: Scores
    timing: dict[str, dict[str, float]]
    frames: int
    size: tuple[int, int]
    features: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def seconds(self, clock: str = "cpu") -> float | None:
        """Seconds of all stages."""
        return sum(stage[clock] for stage in self.timing.values()) if self.timing else None


def write_alone(folder: Path, frames: Tensor) -> None:
    """Write a clip to a folder that is the evaluation's own, and nothing of what it held before."""
    # what says that the frames count goes first, in case that it ends in between
    for pattern in ("*.json", "*.png"):
        for file in folder.glob(pattern):
            file.unlink()
    write_clip(folder, frames)


def pictures(folder: Path) -> int:
    """How many pictures :func:`write_alone` left in a folder, if it is there."""
    return len(list(folder.glob("*.png")))


@dataclass
class Runner:
    """Runs methods on cases and keeps the results under ``out``.

    Attributes:
        out: folder of the evaluation.
        models: builds propagators and backbones.
        settings: what all methods share.
        networks: of the metrics that need some.
        elsewhere: name -> folder with results that another program made (``CASE/00000.png``).
        fresh: make everything again.
    """

    out: Path
    models: Models
    settings: Settings = field(default_factory=Settings)
    networks: Networks = field(default_factory=Networks)
    elsewhere: dict[str, Path] = field(default_factory=dict)
    fresh: bool = False

    def run(
        self, cases: Sequence[Case], methods: Sequence[Method], on_step: OnStep = ignore
    ) -> tuple[list[Record], list[str]]:
        """Return the records, case by case, and a sentence for everything that failed; the others go on."""
        records, failures = [], []
        total = len(cases) * len(methods)
        for number, case in enumerate(cases):
            work = CaseRun(self, case)
            for index, method in enumerate(methods):
                done = number * len(methods) + index
                try:
                    records.append(work.record(method, part(on_step, done / total, (done + 1) / total)))
                except CiriError as error:
                    text = str(error) if isinstance(error, EvaluationError) else f"Case {case.name}: {error}"
                    failures.append(text if case.name in text else f"Case {case.name}, {method.title}: {text}")
                on_step(done + 1, total)
        return records, list(dict.fromkeys(failures))


class CaseRun:
    """One case, whose clip is read only if something has to be made of it."""

    def __init__(self, runner: Runner, case: Case) -> None:
        self.runner, self.case = runner, case
        self._masks: dict[str, Tensor] = {}

    @cached_property
    def material(self) -> Material:
        """The case in memory."""
        return load(self.case, self.runner.settings.limit)

    @cached_property
    def motion(self) -> Motion:
        """The scene's motion, without the target where that is known."""
        clean = self.material.clean
        return motion_of(self.material.frames if clean is None else clean)

    @cached_property
    def stamp(self) -> list[Any]:
        """What of the case's files decides whether old results still count."""
        return [__version__, self.runner.settings.limit, stamp_of(self.case.files())]

    def record(self, method: Method, on_step: OnStep = ignore) -> Record:
        """Take a method's result and scores from disk, or make them."""
        folder = self.runner.out / "results" / method.folder / self.case.name
        key = self._key(method)
        stored = {} if self.runner.fresh else read_json(folder / "scores.json")
        if stored.get("key") != key or not self._kept(method, stored["frames"]):
            stored = self._make(method, folder, on_step) | {"key": key}
            write_json(folder / "scores.json", stored)
        scores = {name: [float("nan") if v is None else v for v in row] for name, row in stored["scores"].items()}
        record = Record(
            self.case.name,
            method,
            scores,
            stored["timing"],
            stored["frames"],
            (stored["size"][0], stored["size"][1]),
            notes=stored["notes"],
        )
        if self.runner.networks.i3d is not None and self.case.clean is not None:
            record.features = stored_features(self, method, key)
        return record

    def _kept(self, method: Method, frames: int) -> bool:
        """Whether the pictures of an old result and of its masks are still there: the report shows them."""
        if method.backbone in self.runner.elsewhere:
            return True
        masks = [] if method.masks == TRUE_MASKS else [self.mask_folder(method.masks)]
        return all(pictures(folder) == frames for folder in (self.result_folder(method), *masks))

    def _key(self, method: Method) -> str:
        runner = self.runner
        if method.backbone in runner.elsewhere:
            folder = self.result_folder(method)
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            return key_of(self.stamp, stamp_of(files), runner.networks.lpips is not None)
        weights = runner.models.stamp("backbone", method.backbone)
        # refinement asks a propagator also where the masks are the true ones
        masks = [*self._mask_stamp(method.masks), *(self._mask_stamp(method.carrier) if method.refined else [])]
        return key_of(
            *(self.stamp, asdict(method), asdict(runner.settings), weights, masks),
            *(runner.models.stamp("residue", method.refined), runner.networks.lpips is not None),
        )

    def _mask_stamp(self, source: str) -> list[Any]:
        """What of weight files decides whether old masks still count."""
        stamp = self.runner.models.stamp("propagator", source.removesuffix(ATTENDED))
        return [*stamp, *(self.runner.models.stamp("attention", "lite") if source.endswith(ATTENDED) else [])]

    def result_folder(self, method: Method) -> Path:
        """Where the frames of a result are."""
        made = self.runner.elsewhere.get(method.backbone)
        return made / self.case.name if made else self.runner.out / "results" / method.folder / self.case.name

    def result(self, method: Method) -> Tensor:
        """The finished frames, from disk."""
        folder = self.result_folder(method)
        if not folder.is_dir():
            raise EvaluationError(f"Case {self.case.name}: {method.backbone} has no result; {folder} does not exist.")
        return read_clip(folder, count=self.runner.settings.limit).frames

    def _make(self, method: Method, folder: Path, on_step: OnStep) -> dict[str, Any]:
        """Run a method (or read what another program made), and score it."""
        timing: dict[str, dict[str, float]] = {}
        notes, masks = list(self.material.notes), None
        if method.backbone not in self.runner.elsewhere:
            masks, timing, more = self.masks(method.masks, part(on_step, 0.0, 0.4))
            notes += more
            result, taken = self._inpaint(method, masks, part(on_step, 0.4, 0.9))
            timing = {**timing, "inpainting": taken}
            if method.refined:
                result, masks, timing["refinement"] = self._refine(method, masks, result)
            write_alone(folder, result)
        # what is scored is what was written: rounded to 8 bits
        result = self.result(method)
        check_result(result, self.material.frames)
        lpips = self.runner.networks.lpips
        scores = score(result, self.material, self.motion, masks=masks, lpips=lpips)
        size = [result.shape[3], result.shape[2]]
        return {"scores": scores, "timing": timing, "frames": len(result), "size": size, "notes": notes}

    def _inpaint(self, method: Method, masks: Tensor, on_step: OnStep) -> tuple[Tensor, dict[str, float]]:
        models, settings = self.runner.models, self.runner.settings
        backbone = models.backbone(method.backbone, method.mode)
        with stopwatch(models.device) as taken:
            result = remove(
                self.material.frames, masks, backbone, grow=settings.grow, feather=settings.feather, on_step=on_step
            )
        if not result.isfinite().all():
            raise EvaluationError(f"{method.filler} made values that are not numbers (NaN or infinite).")
        return result, taken

    def _refine(self, method: Method, masks: Tensor, result: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Masks and pictures corrected by what the removal left behind; only one mask is taken to be known."""
        models, settings, material = self.runner.models, self.runner.settings, self.material
        known, detector = material.first, models.detector(method.refined)
        with stopwatch(models.device) as taken:
            refined = refine(
                material.frames,
                material.masks[known],
                masks,
                result,
                backbone=models.backbone(method.backbone, method.mode),
                detector=detector,
                propagator=models.propagator(method.carrier),
                settings=RefinementSettings(grow=settings.grow, feather=settings.feather),
                first_index=known,
                features=extractor_for(detector),
            )
        return refined.inpainted, refined.masks, taken

    def masks(self, source: str, on_step: OnStep = ignore) -> tuple[Tensor, dict[str, dict[str, float]], list[str]]:
        """Return masks (T, 1, H, W) of one source, what they took, and notes; from disk if they are there.

        Raises:
            EvaluationError: true masks were asked for and some are not known.
        """
        if source == TRUE_MASKS:
            if not self.material.fully_annotated:
                raise EvaluationError(
                    f"Case {self.case.name} has true masks of {len(self.material.annotated)} of "
                    f"{len(self.material.frames)} frames only; they cannot be inpainted."
                )
            return self.material.masks, {}, []
        folder = self.mask_folder(source)
        key = key_of(self.stamp, source, self._mask_stamp(source))
        stored = {} if self.runner.fresh and source not in self._masks else read_json(folder / "run.json")
        if stored.get("key") != key or pictures(folder) != len(self.material.frames):
            make = self._attend if source.endswith(ATTENDED) else self._propagate
            stored = {"key": key, **make(source, folder, on_step)}
            write_json(folder / "run.json", stored)
        if source not in self._masks:
            # as pictures, not as masks: dark grey is a weak probability here, not a label number
            self._masks[source] = read_clip(folder, count=len(self.material.frames)).frames[:, :1]
        stages = stored["timing"] if source.endswith(ATTENDED) else {"propagation": stored["timing"]}
        return self._masks[source], stages, stored["notes"]

    def mask_folder(self, source: str) -> Path:
        """Where a propagator's masks are."""
        return self.runner.out / "masks" / source / self.case.name

    def _propagate(self, source: str, folder: Path, on_step: OnStep) -> dict[str, Any]:
        material, models = self.material, self.runner.models
        propagator = models.propagator(source)
        with stopwatch(models.device) as taken:
            painted = material.masks[material.first]
            track = propagate(material.frames, painted, propagator, key_frames=[material.first], on_step=on_step)
        write_alone(folder, track.probs)
        return {"timing": taken, "notes": track.notes, "confidence": track.confidence.tolist()}

    def _attend(self, source: str, folder: Path, on_step: OnStep) -> dict[str, Any]:
        """Correct a propagator's masks by complementary attention; the truth they are compared with has no shadows."""
        material = self.material
        predicted, timing, notes = self.masks(source.removesuffix(ATTENDED), part(on_step, 0.0, 0.7))
        painted = material.masks[material.first : material.first + 1]
        with stopwatch(self.runner.models.device) as taken:
            fused = inactivation_map(
                material.frames,
                painted,
                predicted,
                shipped(),
                first_index=material.first,
                shadow=False,
                on_step=part(on_step, 0.7, 1.0),
            )
        write_alone(folder, fused)
        return {"timing": {**timing, "attention": taken}, "notes": notes}
