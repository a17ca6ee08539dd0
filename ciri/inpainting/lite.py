"""The backbone ``lite``: copying along the flow, and a small trained network that repairs and completes it.

Copying needs the whole clip, or a long segment of it; the network sees one frame at a time, and of that the part around
what is filled. Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ciri.checkpoints import load_strictly
from ciri.flow.propagate import COVERED_ABOVE, HIDDEN_ABOVE
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.flow import MEMORY, longest_segment
from ciri.inpainting.lite_guidance import Copies, Guidance, find_copies, guidance
from ciri.inpainting.lite_network import MULTIPLE, REACH, LiteConfig, LiteNetwork
from ciri.inpainting.segments import fill_in_segments
from ciri.out_of_memory import BeforeRun, nothing
from ciri.own_weights import build_from_header, read_own
from ciri.precision import choose_dtype
from ciri.progress import OnStep, ignore, part

#: What the header of the weight file calls this network.
ARCHITECTURE = "backbone_lite"
#: The weights that ship with the pack.
SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "backbone_lite.safetensors"


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
        self.facts = BackboneFacts(needs_divisible_by=MULTIPLE, trained_for=trained_for)

    def inpaint(self, frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Tensor:
        """See :class:`ciri.inpainting.base.Backbone`."""
        height, width = frames.shape[2:]
        self.before_run(height, width)
        most = longest_segment(self.memory, height, width)
        filled = fill_in_segments(self._fill, frames.cpu(), inactivation.cpu(), most, on_step=on_step)
        return filled.to(frames.device)

    def _fill(self, frames: Tensor, inactivation: Tensor, on_step: OnStep) -> Tensor:
        """Fill one segment of a clip, all on the CPU."""
        copies = find_copies(frames, inactivation, on_step=part(on_step, 0.0, 0.7))
        steps = part(on_step, 0.7, 1.0)
        for t in range(len(frames)):
            self._repair(copies, inactivation, t)
            steps(t + 1, len(frames))
        return copies.fill

    @torch.no_grad()
    def _repair(self, copies: Copies, inactivation: Tensor, t: int) -> None:
        """Write what the network makes of frame t's covered pixels over the classical fill."""
        covered = inactivation[t, 0] > COVERED_ABOVE
        box = around(covered)
        if box is None:
            return
        rows, columns = box
        frame, mask = (x[None, t : t + 1, :, rows, columns] for x in (copies.candidates.frames, inactivation))
        if not self.network.config.gate:
            mask = (mask > HIDDEN_ABOVE).float()
        guide = guidance(copies, [t])
        inputs = Guidance(*(getattr(guide, name)[None, ..., rows, columns] for name in guide.__dataclass_fields__))
        with self._precision():
            filled = self.network(frame.to(self.device), inputs.to(self.device), mask.to(self.device))[0, 0]
        target = copies.fill[t, :, rows, columns]
        torch.where(covered[rows, columns], filled.float().clamp(0, 1).cpu(), target, out=target)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def around(covered: Tensor) -> tuple[slice, slice] | None:
    """Rows and columns of the part around covered pixels that bears on them; None where nothing is covered.

    Args:
        covered: bool (h, w), sides multiples of :data:`ciri.inpainting.lite_network.MULTIPLE`.
    """
    sides = []
    for axis in (0, 1):
        (places,) = torch.nonzero(covered.any(1 - axis), as_tuple=True)
        if not len(places):
            return None
        # on the network's grid: a part is filled as it is in the whole frame
        start = max(int(places[0]) - REACH, 0) // MULTIPLE * MULTIPLE
        stop = min(-(-(int(places[-1]) + 1 + REACH) // MULTIPLE) * MULTIPLE, covered.shape[axis])
        sides.append(slice(start, stop))
    return sides[0], sides[1]


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
    network = build_from_header(lambda **sizes: LiteNetwork(LiteConfig(**sizes)), metadata, path, "train backbone")
    load_strictly(network, state, model=ARCHITECTURE, path=path)
    return LiteBackbone(network, device=device, precision=precision)
