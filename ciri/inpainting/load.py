"""From a weight file to a backbone: which network it is, checked strictly, on its device, in its precision."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ciri.checkpoints import load_strictly, read_state_dict
from ciri.errors import CheckpointError
from ciri.inactivation.fusion import Fusion
from ciri.inpainting.compiled import compile_parts
from ciri.inpainting.driver import Mode, WindowBackbone
from ciri.inpainting.dstt import DSTT
from ciri.inpainting.e2fgvi import E2FGVI, E2FGVIHQ, check_attention_windows
from ciri.inpainting.fuseformer import FuseFormer
from ciri.inpainting.network import WindowNetwork
from ciri.inpainting.sttn import STTN
from ciri.inpainting.windows import Schedule
from ciri.precision import choose_dtype
from ciri.signatures import identify, signature_of

#: The published networks by the names of :mod:`ciri.signatures`.
NETWORKS: dict[str, type[WindowNetwork]] = {
    network.name: network for network in (E2FGVI, E2FGVIHQ, FuseFormer, DSTT, STTN)
}


def load_backbone(
    path: str | os.PathLike[str],
    *,
    expected: Collection[str] = tuple(NETWORKS),
    device: torch.device | str = "cpu",
    precision: str = "auto",
    schedule: Schedule | None = None,
    mode: Mode = "auto",
    published: bool = False,
    windows_at_once: int = 1,
    compiled: bool = False,
) -> WindowBackbone:
    """Load a published or trained weight file as a backbone.

    Args:
        path: .safetensors, .pth or .pt, as its authors released it or converted.
        expected: names of the networks that it may hold.
        device: where the network runs.
        precision: "auto" (bfloat16 or float16 where the processor is faster in it), "fp32", "bf16" or "fp16".
        schedule, mode, published, windows_at_once: see :class:`ciri.inpainting.driver.WindowBackbone`.
        compiled: have torch.compile work on the network's parts, see
            :func:`ciri.inpainting.compiled.compile_parts`.

    Raises:
        CheckpointError: unreadable, of another network than expected, or incomplete.
        CiriError: torch.compile does not work here.
    """
    device = torch.device(device)
    state, metadata = read_state_dict(path)
    model = identify(state, metadata)
    if model not in expected or model not in NETWORKS:
        wanted = " or ".join(_title(name) for name in expected)
        what = f"{_title(model)} weights" if model else "weights of no model that is known here"
        raise CheckpointError(f"{os.fspath(path)} holds {what}; expected {wanted}.")
    network = NETWORKS[model]()
    load_strictly(network, state, model=model, path=path)
    if isinstance(network, E2FGVI):
        check_attention_windows(state, path)
    network.gate_points = gate_points(metadata, network, path)
    if "beta" in metadata:
        network.fusion = _fusion(metadata["beta"], path)
    network.precision = torch.float32 if published else choose_dtype(precision, device)
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    if compiled:
        compile_parts(network, device)
    return WindowBackbone(
        network.requires_grad_(False),
        schedule=schedule,
        mode=mode,
        published=published,
        trained_for=metadata.get("trained_for"),
        windows_at_once=windows_at_once,
    )


def gate_points(metadata: Mapping[str, str], network: WindowNetwork, path: Any) -> tuple[str, ...]:
    """Where Eq. 1 acts: what weights trained with inactivation say of themselves, else the encoder's output.

    Raises:
        CheckpointError: a point that the network does not have.
    """
    if "gate_points" not in metadata:
        return network.gate_points
    try:
        named = json.loads(metadata["gate_points"])
    except ValueError:
        named = metadata["gate_points"].split(",")
    points = tuple(str(point) for point in (named if isinstance(named, list) else [named]))
    unknown = [point for point in points if point not in network.stages()]
    if unknown or not points:
        raise CheckpointError(
            f"{os.fspath(path)} names the gate points {', '.join(points) or 'none'}; {network.name} has "
            f"{', '.join(network.stages())}. The file was not made for this network."
        )
    return points


def _fusion(beta: str, path: Any) -> Fusion:
    """Eq. 3 with the b that was learned with the weights; see :func:`ciri.inactivation.features.learned_beta`."""
    try:
        value = float(beta)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise CheckpointError(f"{os.fspath(path)} says that its beta is {beta!r}; expected a share between 0 and 1.")
    return Fusion(value)


def _title(model: str | None) -> str:
    signature = signature_of(model)
    return signature.title if signature else str(model)
