"""The classical backbone: what is hidden now was, or will be, visible in another frame.

Dimensions: t frames, n covered pixels of one frame, s seam pixels among them, h w pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch
from torch import Tensor

from ciri.flow.completion import membrane
from ciri.flow.propagate import Addresses, Candidates, hand_over, propagate_pixels, weight_of
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.seam import correction
from ciri.inpainting.texture import synthesise
from ciri.parallel import helper
from ciri.progress import OnStep, ignore, part

Submit = Callable[[Callable[[], Tensor]], Future[Tensor]]

#: A pixel and its neighbours to the right, to the left, below and above, (5, 1, 2).
OFFSETS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])[:, None]


class FlowBackbone:
    """Copies hidden pixels along completed optical flow, and fills what no frame shows from the texture around it."""

    name = "flow"
    facts = BackboneFacts()

    def inpaint(self, frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Tensor:
        """See :class:`ciri.inpainting.base.Backbone`."""
        candidates = propagate_pixels(frames, inactivation, on_step=part(on_step, 0.0, 0.7))
        return classical_fill(candidates, on_step=part(on_step, 0.7, 1.0)).to(frames.device)


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


class _Canvas:
    """A clip being filled, frame by frame: what is known so far, and where each frame's pixels came from."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.h, self.w = candidates.frames.shape[2:]
        self.best: dict[int, Addresses] = {}

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
        sources = [self.candidates.before[t], self.candidates.after[t]]
        nowhere = self.nowhere(t)
        if known is not None and nowhere.any():
            sources.append(self._handed_on(t, known, index, nowhere))
        frame, hole, missing = self._blend(t, index, sources)
        mismatch = self._mismatch(t, frame, index, sources)

        def join() -> Tensor:
            joined = frame + correction(*mismatch, hole)
            return (synthesise(joined, missing) if missing.any() else joined).clamp(0, 1)

        painted = submit(join)
        if missing.any():
            lost = torch.nonzero(missing.flatten()).flatten()
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
        if known is not None and known - 1 in self.best and known + 1 in self.best:
            del self.best[known]  # both its neighbours are painted

    def _blend(self, t: int, index: Tensor, sources: list[Addresses]) -> tuple[Tensor, Tensor, Tensor]:
        """Return frame t with the sources blended in, and bool (H, W): what was filled, and what has no source."""
        frame = self.candidates.frames[t].clone()
        colours, weight = self.candidates.blend(t, sources)
        found = weight > 0
        frame.view(3, -1)[:, index[found]] = colours[found].T
        missing, hole = torch.zeros(2, self.h, self.w, dtype=torch.bool)
        missing.view(-1)[index] = ~found & ~self.candidates.visible[t].flatten()[index]
        if missing.any():  # the target must not be what the copied pixels are fitted to
            known = (~missing).to(frame)[None, None]
            frame = membrane(frame[None], known, sweeps=3, finest_sweeps=1)[0]
        hole.view(-1)[index[found]] = True
        return frame, hole | missing, missing

    def _mismatch(self, t: int, frame: Tensor, index: Tensor, sources: list[Addresses]) -> tuple[Tensor, Tensor]:
        """Return wanted minus present differences to the right (3, H, W-1) and below (3, H-1, W), at the seams."""
        seam_x, seam_y = self._seams(index, sources)
        at_seam = torch.zeros(self.h, self.w, dtype=torch.bool)
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
        steps = torch.zeros(4, 3, self.h * self.w)
        weights = torch.zeros(4, 1, self.h * self.w)
        steps[..., at] = change.transpose(1, 2)
        weights[..., at] = say[:, None]
        steps, weights = steps.view(4, 3, self.h, self.w), weights.view(4, 1, self.h, self.w)

        def edges(near: int, far: int, axis: int, seam: Tensor) -> Tensor:
            """Average what the two ends of each edge say; an edge that neither end knows stays as it is."""
            length = seam.shape[axis - 1]
            wanted = steps[near].narrow(axis, 0, length) - steps[far].narrow(axis, 1, length)
            weight = weights[near].narrow(axis, 0, length) + weights[far].narrow(axis, 1, length)
            present = frame.diff(dim=axis)
            return (wanted / weight.clamp(min=1e-8) - present) * (seam & (weight > 0))

        return edges(0, 1, 2, seam_x), edges(2, 3, 1, seam_y)

    def _seams(self, index: Tensor, sources: list[Addresses]) -> tuple[Tensor, Tensor]:
        """Return bool (H, W-1) and (H-1, W): between which neighbours the source frame changes, on either side."""
        across = torch.zeros(self.h, self.w - 1, dtype=torch.bool)
        down = torch.zeros(self.h - 1, self.w, dtype=torch.bool)
        for source in sources:
            origin = torch.full((self.h * self.w,), -2)
            origin[index] = source.frame
            origin = origin.view(self.h, self.w)
            across |= origin.diff(dim=1) != 0
            down |= origin.diff(dim=0) != 0
        return across, down

    def _sample(self, frame: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return colours (5, s, 3), and bool (5, s): inside the frame, and made of visible pixels alone."""
        table = self.candidates.table
        colours, share = table.sample(frame.flatten(), position.flatten(0, 1))
        inside = ((position >= 0) & (position <= table.limit)).all(-1)
        return colours.view(5, -1, 3), inside & (share.view(5, -1) > 0.99)
