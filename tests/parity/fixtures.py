"""Parity fixtures: where they are, and how a test finds the ones that it is about.

A fixture is a ``.safetensors`` file: inputs and outputs of a published program on weights that anybody can make
again (:mod:`tests.parity.seeded_weights`), and metadata that says how. Tests choose by metadata and tensor names,
never by file name, so the same tests run on fixtures with other seeds, sizes and lengths:

    CIRI_PARITY_DIR=/path/to/fixtures python -m pytest tests/parity

Without the variable the folder ``../shared/parity`` beside the repository is used if it is there, else the small
selection in ``tests/data/parity``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]


def fixture_root() -> Path:
    """The folder that holds one folder of fixtures per network."""
    given = os.environ.get("CIRI_PARITY_DIR")
    if given:
        return Path(given).expanduser()
    beside = REPOSITORY.parent / "shared" / "parity"
    return beside if beside.is_dir() else REPOSITORY / "tests" / "data" / "parity"


@dataclass(frozen=True)
class Fixture:
    """One fixture file: ``meta`` is its metadata with JSON values decoded, ``names`` its tensors."""

    path: Path
    meta: dict[str, Any]
    names: frozenset[str]

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def tensors(self) -> dict[str, Tensor]:
        """Read everything."""
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}

    def __str__(self) -> str:
        """The test id: folder and file, for the person who reads a failure."""
        return f"{self.path.parent.name}/{self.path.stem}"


def find(folder: str, *, has: Iterable[str] = (), tensors: Iterable[str] = (), **meta: object) -> list[Fixture]:
    """Return the fixtures of one network, sorted by path.

    Args:
        folder: the network's folder, at any depth below :func:`fixture_root`.
        has: metadata entries that must be there, whatever their value.
        tensors: tensor names that must be there.
        meta: metadata entries that must have exactly this value.
    """
    found = []
    for path in _files(folder, ".safetensors"):
        fixture = _open(path)
        fits = all(name in fixture.meta for name in has) and all(name in fixture.names for name in tensors)
        if fits and all(key in fixture.meta and fixture.meta[key] == value for key, value in meta.items()):
            found.append(fixture)
    return found


def documents(folder: str) -> list[Any]:
    """Return the contents of the folder's JSON files (lists of keys and shapes, window indices), sorted by path."""
    return [json.loads(path.read_text()) for path in _files(folder, ".json")]


def _files(folder: str, suffix: str) -> list[Path]:
    root = fixture_root()
    return sorted(
        path for path in root.rglob(f"*{suffix}") if folder in (root.name, *path.relative_to(root).parts[:-1])
    )


def _open(path: Path) -> Fixture:
    with safe_open(path, "pt") as file:
        return Fixture(path, {k: _decode(v) for k, v in (file.metadata() or {}).items()}, frozenset(file.keys()))


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
