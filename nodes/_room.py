"""Room on the device: other nodes' models give way to a run of ours, as ComfyUI lets them."""

from __future__ import annotations

import comfy.model_management

from ._adapt import device

#: What a run takes for every pixel of the frames that a network sees, weights included; on the generous side (a window
#: of DSTT in float32 takes 10 kB a pixel). Too little costs time only: work units are halved until they fit.
BYTES_A_PIXEL = 20_000


def make_room(height: int, width: int) -> None:
    """Let ComfyUI unload models until a run on frames of this size fits. In main memory nothing has to give way."""
    where = device()
    if where.type != "cpu":
        comfy.model_management.free_memory(BYTES_A_PIXEL * height * width, where)
