"""Training samples of the lite backbone: composites with their copies found, and the batches cut out of them.

Dimensions: t frames of a sample, b clips of a batch, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ciri.frames import grow_mask
from ciri.inpainting.lite_guidance import Guidance, find_copies, guidance
from ciri.training.composites import CompositeMaker
from ciri.training.predictions import WrongMasks

T = TypeVar("T")
#: Height and width in pixels.
Size = tuple[int, int]

#: Pixels that removal dilates masks by before a backbone sees them.
GROW = 4


@dataclass
class Sample:
    """One clip with everything the network needs, in uint8.

    Attributes:
        images: (T, 15, h, w), frames, clean, base, before, after.
        cues: (T, 4, h, w), as in :class:`ciri.inpainting.lite_guidance.Guidance`.
        masks: (T, 2, h, w), true and predicted, {0, 255}.
        predicted: whether the copies were made with the predicted masks (else with the true ones).
    """

    images: Tensor
    cues: Tensor
    masks: Tensor
    predicted: bool

    def to(self, device: torch.device | str) -> Sample:
        """Return a copy on a device."""
        # a copy in any case: what workers send is shared memory, which is scarcer than memory
        images, cues, masks = (x.to(device, copy=True) for x in (self.images, self.cues, self.masks))
        return Sample(images, cues, masks, self.predicted)

    def part(self, part: Part) -> Sample:
        """Cut a part out."""
        cut = [x[part.frames][..., part.rows, part.columns] for x in (self.images, self.cues, self.masks)]
        images, cues, masks = (x.flip(-1) if part.flip else x for x in cut)
        return Sample(images, cues, masks, self.predicted)


@dataclass(frozen=True)
class Part:
    """Which part of a sample is trained on.

    Attributes:
        frames: frame numbers, ascending.
        rows, columns: of the picture.
        flip: mirror left to right.
    """

    frames: list[int]
    rows: slice
    columns: slice
    flip: bool


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
        frames, clean, base, before, after = images.split(3, 2)
        return cls(frames, clean, masks[:, :, :1], masks[:, :, 1:], Guidance(base, before, after, cues))

    def to(self, device: torch.device | str) -> Batch:
        """Return a copy on a device, or this one if it is there."""
        frames, clean, true, predicted = (x.to(device) for x in (self.frames, self.clean, self.true, self.predicted))
        return Batch(frames, clean, true, predicted, self.guide.to(device))

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
        predicted,
    )


def _to_tensor(clip: np.ndarray) -> Tensor:
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255


def _to_bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().byte()


def choose(groups: list[list[T]], count: int, random: torch.Generator, wrong: float) -> list[T]:
    """Draw from two groups, made with true and with wrong masks; about a share ``wrong`` from the latter.

    An empty group is replaced by the other one.
    """
    chosen = []
    for _ in range(count):
        kind = bool(torch.rand((), generator=random) < wrong)
        group = groups[kind] or groups[not kind]
        chosen.append(group[int(torch.randint(len(group), (), generator=random))])
    return chosen


def random_part(masks: Tensor, length: int, crop: Size, random: torch.Generator) -> Part:
    """Return ``length`` frames of a sample and a part of them of size ``crop`` that shows some of the target.

    Args:
        masks: uint8 (T, 2, h, w) of the sample.
        length: frames; all, where there are no more.
        crop: at most so high and wide.
        random: source of chance.
    """

    def below(count: int) -> int:
        return int(torch.randint(max(1, count), (), generator=random))

    frames = torch.randperm(len(masks), generator=random)[:length].sort().values.tolist()
    rows, columns = torch.nonzero(masks[frames[below(len(frames))], 0], as_tuple=True)
    sides, seen = [], below(len(rows))
    for places, whole, side in zip((rows, columns), masks.shape[2:], crop, strict=True):
        # anywhere, so that the chosen pixel of the target is in it
        start = int(places[seen]) - below(side) if len(places) else below(whole)
        start = min(max(start, 0), max(whole - side, 0))
        sides.append(slice(start, start + side))
    return Part(frames, sides[0], sides[1], bool(torch.rand((), generator=random) < 0.5))
