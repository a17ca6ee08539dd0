"""Where training samples of the lite backbone come from: a stream of them, held in memory or kept in files.

Dimensions: t frames of a sample, h w pixels.
"""

from __future__ import annotations

import itertools
import json
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ciri.errors import TrainingError
from ciri.progress import OnStep, ignore
from ciri.replacing import replacing
from ciri.training.beside import reason
from ciri.training.composites import CompositeMaker
from ciri.training.data import Library, open_library
from ciri.training.predictions import WrongMasks
from ciri.training.samples import Batch, Sample, Size, choose, make_sample, random_part


class Source(Protocol):
    """Gives batches."""

    made: int

    def wait(self, count: int) -> None:
        """Wait until so many samples have been made."""

    def draw(self, batch: int, length: int, crop: Size, random: torch.Generator, wrong: float) -> Batch:
        """Return parts of ``length`` frames of random samples, about a share ``wrong`` of them with wrong copies."""

    def close(self) -> None:
        """Give back what is held."""


class SampleStream(IterableDataset[Sample]):
    """An endless stream of samples; sample i is a function of the seed and i alone.

    Args:
        data: folder for :func:`ciri.training.data.open_library`.
        size: (height, width) of the samples.
        length: their frames.
        seed: of everything random.
        held_back: draw from the held-back part of the library.
        wrong: share of samples whose copies are made with wrong masks.
        start: number of the first sample.
        share: (rank, size) of the process, where several share the stream without seeing a sample twice.
        predictions: propagator whose masks are among the wrong ones; see :class:`ciri.training.predictions.WrongMasks`.
    """

    def __init__(
        self,
        data: Path,
        size: tuple[int, int],
        length: int,
        *,
        seed: int,
        held_back: bool = False,
        wrong: float = 0.5,
        start: int = 0,
        share: tuple[int, int] = (0, 1),
        predictions: str = "",
    ) -> None:
        self.data, self.size, self.length, self.seed = data, size, length, seed
        self.held_back, self.wrong, self.start, self.share = held_back, wrong, start, share
        self.wrong_masks = WrongMasks(predictions)

    def maker(self) -> CompositeMaker:
        """Open the library's side that this stream draws from."""
        kept, back = open_library(self.data).split()
        library: Library = back if self.held_back else kept
        return CompositeMaker(library, self.size, self.length)

    def identity(self) -> str:
        """A name that two streams share if their samples of one number are the same."""
        facts = [str(self.data.resolve()), *self.size, self.length, self.seed, self.held_back, self.wrong]
        facts += [self.wrong_masks.name]
        return f"{zlib.crc32(json.dumps(facts).encode()):08x}"

    def sample(self, maker: CompositeMaker, index: int) -> Sample:
        """Return the stream's sample of that number."""
        rng = np.random.default_rng([self.seed, int(self.held_back), index])
        return make_sample(maker, rng, predicted=bool(rng.random() < self.wrong), wrong_masks=self.wrong_masks)

    def __iter__(self) -> Iterator[Sample]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            cv2.setNumThreads(1)
            torch.set_num_threads(1)
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        maker = self.maker()
        for index in self.numbers(own, workers):
            yield self.sample(maker, index)

    def numbers(self, worker: int, workers: int) -> Iterator[int]:
        """Numbers of the samples that one of the workers of this process makes."""
        rank, size = self.share
        return itertools.count(self.start * size + rank * workers + worker, workers * size)


