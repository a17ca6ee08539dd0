"""The published test programs' loop, plain: every window encodes all its frames anew, everything stays in memory.

The oracle of the streaming driver. Dimensions: t frames of the clip, n frames of a window, l of them local, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.inpainting.blending import PublishedBlend
from ciri.inpainting.windows import Schedule

#: (hard-masked window (1, n, 3, h, w) in [-1, 1], number of local frames l) -> predictions (n, 3, h, w) in [-1, 1].
Generator = Callable[[Tensor, int], Tensor]

#: Iterations of the 3 x 3 cross by which the test programs dilate a mask.
DILATION = 4


def dilate_cross(masks: Tensor, iterations: int = DILATION) -> Tensor:
    """Dilate binary masks (t, 1, h, w) with the 3 x 3 cross; each pixel becomes a diamond."""
    for _ in range(iterations):
        rows = F.max_pool2d(masks, (3, 1), stride=1, padding=(1, 0))
        masks = torch.maximum(rows, F.max_pool2d(masks, (1, 3), stride=1, padding=(0, 1)))
    return masks


def plain_loop(frames: Tensor, masks: Tensor, generator: Generator, schedule: Schedule | None = None) -> Tensor:
    """Inpaint a clip as the published test programs do.

    Args:
        frames: float32 (t, 3, h, w) in [0, 1], 8-bit levels.
        masks: float32 (t, 1, h, w) in {0, 1}, already dilated.
        generator: the network.
        schedule: windows; default: every 5th frame, references every 10th.

    Returns:
        float32 (t, 3, h, w) in [0, 1], 8-bit levels.
    """
    schedule = schedule or Schedule()
    blend = PublishedBlend()
    hard_masked = (frames * 2 - 1) * (1 - masks)
    for window in schedule.windows(len(frames)):
        local = list(window.local)
        predictions = generator(hard_masked[list(window.frames)][None], len(local))[: len(local)]
        blend.add(window, predictions, frames[local], masks[local])
    finished = [frame for _, frame in blend.finish(len(frames))]
    return torch.where(masks > 0, torch.stack(finished), frames)
