"""When memory runs out: recognise it on any device, and repeat the work in smaller units.

How much is worked on at a time does not change what comes out, only how much memory it takes; so the answer to a
shortage is half as much, again and again, before a person has to be asked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import cv2
import torch

from ciri.errors import OutOfMemoryError

T = TypeVar("T")

#: Called with the height and width of the frames that a network is about to see. A program that holds other models
#: makes room there.
BeforeRun = Callable[[int, int], object]


def nothing(height: int, width: int) -> None:
    """The :data:`BeforeRun` of a program that has nothing to give way."""


#: As what a shortage is raised; most exceptions of these kinds are something else.
RAISED = (RuntimeError, MemoryError, cv2.error)

#: How shortages are worded that are no torch.OutOfMemoryError but a plain RuntimeError, torch.AcceleratorError or
#: cv2.error.
WORDS = (
    # the CPU allocator, on Linux and on Windows
    "can't allocate memory",
    "not enough memory",
    # CUDA and HIP where the driver and not PyTorch's allocator runs short, MPS, XPU
    "out of memory",
    # workspaces of cuBLAS, cuDNN, cuSOLVER and cuSPARSE
    "STATUS_ALLOC_FAILED",
    # MPS, for a tensor larger than the largest block that it gives out
    "Invalid buffer size",
    # OpenCV
    "(-4:Insufficient memory)",
)


def return_unused_memory() -> None:
    """Give the operating system back what was freed, where the C library keeps it (glibc).

    It keeps blocks of up to 32 MB for later. What lives on between them leaves gaps that nothing fits into, and a long
    run takes more and more: a third more for the windows of DSTT after a hundred frames. A call takes milliseconds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache
def _trim() -> Callable[[int], object] | None:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    # under the name that PyTorch before 2.5 knows too
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RAISED) and any(words in str(error) for words in WORDS)


@contextmanager
def shortage_told(message: str) -> Iterator[None]:
    """Turn a shortage of memory inside into an :class:`OutOfMemoryError` with this message; what else is raised passes.

    Args:
        message: what ran short and what to do about it, for a person.
    """
    try:
        yield
    except RAISED as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(message) from error


def repeat_smaller(work: Callable[[], T], shrink: Callable[[], bool]) -> T:
    """Return what ``work`` returns, called again after every shortage of memory.

    Args:
        work: may be called several times; a failed call must leave nothing half-done.
        shrink: makes the units of work smaller, or frees something; False if there is nothing left to give.

    Raises:
        Exception: whatever ``work`` raises for the last time (:func:`is_out_of_memory` tells a shortage), or at once if
            it is something else.
    """
    while True:
        try:
            return work()
        except RAISED as error:
            if not is_out_of_memory(error) or not shrink():
                raise
        # out here the exception is gone, and with it what the failed call had allocated
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
