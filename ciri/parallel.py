"""Two independent pieces of work at the same time, for code whose single steps are too small to use two cores.

Only the calling thread reports progress, as a caller's callback may depend on its thread (ComfyUI's does); when that
callback raises, the other thread ends at its next step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from ciri.progress import OnStep

A = TypeVar("A")
B = TypeVar("B")


class _Stopped(Exception):
    """Ends the helping thread after the calling one was stopped; never seen outside."""


def both(first: Callable[[OnStep], A], second: Callable[[OnStep], B], on_step: OnStep) -> tuple[A, B]:
    """Run two functions at the same time and return both results.

    Args:
        first: runs in the calling thread; its progress is reported.
        second: runs in another thread, with the same grad and inference mode; its progress is not reported.
        on_step: progress callback; may raise to stop both.

    Raises:
        Whatever either raises; the other has ended by then.
    """
    stop = threading.Event()

    def watch(done: int, total: int) -> None:
        if stop.is_set():
            raise _Stopped

    with helper() as submit:
        other = submit(lambda: second(watch))
        try:
            result = first(on_step)
        except BaseException:
            stop.set()
            raise
        return result, other.result()


@contextmanager
def helper() -> Iterator[Callable[[Callable[[], A]], Future[A]]]:
    """A thread that runs what is submitted, in order, with the caller's grad and inference mode; joined at the end."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def in_same_mode(work: Callable[[], A]) -> A:
        # both modes belong to a thread: tensors made here must be usable there, and the other way round
        with torch.inference_mode(inference), torch.set_grad_enabled(grad and not inference):
            return work()

    with ThreadPoolExecutor(1, thread_name_prefix="ciri") as pool:
        try:
            yield lambda work: pool.submit(in_same_mode, work)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
