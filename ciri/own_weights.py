"""Reading the weights of this pack's own networks: whose they are, and the sizes that their header gives."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ciri.checkpoints import read_state_dict
from ciri.errors import CheckpointError
from ciri.signatures import identify

Network = TypeVar("Network", bound=nn.Module)

#: No channels, and no layers one after another, are more than this.
LARGEST = 1024


def read_own(
    path: str | os.PathLike[str], architecture: str, command: str
) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Return the tensors and the header of a weight file.

    Args:
        path: the file (.safetensors).
        architecture: whose weights have to be in it.
        command: what makes such files, as one types it after ``python -m ciri``.

    Raises:
        CheckpointError: no such file, a broken one, or the weights of another network.
    """
    state, metadata = read_state_dict(path)
    found = metadata.get("architecture") or identify(state)
    if found != architecture:
        raise CheckpointError(
            f"{os.fspath(path)} holds the weights of {found or 'an unknown network'}; expected {architecture}, which "
            f"ships as weights/{architecture}.safetensors and which 'python -m ciri {command}' makes."
        )
    return state, metadata


def build_from_header(
    build: Callable[..., Network],
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    path: str | os.PathLike[str],
    command: str,
) -> Network:
    """Call ``build`` with the sizes in a file's header.

    Nothing much larger than the file is built: a header that lies would fill the memory before shapes are compared.

    Raises:
        CheckpointError: there are none, or they are not such as it takes, or are not those of the weights.
    """
    try:
        config = json.loads(metadata["config"])
        if large := [f"{name} = {value}" for name, value in config.items() if _number(value) > LARGEST]:
            raise ValueError(f"{', '.join(large)}; expected {LARGEST} at most")
        with torch.device("meta"):
            wanted = sum(value.numel() for value in build(**config).state_dict().values())
        held = sum(value.numel() for value in state.values())
        if wanted > 2 * held + 1000:
            raise ValueError(f"a network of {wanted} weights, and {held} in the file")
        return build(**config)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"The header of {os.fspath(path)} does not say the sizes of the network ({error}); it was written by "
            f"another version of 'python -m ciri {command}', or changed."
        ) from error


def _number(value: object) -> float:
    """How much a value of a header asks for; what is no number asks for nothing."""
    return abs(value) if isinstance(value, int | float) else 0
