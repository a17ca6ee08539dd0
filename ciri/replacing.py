"""Files that take their place once they are whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(target: Path, suffix: str = ".part") -> Iterator[Path]:
    """Give the name of a hidden file beside the target, which takes its place at the end of the block.

    What was there before, be it an earlier result or the very file that is read, outlives a failure that way. The new
    file may be read by whom the user's umask says, also where its writer leaves it to its owner alone (safetensors).

    Args:
        target: the file; of a link, what it leads to.
        suffix: of the hidden file, for writers that go by it; the default is one that no listing takes up.

    Raises:
        OSError: the file cannot be made, or cannot take its place.
    """
    target = target.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}{suffix}")
    try:
        part.touch()
        rights = stat.S_IMODE(part.stat().st_mode)
        yield part
        if stat.S_IMODE(part.stat().st_mode) != rights:
            part.chmod(rights)
        with part.open("r+b") as file:  # a machine that goes off must not leave an empty file in its place
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
