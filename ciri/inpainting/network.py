"""What the window driver asks of a published inpainting network, and what all of them share.

The published programs mask the frames, then encode, transform and decode whole windows of local (neighbouring) and
reference (distant) frames, again and again. Here the parts are apart, so that the driver encodes each frame once,
computes each neighbouring flow once, gates the cached features as often as masks change (CIRI Eq. 1), and decodes
local frames only::

    features = network.encode(frames)                          # once per frame, not gated
    flows = network.flows(masked[:-1], masked[1:])             # once per pair of neighbours, if network.uses_flow
    gated = network.gate(features, inactivation)               # Eq. 1, cheap
    output = network.decode_window(gated[window][None], local, flows[pairs][None])

Everything is differentiable from the inactivation map (and the masks that the caller multiplied into the frames) to
the output.

Dimensions: N frames, B windows of T frames each, the first L of them local, C channels, H W pixels, h w features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor, nn

from ciri.errors import ClipError
from ciri.frames import as_pair
from ciri.inactivation.gate import area_average
from ciri.inpainting.base import BackboneFacts

#: Encoder activations by gate point, fine to coarse: "half" (1/2 of the frame), "x0" (1/4, small receptive field),
#: "out" (1/4, what the transformer reads). A network without one of them leaves it out.
Features = dict[str, Tensor]

Stage = Callable[[Tensor], Tensor]

#: The frame size that ``chunk`` counts in.
CHUNK_PIXELS = 240 * 432


class WindowNetwork(nn.Module):
    """Base of the networks that the window driver runs. Frames are (.., 3, H, W) in [-1, 1], 0 is the hole's grey.

    A network gives :meth:`stages` and :meth:`decode_window`, and :meth:`flows` if it uses flow.

    Attributes:
        name: short name, as in ``ciri.signatures``.
        facts: sizes, training and licence of the published weights.
        uses_flow: whether :meth:`decode_window` needs flows.
        gate_points: where Eq. 1 acts, a subset of the stages' names. Stored with weights trained for inactivation.
        chunk: frames of 432 x 240 pixels, or as much of other sizes, that are worked on at a time. Less is less memory
            and the same result.
        precision: dtype of convolutions and matrix products; what needs it stays float32.
    """

    name: ClassVar[str]
    facts: ClassVar[BackboneFacts]
    uses_flow: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.gate_points: tuple[str, ...] = ("out",)
        self.chunk = 8
        self.precision = torch.float32

    def stages(self) -> Mapping[str, Stage]:
        """The encoder cut at its gate points, in order: the first stage takes frames, the last one ends in "out"."""
        raise NotImplementedError

    def decode_window(self, features: Tensor, local: int, flows: Tensor | None = None) -> Tensor:
        """Fill the local frames of windows.

        Args:
            features: (B, T, C, h, w), gated or not, of each window's frames: the local ones in order, then references.
            local: L, how many of the T frames are local.
            flows: (B, L - 1, 2, 2, h, w) as :meth:`flows` gives them, between neighbouring local frames.

        Returns:
            float32 (B, L, 3, H, W) in (-1, 1).
        """
        raise NotImplementedError

    def flows(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow between pairs of neighbouring frames, (N, 3, H, W) each, in which holes are grey.

        Returns:
            float32 (N, 2, 2, h, w): [:, 0] from the first frame to the second, [:, 1] back; (dx, dy) in feature pixels.
        """
        raise NotImplementedError

    def encode(self, frames: Tensor) -> Features:
        """Encode frames (N, 3, H, W), each on its own and not gated.

        Returns:
            Activations (N, C, h, w) in the network's precision: "out", and whatever :meth:`gate` needs for the
            network's gate points.

        Raises:
            ClipError: frames of a size that the network does not take.
        """
        self.check_size(frames.shape[2], frames.shape[3])
        with self.autocast(frames.device):
            parts = [self._encode_some(part) for part in frames.split(self.at_once(*frames.shape[2:]))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _encode_some(self, frames: Tensor) -> Features:
        x, kept = channels_last(frames), Features()
        for name, stage in self.stages().items():
            x = stage(x)
            if name in self.gate_points or name == "out":
                kept[name] = x
        return kept

    def gate(
        self, features: Features, inactivation: Tensor | Mapping[str, Tensor], fill: Features | None = None
    ) -> Tensor:
        """Return the encoder's output "out" (N, C, h, w) as it is after the gates: (1 - M) F + M fill.

        Args:
            features: as :meth:`encode` returns them.
            inactivation: M_iac (N, 1, H, W) in [0, 1], averaged over each feature's area; or one map per gate point.
            fill: what takes the place of the inactivated features: nothing (Eq. 1), or the features of the frames
                with a grey hole, ``encode(frames * (1 - mask))``: that is the training-free blend, which equals what
                hard masking gives inside the hole and far from it.
        """
        x: Tensor | None = None
        with self.autocast(features["out"].device):
            for name, stage in self.stages().items():
                if x is not None:
                    x = torch.cat([stage(part) for part in x.split(self.at_once(4 * x.shape[2], 4 * x.shape[3]))])
                elif name in self.gate_points:
                    x = features[name]
                if name in self.gate_points and x is not None:
                    given = inactivation if isinstance(inactivation, Tensor) else inactivation[name]
                    weight = area_average(given, x.shape[-2:]).to(x.dtype)
                    x = x * (1 - weight) if fill is None else torch.lerp(x, fill[name].to(x.dtype), weight)
        return features["out"] if x is None else x

    def check_size(self, height: int, width: int) -> None:
        """Refuse frames that would fail deep inside.

        Raises:
            ClipError: says which sizes the network takes.
        """
        fixed, (rows, columns) = self.facts.fixed_size, as_pair(self.facts.needs_divisible_by)
        if fixed is not None and fixed != (height, width):
            wanted = f"{fixed[1]}x{fixed[0]} only"
        elif height % rows or width % columns:
            wanted = f"widths that are multiples of {columns} and heights that are multiples of {rows}"
        else:
            return
        raise ClipError(f"{self.name} takes {wanted}, and got {width}x{height}; resize or pad the frames first.")

    def at_once(self, height: int, width: int) -> int:
        """How many frames of this size are worked on at a time; at least one."""
        return max(1, self.chunk * CHUNK_PIXELS // (height * width))

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Run convolutions and matrix products in the network's precision."""
        return torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32)


def channels_last(x: Tensor) -> Tensor:
    """The same images (N, C, H, W) with the channels innermost in memory, which convolutions like best."""
    return x.contiguous(memory_format=torch.channels_last)


def in_chunks(function: Stage, x: Tensor, size: int) -> Tensor:
    """Apply a function that treats every item of the first axis alike to a few items at a time."""
    return function(x) if len(x) <= size else torch.cat([function(part) for part in x.split(size)])


def parts_of(network: WindowNetwork) -> Iterator[nn.Module]:
    """The children of a network, and those of its lists of blocks one by one."""
    for child in network.children():
        yield from child.children() if isinstance(child, nn.ModuleList) else [child]
