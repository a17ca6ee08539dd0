"""Samples made by other processes, beside the training that learns from them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import torch

from ciri.errors import CiriError, TrainingError

#: Makes samples: (settings, number of this process, how many there are, whether to go on).
Make = Callable[[Any, int, int, Callable[[], bool]], None]


class Makers:
    """Processes that make samples.

    Args:
        processes: started.
        complaints: a queue of what they gave up for.
    """

    def __init__(self, processes: Sequence[Any], complaints: Any) -> None:
        self._processes, self._complaints = processes, complaints

    def complaints(self) -> list[str]:
        """What processes gave up for since the last call."""
        found = []
        while not self._complaints.empty():
            found.append(self._complaints.get())
        return found

    def wait(self, enough: Callable[[], bool]) -> None:
        """Wait until there is enough to begin with.

        Raises:
            TrainingError: all processes ended before; the message says why.
        """
        while True:
            # asked first: the last sample may be written between two looks
            alive = any(process.is_alive() for process in self._processes)
            if enough():
                return
            if not alive:
                why = "; ".join(self.complaints()) or "there are no more to be made"
                raise TrainingError(f"Too few samples to train on were made: {why}")
            time.sleep(0.5)


@contextmanager
def makers(make: Make, settings: Any, count: int) -> Iterator[Makers]:
    """Have processes make samples while the block runs; where there is to be none, make all of them before.

    Args:
        make: a module's function.
        settings: its first argument.
        count: of processes.

    Raises:
        TrainingError: without processes, as ``make`` does, or the samples cannot be written.
    """
    context = multiprocessing.get_context("spawn")
    complaints = context.SimpleQueue()
    if count == 0:
        _made(make, settings, 0, 1)
    processes = [
        context.Process(target=_work, args=(make, settings, i, count, complaints), daemon=True) for i in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield Makers(processes, complaints)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _made(make: Make, settings: Any, i: int, n: int, go_on: Callable[[], bool] = lambda: True) -> None:
    try:
        make(settings, i, n, go_on)
    except OSError as error:
        raise TrainingError(f"Samples cannot be kept ({error}).") from error


def _work(make: Make, settings: Any, i: int, n: int, complaints: Any) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    # Ctrl-C reaches the whole group; the training hears it, and ends its processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    try:
        # a parent that was killed cannot end its children
        _made(make, settings, i, n, lambda: os.getppid() == parent)
    except CiriError as error:
        complaints.put(str(error))


def reason(error: BaseException) -> str:
    """What an error says, in one line: that of a loader's worker holds its whole traceback."""
    text = str(error).strip()
    return text if "\n" not in text else text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
