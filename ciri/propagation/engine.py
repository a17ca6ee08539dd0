"""Propagation with a space-time memory network, for any such network.

From every annotated frame masks travel in both directions; between two annotated frames the two answers are blended.
A frame asks the memory (annotated frames, every n-th frame, the last one) where it has seen what it sees.

Dimensions: T frames, k objects, H W the caller's pixels, h w the network's, gh gw its coarsest grid.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise

import torch
from torch import Tensor, nn

from ciri.errors import CiriError, MaskError, OutOfMemoryError
from ciri.numbering import ranges
from ciri.out_of_memory import BeforeRun, nothing, shortage_told
from ciri.parallel import both
from ciri.precision import choose_dtype, fingerprint, inference_copy
from ciri.progress import OnStep, ignore, part
from ciri.propagation.base import LOST_BELOW, MaskTrack, Propagator
from ciri.propagation.clip import EncodedClip, FeatureCache, Geometry
from ciri.propagation.network import MemoryNetwork
from ciri.propagation.tracking import DirectedPass, Hints, MemoryPolicy, Prediction
from ciri.propagation.units import WorkUnits
from ciri.shots import find_cuts

#: A note names so many runs of frames.
_MOST_RANGES = 8
#: At fewer pixels on the shorter side the coarsest grid has a cell or two, and every target is lost.
LEAST_SIDE = 32
#: Share of the time that the guide takes, for the progress bar.
GUIDE_SHARE = 0.25
#: A guide that finds nothing in so many frames in a row, or in a whole shot, says that nothing is there; in fewer it
#: may have stumbled.
LOST_FOR = 3


@dataclass(frozen=True)
class Annotation:
    """What a person painted: object ``object`` (0, 1, ...) covers ``mask`` (1, H, W) in frame ``frame``."""

    frame: int
    object: int
    mask: Tensor


@dataclass
class ObjectTracks:
    """Masks of several objects: ``probs`` float32 (T, k, H, W), ``confidence`` float32 (T, k), and notes."""

    probs: Tensor
    confidence: Tensor
    notes: list[str]


class MemoryPropagator:
    """A :class:`ciri.propagation.base.Propagator` around a :class:`MemoryNetwork`.

    Args:
        network: the network; it is never changed here. Its float32 weights may be tuned between calls.
        device: where to compute; None: where the network is.
        precision: "auto", "fp32", "bf16" or "fp16"; auto measures the processor.
        memory_every: every n-th frame enters the memory.
        include_last: the previous frame is in the memory too (one more value encoding a frame).
        memory_budget: how many frames besides the annotated ones the memory holds; see :class:`Memory`.
        short_side: longer frames are scaled down to this many pixels on the shorter side; None: never.
        enlarge: shorter frames are scaled up to it, by at most this factor.
        crop_decoding: decode only around where memory says that the target can be.
        store_above: frames of less confidence do not enter the memory, 0 confidence empties the mask, and so do
            probabilities next to nothing; None: all frames enter, and masks stay as the network gave them (the
            published procedure).
        directions: which ways to go from an annotated frame, of "forward" and "backward".
        cache_bytes: how much to keep of frame features between calls.
        batch: frames encoded at once; None: 1 on the CPU (more brings nothing there), 4 elsewhere.
        guide: for a network that takes hints, the propagator that gives them; None: none are given.

    Raises:
        CiriError: a short side of a few pixels, at which nothing is seen.

    Attributes:
        before_run: called with the height and width that frames are worked on at, before a run; may free memory for it.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        *,
        device: torch.device | str | None = None,
        precision: str = "auto",
        memory_every: int = 5,
        include_last: bool = True,
        memory_budget: int = 32,
        short_side: int | None = 480,
        enlarge: float = 1.0,
        crop_decoding: bool = True,
        store_above: float | None = LOST_BELOW,
        directions: Sequence[str] = ("forward", "backward"),
        cache_bytes: int = 256 << 20,
        batch: int | None = None,
        guide: Propagator | None = None,
    ) -> None:
        if short_side is not None and short_side < LEAST_SIDE:
            raise CiriError(
                f"The working size is {short_side} pixels; choose at least {LEAST_SIDE} (480 is the usual one)."
            )
        self.network = network
        self.name = network.name
        self.device = torch.device(device) if device is not None else None
        self.precision = precision
        self.short_side, self.enlarge = short_side, enlarge
        self.directions = tuple(directions)
        self.batch = batch
        self.guide = guide if network.takes_hints else None
        self.before_run: BeforeRun = nothing
        self.policy = MemoryPolicy(max(1, memory_every), include_last, memory_budget, crop_decoding, store_above)
        self._cache = FeatureCache(cache_bytes)
        self._twin: tuple[object, MemoryNetwork] | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> MemoryPropagator:
        """A copy for refinement: its own weights, and nothing that was derived from the old ones."""
        twin = copy.copy(self)
        twin.network = copy.deepcopy(self.network, memo)
        twin._cache = copy.deepcopy(self._cache)
        twin._twin = None
        return twin

    def parameters_to_refine(self) -> Iterable[nn.Parameter]:
        """See :meth:`ciri.propagation.base.Propagator.parameters_to_refine`."""
        return self.network.parameters_to_refine()

    def propagate(
        self, frames: Tensor, key_masks: Tensor, key_frames: Sequence[int], *, on_step: OnStep = ignore
    ) -> MaskTrack:
        """See :meth:`ciri.propagation.base.Propagator.propagate`."""
        annotations = [Annotation(t, 0, mask) for t, mask in zip(key_frames, key_masks, strict=True)]
        tracks = self.propagate_objects(frames, annotations, on_step=on_step)
        return MaskTrack(tracks.probs, tracks.confidence[:, 0], tracks.notes)

    # Leaving inference mode makes what is cached usable by a later call that is not under it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def propagate_objects(
        self,
        frames: Tensor,
        annotations: Sequence[Annotation],
        *,
        spared: Collection[int] = (),
        on_step: OnStep = ignore,
    ) -> ObjectTracks:
        """Track several objects at once; each may be annotated on any frames.

        Args:
            frames: float32 (T, 3, H, W) in [0, 1].
            annotations: at least one; objects are numbered from 0 without a gap. Where several objects are annotated
                on one frame, masks are softly aggregated there.
            spared: objects that are to stay. Of the others an unsure mask is none where the guide has lost them; of
                what is to stay, too much is better than too little.
            on_step: progress callback, once a predicted frame; may raise to stop.

        Returns:
            Tracks on the device of ``frames``; a frame before an object's first annotation is empty for it unless
            masks travel backward.

        Raises:
            MaskError: no annotation, or objects are numbered with gaps.
            OutOfMemoryError: memory ran out even in the smallest units of work; the message names the knobs.
            CiriError: the network answered with NaN or infinity, as fp16 may; the message names the remedy.
        """
        annotated, objects = _by_frame(annotations)
        try:
            with shortage_told(
                f"Memory ran out while {self.name} followed a mask through {frames.shape[3]}x{frames.shape[2]} frames, "
                f"even frame by frame. Lower the working size (now {self.short_side}) or the memory budget (now "
                f"{self.policy.budget})."
            ):
                return self._track(frames, annotated, objects, spared, on_step)
        except OutOfMemoryError:
            self._cache.clear()
            raise

    def _track(
        self,
        frames: Tensor,
        annotated: dict[int, dict[int, Tensor]],
        objects: int,
        spared: Collection[int],
        on_step: OnStep,
    ) -> ObjectTracks:
        length, _, height, width = frames.shape
        geometry = self.geometry(height, width)
        self.before_run(*geometry.outer)
        network, weights, device = self._ready()
        self._cache.new_call()
        units = WorkUnits.on(device, frames=self.batch, relieve=self._cache.give_way)
        clip = EncodedClip(frames, geometry, network, device=device, weights=weights, cache=self._cache, units=units)
        hints = None
        if self.guide is not None:
            # most of the guide's steps are too small for more than one core, and a graphics card would wait for them
            hints, _ = both(
                lambda step: self.hints(frames, annotated, objects, spared, on_step=step),
                partial(clip.encode_ahead, self._visited(annotated, length)),
                part(on_step, 0, GUIDE_SHARE),
            )
            on_step = part(on_step, GUIDE_SHARE, 1)
        blend = _Blend(length, objects, (height, width), frames.device, annotated)
        steps = [{"forward": 1, "backward": -1}[d] for d in self.directions]
        passes = [DirectedPass(network, clip, annotated, step, self.policy, units, hints) for step in steps]
        # backward from the first frame there is nothing to do
        passes = [p for p in passes if p.length > 1]
        total, done = sum(p.length for p in passes), 0
        for one in passes:
            for prediction in one.run():
                blend.add(prediction, geometry)
                done += 1
                on_step(done, total)
        return ObjectTracks(blend.probs, blend.confidence, self._notes(frames, blend))

    def _visited(self, annotated: Mapping[int, object], length: int) -> list[int]:
        """The frames of a clip of this length that masks travel through, in time, from the first annotated one."""
        first, last = min(annotated), max(annotated)
        ways = {"forward": range(first, length), "backward": range(last + 1)}
        frames = {t for direction in self.directions for t in ways[direction]}
        return sorted(frames, key=lambda t: (t < first, t))

    def geometry(self, height: int, width: int) -> Geometry:
        """How frames of a size are brought to the network."""
        return Geometry(height, width, self.network.stride, self.short_side, enlarge=self.enlarge)

    def hints(
        self,
        frames: Tensor,
        annotated: Mapping[int, Mapping[int, Tensor]],
        objects: int,
        spared: Collection[int] = (),
        *,
        on_step: OnStep = ignore,
    ) -> Hints | None:
        """What the guide makes of every object, for the decoder; None without a guide.

        Args:
            frames: float32 (T, 3, H, W).
            annotated: frame -> object -> mask (1, H, W).
            objects: how many there are.
            spared: see :meth:`propagate_objects`.
            on_step: progress callback; may raise to stop.
        """
        if self.guide is None:
            return None
        hints, cuts = Hints((int(frames.shape[2]), int(frames.shape[3]))), find_cuts(frames)
        for o in range(objects):
            # a frame that shows nothing of the object, or nothing but it, gives the guide nothing to follow
            shown = [t for t in sorted(annotated) if o in annotated[t]]
            keys = [t for t in shown if annotated[t][o].min() <= 0.5 < annotated[t][o].max()]
            if not keys:
                continue
            masks = torch.stack([annotated[t][o] for t in keys])
            share = part(on_step, o / objects, (o + 1) / objects)
            track = self.guide.propagate(frames, masks, keys, on_step=share)
            for t, (probs, certainty) in enumerate(zip(track.probs, track.confidence, strict=True)):
                hints.put(t, o, probs[0], float(certainty))
            if o not in spared:
                hints.say_lost(_lost_for_long(track.confidence, cuts), o)
        return hints

    def _ready(self) -> tuple[MemoryNetwork, object, torch.device]:
        """The network as it runs (device, type), a name for its weights, and the device."""
        assert isinstance(self.network, nn.Module)
        home = next(self.network.parameters()).device
        device = self.device or home
        dtype = choose_dtype(self.precision, device)
        weights = (fingerprint(self.network), dtype, device)
        if self._twin is None or self._twin[0] != weights:
            self._twin = None
            self._twin = (weights, inference_copy(self.network, device, dtype))
        return self._twin[1], weights, device

    def _notes(self, frames: Tensor, blend: _Blend) -> list[str]:
        notes = []
        cuts = find_cuts(frames)
        if cuts:
            notes.append(f"New shots seem to begin at frames {ranges(cuts, _MOST_RANGES)}: check the masks after them.")
        if self.policy.store_above is not None:
            for o in range(blend.confidence.shape[1]):
                lost = torch.nonzero(blend.confidence[:, o] < LOST_BELOW).flatten().tolist()
                if lost:
                    which = "The target" if blend.confidence.shape[1] == 1 else f"Object {o}"
                    where = ranges(lost, _MOST_RANGES)
                    notes.append(f"{which} is gone or lost in frames {where}; annotate one of them if it is there.")
        return notes


