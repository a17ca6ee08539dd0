"""The small video that a node shows inside itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

import av
import comfy.model_management
import folder_paths
import torch.nn.functional as F
from comfy_api.latest import InputImpl, Types, io, ui
from torch import Tensor

from ciri.compare import overlay
from ciri.heat import heat

T = TypeVar("T")

#: Longest side of a preview in pixels.
PREVIEW_SIDE = 640
#: Slower than most footage: these previews are there to judge masks and maps.
PREVIEW_FPS = 12
#: Masks as they are now, beside masks as they were in the usual magenta.
GREEN = (0.2, 0.9, 0.3)


def preview_size(clip: Tensor) -> Tensor:
    """Return the clip (T, C, H, W) no larger than a preview; a smaller one comes back as it is."""
    height, width = clip.shape[2:]
    scale = PREVIEW_SIDE / max(height, width)
    return clip if scale >= 1 else _resized(clip, max(1, round(height * scale)), max(1, round(width * scale)))


def unless_cancelled(_done: int = 0, _total: int = 0) -> None:
    """For what a preview does with every frame of what may be a long clip: ends it when the person pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def heat_preview(frames: Tensor, values: Tensor, masks: Tensor) -> Tensor:
    """A map (T, 1, H, W) as heat over a small copy of the clip, the masks outlined."""
    return heat(preview_size(frames), preview_size(values), outline=preview_size(masks), on_step=unless_cancelled)


def masks_preview(frames: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A small copy of the clip, one set of masks (T, 1, H, W) tinted over it in magenta, another outlined in green."""
    tinted = overlay(preview_size(frames), preview_size(before), opacity=0.35, outline=1, on_step=unless_cancelled)
    return overlay(tinted, preview_size(after), colour=GREEN, opacity=0.0, outline=2, on_step=unless_cancelled)


def video_preview(clip: Tensor, fps: float) -> ui.PreviewVideo | None:
    """Write a clip (T, 3, H, W) as a small video to ComfyUI's temp folder; the node shows it as a player.

    Where it cannot be written (a full disk, a temp folder that is read-only), there is none: see :func:`if_writable`.
    """
    small = preview_size(clip)
    # H.264 with 4:2:0 chroma takes even sizes only
    height, width = (max(2, side // 2 * 2) for side in small.shape[2:])
    if (height, width) != tuple(small.shape[2:]):
        small = _resized(small, height, width)
    return if_writable(lambda: ui.PreviewVideo([_saved(small, fps)]))


def if_writable(write: Callable[[], T]) -> T | None:
    """Return what writing a preview returns; None, and a warning in the log, where it cannot be written."""
    try:
        return write()
    except (OSError, av.error.FFmpegError) as error:
        # the node's work is done by now, and may have taken an hour: it is not lost for a look at it
        logging.warning("CIRI: a node's preview could not be written (%s); its outputs are whole.", error)
        return None


def _saved(clip: Tensor, fps: float) -> ui.SavedResult:
    """Write a clip (T, 3, H, W) of even sides to the temp folder.

    Raises:
        OSError, av.error.FFmpegError: it cannot be written.
    """
    height, width = clip.shape[2:]
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        "ciri_preview", folder_paths.get_temp_directory(), width, height
    )
    file = f"{name}_{counter:05}_.mp4"
    rate = Fraction(fps).limit_denominator(1000)
    components = Types.VideoComponents(images=clip.movedim(1, -1).contiguous(), frame_rate=rate)
    InputImpl.VideoFromComponents(components).save_to(os.path.join(folder, file))
    return ui.SavedResult(file, subfolder, io.FolderType.temp)


def _resized(clip: Tensor, height: int, width: int) -> Tensor:
    """Resize a clip frame by frame."""
    # channels innermost, as the encoder of videos and ComfyUI's IMAGE want them: no second copy is made for these
    result = clip.new_empty((len(clip), height, width, clip.shape[1])).movedim(-1, 1)
    for small, frame in zip(result, clip, strict=True):
        unless_cancelled()
        small[:] = F.interpolate(frame[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)
    return result
