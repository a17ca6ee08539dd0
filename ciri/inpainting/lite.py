"""The backbone ``lite``: copying along the flow, and a small trained network that repairs and completes it.

Works through a clip in overlapping windows, so that memory does not grow with its length apart from input, output
and the addresses of the copies. Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ciri.checkpoints import load_strictly, read_state_dict
from ciri.errors import CheckpointError
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.lite_guidance import Copies, Guidance, find_copies, guidance
from ciri.inpainting.lite_network import MULTIPLE, LiteConfig, LiteNetwork
from ciri.precision import choose_dtype
from ciri.progress import OnStep, ignore, part

#: The weights that ship with the pack.
SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "backbone_lite.safetensors"
#: Frames per window, and frames that neighbouring windows share.
WINDOW, OVERLAP = 16, 6


class LiteBackbone:
    """The network over windows of a clip.

    Args:
        network: trained weights.
        precision: "auto", "fp32", "bf16" or "fp16".
    """

    name = "lite"

    def __init__(self, network: LiteNetwork, *, device: torch.device | str = "cpu", precision: str = "auto") -> None:
        self.device = torch.device(device)
        self.dtype = choose_dtype(precision, self.device)
        self.network = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.network.requires_grad_(False)
        trained_for = "inactivation" if network.config.gate else "hard mask"
        self.facts = BackboneFacts(needs_divisible_by=MULTIPLE, trained_for=trained_for)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> list[Tensor]:
        """Features (T, C, H/2^k, W/2^k) of frames (T, 3, H, W) before inactivation, fine to coarse."""
        with self._precision():
            return [scale.float() for scale in self.network.encode(frames.to(self.device))]

    @torch.no_grad()
    def inpaint(self, frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Tensor:
        """See :class:`ciri.inpainting.base.Backbone`."""
        copies = find_copies(frames, inactivation, on_step=part(on_step, 0.0, 0.6))
        result = torch.empty_like(frames)
        steps = part(on_step, 0.6, 1.0)
        done = 0
        for window, shared in windows(len(frames)):
            filled = self._fill(copies, inactivation, window)
            # frames that the window before filled too fade from one to the other
            weight = (torch.arange(1, shared + 1) / (shared + 1)).reshape(-1, 1, 1, 1).to(filled)
            head = result[window.start : window.start + shared]
            result[window.start : window.start + shared] = torch.lerp(head, filled[:shared], weight)
            result[window.start + shared : window.stop] = filled[shared:]
            done = window.stop
            steps(done, len(frames))
        return result

    def _fill(self, copies: Copies, inactivation: Tensor, window: range) -> Tensor:
        """Run the network on one window; returns (t, 3, h, w) in [0, 1] on the device of the clip."""
        frames = copies.candidates.frames[window.start : window.stop]
        mask = inactivation[window.start : window.stop]
        guide = guidance(copies, window).to(self.device)
        batched = Guidance(*(getattr(guide, name)[None] for name in guide.__dataclass_fields__))
        with self._precision():
            filled = self.network(frames[None].to(self.device), batched, mask[None].to(self.device))[0]
        return filled.float().clamp(0, 1).to(inactivation.device)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def windows(count: int, length: int = WINDOW, overlap: int = OVERLAP) -> Iterator[tuple[range, int]]:
    """Yield (frames, how many of them the window before held too) so that every frame is in a window.

    All windows are of one length (or the clip's, if it is shorter); the last one reaches back as far as it has to.
    """
    length = min(length, count)
    start, end = 0, 0
    while end < count:
        start = min(start, count - length)
        yield range(start, start + length), end - start if end else 0
        end = start + length
        start = end - overlap


def load_lite(
    path: str | os.PathLike[str] = SHIPPED, *, device: torch.device | str = "cpu", precision: str = "auto"
) -> LiteBackbone:
    """Load trained weights.

    Raises:
        CheckpointError: unreadable, or not weights of this network.
    """
    state, metadata = read_state_dict(path)
    try:
        config = LiteConfig(**json.loads(metadata["config"]))
        network = LiteNetwork(config)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{os.fspath(path)} does not hold weights of the backbone lite (its header says no sizes); "
            "expected a file that 'python -m ciri train backbone' wrote."
        ) from error
    load_strictly(network, state, model="lite backbone", path=path)
    return LiteBackbone(network, device=device, precision=precision)
