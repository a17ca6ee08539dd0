"""One pass over a clip in one direction: read the memory, decode, aggregate, store.

Dimensions: k objects, h w the network's pixels, gh gw cells of its coarsest grid (q = gh gw positions).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import CiriError
from ciri.propagation.clip import EncodedClip, Geometry
from ciri.propagation.confidence import agreement, mask_confidence
from ciri.propagation.memory import Memory, to_map, to_rows
from ciri.propagation.network import FrameFeatures, MemoryNetwork
from ciri.propagation.units import WorkUnits

#: Cells whose expected share of target is below this are not decoded.
PRIOR_THRESHOLD = 0.02

#: The same for a cell's surest pixel of the hint.
HINT_THRESHOLD = 0.3

#: Probabilities up to this are no mask.
FAINT = 0.02

#: A part of the frame is decoded if it saves at least this share of the cells.
WORTH_CROPPING = 0.2


@dataclass(frozen=True)
class MemoryPolicy:
    """What enters the memory and how much of a frame is decoded; see the engine's options."""

    every: int = 5
    include_last: bool = True
    budget: int = 32
    crop_decoding: bool = True
    store_above: float | None = None


@dataclass
class Prediction:
    """Masks of one frame.

    Attributes:
        frame: its index.
        objects: which objects ``probs`` shows, k numbers.
        probs: float32 (k, 1, h, w).
        confidence: float32 (k,) in [0, 1].
        distance: per object, frames from the last annotation that was passed; at least 1.
    """

    frame: int
    objects: list[int]
    probs: Tensor
    confidence: Tensor
    distance: list[int]


def aggregate(probs: Tensor) -> Tensor:
    """Soft aggregation: make the probabilities of k objects and the background sum to 1.

    The background's is the product of (1 - p); the results are softmax over the log odds of all k + 1 (Cheng et al.
    2021). For one object that is sigmoid(2 logit(p)).

    Args:
        probs: float32 (k, ...), each object's own.

    Returns:
        float32 (k, ...), without the background.
    """
    everything = torch.cat([(1 - probs).prod(0, keepdim=True), probs]).clamp(1e-7, 1 - 1e-7)
    odds = everything / (1 - everything)
    return odds[1:] / odds.sum(0, keepdim=True)


