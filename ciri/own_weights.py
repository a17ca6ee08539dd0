"""Reading the weights of this pack's own networks: whose they are, and the sizes that their header gives."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from ciri.checkpoints import read_state_dict
from ciri.errors import CheckpointError
from ciri.signatures import identify

T = TypeVar("T")


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
    build: Callable[..., T], metadata: Mapping[str, str], path: str | os.PathLike[str], command: str
) -> T:
    """Call ``build`` with the sizes in a file's header.

    Raises:
        CheckpointError: there are none, or they are not such as it takes.
    """
    try:
        return build(**json.loads(metadata["config"]))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"The header of {os.fspath(path)} does not say the sizes of the network ({error}); it was written by "
            f"another version of 'python -m ciri {command}', or changed."
        ) from error