class SamplePool:
    """Recent samples, drawn from again and again while workers make new ones.

    Args:
        stream: where samples come from.
        workers: processes; 0 makes samples in this one, one for every batch, reproducibly.
        capacity: samples held; the oldest leave first.
        device: where they are held.
        reuse: once the pool is full, workers wait until each sample was drawn so often on average (0: never wait).
    """

    def __init__(
        self, stream: SampleStream, *, workers: int, capacity: int, device: torch.device | str, reuse: int = 0
    ) -> None:
        self.capacity, self.device, self.reuse = capacity, device, reuse
        self.drawn = 0
        self.samples: deque[Sample] = deque(maxlen=capacity)
        self.made = 0
        self._error: BaseException | None = None
        self._closed = False
        self._arrived = threading.Condition()
        self._own: Iterator[Sample] | None = None
        if workers == 0:
            self._own = iter(stream)
            return
        loader = DataLoader(
            stream, batch_size=None, num_workers=workers, multiprocessing_context="spawn", prefetch_factor=2
        )
        self._thread = threading.Thread(target=self._receive, args=(loader,), daemon=True)
        self._thread.start()

    def _receive(self, loader: DataLoader[Sample]) -> None:
        try:
            for sample in loader:
                with self._arrived:
                    self._arrived.wait_for(self._wanted)
                if self._closed:
                    return
                self._add(sample.to(self.device))
        except BaseException as error:
            with self._arrived:
                self._error = error
                self._arrived.notify_all()

    def _wanted(self) -> bool:
        full = self.made >= self.capacity
        return self._closed or not full or self.drawn >= self.reuse * self.made

    def _add(self, sample: Sample) -> None:
        with self._arrived:
            self.samples.append(sample)
            self.made += 1
            self._arrived.notify_all()

    def wait(self, count: int) -> None:
        """Wait until so many samples have been made.

        Raises:
            TrainingError: the workers failed.
        """
        if self._own is not None:
            while self.made < count:
                self._add(next(self._own).to(self.device))
            return
        with self._arrived:
            self._arrived.wait_for(lambda: self.made >= count or self._error is not None)
        if self._error is not None:
            raise TrainingError(f"The sample workers failed: {reason(self._error)}") from self._error

    def draw(self, batch: int, length: int, crop: Size, random: torch.Generator, wrong: float) -> Batch:
        """Return parts of ``length`` frames of random samples, about a share ``wrong`` of them with wrong copies."""
        if self._own is not None:
            self.wait(self.made + 1)
        with self._arrived:
            pool = list(self.samples)
            self.drawn += batch
            self._arrived.notify_all()
        groups = [[s for s in pool if s.predicted == kind] for kind in (False, True)]
        chosen = choose(groups, batch, random, wrong)
        return Batch.of([sample.part(random_part(sample.masks, length, crop, random)) for sample in chosen])

    def close(self) -> None:
        """Stop taking samples in."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()


class SampleFiles:
    """A fixed number of samples on disk, made first: several trainings can use them, and hold none in memory.

    Files are named by what the samples depend on, so that one folder can serve different streams.

    Args:
        stream: where samples come from; its first ``count`` are taken.
        folder: of the files.
        count: samples.
        workers: processes that make what is missing; 0 makes it in this one.
        on_step: progress callback; may raise to stop, and the next call goes on.

    Raises:
        TrainingError: samples cannot be made, or cannot be written (a full disk), and those that were are kept; or a
            kept file is damaged.
    """

    def __init__(
        self, stream: SampleStream, folder: Path, count: int, *, workers: int = 0, on_step: OnStep = ignore
    ) -> None:
        self.folder, self.made = folder, count
        folder.mkdir(parents=True, exist_ok=True)
        self._name = stream.identity()
        missing = [number for number in range(count) if not self.file(number).exists()]
        loader = DataLoader(
            _Making(stream, self, missing),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        try:
            for done, _ in enumerate(loader):
                on_step(count - len(missing) + done + 1, count)
        except (TrainingError, OSError, SafetensorError) as error:
            raise TrainingError(f"Not all samples could be made and kept: {reason(error)}") from error
        self._groups: list[list[Path]] = [[], []]
        for kept in map(self.file, range(count)):
            try:
                with safe_open(kept, "pt") as file:
                    self._groups[int(file.metadata()["predicted"])].append(kept)
            except (SafetensorError, KeyError, TypeError) as error:
                raise TrainingError(f"{kept} is damaged; delete it, and it is made again.") from error

    def file(self, number: int) -> Path:
        """Where the sample of that number is kept."""
        return self.folder / f"{self._name}_{number:05d}.safetensors"

    def wait(self, count: int) -> None:
        """Nothing: all samples are there."""

    def draw(self, batch: int, length: int, crop: Size, random: torch.Generator, wrong: float) -> Batch:
        """See :class:`Source`."""
        return Batch.of([_read(file, length, crop, random) for file in choose(self._groups, batch, random, wrong)])

    def close(self) -> None:
        """Nothing: no file is held open."""


class _Making(Dataset[int]):
    """Makes files, for a loader's workers."""

    def __init__(self, stream: SampleStream, files: SampleFiles, numbers: list[int]) -> None:
        self.stream, self.files, self.numbers = stream, files, numbers
        self._maker: CompositeMaker | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        if self._maker is None:
            if torch.utils.data.get_worker_info() is not None:
                cv2.setNumThreads(1)
                torch.set_num_threads(1)
            self._maker = self.stream.maker()
        number = self.numbers[index]
        sample = self.stream.sample(self._maker, number)
        tensors = {name: getattr(sample, name).contiguous() for name in ("images", "cues", "masks")}
        metadata = {"predicted": str(int(sample.predicted))}
        with replacing(self.files.file(number)) as part:
            save_file(tensors, part, metadata)
        return number


def _read(path: Path, length: int, crop: Size, random: torch.Generator) -> Sample:
    """Read a random part of a sample, and no more."""
    with safe_open(path, "pt") as file:
        part = random_part(file.get_tensor("masks"), length, crop, random)

        def read(name: str) -> torch.Tensor:
            whole = file.get_slice(name)
            frames = [whole[t : t + 1, :, part.rows, part.columns] for t in part.frames]
            return torch.cat(frames).flip(-1) if part.flip else torch.cat(frames)

        images, cues, masks = (read(name) for name in ("images", "cues", "masks"))
        return Sample(images, cues, masks, file.metadata()["predicted"] == "1")
