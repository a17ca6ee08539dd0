"""Weight files in ``models/ciri``: which of them belong to a model, and what to say when there is none."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import lru_cache

import folder_paths
from comfy_api.latest import io

from ciri.checkpoints import summarise
from ciri.errors import CheckpointError
from ciri.signatures import signature_of

#: Shown in place of a file where there is none: a combo without any option would be a broken node.
NONE_FOUND = "(no file found)"
#: Shown for the weights that come with the pack.
SHIPPED = "shipped"


def weight_files(models: Collection[str]) -> list[str]:
    """Names of the files in ``models/ciri`` whose keys and shapes are those of one of the models."""
    found = []
    for name in folder_paths.get_filename_list("ciri"):
        path = folder_paths.get_full_path("ciri", name)
        if path is not None:
            status = os.stat(path)
            if _model_of(path, status.st_mtime_ns, status.st_size) in models:
                found.append(name)
    return found


@lru_cache(maxsize=1024)
def _model_of(path: str, _changed: int, _size: int) -> str | None:
    """The model that a file holds; looked at once per file and change, as ComfyUI asks for the list very often."""
    try:
        return summarise(path).model
    except CheckpointError:
        return None


def options(models: Collection[str]) -> list[str]:
    """What a loader's combo offers."""
    return weight_files(models) or [NONE_FOUND]


def shipped_or_file(models: Collection[str], network: str) -> io.Combo.Input:
    """The input that chooses between the weights of the pack and files of one's own.

    Args:
        models: whose files are listed.
        network: what ``python -m ciri train`` calls it.
    """
    return io.Combo.Input(
        "weights",
        options=[SHIPPED, *weight_files(models)],
        default=SHIPPED,
        tooltip="shipped: the weights that come with the pack. Others: files in models/ciri that "
        f"'python -m ciri train {network}' made.",
    )


def path_unless_shipped(name: str, network: str) -> str | None:
    """Return the full path of a chosen file of one's own; None for the weights that come with the pack.

    Args:
        name: what was chosen.
        network: what ``python -m ciri train`` calls it.

    Raises:
        CheckpointError: the file is not there; the text says where it goes, and that there are others.
    """
    if name == SHIPPED:
        return None
    path = folder_paths.get_full_path("ciri", name)
    if path is None:
        raise CheckpointError(
            f"The weight file {name!r} is not there. Choose {SHIPPED!r}, the weights that come with the pack, or put "
            f"the file that 'python -m ciri train {network}' made into {_folder()}, then press R to refresh the list."
        )
    return path


def path_of(name: str, models: Collection[str]) -> str:
    """Return the full path of a chosen weight file.

    Raises:
        CheckpointError: it is not there; the text names the models, their published files and the folder.
    """
    path = None if name == NONE_FOUND else folder_paths.get_full_path("ciri", name)
    if path is not None:
        return path
    titles = " or ".join(signature.title for model in models if (signature := signature_of(model)))
    missing = f"There is no weight file of {titles} yet"
    if name != NONE_FOUND:
        missing = f"The weight file {name!r} is not there"
    raise CheckpointError(
        f"{missing}. Put the checkpoint that its authors published into {_folder()}, then press R to refresh the list."
    )


def _folder() -> str:
    """Where a person puts weight files."""
    folder: str = folder_paths.get_folder_paths("ciri")[0]
    return folder


def state_of(name: str | None) -> str:
    """What changes when a chosen file does: its name, time and size; for ComfyUI's cache."""
    if name == SHIPPED:
        return SHIPPED
    path = None if name is None else folder_paths.get_full_path("ciri", name)
    if path is None:
        return f"{name}: missing"
    status = os.stat(path)
    return f"{name}: {status.st_mtime_ns} {status.st_size}"
