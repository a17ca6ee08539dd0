"""What is compared: a source of masks, a backbone, and the mode in which the masks reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ciri.checkpoints import list_files
from ciri.errors import CheckpointError, CiriError, EvaluationError
from ciri.evaluation.store import stamp_of
from ciri.inpainting import registry as backbones
from ciri.inpainting.base import Backbone
from ciri.inpainting.driver import WindowBackbone
from ciri.propagation import registry as propagators
from ciri.propagation.base import Propagator
from ciri.residue import registry as detectors
from ciri.residue.base import ResidueDetector

#: The source of masks that is no propagator.
TRUE_MASKS = "true masks"
#: What a propagator's name ends with where its masks are corrected by complementary attention.
ATTENDED = "+attention"
#: The mode that a backbone chooses itself, and the only one that classical backbones have.
AUTO = "auto"
#: Where the weights are that come with the pack: KIND_NAME.safetensors.
SHIPPED = Path(__file__).resolve().parents[2] / "weights"


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
        masks: name of the propagator, with :data:`ATTENDED` where its masks are corrected, or :data:`TRUE_MASKS`.
        backbone: its name; NAME@LABEL for a backbone with other weights than its usual ones; of results that were made
            elsewhere, the name they were given.
        mode: how the masks reach the backbone.
        refined: name of the residue detector by which masks and pictures are refined afterwards; empty: they are not.
    """

    masks: str
    backbone: str
    mode: str = AUTO
    refined: str = ""

    @property
    def filler(self) -> str:
        """Backbone and mode."""
        return self.backbone if self.mode == AUTO else f"{self.backbone} ({self.mode})"

    @property
    def carrier(self) -> str:
        """The propagator that refinement may ask: the masks' own; for true masks the usual one."""
        return propagators.DEFAULT if self.masks == TRUE_MASKS else self.masks.removesuffix(ATTENDED)

    @property
    def network(self) -> str:
        """The backbone without the label of its weights."""
        return self.backbone.partition("@")[0]

    @property
    def ablated(self) -> str:
        """What tells this row of the paper's Table 2 from the others: the mode, or else the label of the weights."""
        if self.mode != AUTO:
            return self.mode
        # what ships was trained with the dual curriculum
        return self.backbone.partition("@")[2] or ("ciri" if self.backbone == "lite" else "")

    @property
    def title(self) -> str:
        """What tables call it."""
        title = f"{self.masks} + {self.filler}" if self.masks else self.backbone
        return f"{title}, refined ({self.refined})" if self.refined else title

    @property
    def folder(self) -> str:
        """Name of its results on disk."""
        refined = f"refined-{self.refined}" if self.refined else ""
        parts = (self.masks.replace(" ", "_"), self.backbone, "" if self.mode == AUTO else self.mode, refined)
        return "-".join(part for part in parts if part)


