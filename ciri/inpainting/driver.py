"""The window driver: runs any published network over a clip of any length.

Each frame is encoded once and each neighbouring flow computed once, kept only as long as a window still needs it;
references are not decoded; windows without holes are skipped; frames stay where the caller has them and only the
working window is on the device. Peak memory therefore does not grow with the clip.

Dimensions: t frames of the clip, n frames of a window, l of them local, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn

from ciri.errors import CiriError
from ciri.frames import grow_mask
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.blending import Blend, PublishedBlend, SmoothBlend
from ciri.inpainting.network import Features, WindowNetwork, parts_of
from ciri.inpainting.windows import Schedule, Window, without_holes
from ciri.out_of_memory import (
    BeforeRun,
    is_out_of_memory,
    nothing,
    repeat_smaller,
    return_unused_memory,
    shortage_told,
)
from ciri.progress import OnStep, ignore

#: How the map reaches the network. "hard": hole pixels are grey, as the published weights were trained. "blend": the
#: features of the hard-masked frame inside the map, those of the untouched frame outside (training-free). "gate":
#: Eq. 1, for weights trained with inactivation. "auto": "gate" for such weights, "hard" for all others.
Mode = Literal["auto", "hard", "blend", "gate"]

#: References per window unless the schedule says otherwise; the published rule, all of the clip, lets work and memory
#: of every window grow with the clip's length.
DEFAULT_REFERENCES = 6

#: Where features are gated, flow networks see grey where the map, grown by this many pixels, exceeds a half, as in
#: training: a rim of target would otherwise drag the flow along.
FLOW_MARGIN = 4

T = TypeVar("T")


class Frames(Protocol):
    """A clip that may be read lazily: a tensor (t, c, h, w), or anything that gives tensors for lists of indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: list[int]) -> Tensor: ...


@dataclass
class _Clip:
    """One run's inputs, what is kept of them while windows still need it, and how much memory lets it do at once."""

    frames: Frames
    maps: Frames
    chunk: int
    together: bool = True
    features: dict[int, Tensor] = field(default_factory=dict)
    flows: dict[int, Tensor] = field(default_factory=dict)


