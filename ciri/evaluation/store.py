"""Small JSON files that an interruption cannot damage, and keys that say whether an old result still counts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ciri.errors import EvaluationError
from ciri.replacing import replacing


def write_json(path: Path, content: Any) -> None:
    """Write so that ``path`` holds either the whole new content or what it held before; not-a-number becomes null.

    Raises:
        EvaluationError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror or error}.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the file's object; empty if there is none, or if it is damaged: the work is then done again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def finite(content: Any) -> Any:
    """Replace values that are not numbers, which JSON does not have, by None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


def key_of(*parts: Any) -> str:
    """A short digest of anything that JSON can hold."""
    text = json.dumps(finite(list(parts)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp_of(files: Iterable[Path]) -> list[list[Any]]:
    """Names, sizes and times of files: a changed input gives another key."""
    return [[file.name, (status := file.stat()).st_size, status.st_mtime_ns] for file in files]
