"""The backbone ``lite``: copying along the flow, and a small trained network that repairs and completes it.

Copying needs the whole clip, or a long segment of it; the network sees one frame at a time, and of that the part around
what is filled. Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ciri.checkpoints import load_strictly
from ciri.flow.propagate import COVERED_ABOVE, HIDDEN_ABOVE
from ciri.frames import Box, extent
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.flow import MEMORY, longest_segment
from ciri.inpainting.lite_guidance import Copies, Guidance, find_copies, guidance
from ciri.inpainting.lite_network import MULTIPLE, REACH, LiteConfig, LiteNetwork
from ciri.inpainting.segments import fill_in_segments
from ciri.out_of_memory import BeforeRun, nothing, repeat_smaller, shortage_told
from ciri.own_weights import build_from_header, read_own
from ciri.precision import choose_dtype
from ciri.progress import OnStep, ignore, part

#: What the header of the weight file calls this network.
ARCHITECTURE = "backbone_lite"
#: The weights that ship with the pack.
SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "backbone_lite.safetensors"
#: Rows and columns that are filled at once where memory is short; with less, nearly all of the work is on the margin.
LEAST_TILE = 2 * MULTIPLE


class LiteBackbone:
    """Copies along the flow, chosen and corrected by the network.

    Args:
        network: trained weights.
        precision: "auto", "fp32", "bf16" or "fp16".
        memory: bytes that may be used besides the clip and the result, as in
            :class:`ciri.inpainting.flow.FlowBackbone`.

    Attributes:
        before_run: called with the height and width of the frames before a run; may free memory for it.
    """

    name = "lite"

    def __init__(
        self,
        network: LiteNetwork,
        *,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        memory: int = MEMORY,
    ) -> None:
        self.memory = memory
        self.before_run: BeforeRun = nothing
        self.device = torch.device(device)
        self.dtype = choose_dtype(precision, self.device)
        self.network = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.network.requires_grad_(False)
        trained_for = "inactivation" if network.config.gate else "hard mask"
        self.facts = BackboneFacts(needs_divisible_by=MULTIPLE, trained_for=trained_for, needs_background=True)

    def inpaint(self, frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Tensor:
        """See :class:`ciri.inpainting.base.Backbone`.

        Raises:
            OutOfMemoryError: even the smallest part of a frame does not fit; the message names the knobs.
        """
        height, width = frames.shape[2:]
        self.before_run(height, width)
        most, fill = longest_segment(self.memory, height, width), partial(self._fill, tiling=Tiling())
        with shortage_told(
            f"Memory ran out while {self.name} filled {width}x{height} frames, even in small parts. Let the window "
            "follow the object (crop), or inpaint at a lower resolution."
        ):
            filled = fill_in_segments(fill, frames.cpu(), inactivation.cpu(), most, on_step=on_step)
        return filled.to(frames.device)

    def _fill(self, frames: Tensor, inactivation: Tensor, on_step: OnStep, *, tiling: Tiling) -> Tensor:
        """Fill one segment of a clip, all on the CPU."""
        copies = find_copies(frames, inactivation, on_step=part(on_step, 0.0, 0.7))
        steps = part(on_step, 0.7, 1.0)
        for t in range(len(frames)):
            self._repair(copies, inactivation, t, tiling)
            steps(t + 1, len(frames))
        return copies.fill

    @torch.no_grad()
    def _repair(self, copies: Copies, inactivation: Tensor, t: int, tiling: Tiling) -> None:
        """Write what the network makes of frame t's covered pixels over the classical fill."""
        covered = inactivation[t, 0] > COVERED_ABOVE
        if not covered.any():
            return
        frame, mask = (x[None, t : t + 1] for x in (copies.candidates.frames, inactivation))
        if not self.network.config.gate:
            mask = (mask > HIDDEN_ABOVE).float()
        guide = guidance(copies, [t])

        def work() -> list[Tensor]:
            return [self._filled(frame, guide, mask, around(tile)) for tile in tiling.tiles(covered)]

        # written when all is there: a tile that fails must find the fill as it was
        found = repeat_smaller(work, partial(tiling.halve, covered))
        for tile, filled in zip(tiling.tiles(covered), found, strict=True):
            rows, columns = around(tile)
            target = copies.fill[t, :, rows, columns]
            torch.where(tile[rows, columns], filled, target, out=target)

    def _filled(self, frame: Tensor, guide: Guidance, mask: Tensor, box: Box) -> Tensor:
        """Run the network on a part of a frame; returns (3, h, w) in [0, 1], on the CPU."""
        rows, columns = box
        inputs = Guidance(*(getattr(guide, name)[None, ..., rows, columns] for name in guide.__dataclass_fields__))
        frame, mask = (x[..., rows, columns].to(self.device) for x in (frame, mask))
        with self._precision():
            filled = self.network(frame, inputs.to(self.device), mask)[0, 0]
        return filled.float().clamp(0, 1).cpu()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class Tiling:
    """In how large parts the covered pixels of a frame are filled; what has become small stays so for a run.

    Each is filled from :data:`ciri.inpainting.lite_network.REACH` pixels around it, as all of them together are, so
    smaller ones change next to nothing in what comes out.
    """

    def __init__(self) -> None:
        self.side: int | None = None

    def tiles(self, covered: Tensor) -> Iterator[Tensor]:
        """Split covered pixels, bool (h, w), into parts of at most that many rows and columns; none is empty."""
        if self.side is None:
            yield covered
            return
        # from the network's grid, so that no part needs more around it than it has to
        rows, columns = (range(x.start // MULTIPLE * MULTIPLE, x.stop, self.side) for x in extent(covered))
        for top in rows:
            for left in columns:
                tile, place = torch.zeros_like(covered), (slice(top, top + self.side), slice(left, left + self.side))
                tile[place] = covered[place]
                if tile.any():
                    yield tile

    def halve(self, covered: Tensor) -> bool:
        """Halve the parts that these covered pixels are filled in; False if they were as small as is of use."""
        longest = max(side.stop - side.start for side in extent(covered))
        before = longest if self.side is None else min(self.side, longest)
        self.side = max(LEAST_TILE, -(-before // (2 * MULTIPLE)) * MULTIPLE)
        return before > LEAST_TILE


def around(covered: Tensor) -> Box:
    """Rows and columns of the part around covered pixels that bears on them.

    Args:
        covered: bool (h, w), sides multiples of :data:`ciri.inpainting.lite_network.MULTIPLE`; not all of it false.
    """
    # on the network's grid: a part is filled as it is in the whole frame
    return extent(covered, REACH, MULTIPLE)


def load_lite(
    path: str | os.PathLike[str] | None = None, *, device: torch.device | str = "cpu", precision: str = "auto"
) -> LiteBackbone:
    """Load trained weights.

    Args:
        path: a file of ``python -m ciri train backbone``; None: the weights that ship with the pack.
        device, precision: as :class:`LiteBackbone` takes them.

    Raises:
        CheckpointError: unreadable, or not weights of this network.
    """
    path = SHIPPED if path is None else path
    state, metadata = read_own(path, ARCHITECTURE, "train backbone")
    network = build_from_header(
        lambda **sizes: LiteNetwork(LiteConfig(**sizes)), state, metadata, path, "train backbone"
    )
    load_strictly(network, state, model=ARCHITECTURE, path=path)
    return LiteBackbone(network, device=device, precision=precision)
