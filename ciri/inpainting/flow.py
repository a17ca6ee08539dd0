"""The classical backbone: what is hidden now was, or will be, visible in another frame.

Dimensions: t frames, n covered pixels of one frame, s seam pixels among them, h w pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from ciri.errors import CiriError
from ciri.flow.addresses import Addresses, Candidates, trust_of, weight_of
from ciri.flow.completion import membrane
from ciri.flow.propagate import hand_over, propagate_pixels
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.seam import correction
from ciri.inpainting.segments import FEWEST, fill_in_segments
from ciri.inpainting.texture import synthesise
from ciri.out_of_memory import shortage_told
from ciri.parallel import helper
from ciri.progress import OnStep, ignore, part

Submit = Callable[[Callable[[], Tensor]], Future[Tensor]]

#: A pixel and its neighbours to the right, to the left, below and above, (5, 1, 2).
OFFSETS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])[:, None]

#: How firmly a copy that is trusted entirely keeps its colour when seams are joined: they change some 6 pixels of it.
#: By the square of trust: what is astray has to be fitted to its surroundings. More shows the seams.
HOLD = 0.03
#: Known pixels around the covered ones that are worked on with them.
RIM = 2
#: What a clip takes besides itself and the result, in bytes for each pixel of each frame (measured).
BYTES_PER_PIXEL = 65
#: Memory in bytes beyond which a clip is worked on in segments.
MEMORY = 8 * 2**30


class FlowBackbone:
    """Copies hidden pixels along completed optical flow, and pieces together what no frame shows.

    Args:
        passes: 2 measures the flow once more, on the clip without the target and at full resolution; 1 takes half the
            time, and copies less exactly.
        memory: bytes that may be used besides the clip and the result. A clip that would need more is worked on in
            segments: what is hidden can then only be found some segments' length away.

    Raises:
        CiriError: another number of passes.
    """

    name = "flow"
    facts = BackboneFacts(needs_background=True)

    def __init__(self, passes: int = 2, memory: int = MEMORY) -> None:
        if passes not in (1, 2):
            raise CiriError(f"The flow backbone makes 1 or 2 passes; got {passes!r}.")
        self.passes, self.memory = passes, memory

    def inpaint(self, frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Tensor:
        """See :class:`ciri.inpainting.base.Backbone`.

        Raises:
            OutOfMemoryError: the clip, or the segment that is worked on, does not fit; the message names the knobs.
        """
        height, width = frames.shape[2:]
        most = longest_segment(self.memory, height, width)
        with shortage_told(
            f"Memory ran out while the flow backbone filled {min(most, len(frames))} frames of {width}x{height}. Let "
            "the window follow the object (crop), inpaint at a lower resolution, or do a part of the clip at a time."
        ):
            filled = fill_in_segments(self._fill, frames.cpu(), inactivation.cpu(), most, on_step=on_step)
        return filled.to(frames.device)

    def _fill(self, frames: Tensor, inactivation: Tensor, on_step: OnStep) -> Tensor:
        candidates = propagate_pixels(frames, inactivation, passes=self.passes, on_step=part(on_step, 0.0, 0.7))
        return classical_fill(candidates, on_step=part(on_step, 0.7, 1.0))


def longest_segment(memory: int, height: int, width: int) -> int:
    """Return how many frames of a size may be worked on together with so many bytes."""
    return max(FEWEST, memory // (BYTES_PER_PIXEL * height * width))


def classical_fill(candidates: Candidates, *, on_step: OnStep = ignore) -> Tensor:
    """Fill every covered pixel of a clip.

    Pixels with a source are blended from both sides and joined seamlessly. What no frame shows is synthesised once,
    in the frame that misses most, and handed on from there to the other frames like any other pixel; only what
    enters the picture later is synthesised anew.

    Args:
        candidates: from :func:`ciri.flow.propagate.propagate_pixels`.
        on_step: called for every frame; may raise to stop.

    Returns:
        float32 (T, 3, H, W) in [0, 1] on the CPU; pixels that are not covered are those of the clip.
    """
    canvas = _Canvas(candidates)
    count = len(candidates.covered)
    missing = [int(canvas.nowhere(t).sum()) for t in range(count)]
    first = max(range(count), key=missing.__getitem__)
    result = candidates.frames.clone()
    waiting: deque[tuple[int, Future[Tensor]]] = deque()
    with helper() as submit:
        for done, t in enumerate([*range(first, count), *range(first - 1, -1, -1)]):
            known = t - 1 if t > first else t + 1 if t < first else None
            waiting.append((t, canvas.paint(t, known, any(missing), submit)))
            while len(waiting) > 1:
                finished, frame = waiting.popleft()
                result[finished] = frame.result()
            on_step(done + 1, count)
        for finished, frame in waiting:
            result[finished] = frame.result()
    return result


@dataclass(frozen=True)
class _Box:
    """The part of a frame around what is filled, with a rim: blending and seams need no more than that.

    Attributes:
        rows, columns: where it is in the frame.
        index: int64 (n,), flat indices of the covered pixels within the box.
    """

    rows: slice
    columns: slice
    index: Tensor

    @classmethod
    def around(cls, covered: Tensor, h: int, w: int) -> _Box:
        """The box of covered pixels, flat indices (n,) of an h x w frame; an empty box if there are none."""
        if not len(covered):
            return cls(slice(0, 0), slice(0, 0), covered)
        y, x = covered // w, covered % w
        rows = slice(max(int(y.min()) - RIM, 0), min(int(y.max()) + 1 + RIM, h))
        columns = slice(max(int(x.min()) - RIM, 0), min(int(x.max()) + 1 + RIM, w))
        return cls(rows, columns, (y - rows.start) * (columns.stop - columns.start) + x - columns.start)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def of(self, frame: Tensor) -> Tensor:
        """The box's part (..., h, w) of a frame, as a view."""
        return frame[..., self.rows, self.columns]


