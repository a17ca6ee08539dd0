"""Following completed flow from a hidden pixel to the nearest frame, before or after, that shows what is behind.

Instead of warping pictures again and again (which blurs them a little more each time), every hidden pixel carries
the address of its source: a frame and a sub-pixel position in it. Addresses are handed from frame to frame in one
sweep per direction, and the source frame is sampled once, at the end.

Dimensions: t frames, n covered pixels of one frame, h w pixels. Positions and flows are (x, y) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ciri.flow.completion import complete_flow
from ciri.flow.dis import consistency, neighbour_flow
from ciri.frames import grow_mask
from ciri.progress import OnStep, ignore, part

#: Pixels above this are given a fill; paste-back blends by the map itself.
COVERED_ABOVE = 0.05
#: Pixels above this show the target, not the background, and are never a source.
HIDDEN_ABOVE = 0.5
#: Flow this close to the target is partly the target's own and is not believed, in pixels.
FLOW_MARGIN = 12
#: What a step along the flow is taken to miss even where both directions agree, in pixels.
DRIFT = 0.05


@dataclass
class Addresses:
    """Where n pixels of one frame come from.

    Attributes:
        frame: int64 (n,), the source frame; -1 where there is none.
        position: float32 (n, 2), (x, y) in the source frame.
        error: float32 (n,), how far the way there may have gone astray, in pixels.
    """

    frame: Tensor
    position: Tensor
    error: Tensor

    @classmethod
    def nowhere(cls, n: int) -> Addresses:
        """Addresses of n pixels without a source."""
        return cls(torch.full((n,), -1), torch.zeros(n, 2), torch.zeros(n))

    @classmethod
    def own(cls, frame: int, visible: Tensor) -> Addresses:
        """Addresses of all pixels of a frame: itself where ``visible`` (H, W), else nowhere."""
        h, w = visible.shape
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        where = torch.where(visible, frame, -1).flatten()
        return cls(where, torch.stack([x, y], -1).reshape(-1, 2).float(), torch.zeros(h * w))

    def put(self, index: Tensor, other: Addresses) -> None:
        """Overwrite the addresses at ``index``, in place."""
        self.frame[index], self.position[index], self.error[index] = other.frame, other.position, other.error


@dataclass
class Copied:
    """Pixels of one frame as another frame shows them, as dense pictures.

    Attributes:
        colours: float32 (3, H, W); 0 where nothing was found.
        distance: float32 (1, H, W), in frames; 0 where nothing was found.
        trust: float32 (1, H, W) in [0, 1]; 0 where nothing was found.
    """

    colours: Tensor
    distance: Tensor
    trust: Tensor

    @property
    def valid(self) -> Tensor:
        """bool (1, H, W), where a source was found."""
        return self.distance > 0


@dataclass
class Candidates:
    """What a clip knows about its own hidden pixels.

    Held sparsely: memory grows with the number of covered pixels, not with the number of pixels.

    Attributes:
        frames: float32 (T, 3, H, W), the input, on the CPU.
        covered: per frame, int64 (n,), flat indices of the pixels that are to be filled.
        before: per frame, their sources in the past.
        after: per frame, their sources in the future.
        forward: float32 (T-1, 2, H, W), completed flow t -> t + 1.
        backward: float32 (T-1, 2, H, W), completed flow t + 1 -> t.
    """

    frames: Tensor
    covered: list[Tensor]
    before: list[Addresses]
    after: list[Addresses]
    forward: Tensor
    backward: Tensor

    def copied(self, t: int, side: str) -> Copied:
        """Return what the past (``side`` = "before") or the future ("after") shows of frame t's covered pixels."""
        source = (self.before if side == "before" else self.after)[t]
        _, _, h, w = self.frames.shape
        colours, distance, trust = torch.zeros(3, h * w), torch.zeros(1, h * w), torch.zeros(1, h * w)
        found = source.frame >= 0
        index = self.covered[t][found]
        colours[:, index] = sample(self.frames, source)[found].T
        distance[0, index] = (source.frame[found] - t).abs().float()
        trust[0, index] = trust_of(source)[found]
        return Copied(colours.reshape(3, h, w), distance.reshape(1, h, w), trust.reshape(1, h, w))


def trust_of(source: Addresses) -> Tensor:
    """Return float32 (n,) in [0, 1]: how likely the address is right, from how far it may have gone astray."""
    return torch.where(source.frame >= 0, 1 / (1 + source.error.square()), torch.zeros(()))


