"""Training windows of the published backbones: consecutive frames of a composite, distant ones, and its masks.

Dimensions: b windows, t frames of each, the first of them local (consecutive), h w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ciri.errors import TrainingError
from ciri.training.beside import reason
from ciri.training.composites import CompositeMaker
from ciri.training.data import open_library
from ciri.training.distributed import Team
from ciri.training.predictions import PAINTABLE, WrongMasks


@dataclass
class Windows:
    """A batch of windows, float32.

    Attributes:
        frames, clean: (b, t, 3, h, w) in [0, 1].
        true, predicted: (b, t, 1, h, w) in {0, 1}.
        painted: (b, 1, 3, h, w), the frame that a person painted.
        painted_mask: (b, 1, 1, h, w), its true mask.
    """

    frames: Tensor
    clean: Tensor
    true: Tensor
    predicted: Tensor
    painted: Tensor
    painted_mask: Tensor

    @classmethod
    def of(cls, parts: dict[str, Tensor], device: torch.device | str) -> Windows:
        """From bytes (b, t, c, h, w) by attribute."""
        return cls(**{field.name: parts[field.name].to(device).float() / 255 for field in fields(cls)})


class WindowSamples(Dataset[dict[str, Tensor]]):
    """Windows by number; window i is a function of the seed and i alone.

    Args:
        data: folder for :func:`ciri.training.data.open_library`.
        size: (height, width).
        length: frames of the composites that the windows are taken from.
        local, references: consecutive and other frames of a window.
        seed: of everything random.
        held_back: take the held-back part of the data.
        predictions: see :class:`ciri.training.predictions.WrongMasks`.

    Raises:
        TrainingError: a window is longer than a composite, or there is no data.
    """

    def __init__(
        self,
        data: Path,
        size: tuple[int, int],
        length: int,
        local: int,
        references: int,
        *,
        seed: int,
        held_back: bool = False,
        predictions: str = "",
    ) -> None:
        if local < 1 or references < 0 or local + references > length:
            raise TrainingError(
                f"Windows of {local} local frames and {references} references do not fit into composites of {length} "
                "frames; make the composites longer (--length)."
            )
        kept, back = open_library(data).split()
        self.library = back if held_back else kept
        self.maker = CompositeMaker(self.library, size, length)
        self.local, self.references = local, references
        self.seed, self.held_back = seed, held_back
        self.wrong_masks = WrongMasks(predictions)

    def __getstate__(self) -> dict[str, object]:
        # for worker processes: the maker's caches stay here
        maker = self.maker
        return {**self.__dict__, "maker": (maker.size, maker.length)}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.maker = CompositeMaker(self.library, *state["maker"])  # type: ignore[misc]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, int(self.held_back), number])
        composite = self.maker.make(rng)
        wrong = self.wrong_masks(composite, rng)
        areas = composite.mask.sum((1, 2))
        painted = int(np.argmax(areas >= PAINTABLE * areas.max()))
        wrong[painted] = composite.mask[painted]
        chosen = choose_frames(self.maker.length, self.local, self.references, rng)

        def to_bytes(clip: np.ndarray, frames: list[int]) -> Tensor:
            # masks become 0 and 255, with one channel
            picture = clip[frames] if clip.ndim == 4 else clip[frames][..., None] * np.uint8(255)
            return torch.from_numpy(np.ascontiguousarray(picture)).permute(0, 3, 1, 2)

        return {
            "frames": to_bytes(composite.frames, chosen),
            "clean": to_bytes(composite.clean, chosen),
            "true": to_bytes(composite.mask, chosen),
            "predicted": to_bytes(wrong, chosen),
            "painted": to_bytes(composite.frames, [painted]),
            "painted_mask": to_bytes(composite.mask, [painted]),
        }


def choose_frames(length: int, local: int, references: int, rng: np.random.Generator) -> list[int]:
    """Consecutive frames, then others of the clip in ascending order, as E2FGVI was trained."""
    start = int(rng.integers(length - local + 1))
    near = list(range(start, start + local))
    far = [index for index in range(length) if index not in near]
    return near + sorted(rng.choice(far, references, replace=False).tolist() if references else [])


class Numbers(Sampler[list[int]]):
    """Numbers of the windows of each step from a first one on: the team shares a large batch, process by process."""

    def __init__(self, first: int, steps: int, batch: int, team: Team) -> None:
        self.first, self.steps, self.batch, self.team = first, steps, batch, team

    def __len__(self) -> int:
        return max(0, self.steps - self.first)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.steps):
            start = (step * self.team.size + self.team.rank) * self.batch
            yield list(range(start, start + self.batch))


def load_windows(samples: WindowSamples, numbers: Numbers, workers: int) -> Iterator[dict[str, Tensor]]:
    """Batches of bytes in the order of the numbers, whatever the number of worker processes (0 = none).

    Raises:
        TrainingError: no window can be made of the data.
    """
    loader = DataLoader(
        samples,
        batch_sampler=numbers,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_one_thread if workers else None,
    )
    try:
        yield from loader
    except TrainingError as error:
        raise TrainingError(reason(error)) from error


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