@dataclass
class Models:
    """Builds each model once, finds weight files in a folder, and remembers why something is not there.

    Attributes:
        device: where networks run.
        folder: weight files in it and below are recognised by their keys, as in ``models/ciri`` of ComfyUI.
        weights: files that were given by name.
    """

    device: torch.device
    folder: Path | None = None
    weights: dict[str, Path] = field(default_factory=dict)
    _built: dict[tuple[str, ...], Any] = field(default_factory=dict)
    _found: dict[str, Path | None] = field(default_factory=dict)
    _asked: set[tuple[str, str]] = field(default_factory=set)

    def propagator(self, name: str) -> Propagator:
        """Build (or return) a propagator. Raises CiriError: unknown, or its weights are missing."""
        built: Propagator = self._get(propagators, "propagator", name)
        return built

    def backbone(self, name: str, mode: str = AUTO) -> Backbone:
        """Build (or return) a backbone in a mode. Raises CiriError: unknown, no weights, or no such mode."""
        built: Backbone = self._get(backbones, "backbone", name, **({} if mode == AUTO else {"mode": mode}))
        return built

    def detector(self, name: str) -> ResidueDetector:
        """Build (or return) a residue detector. Raises CiriError: unknown, or its weights are missing."""
        built: ResidueDetector = self._get(detectors, "residue", name)
        return built

    def _get(self, registry: ModuleType, kind: str, name: str, **options: Any) -> Any:
        key = (kind, name, *options.values())
        if key not in self._built:
            file = self.file_of(kind, name)
            given = {} if file is None else {"weights": file}
            plain, _, label = name.partition("@")
            if label and file is None:
                raise EvaluationError(f"Nothing says what {name} is: give its weights, --weights {name}=FILE.")
            self._built[key] = registry.build(plain, device=self.device, **given, **options)
        return self._built[key]

    def file_of(self, kind: str, name: str) -> Path | None:
        """The weight file for a model, if one was given or found."""
        self._asked.add((kind, name))
        given = self.weights.get(f"{kind}:{name}") or self.weights.get(name)
        if given or self.folder is None:
            return given
        if name not in self._found:
            # looking into every file of a folder takes seconds
            self._found[name] = next(iter(list_files([self.folder], name)), None)
        return self._found[name]

    def check_used(self) -> None:
        """Refuse weight files that no model was built from so far: results without them are not what was meant.

        Raises:
            EvaluationError: there is such a file; the message lists the models that are run.
        """
        for given, file in self.weights.items():
            if not any(given in (name, f"{kind}:{name}") for kind, name in self._asked):
                known = ", ".join(sorted(f"{kind}:{name}" for kind, name in self._asked))
                raise EvaluationError(
                    f"--weights {given}={file}: no model of that name is run. Those that are: {known}; give one of "
                    "these (or only what is after the colon), or leave it out."
                )

    def stamp(self, kind: str, name: str) -> list[Any]:
        """What of a weight file, a user's or a shipped one, decides whether an old result still counts."""
        file = self.file_of(kind, name) or SHIPPED / f"{kind}_{name}.safetensors"
        return stamp_of([file]) if file.is_file() else []

    def available(self, registry: ModuleType, kind: str) -> tuple[list[str], list[str]]:
        """Names of everything that can be built now, and a note for what cannot."""
        found, notes = [], []
        for name in registry.names():
            try:
                self._get(registry, kind, name)
            except CheckpointError as error:
                notes.append(f"The {kind} {name} was left out: {error}")
            else:
                found.append(name)
        return found, notes


def choose(
    models: Models,
    *,
    masks: Sequence[str] | None,
    fillers: Sequence[str] | None,
    modes: Sequence[str] = (AUTO,),
    true_masks: bool = False,
    refined: str = "",
) -> tuple[list[Method], list[str]]:
    """Return every combination that can be built, and notes on what was left out.

    Args:
        models: builds them.
        masks: propagators, also with :data:`ATTENDED`; None: all that have their weights.
        fillers: backbones; None: all that have their weights.
        modes: in which every backbone is run; those of our own have :data:`AUTO` only.
        true_masks: also inpaint the true masks.
        refined: name of a residue detector: every combination is also refined by it, but those with other weights than
            the usual ones.

    Raises:
        CiriError: a propagator or backbone that was asked for by name cannot be built, or nothing is left.
    """
    notes: list[str] = []
    if masks is None:
        masks, left_out = models.available(propagators, "propagator")
        notes += left_out
    if fillers is None:
        fillers, left_out = models.available(backbones, "backbone")
        notes += left_out
    for name in masks:
        models.propagator(name.removesuffix(ATTENDED))
    pairs: list[tuple[str, str]] = []
    for name in fillers:
        has_modes = isinstance(models.backbone(name), WindowBackbone)
        if not has_modes and set(modes) != {AUTO}:
            notes.append(f"The backbone {name} has no modes; it was run once.")
        for mode in modes if has_modes else (AUTO,):
            try:
                models.backbone(name, mode)
                pairs.append((name, mode))
            except CiriError as error:
                notes.append(f"The backbone {name} was not run in mode {mode}: {error}")
    sources = [*masks, *([TRUE_MASKS] if true_masks else [])]
    if refined:
        models.detector(refined)
        if true_masks:  # refinement asks a propagator for these, too
            models.propagator(Method(TRUE_MASKS, "").carrier)
    methods = []
    for source in sources:
        for name, mode in pairs:
            methods.append(Method(source, name, mode))
            if refined and "@" not in name:
                methods.append(Method(source, name, mode, refined))
    return methods, notes
