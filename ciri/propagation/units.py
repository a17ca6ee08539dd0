"""How much of a propagation is worked on at a time, and what gives way when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from ciri.out_of_memory import repeat_smaller
from ciri.propagation.memory import ACCELERATOR_CHUNK_BYTES, CHUNK_BYTES

T = TypeVar("T")

#: Similarities of a few hundred cells: less would only be slower.
LEAST_SIMILARITY_BYTES = 1 << 18


@dataclass
class WorkUnits:
    """Sizes that change nothing but the memory that a call takes; they stay small for the rest of the call.

    Attributes:
        frames: encoded at once.
        objects: whose values are encoded, and whose masks are decoded, at once.
        similarity_bytes: of similarities, made at once when the memory is read.
        relieve: frees what is only kept for later calls; called first.
    """

    frames: int = 1
    objects: int = 8
    similarity_bytes: int = CHUNK_BYTES
    relieve: Callable[[], object] | None = None

    @classmethod
    def on(cls, device: torch.device, *, frames: int | None, relieve: Callable[[], object]) -> WorkUnits:
        """What suits a device; ``frames`` None: 1 on a processor (more brings nothing there), 4 elsewhere."""
        if device.type == "cpu":
            return cls(frames or 1, relieve=relieve)
        return cls(frames or 4, similarity_bytes=ACCELERATOR_CHUNK_BYTES, relieve=relieve)

    def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns; after a shortage of memory it is called again, with half of everything.

        Raises:
            Exception: see :func:`ciri.out_of_memory.repeat_smaller`.
        """
        return repeat_smaller(work, self._shrink)

    def _shrink(self) -> bool:
        before = (self.frames, self.objects, self.similarity_bytes, self.relieve)
        if self.relieve is not None:
            self.relieve()
            self.relieve = None
        self.frames, self.objects = max(1, self.frames // 2), max(1, self.objects // 2)
        self.similarity_bytes = max(LEAST_SIMILARITY_BYTES, self.similarity_bytes // 2)
        return before != (self.frames, self.objects, self.similarity_bytes, self.relieve)
