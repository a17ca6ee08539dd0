"""The pool of the residue detector's samples on disk: files that one process writes while another trains on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciri.replacing import replacing
from ciri.training.composites import CompositeMaker
from ciri.training.data import open_library
from ciri.training.residue_data import Pool, make_samples


@dataclass(frozen=True)
class Material:
    """Where samples come from, and how large the composites are.

    Attributes:
        data: folder for :func:`ciri.training.data.open_library`.
        size, length: (height, width) in pixels and frames of the composites.
        each: composites per pool file.
    """

    data: Path
    size: tuple[int, int] = (240, 432)
    length: int = 8
    each: int = 16

    def pools(self, *, seed: int, held_back: bool) -> Iterator[Pool]:
        """An endless stream of the samples of one composite each; the i-th is a function of the seed and i alone."""
        maker = CompositeMaker(open_library(self.data).split()[int(held_back)], self.size, self.length)
        index = 0
        while True:
            pool = make_samples(maker, np.random.default_rng([seed, int(held_back), index]))
            index += 1
            if pool is not None:
                yield pool


def pool_files(folder: Path, *, seed: int, held_back: bool) -> list[Path]:
    """The pool files that are there, in order."""
    return sorted(folder.glob(f"{'held' if held_back else 'train'}_{seed}_*.npz"))


def fill_folder(
    folder: Path,
    material: Material,
    *,
    seed: int,
    held_back: bool,
    files: int,
    go_on: Callable[[], bool] = lambda: True,
) -> list[Path]:
    """Write pool files until there are so many; those that are there are kept. ``go_on`` is asked before each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        file = folder / f"{'held' if held_back else 'train'}_{seed}_{number:04d}.npz"
        if file.exists():
            continue
        if not go_on():
            break
        stream = material.pools(seed=seed * 10_000 + number, held_back=held_back)
        pool = Pool.joined([next(stream) for _ in range(material.each)])
        with replacing(file, ".npz") as part:
            pool.save(part)
    return pool_files(folder, seed=seed, held_back=held_back)[:files]
