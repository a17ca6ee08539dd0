"""On what a measurement was made: timings mean nothing without it."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy
import torch

from ciri import __version__


def describe(device: torch.device) -> dict[str, str]:
    """Processor, accelerator, system and versions."""
    described = {
        "processor": f"{_processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)} used",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "OpenCV": cv2.__version__,
        "NumPy": numpy.__version__,
        "ciri": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    return described


def _processor() -> str:
    """The name people know the processor by."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def stopwatch(device: torch.device) -> Iterator[dict[str, float]]:
    """Measure a block: the dictionary holds "wall" and "cpu" seconds (of all threads) once it is left.

    Processor time is what to compare on a machine that does other work too.
    """
    taken: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield taken
    if device.type == "cuda":
        # kernels are only queued when the call returns
        torch.cuda.synchronize(device)
    taken.update(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)