class _Canvas:
    """A clip being filled, frame by frame: what is known so far, and where each frame's pixels came from."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.h, self.w = candidates.frames.shape[2:]
        self.best: dict[int, Addresses] = {}
        self.painted: set[int] = set()

    def nowhere(self, t: int) -> Tensor:
        """Return bool (n,), the covered pixels of frame t that are hidden and that no other frame shows."""
        candidates = self.candidates
        unfound = (candidates.before[t].frame < 0) & (candidates.after[t].frame < 0)
        return unfound & ~candidates.visible[t].flatten()[candidates.covered[t]]

    def paint(self, t: int, known: int | None, remember: bool, submit: Submit) -> Future[Tensor]:
        """Return frame t (3, H, W), filled, as soon as its seams are joined.

        Args:
            t: the frame.
            known: the neighbouring frame that was painted before, from which synthesised pixels are handed on.
            remember: keep the addresses, for the next frame.
            submit: runs work in another thread. The next frame needs addresses, not colours, so it can be begun
                while this one's seams are solved, except where texture was synthesised from it.
        """
        index = self.candidates.covered[t]
        if not len(index):
            if remember:
                self._remember(t, known, index, [Addresses.nowhere(0)])
            return submit(self.candidates.frames[t].clone)
        sources = [self.candidates.before[t], self.candidates.after[t]]
        nowhere = self.nowhere(t)
        if known is not None and nowhere.any():
            sources.append(self._handed_on(t, known, index, nowhere))
        box = _Box.around(index, self.h, self.w)
        frame, hole, missing = self._blend(t, box, sources)
        mismatch = self._mismatch(t, box.of(frame), box, sources)
        hold = self._hold(t, box, sources)

        def join() -> Tensor:
            box.of(frame).add_(correction(*mismatch, hole, hold))
            if missing.any():
                everywhere = torch.zeros(self.h, self.w, dtype=torch.bool)
                box.of(everywhere).copy_(missing)
                return synthesise(frame, everywhere).clamp(0, 1)
            return frame.clamp(0, 1)

        painted = submit(join)
        if missing.any():
            lost = index[missing.view(-1)[box.index]]
            self.candidates.table.add(t, lost, painted.result().reshape(3, -1)[:, lost].T)
        if remember:
            self._remember(t, known, index, sources)
        return painted

    def _handed_on(self, t: int, known: int, index: Tensor, nowhere: Tensor) -> Addresses:
        """Return addresses for the pixels that no frame shows, from the painted neighbour."""
        flows = (self.candidates.forward, self.candidates.backward)
        flow, inverse = flows if known > t else flows[::-1]
        pair = min(t, known)
        result = Addresses.nowhere(len(index))
        result.put(nowhere, hand_over(index[nowhere], flow[pair], inverse[pair], self.best[known]))
        return result

    def _remember(self, t: int, known: int | None, index: Tensor, sources: list[Addresses]) -> None:
        shown = self.candidates.table.shown(t)
        best = Addresses.own(t, shown)
        hidden = ~shown.flatten()[index]
        weights = torch.stack([weight_of(source, t) for source in sources])
        choice = weights.argmax(0)
        pick = torch.arange(len(index))
        best.put(
            index[hidden],
            Addresses(
                torch.stack([s.frame for s in sources])[choice, pick][hidden],
                torch.stack([s.position for s in sources])[choice, pick][hidden],
                torch.stack([s.error for s in sources])[choice, pick][hidden],
            ),
        )
        self.best[t] = best
        self.painted.add(t)
        if known is not None and {known - 1, known + 1} <= self.painted:
            del self.best[known]  # nobody will ask for it again

    def _blend(self, t: int, box: _Box, sources: list[Addresses]) -> tuple[Tensor, Tensor, Tensor]:
        """Return frame t with the sources blended in, and bool, of the box: what was filled, and what has no source."""
        index = self.candidates.covered[t]
        frame = self.candidates.picture(t)
        colours, weight = self.candidates.blend(t, sources)
        found = weight > 0
        frame.view(3, -1)[:, index[found]] = colours[found].T
        missing, hole = torch.zeros(2, *box.size, dtype=torch.bool)
        missing.view(-1)[box.index] = ~found & ~self.candidates.visible[t].flatten()[index]
        if missing.any():  # the target must not be what the copied pixels are fitted to
            known = (~missing).to(frame)[None, None]
            box.of(frame).copy_(membrane(box.of(frame)[None], known, sweeps=3, finest_sweeps=1)[0])
        hole.view(-1)[box.index[found]] = True
        return frame, hole | missing, missing

    def _hold(self, t: int, box: _Box, sources: list[Addresses]) -> Tensor:
        """Return how firmly the box's pixels keep the colours that were copied, (h, w); 0 where none were."""
        trust = torch.stack([trust_of(source) for source in sources])
        weight = torch.stack([weight_of(source, t) for source in sources])
        mean = (trust * weight).sum(0) / weight.sum(0).clamp(min=1e-12)
        hold = torch.zeros(box.size)
        hold.view(-1)[box.index] = HOLD * mean.square()
        return hold

    def _mismatch(self, t: int, frame: Tensor, box: _Box, sources: list[Addresses]) -> tuple[Tensor, Tensor]:
        """Return wanted minus present differences to the right (3, h, w-1) and below (3, h-1, w), at the box's seams.

        Args:
            frame: float32 (3, h, w), the box's part of frame t.
        """
        h, w = box.size
        index = box.index
        seam_x, seam_y = self._seams(box, sources)
        at_seam = torch.zeros(h, w, dtype=torch.bool)
        at_seam[:, :-1] |= seam_x
        at_seam[:, 1:] |= seam_x
        at_seam[:-1] |= seam_y
        at_seam[1:] |= seam_y
        chosen = at_seam.view(-1)[index]
        at, count = index[chosen], int(chosen.sum())
        change, say = torch.zeros(4, count, 3), torch.zeros(4, count)
        for source in sources:
            colours, certain = self._sample(source.frame[chosen].expand(5, -1), source.position[chosen] + OFFSETS)
            weight = weight_of(source, t)[chosen] * (certain[0] & certain[1:])
            change += (colours[1:] - colours[0]) * weight[..., None]
            say += weight
        steps, weights = torch.zeros(4, 3, h * w), torch.zeros(4, 1, h * w)
        steps[..., at] = change.transpose(1, 2)
        weights[..., at] = say[:, None]
        steps, weights = steps.view(4, 3, h, w), weights.view(4, 1, h, w)

        def edges(near: int, far: int, axis: int, seam: Tensor) -> Tensor:
            """Average what the two ends of each edge say; an edge that neither end knows stays as it is."""
            length = seam.shape[axis - 1]
            wanted = steps[near].narrow(axis, 0, length) - steps[far].narrow(axis, 1, length)
            weight = weights[near].narrow(axis, 0, length) + weights[far].narrow(axis, 1, length)
            present = frame.diff(dim=axis)
            return (wanted / weight.clamp(min=1e-8) - present) * (seam & (weight > 0))

        return edges(0, 1, 2, seam_x), edges(2, 3, 1, seam_y)

    def _seams(self, box: _Box, sources: list[Addresses]) -> tuple[Tensor, Tensor]:
        """Return bool (h, w-1) and (h-1, w): between which neighbours the source frame changes, on either side."""
        h, w = box.size
        across = torch.zeros(h, max(w - 1, 0), dtype=torch.bool)
        down = torch.zeros(max(h - 1, 0), w, dtype=torch.bool)
        for source in sources:
            origin = torch.full((h * w,), -2)
            origin[box.index] = source.frame
            origin = origin.view(h, w)
            across |= origin.diff(dim=1) != 0
            down |= origin.diff(dim=0) != 0
        return across, down

    def _sample(self, frame: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return colours (5, s, 3), and bool (5, s): inside the frame, and made of visible pixels alone."""
        table = self.candidates.table
        colours, share = table.sample(frame.flatten(), position.flatten(0, 1))
        inside = ((position >= 0) & (position <= table.limit)).all(-1)
        return colours.view(5, -1, 3), inside & (share.view(5, -1) > 0.99)