class WindowBackbone:
    """A published network as a :class:`ciri.inpainting.base.Backbone`.

    Args:
        network: in evaluation mode, on the device it shall run on.
        schedule: windows and references; default: every 5th frame, at most :data:`DEFAULT_REFERENCES` references.
        mode: how the map reaches the network.
        published: compose as the published programs do, with their 8-bit rounding, and binarise the map at 0 as they
            do; otherwise blend windows smoothly.
        trained_for: what these weights were trained for, where that differs from the published ones.
        windows_at_once: neighbouring windows of one shape that pass through the network together. A large GPU that one
            small window does not fill gains by it; memory grows with it.

    Attributes:
        before_run: called with the frames' height and width before a run; may free memory for it.
    """

    def __init__(
        self,
        network: WindowNetwork,
        *,
        schedule: Schedule | None = None,
        mode: Mode = "auto",
        published: bool = False,
        trained_for: str | None = None,
        windows_at_once: int = 1,
    ) -> None:
        if windows_at_once < 1:
            raise CiriError(f"windows_at_once is {windows_at_once}; expected 1 (one after another) or more.")
        if mode not in get_args(Mode):
            raise CiriError(f"Mode {mode!r} is unknown; choose one of {', '.join(get_args(Mode))}.")
        self.network = network
        self.schedule = schedule or (Schedule() if published else Schedule(num_ref=DEFAULT_REFERENCES))
        self.mode = mode
        self.published = published
        self.windows_at_once = windows_at_once
        self.before_run: BeforeRun = nothing
        self.facts: BackboneFacts = network.facts
        if trained_for is not None:
            self.facts = replace(network.facts, trained_for=trained_for)

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def resolved_mode(self) -> Mode:
        """The mode that "auto" stands for with these weights."""
        if self.mode != "auto":
            return self.mode
        return "gate" if self.facts.trained_for == "inactivation" else "hard"

    def windows(self, has_hole: Sequence[bool]) -> list[Window]:
        """The windows that a run passes through the network, given for each frame whether there is a hole in it."""
        return without_holes(self.schedule.windows(len(has_hole)), has_hole)

    def describe(self, has_hole: Sequence[bool]) -> str:
        """Say in one line what a run does, given for each frame whether there is a hole in it."""
        windows = self.windows(has_hole)
        local = max((len(w.local) for w in windows), default=0)
        references = max((len(w.reference) for w in windows), default=0)
        precision = str(self.network.precision).removeprefix("torch.")
        return (
            f"{len(windows)} {'window' if len(windows) == 1 else 'windows'} of up to {local} frames and {references} "
            f"references, {precision}, mode {self.resolved_mode()}, "
            f"{'published 8-bit' if self.published else 'smooth'} composition"
        )

    def inpaint(self, frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Tensor:
        """See :class:`ciri.inpainting.base.Backbone`."""
        result = frames.clone()
        for index, frame in self.stream(frames, inactivation, on_step=on_step):
            result[index] = frame.to(result)
        return result

    def stream(self, frames: Frames, inactivation: Frames, *, on_step: OnStep = ignore) -> Iterator[tuple[int, Tensor]]:
        """Yield (index, finished frame (3, h, w) in [0, 1]) in ascending order; frames without a hole may be missing.

        Args:
            frames: (t, 3, h, w) in [0, 1], a tensor or a lazy reader; sides as ``facts`` say.
            inactivation: (t, 1, h, w) in [0, 1], likewise.
            on_step: called with windows done and in all, and more often than that: it may raise in mid-window.

        Raises:
            OutOfMemoryError: even the smallest work unit does not fit.
        """
        height, width = frames[[0]].shape[2:]
        self.before_run(int(height), int(width))
        has_hole = [bool((inactivation[[i]] > 0).any()) for i in range(len(frames))]
        windows = self.windows(has_hole)
        last_use = {i: number for number, window in enumerate(windows, start=1) for i in window.frames}
        clip, blend, done = _Clip(frames, inactivation, self.network.chunk), self._blend(), 0
        for group in _alike(windows, self.windows_at_once):
            with torch.no_grad(), self._watched(partial(on_step, done, len(windows))):
                predictions = self._predictions(group, clip)
            for window, predicted in zip(group, predictions, strict=True):
                local = list(window.local)
                blend.add(window, predicted, self._to_device(frames[local]), self._to_device(inactivation[local]))
            del predictions, predicted
            done += len(group)
            for index in [i for i in clip.features if last_use[i] <= done]:
                del clip.features[index]
            for index in [i for i in clip.flows if last_use[i] <= done or last_use[i + 1] <= done]:
                del clip.flows[index]
            return_unused_memory()
            on_step(done, len(windows))
            yield from blend.finish(windows[done].local[0] if done < len(windows) else len(frames))

    def _blend(self) -> Blend:
        return PublishedBlend() if self.published else SmoothBlend(self.schedule.stride)

    def _to_device(self, x: Tensor) -> Tensor:
        # to the processor it would be read before it has arrived
        return x.to(self.device, torch.float32, non_blocking=self.device.type != "cpu")

    def _predictions(self, group: list[Window], clip: _Clip) -> list[Tensor]:
        """Run windows of one shape, together if memory allows; (l, 3, h, w) in [-1, 1] of each."""
        if len(group) > 1 and clip.together:
            try:
                return list(self._predict(group, clip))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                clip.together = False
            # out here what the failed call had allocated is gone
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return [self._with_less_memory(partial(self._predict, [window], clip), clip)[0] for window in group]

    def _predict(self, group: list[Window], clip: _Clip) -> Tensor:
        """Run windows of one shape: (b, l, 3, h, w) in [-1, 1]."""
        local = len(group[0].local)
        missing = sorted({i for window in group for i in window.frames} - clip.features.keys())
        for start in range(0, len(missing), self.network.chunk):
            part = missing[start : start + self.network.chunk]
            gated = self.gated_features(self._to_device(clip.frames[part]), self._to_device(clip.maps[part]))
            # views would keep all of the part in memory for as long as one frame of it is a reference
            clip.features.update((i, feature.clone()) for i, feature in zip(part, gated, strict=True))
        flows = None
        if self.network.uses_flow and local > 1:
            flows = torch.stack([self._flows(window, clip) for window in group])
        features = torch.stack([torch.stack([clip.features[i] for i in window.frames]) for window in group])
        return self.network.decode_window(features, local, flows)

    def gated_features(self, frames: Tensor, maps: Tensor) -> Tensor:
        """Encode frames and let the map act on them as the mode says.

        Differentiable in the map in the modes "blend" and "gate".

        Args:
            frames: (n, 3, h, w) in [0, 1].
            maps: (n, 1, h, w) in [0, 1].
        """
        mode, x = self.resolved_mode(), frames * 2 - 1
        if mode == "hard":
            return self.network.encode(x * (1 - self._hole(maps)))["out"]
        fill: Features | None = None
        if mode == "blend":
            fill = self.network.encode(x * (1 - self._hole(maps)))
        return self.network.gate(self.network.encode(x), maps, fill)

    def _hole(self, maps: Tensor) -> Tensor:
        """The binary hole of a soft map, (n, 1, h, w)."""
        return (maps > (0 if self.published else 0.5)).float()

    def _flows(self, window: Window, clip: _Clip) -> Tensor:
        """Flows between the window's neighbouring local frames, (l - 1, 2, 2, h', w')."""
        pairs = list(window.local[:-1])
        missing = [i for i in pairs if i not in clip.flows]
        if missing:
            both = sorted({*missing, *(i + 1 for i in missing)})
            maps = self._to_device(clip.maps[both]).detach()
            if self.resolved_mode() != "hard":
                maps = grow_mask(maps, FLOW_MARGIN)
            grey = dict(zip(both, (self._to_device(clip.frames[both]) * 2 - 1) * (1 - self._hole(maps)), strict=True))
            first, second = (torch.stack([grey[i + step] for i in missing]) for step in (0, 1))
            clip.flows.update(zip(missing, self.network.flows(first, second), strict=True))
        return torch.stack([clip.flows[i] for i in pairs])

    def _with_less_memory(self, work: Callable[[], T], clip: _Clip) -> T:
        """Repeat work with ever smaller chunks while memory runs out: the result is the same, the peak is lower.

        What has become small stays so for the run: else every window would run short anew.
        """
        usual, self.network.chunk = self.network.chunk, clip.chunk
        try:
            with shortage_told(
                f"{self.name} ran out of memory on a single frame's work. Use fewer reference frames, let the window "
                "follow the object (crop), or inpaint at a lower resolution."
            ):
                return repeat_smaller(work, self._halve_chunk)
        finally:
            clip.chunk, self.network.chunk = self.network.chunk, usual

    def _halve_chunk(self) -> bool:
        smaller = self.network.chunk // 2
        self.network.chunk = max(1, smaller)
        return smaller > 0

    @contextmanager
    def _watched(self, tick: Callable[[], object]) -> Iterator[None]:
        """Call ``tick`` before every part of the network runs, so that an interrupt does not wait for a window."""

        def watch(part: nn.Module, inputs: object) -> None:
            # what a hook returns would take the place of the inputs
            tick()

        handles = [part.register_forward_pre_hook(watch) for part in parts_of(self.network)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _alike(windows: Sequence[Window], most: int) -> Iterator[list[Window]]:
    """Runs of up to so many consecutive windows with equally many local and reference frames."""
    for _, run in groupby(windows, lambda window: (len(window.local), len(window.reference))):
        alike = list(run)
        yield from (alike[start : start + most] for start in range(0, len(alike), most))
