"""Training samples of the attention network: frames of scenes with the evidence gathered under wrong masks.

Dimensions: n frames, h w pixels.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.errors import CiriError, TrainingError
from ciri.inactivation.evidence import Evidence, Witness, neighbourhood
from ciri.propagation import registry
from ciri.propagation.base import Propagator
from ciri.replacing import replacing
from ciri.training.data import open_library
from ciri.training.masks import Rng, wrong_masks
from ciri.training.predictions import PAINTABLE
from ciri.training.scenes import Scene, SceneMaker

#: Share of the scenes whose masks come from the slower and better propagator.
BY_LITE = 0.35
#: Share of scenes whose predicted masks get made-up errors on top.
WORSENED = 0.4
#: Pixels around the masks in which the target is sought, from and to.
REACHES = (14, 44)
#: Frames taken of a scene.
TAKEN = 8
#: Smallest target in the painted frame, and largest, as shares of the frame.
SMALLEST, LARGEST = 0.003, 0.4
#: Pixels kept around the region.
MARGIN = 40
#: Examples are as large as this at least, or as their frames: training's windows are not larger.
LEAST = (160, 224)
#: The fields of Evidence in the order in which they are stored.
STORED = ("frame", "before", "after", "cues", "looks", "predicted", "region")


@dataclass
class Example:
    """One frame of a scene, cut around the region.

    Attributes:
        evidence: uint8 (17, h, w), the fields of :class:`Evidence` one after another, in 255ths.
        answer: uint8 (2, h, w), the target and its shadow, in 255ths.
    """

    evidence: np.ndarray
    answer: np.ndarray


def unpack(evidence: Tensor) -> Evidence:
    """Stored evidence, uint8 (n, 17, h, w), as float32."""
    values = evidence.float() / 255
    return Evidence(*values.split([3, 3, 3, 4, 2, 1, 1], 1))


class ExampleMaker:
    """Makes the examples of scenes.

    Args:
        data: folder for :func:`ciri.training.data.open_library`.
        held_back: take what training never sees.
        size, length: (height, width) in pixels and frames of a scene.
    """

    def __init__(
        self,
        data: Path,
        *,
        held_back: bool,
        size: tuple[int, int] = (240, 432),
        length: int = 24,
    ) -> None:
        self.maker = SceneMaker(open_library(data).split()[int(held_back)], size, length)
        # at the size of the scenes: faster than as it is used, and more often wrong
        lite = registry.build("lite", short_side=size[0], enlarge=1.0)
        self.propagators: list[Propagator] = [lite, registry.build("flow")]

    def make(self, rng: Rng) -> list[Example]:
        """The examples of one scene; none where its target cannot be painted."""
        scene = self.maker.scene(rng)
        areas = scene.mask.mean((1, 2))
        first = int(np.argmax(areas >= PAINTABLE * areas.max()))
        if not SMALLEST <= areas[first] <= LARGEST:
            return []
        propagator = self.propagators[int(rng.random() >= BY_LITE)]
        frames = torch.from_numpy(scene.frames).permute(0, 3, 1, 2).float() / 255
        painted = torch.from_numpy(scene.mask[first])[None].float()
        try:
            with torch.no_grad():
                predicted = propagator.propagate(frames, painted[None], [first]).probs
        except CiriError:
            return []
        if rng.random() < WORSENED:
            predicted = worsened(predicted, first, rng)
        reach = int(rng.integers(*REACHES))
        witness = Witness(frames, predicted, painted, frames[first], neighbourhood(predicted, reach))
        return [self._cut(witness, scene, t, rng) for t in self._frames(witness, first, rng)]

    def _frames(self, witness: Witness, first: int, rng: Rng) -> list[int]:
        possible = [t for t in range(len(witness.region)) if t != first and witness.region[t].any()]
        return [int(t) for t in rng.choice(possible, min(TAKEN, len(possible)), replace=False)] if possible else []

    def _cut(self, witness: Witness, scene: Scene, t: int, rng: Rng) -> Example:
        evidence = witness.at(t)
        values = torch.cat([getattr(evidence, name)[0] for name in STORED])
        answer = np.stack([scene.mask[t].astype(np.float32), scene.shadow[t]])
        region = evidence.region[0, 0].numpy() > 0
        rows, columns = (_around(np.asarray(region.any(axis)), LEAST[1 - axis]) for axis in (1, 0))
        cut = [(np.asarray(x)[:, rows, columns] * 255).round().astype(np.uint8) for x in (values, answer)]
        return Example(*cut)


def worsened(predicted: Tensor, first: int, rng: Rng) -> Tensor:
    """Give predicted masks (T, 1, h, w) made-up errors; where there are none they keep their probabilities."""
    before = (predicted[:, 0] > 0.5).numpy()
    wrong = wrong_masks(before, rng)
    wrong[first] = before[first]
    changed = np.stack(
        [cv2.GaussianBlur((w != b).astype(np.float32), (0, 0), 1.0) for w, b in zip(wrong, before, strict=True)]
    )
    return torch.lerp(predicted, torch.from_numpy(wrong)[:, None].float(), torch.from_numpy(changed)[:, None])


def _around(some: np.ndarray, least: int) -> slice:
    """The slice of one axis that holds what is set, with a margin, and at least so many pixels."""
    places = np.flatnonzero(some)
    start, stop = max(int(places[0]) - MARGIN, 0), min(int(places[-1]) + 1 + MARGIN, len(some))
    lacking = max(0, min(least, len(some)) - (stop - start))
    start = max(0, min(start - lacking // 2, len(some) - (stop - start) - lacking))
    return slice(start, max(stop, start + min(least, len(some))))


# ------------------------------------------------------------------------------------------------- on disk


def save(file: Path, examples: list[Example]) -> None:
    """Write one .npz file, all or nothing."""
    arrays = {f"{name}{i}": getattr(e, name) for i, e in enumerate(examples) for name in ("evidence", "answer")}
    with replacing(file, ".npz") as part:
        np.savez(part, **arrays)


def load(file: Path) -> list[Example]:
    """Read what :func:`save` wrote.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return [Example(arrays[f"evidence{i}"], arrays[f"answer{i}"]) for i in range(len(arrays.files) // 2)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{file} is damaged; delete it, and it is made again.") from error


def fill_folder(
    folder: Path,
    data: Path,
    *,
    seed: int,
    held_back: bool,
    scenes: int,
    part: tuple[int, int] = (0, 1),
    go_on: Callable[[], bool] = lambda: True,
    **maker: object,
) -> None:
    """Write a file for each scene, as far as it is not there; ``part`` (i, n): only every n-th, from the i-th on."""
    folder.mkdir(parents=True, exist_ok=True)
    makes: ExampleMaker | None = None
    for number in range(part[0], scenes, part[1]):
        file = folder / f"{'held' if held_back else 'train'}_{seed}_{number:05d}.npz"
        if file.exists():
            continue
        if not go_on():
            return
        makes = makes or ExampleMaker(data, held_back=held_back, **maker)  # type: ignore[arg-type]
        save(file, makes.make(np.random.default_rng([seed, int(held_back), number])))