class _Blend:
    """Collects predictions: the first for a frame is taken, a second one from the other side is blended in."""

    def __init__(
        self,
        length: int,
        objects: int,
        size: tuple[int, int],
        device: torch.device,
        annotated: dict[int, dict[int, Tensor]],
    ) -> None:
        self.probs = torch.zeros(length, objects, *size, device=device)
        self.confidence = torch.zeros(length, objects, device=device)
        self._weight = torch.zeros(length, objects)
        for t, masks in annotated.items():
            for o, mask in masks.items():
                self.probs[t, o] = mask[0].to(self.probs)
                self.confidence[t, o] = 1
                self._weight[t, o] = float("inf")

    def add(self, prediction: Prediction, geometry: Geometry) -> None:
        """Add one frame's prediction; annotated objects keep the annotation.

        The nearer an annotation and the surer the prediction, the more it weighs.
        """
        t = prediction.frame
        probs = geometry.masks_out(prediction.probs).to(self.probs)[:, 0]
        for i, o in enumerate(prediction.objects):
            old = float(self._weight[t, o])
            if old == float("inf"):
                continue
            sure = float(prediction.confidence[i])
            new = max(sure, 1e-3) / prediction.distance[i]
            share = new / (old + new)
            self.probs[t, o].lerp_(probs[i], share)
            self.confidence[t, o] = torch.lerp(self.confidence[t, o], self.confidence.new_tensor(sure), share)
            self._weight[t, o] = old + new


def _lost_for_long(confidence: Tensor, cuts: Sequence[int]) -> Iterator[int]:
    """The frames of a guide's track in which it found nothing, and nothing in those around or in all of the shot."""
    for start, stop in pairwise([0, *cuts, len(confidence)]):
        if not (confidence[start:stop] > 0).any():
            yield from range(start, stop)
    for lost, run in groupby(range(len(confidence)), lambda t: float(confidence[t]) <= 0):
        frames = list(run)
        if lost and len(frames) >= LOST_FOR:
            yield from frames


def _by_frame(annotations: Sequence[Annotation]) -> tuple[dict[int, dict[int, Tensor]], int]:
    """Group by frame, in time; and count the objects."""
    seen = sorted({a.object for a in annotations})
    if not seen or seen != list(range(len(seen))):
        raise MaskError(f"Objects {seen} are annotated; expected at least one, numbered 0, 1, ... without a gap.")
    frames: dict[int, dict[int, Tensor]] = {}
    for a in sorted(annotations, key=lambda a: (a.frame, a.object)):
        frames.setdefault(a.frame, {})[a.object] = a.mask
    return frames, len(seen)
