"""torch.compile for the published networks: part by part, so that what repeats is compiled once.

The first run of every shape takes minutes, later ones are faster, mostly on a GPU. Nothing else changes: names of
weights, gradients, progress and interrupts stay as they are.
"""

from __future__ import annotations

import torch

from ciri.errors import CiriError
from ciri.inpainting.network import WindowNetwork, parts_of


def compile_parts(network: WindowNetwork, device: torch.device) -> None:
    """Have every part of a network compiled when it first runs.

    Args:
        network: on its device; changed in place.
        device: where it runs.

    Raises:
        CiriError: torch.compile does not work here.
    """
    check_compiler(device)
    for part in parts_of(network):
        # the forward alone, not the module: hooks, by which the driver can be interrupted, stay outside
        part.forward = torch.compile(part.forward)


def check_compiler(device: torch.device) -> None:
    """Compile next to nothing, so that a missing compiler is told now and not in the middle of a run.

    Raises:
        CiriError: it does not work.
    """
    try:
        torch.compile(torch.sin, fullgraph=True)(torch.zeros(2, device=device))
    except Exception as error:
        needs = "Triton (on Windows: the package triton-windows)" if device.type == "cuda" else "a C++ compiler"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CiriError(
            f"torch.compile does not work on {device} here: {reason[0]}. It needs {needs}. Install that, or switch "
            "compile off: results are the same without."
        ) from error