class Hints:
    """What another propagator makes of the clip, for networks whose decoder takes it.

    Kept in 255ths and packed, which makes masks some fifty times smaller: a long clip's would else be as large as the
    masks that come out in the end.

    Args:
        size: height and width of the clip.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._planes: dict[tuple[int, int], tuple[bytes, float]] = {}
        self._lost: set[tuple[int, int]] = set()

    def put(self, t: int, target: int, probs: Tensor, certainty: float) -> None:
        """Keep the mask (H, W) of an object in a frame, and how sure it is; 0 = lost, which has no hint at all."""
        if certainty > 0:
            plane = (probs * 255).round().to("cpu", torch.uint8).numpy().tobytes()
            self._planes[t, target] = zlib.compress(plane, 1), certainty

    def say_lost(self, frames: Iterable[int], target: int) -> None:
        """Keep that an object was looked for in some frames, and is not there."""
        self._lost.update((t, target) for t in frames)

    def lost(self, t: int, objects: Sequence[int], device: torch.device) -> Tensor:
        """Which of some objects are said not to be in a frame, bool (k,)."""
        return torch.tensor([(t, target) in self._lost for target in objects], device=device)

    def at(self, t: int, objects: Sequence[int], geometry: Geometry, device: torch.device) -> Tensor:
        """Hints of one frame for some objects, float32 (k, 2, h, w)."""
        masks, sure = torch.zeros(len(objects), 1, *self.size), torch.zeros(len(objects), 1, 1, 1)
        for i, target in enumerate(objects):
            packed, certainty = self._planes.get((t, target), (b"", 0.0))
            if packed:
                plane = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(self.size)
                masks[i, 0], sure[i] = torch.from_numpy(plane / np.float32(255)), certainty
        inside = geometry.masks_in(masks.to(device))
        return torch.cat([inside, sure.to(device).expand_as(inside)], 1)


@dataclass
class _Cohort:
    """Objects that were first annotated on the same frame: they share what is remembered."""

    objects: list[int]
    memory: Memory = field(repr=False)


class DirectedPass:
    """Carries masks from each annotated frame to the next, and from the last to the clip's end.

    Args:
        network: on the device and in the type to compute in.
        clip: the frames.
        annotated: frame -> object -> mask (1, H, W).
        step: 1 forward in time, -1 backward.
        policy: what to remember.
        units: how much to work on at a time.
        hints: what the network's decoder is told besides, if it takes hints.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        clip: EncodedClip,
        annotated: Mapping[int, Mapping[int, Tensor]],
        step: int,
        policy: MemoryPolicy,
        units: WorkUnits,
        hints: Hints | None = None,
    ) -> None:
        self.network, self.clip, self.annotated, self.policy = network, clip, annotated, policy
        self._units, self._hints = units, hints
        first = min(annotated) if step > 0 else max(annotated)
        self._order = range(first, len(clip.frames)) if step > 0 else range(first, -1, -1)
        self._cohorts: list[_Cohort] = []
        self._passed: dict[int, int] = {}
        self._stored = 0

    @property
    def length(self) -> int:
        """How many frames :meth:`run` yields."""
        return len(self._order)

    def run(self) -> Iterator[Prediction]:
        """Yield every frame of the pass, in its order.

        Raises:
            CiriError: the network answered with NaN or infinity.
        """
        known_from_start = self._remember_all_annotations()
        for i, t in enumerate(self._order):
            upcoming = self._order[i + 1 :]
            features = self.clip.features(t, upcoming)
            predicted = self._units.run(partial(self._predict, t, features)) if self._predictable(t) else None
            if t in self.annotated:
                planes = self._annotate(t, predicted)
                self._stored = i
                if not known_from_start:
                    self._remember(t, features, planes, annotated=True)
                yield self._given(t, planes, predicted)
            else:
                assert predicted is not None
                if upcoming:
                    self._store_if_due(i, predicted, features)
                yield predicted

    # ------------------------------------------------------------------------------------------ annotations

    def _objects(self) -> list[int]:
        return [o for cohort in self._cohorts for o in cohort.objects]

    def _predictable(self, t: int) -> bool:
        """Whether somebody needs the prediction: no object is followed yet, or all are annotated here, says no."""
        return bool(set(self._passed) - set(self.annotated.get(t, ())))

    def _remember_all_annotations(self) -> bool:
        """Where every annotated frame shows every object, all of them are evidence from the first frame on."""
        everyone = {o for masks in self.annotated.values() for o in masks}
        if any(set(masks) != everyone for masks in self.annotated.values()):
            return False
        self._cohorts = [_Cohort(sorted(everyone), self._memory())]
        for t, masks in self.annotated.items():
            planes = aggregate(self._masks_in([masks[o] for o in sorted(everyone)]))
            self._remember(t, self.clip.features(t), planes, annotated=True)
        return True

    def _memory(self) -> Memory:
        """An empty memory with room for what a pass of this length stores: every n-th frame, and the last one."""
        due = len(self._order) // self.policy.every + 1
        expected = len(self.annotated) + min(self.policy.budget, due)
        return Memory(self.policy.budget, expected=expected)

    def _annotate(self, t: int, predicted: Prediction | None) -> Tensor:
        """Begin new objects, and return (k, 1, h, w): what is known here of all that are followed, aggregated.

        Where something was annotated, it replaces what the others were predicted to be.
        """
        given = self.annotated[t]
        fresh = [o for o in given if o not in self._objects()]
        if fresh:
            self._cohorts.append(_Cohort(fresh, self._memory()))
        self._passed.update(dict.fromkeys(given, t))
        objects = self._objects()
        masks = self._masks_in(list(given.values()))
        planes = masks.new_zeros(len(objects), *masks.shape[1:])
        if predicted is not None:
            for o, probs in zip(predicted.objects, predicted.probs, strict=True):
                planes[objects.index(o)] = probs
        planes[:, masks.sum(0) > 0.5] = 0
        for o, mask in zip(given, masks, strict=True):
            planes[objects.index(o)] = mask
        return aggregate(planes)

    def _given(self, t: int, planes: Tensor, predicted: Prediction | None) -> Prediction:
        objects = self._objects()
        sure = planes.new_ones(len(objects))
        if predicted is not None:
            for o, value in zip(predicted.objects, predicted.confidence, strict=True):
                if o not in self.annotated[t]:
                    sure[objects.index(o)] = value
        return Prediction(t, objects, planes, sure, self._distances(t, objects))

    def _masks_in(self, masks: Sequence[Tensor]) -> Tensor:
        return self.clip.geometry.masks_in(torch.stack(list(masks)).to(self.clip.device, torch.float32))

    def _distances(self, t: int, objects: Sequence[int]) -> list[int]:
        return [max(1, abs(t - self._passed[o])) for o in objects]

    # ------------------------------------------------------------------------------------------ memory

    def _store_if_due(self, i: int, predicted: Prediction, features: FrameFeatures) -> None:
        """Store every n-th frame since the last store, else the frame as the temporary last one."""
        due = i - self._stored >= self.policy.every
        if not (due or self.policy.include_last):
            return
        if self.policy.store_above is not None and bool((predicted.confidence < self.policy.store_above).any()):
            return
        if due:
            self._stored = i
        self._remember(predicted.frame, features, predicted.probs, temporary=not due)

    def _remember(self, t: int, features: FrameFeatures, probs: Tensor, **kind: bool) -> None:
        """Encode the values of everything that is followed and store them; probs is (k, 1, h, w), aggregated."""
        values = self._units.run(partial(self._values, t, features, probs))
        keys = to_rows(features.key)[0]
        shares = to_rows(F.avg_pool2d(probs, self.network.stride))
        start = 0
        for cohort in self._cohorts:
            part = slice(start, start + len(cohort.objects))
            store = partial(cohort.memory.append, t, keys, to_rows(values[part]), shares[part], **kind)
            self._units.run(store)
            start = part.stop

    def _values(self, t: int, features: FrameFeatures, probs: Tensor) -> Tensor:
        """Return (k, value channels, gh, gw), some objects at a time."""
        frame, others = self.clip.frame(t), probs.sum(0, keepdim=True) - probs
        pairs = zip(probs.split(self._units.objects), others.split(self._units.objects), strict=True)
        return torch.cat([self.network.encode_value(frame, features, *pair) for pair in pairs])

    # ------------------------------------------------------------------------------------------ prediction

    def _predict(self, t: int, features: FrameFeatures) -> Prediction:
        query = to_rows(features.key)[0]
        grid = features.key.shape[-2:]
        readouts, shares, explained = [], [], []
        for cohort in self._cohorts:
            attention = cohort.memory.attend(query, self.network.top_k, chunk_bytes=self._units.similarity_bytes)
            readouts.append(to_map(cohort.memory.gather(attention), *grid))
            shares.append(to_map(cohort.memory.gather_masks(attention), *grid))
            explained.append(attention.explained.view(1, 1, *grid).expand(len(cohort.objects), -1, -1, -1))
        hints, lost = None, None
        if self._hints is not None:
            hints = self._hints.at(t, self._objects(), self.clip.geometry, self.clip.device)
            lost = self._hints.lost(t, self._objects(), self.clip.device)
        readout = torch.cat(readouts)
        self._check_numbers(readout, features)
        probs = aggregate(self._decode(readout, torch.cat(shares), features, hints))
        confidence = mask_confidence(probs, torch.cat(explained))
        gone = confidence <= 0
        if hints is not None and lost is not None:
            confidence = confidence * agreement(probs, hints, lost)
            if self.policy.store_above is not None:
                # nobody believes it
                gone = gone | (lost & (confidence < self.policy.store_above))
        if self.policy.store_above is not None:
            # a target that no pixel shows is not shown faintly either, and what is faint is nothing: a trace of mask
            # everywhere would make the whole frame the part that removal works on
            probs = torch.where((probs > FAINT) & ~gone.view(-1, 1, 1, 1), probs, 0.0)
            confidence = confidence * ~gone
        objects = self._objects()
        return Prediction(t, objects, probs, confidence, self._distances(t, objects))

    def _decode(self, readout: Tensor, shares: Tensor, features: FrameFeatures, hints: Tensor | None) -> Tensor:
        """Return (k, 1, h, w), each object's own probability, before aggregation."""
        grid = (int(readout.shape[-2]), int(readout.shape[-1]))
        margin = self.network.decode_margin
        if not self.policy.crop_decoding or margin is None:
            return self._logits(readout, features, hints).sigmoid()
        stride = self.network.stride
        probs = readout.new_zeros(len(readout), 1, grid[0] * stride, grid[1] * stride, dtype=torch.float32)
        likely = (shares > PRIOR_THRESHOLD).flatten(0, 1).any(0)
        if hints is not None:
            likely |= (F.max_pool2d(hints[:, :1], stride) > HINT_THRESHOLD).flatten(0, 1).any(0)
        inside = _box(likely)
        if inside is None:
            return probs
        # decoded exactly where memory or the hint sees target; one more cell is shown, and a little less exact
        around = _grow(inside, max(margin, 1), grid)
        inside = _grow(inside, 1, grid)
        if (around[2] - around[0]) * (around[3] - around[1]) > (1 - WORTH_CROPPING) * grid[0] * grid[1]:
            return self._logits(readout, features, hints).sigmoid()
        top, left, bottom, right = around
        if hints is not None:
            hints = hints[..., stride * top : stride * bottom, stride * left : stride * right]
        logits = self._logits(readout[..., top:bottom, left:right], features.crop(*around), hints)
        rows = slice(stride * inside[0], stride * inside[2])
        columns = slice(stride * inside[1], stride * inside[3])
        probs[..., rows, columns] = logits[
            ...,
            rows.start - stride * top : rows.stop - stride * top,
            columns.start - stride * left : columns.stop - stride * left,
        ].sigmoid()
        return probs

    def _logits(self, readout: Tensor, features: FrameFeatures, hints: Tensor | None) -> Tensor:
        """Decode some objects at a time."""
        parts = readout.split(self._units.objects)
        told = [None] * len(parts) if hints is None else hints.split(self._units.objects)
        logits = torch.cat([self.network.decode(part, features, hint) for part, hint in zip(parts, told, strict=True)])
        self._check_numbers(logits, features)
        return logits

    def _check_numbers(self, values: Tensor, features: FrameFeatures) -> None:
        """Refuse what the network answered if it holds NaN or infinity: the masks would say that the target is gone."""
        if bool(torch.isfinite(values).all()):
            return
        dtype = features.maps[0].dtype
        if dtype == torch.float32:
            remedy = "Its weights are broken: get their file again, or choose another propagator."
        else:
            remedy = "Choose precision fp32, or compute on the CPU."
        raise CiriError(
            f"The propagator {self.network.name} came to values that are not numbers (NaN or infinite) while it "
            f"computed in {str(dtype).removeprefix('torch.')}. {remedy}"
        )


Box = tuple[int, int, int, int]


def _box(cells: Tensor) -> Box | None:
    """Top, left, bottom, right (half open) of the true cells of (gh, gw); None if there is none."""
    rows, columns = torch.nonzero(cells.any(1)).flatten(), torch.nonzero(cells.any(0)).flatten()
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _grow(box: Box, cells: int, grid: tuple[int, int]) -> Box:
    top, left, bottom, right = box
    return max(0, top - cells), max(0, left - cells), min(grid[0], bottom + cells), min(grid[1], right + cells)
