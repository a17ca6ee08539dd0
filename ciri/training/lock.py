"""One training at a time in a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ciri.errors import TrainingError

if sys.platform == "win32":
    import msvcrt

    def _try_to_lock(file: TextIO) -> None:
        # what is locked cannot be read there: a byte far behind what the file says
        os.lseek(file.fileno(), 1 << 20, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_to_lock(file: TextIO) -> None:
        # not flock: processes that make samples would inherit it, and hold it should they outlive the training
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


#: Locks that this process holds; closing such a file gives its lock back.
_held: dict[Path, TextIO] = {}


def lock(folder: Path) -> None:
    """Keep the trainings of other processes out of a folder, until this process ends.

    Raises:
        TrainingError: another process trains there.
        OSError: the lock's file cannot be opened.
    """
    path = folder.resolve() / "run.lock"
    if path in _held:
        return
    file = path.open("a+")
    try:
        _try_to_lock(file)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise TrainingError(
            f"Another training is writing into {folder}{holder and f' ({holder})'}, and two would overwrite each "
            "other's checkpoints. Wait for it or end it, then give the same command again; or give another folder."
        ) from None
    except OSError:
        pass  # a file system that has no locks: nobody can tell
    _held[path] = file
    with suppress(OSError):  # a full disk: the lock itself needs no room
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