def propagate_pixels(frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Candidates:
    """Find, for every covered pixel, where the nearest frames before and after show what is behind the target.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        inactivation: float32 (T, 1, H, W) in [0, 1]; above :data:`COVERED_ABOVE` a pixel gets candidates, above
            :data:`HIDDEN_ABOVE` it cannot be one.
        on_step: called for every frame of every pass; may raise to stop.
    """
    frames, inactivation = frames.cpu(), inactivation.cpu()
    forward, backward = neighbour_flow(frames, on_step=part(on_step, 0.0, 0.7))
    complete_neighbour_flow(forward, backward, inactivation, on_step=part(on_step, 0.7, 0.8))
    covered = [torch.nonzero(m.flatten() > COVERED_ABOVE).flatten() for m in inactivation]
    visible = inactivation[:, 0] <= HIDDEN_ABOVE
    after = follow(forward, backward, visible, covered, ahead=True, on_step=part(on_step, 0.8, 0.9))
    before = follow(backward, forward, visible, covered, ahead=False, on_step=part(on_step, 0.9, 1.0))
    return Candidates(frames, covered, before, after, forward, backward)


def complete_neighbour_flow(
    forward: Tensor, backward: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore
) -> None:
    """Complete both flows inside the inactivation map, in place, pair by pair."""
    for t in range(len(forward)):
        pair = slice(t, t + 1)
        there, back = forward[pair].clone(), backward[pair].clone()
        for flow, inverse, frame, target in ((there, back, t, forward), (back, there, t + 1, backward)):
            hole = inactivation[frame : frame + 1]
            if hole.any():
                wide = grow_mask((hole > COVERED_ABOVE).float(), FLOW_MARGIN)
                target[pair] = torch.lerp(flow, complete_flow(flow, wide, consistency(flow, inverse)), wide)
        on_step(t + 1, len(forward))


def follow(
    flow: Tensor, inverse: Tensor, visible: Tensor, covered: list[Tensor], *, ahead: bool, on_step: OnStep = ignore
) -> list[Addresses]:
    """Hand addresses from frame to frame in one sweep; returns them per frame, for its covered pixels.

    Args:
        flow: float32 (T-1, 2, H, W), forward if ``ahead`` (sources in the future), else backward.
        inverse: the other one.
        visible: bool (T, H, W), pixels that are their own source.
        covered: per frame, the flat indices of the pixels to find a source for.
    """
    count, h, w = visible.shape
    order = range(count - 1, -1, -1) if ahead else range(count)
    result = [Addresses.nowhere(len(index)) for index in covered]
    neighbour: Addresses | None = None
    for done, t in enumerate(order):
        if neighbour is not None and len(covered[t]):
            pair = t if ahead else t - 1
            result[t] = _step(covered[t], flow[pair], inverse[pair], neighbour)
        neighbour = Addresses.own(t, visible[t])
        hidden = ~visible[t].flatten()[covered[t]]
        found = result[t]
        neighbour.put(covered[t][hidden], Addresses(found.frame[hidden], found.position[hidden], found.error[hidden]))
        on_step(done + 1, count)
    return result


def _step(index: Tensor, flow: Tensor, inverse: Tensor, neighbour: Addresses) -> Addresses:
    """Follow the flow for one frame and take over the address found there."""
    _, h, w = flow.shape
    start = torch.stack([index % w, index // w], -1).float()
    motion = flow.reshape(2, -1)[:, index].T
    there = start + motion
    limit = torch.tensor([w - 1, h - 1]).float()
    inside = ((there >= -0.5) & (there <= limit + 0.5)).all(-1)
    there = there.clamp(min=torch.zeros(2), max=limit)
    corners, weights = bilinear(there, h, w)
    nearest = there.round().long()
    flat = nearest[:, 1] * w + nearest[:, 0]
    source = neighbour.frame[flat]
    # where all four neighbours come from one frame their positions interpolate exactly; across a seam between
    # two source frames the nearest one's is shifted along
    same = (neighbour.frame[corners] == source[:, None]).all(1)
    between = (neighbour.position[corners] * weights[..., None]).sum(1)
    shifted = neighbour.position[flat] + there - nearest
    back = (inverse.reshape(2, -1).T[corners] * weights[..., None]).sum(1)
    astray = (motion + back).norm(dim=-1) + DRIFT
    return Addresses(
        torch.where(inside, source, -1),
        torch.where(same[:, None], between, shifted),
        neighbour.error[flat] + astray,
    )


def bilinear(points: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Return the flat indices (n, 4) and the weights (n, 4) of the pixels around points (n, 2) inside the frame."""
    low = torch.minimum(points.floor().long(), torch.tensor([max(w - 2, 0), max(h - 2, 0)]))
    part_x, part_y = (points - low).unbind(-1)
    right, down = int(w > 1), w * int(h > 1)
    flat = low[:, 1] * w + low[:, 0]
    corners = torch.stack([flat, flat + right, flat + down, flat + down + right], 1)
    weights = torch.stack(
        [(1 - part_x) * (1 - part_y), part_x * (1 - part_y), (1 - part_x) * part_y, part_x * part_y], 1
    )
    return corners, weights


def sample(frames: Tensor, source: Addresses) -> Tensor:
    """Return float32 (n, C), the colours at the addresses, bilinearly; what -1 addresses give does not matter."""
    count, channels, h, w = frames.shape
    limit = torch.tensor([w - 1, h - 1]).float()
    corners, weights = bilinear(source.position.clamp(min=torch.zeros(2), max=limit), h, w)
    planes = frames.reshape(count, channels, h * w)
    frame = source.frame.clamp(min=0)[:, None].expand_as(corners)
    return torch.einsum("nkc,nk->nc", planes[frame, :, corners], weights)
