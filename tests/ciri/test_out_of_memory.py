"""Shortages of memory are told from other errors, and work is repeated until it fits or nothing is left to give."""

import os
import platform

import cv2
import numpy as np
import pytest
import torch

from ciri import out_of_memory
from ciri.errors import OutOfMemoryError
from ciri.out_of_memory import is_out_of_memory, repeat_smaller, return_unused_memory, shortage_told


def test_a_real_shortage_is_recognised():
    with pytest.raises(RuntimeError) as shortage:
        torch.empty(1 << 50)
    assert is_out_of_memory(shortage.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())


def test_an_older_pytorch_tells_shortages_from_other_errors(monkeypatch):
    """Before 2.5, the error of the allocator is in torch.cuda only."""
    shortage = torch.cuda.OutOfMemoryError("CUDA ran short")
    monkeypatch.delattr(torch, "OutOfMemoryError")
    assert is_out_of_memory(shortage) and not is_out_of_memory(RuntimeError("size mismatch"))


def test_a_real_shortage_of_opencv_is_answered():
    with pytest.raises(OutOfMemoryError, match="make it smaller"), shortage_told("make it smaller"):
        cv2.resize(np.zeros((1, 1), np.uint8), (1 << 30, 1 << 20))
    with pytest.raises(cv2.error, match="empty"), shortage_told("make it smaller"):
        cv2.resize(np.zeros((0, 1), np.uint8), (2, 2))
    sizes = [1 << 30, 8]
    found = repeat_smaller(lambda: cv2.resize(np.ones((1, 1)), (sizes[0], sizes[0])), lambda: bool(sizes.pop(0)))
    assert found.shape == (8, 8)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.98 GB, other allocations: 2 GB, max allowed: 9 GB)."),
        RuntimeError("Invalid buffer size: 12.00 GiB"),
        RuntimeError("XPU out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_shortages_of_drivers_and_libraries_are_answered(error):
    assert is_out_of_memory(error)
    calls = []

    def work():
        calls.append(1)
        if len(calls) == 1:
            raise error
        return "done"

    assert repeat_smaller(work, lambda: True) == "done"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not match"),
        ValueError("not enough memory"),
        KeyError("x"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    ],
)
def test_other_errors_are_not_shortages(error):
    assert not is_out_of_memory(error)
    calls = []

    def work():
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        repeat_smaller(work, lambda: True)
    assert len(calls) == 1


def test_work_is_repeated_until_it_fits_or_nothing_is_left_to_give():
    size = [16]

    def work(fits):
        if size[0] > fits:
            raise MemoryError
        return size[0]

    def halve():
        size[0] //= 2
        return size[0] > 0

    assert repeat_smaller(lambda: work(5), halve) == 4
    with pytest.raises(MemoryError):
        repeat_smaller(lambda: work(-1), halve)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_what_was_freed_between_living_blocks_is_returned():
    # blocks of 64 kB come from the heap; every 50th lives on, so the heap cannot shrink from its end
    blocks = [bytearray(1 << 16) for _ in range(2000)]
    living = blocks[::50]
    before = resident()
    del blocks
    return_unused_memory()
    assert before - resident() > 100 << 20
    assert len(living) == 40


def test_where_memory_cannot_be_returned_nothing_happens(monkeypatch):
    def fail(_):
        raise OSError

    monkeypatch.setattr(out_of_memory.ctypes, "CDLL", fail)
    out_of_memory._trim.cache_clear()
    return_unused_memory()
    monkeypatch.undo()
    out_of_memory._trim.cache_clear()


def test_a_shortage_is_told_and_another_error_passes():
    for error in (MemoryError(), RuntimeError("CUDA error: out of memory")):
        with pytest.raises(OutOfMemoryError, match="make it smaller") as told, shortage_told("make it smaller"):
            raise error
        assert told.value.__cause__ is error
    with pytest.raises(RuntimeError, match="shapes"), shortage_told("make it smaller"):
        raise RuntimeError("shapes do not match")


def test_what_a_failed_call_held_is_gone_before_the_next():
    class Large:
        alive = 0

        def __init__(self):
            Large.alive += 1

        def __del__(self):
            Large.alive -= 1

    seen = []

    def work():
        seen.append(Large.alive)
        large = Large()
        if len(seen) < 4:
            raise MemoryError
        return type(large)

    assert repeat_smaller(work, lambda: True) is Large
    assert seen == [0, 0, 0, 0]
