"""Training samples of the lite backbone: composites with their copies found, made by worker processes.

Dimensions: t frames of a sample, b clips of a batch, h w pixels.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ciri.errors import TrainingError
from ciri.frames import grow_mask
from ciri.inpainting.lite_guidance import Guidance, find_copies, guidance
from ciri.training.composites import CompositeMaker
from ciri.training.data import Library, open_library
from ciri.training.predictions import WrongMasks

#: Pixels that removal dilates masks by before a backbone sees them.
GROW = 4


@dataclass
class Sample:
    """One clip with everything the network needs; images and masks are uint8, flow is half precision.

    Attributes:
        images: (T, 15, h, w), frames, clean, base, before, after.
        cues: (T, 4, h, w), as in :class:`ciri.inpainting.lite_guidance.Guidance`.
        masks: (T, 2, h, w), true and predicted, {0, 255}.
        flow: (T - 1, 4, h/8, w/8), forward and backward.
        predicted: whether the copies were made with the predicted masks (else with the true ones).
    """

    images: Tensor
    cues: Tensor
    masks: Tensor
    flow: Tensor
    predicted: bool

    def to(self, device: torch.device | str) -> Sample:
        """Return a copy on a device."""
        # a copy in any case: what workers send is shared memory, which is scarcer than memory
        tensors = (self.images, self.cues, self.masks, self.flow)
        images, cues, masks, flow = (x.to(device, copy=True) for x in tensors)
        return Sample(images, cues, masks, flow, self.predicted)

    def window(self, start: int, length: int, flip: bool) -> Sample:
        """Cut consecutive frames out, mirrored left to right if asked."""
        cut = Sample(
            self.images[start : start + length],
            self.cues[start : start + length],
            self.masks[start : start + length],
            self.flow[start : start + length - 1],
            self.predicted,
        )
        if not flip:
            return cut
        x_turned = torch.tensor([-1.0, 1.0, -1.0, 1.0]).to(cut.flow)[:, None, None]
        return Sample(
            cut.images.flip(-1), cut.cues.flip(-1), cut.masks.flip(-1), cut.flow.flip(-1) * x_turned, cut.predicted
        )


@dataclass
class Batch:
    """Float tensors with a leading b; frames and clean (b, t, 3, h, w), masks (b, t, 1, h, w) in {0, 1}."""

    frames: Tensor
    clean: Tensor
    true: Tensor
    predicted: Tensor
    guide: Guidance

    @classmethod
    def of(cls, samples: list[Sample]) -> Batch:
        """Stack samples of one length and size."""
        images = torch.stack([s.images for s in samples]).float() / 255
        cues = torch.stack([s.cues for s in samples]).float() / 255
        masks = (torch.stack([s.masks for s in samples]) > 127).float()
        flow = torch.stack([s.flow for s in samples]).float()
        frames, clean, base, before, after = images.split(3, 2)
        guide = Guidance(base, before, after, cues, flow[:, :, :2], flow[:, :, 2:])
        return cls(frames, clean, masks[:, :, :1], masks[:, :, 1:], guide)

    def colour_jitter(self, random: torch.Generator) -> None:
        """Change brightness, contrast and the order of the channels of each clip, everywhere alike."""
        b, device = len(self.frames), self.frames.device
        gain = (0.8 + 0.4 * torch.rand(b, 1, 3, 1, 1, generator=random)).to(device)
        shift = (0.2 * torch.rand(b, 1, 1, 1, 1, generator=random) - 0.1).to(device)
        orders = torch.stack([torch.randperm(3, generator=random) for _ in range(b)]).to(device)

        def change(x: Tensor) -> Tensor:
            x = torch.gather(x, 2, orders[:, None, :, None, None].expand_as(x))
            return ((x - 0.5) * gain + 0.5 + shift).clamp(0, 1)

        self.frames, self.clean = change(self.frames), change(self.clean)
        guide = self.guide
        guide.base, guide.before, guide.after = change(guide.base), change(guide.before), change(guide.after)


def make_sample(maker: CompositeMaker, rng: np.random.Generator, *, predicted: bool, wrong_masks: WrongMasks) -> Sample:
    """Make one composite and find its copies with true or with wrong masks."""
    composite = maker.make(rng)
    wrong = wrong_masks(composite, rng) if predicted or rng.random() < 0.5 else composite.mask
    masks = torch.from_numpy(np.stack([composite.mask, wrong], 1))
    frames, clean = (_to_tensor(x) for x in (composite.frames, composite.clean))
    hole = grow_mask(masks[:, int(predicted)][:, None].float(), GROW)
    guide = guidance(find_copies(frames, hole), range(len(frames)))
    images = torch.cat([frames, clean, guide.base, guide.before, guide.after], 1)
    return Sample(
        _to_bytes(images),
        _to_bytes(guide.cues),
        masks.byte() * 255,
        torch.cat([guide.forward, guide.backward], 1).half(),
        predicted,
    )


def _to_tensor(clip: np.ndarray) -> Tensor:
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255


def _to_bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().byte()


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
            raise TrainingError(f"The sample workers failed: {self._error}") from self._error

    def draw(self, batch: int, length: int, random: torch.Generator, wrong: float) -> Batch:
        """Return windows of ``length`` frames of random samples, about a share ``wrong`` of them with wrong copies."""
        if self._own is not None:
            self.wait(self.made + 1)
        with self._arrived:
            pool = list(self.samples)
            self.drawn += batch
            self._arrived.notify_all()
        groups = [[s for s in pool if s.predicted == kind] for kind in (False, True)]
        chosen = []
        for _ in range(batch):
            kind = bool(torch.rand((), generator=random) < wrong)
            group = groups[kind] or pool
            sample = group[int(torch.randint(len(group), (), generator=random))]
            start = int(torch.randint(max(1, len(sample.images) - length + 1), (), generator=random))
            chosen.append(sample.window(start, length, bool(torch.rand((), generator=random) < 0.5)))
        return Batch.of(chosen)

    def close(self) -> None:
        """Stop taking samples in."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
