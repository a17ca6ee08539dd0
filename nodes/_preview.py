"""The small video that a node shows inside itself."""

from __future__ import annotations

import os
from fractions import Fraction

import comfy.model_management
import folder_paths
import torch.nn.functional as F
from comfy_api.latest import InputImpl, Types, io, ui
from torch import Tensor

from ciri.compare import overlay
from ciri.heat import heat

#: Longest side of a preview in pixels.
PREVIEW_SIDE = 640
#: Slower than most footage: these previews are there to judge masks and maps.
PREVIEW_FPS = 12
#: Masks as they were, and as they are now.
BEFORE, AFTER = (1.0, 0.2, 0.9), (0.2, 0.9, 0.3)


def preview_size(clip: Tensor) -> Tensor:
    """Return the clip (T, C, H, W) no larger than a preview; a smaller one comes back as it is."""
    height, width = clip.shape[2:]
    scale = PREVIEW_SIDE / max(height, width)
    return clip if scale >= 1 else _resized(clip, max(1, round(height * scale)), max(1, round(width * scale)))


def heat_preview(frames: Tensor, values: Tensor, masks: Tensor) -> Tensor:
    """A map (T, 1, H, W) as heat over a small copy of the clip, the masks outlined."""
    return heat(preview_size(frames), preview_size(values), outline=preview_size(masks))


def masks_preview(frames: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A small copy of the clip, one set of masks (T, 1, H, W) tinted over it in magenta, another outlined in green."""
    tinted = overlay(preview_size(frames), preview_size(before), colour=BEFORE, opacity=0.35, outline=1)
    return overlay(tinted, preview_size(after), colour=AFTER, opacity=0.0, outline=2)


def video_preview(clip: Tensor, fps: float) -> ui.PreviewVideo:
    """Write a clip (T, 3, H, W) as a small video to ComfyUI's temp folder; the node shows it as a player."""
    small = preview_size(clip)
    # H.264 with 4:2:0 chroma takes even sizes only
    height, width = (max(2, side // 2 * 2) for side in small.shape[2:])
    if (height, width) != tuple(small.shape[2:]):
        small = _resized(small, height, width)
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        "ciri_preview", folder_paths.get_temp_directory(), width, height
    )
    file = f"{name}_{counter:05}_.mp4"
    images = small.movedim(1, -1).contiguous()
    rate = Fraction(fps).limit_denominator(1000)
    InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=rate)).save_to(
        os.path.join(folder, file)
    )
    return ui.PreviewVideo([ui.SavedResult(file, subfolder, io.FolderType.temp)])


def _resized(clip: Tensor, height: int, width: int) -> Tensor:
    """Resize a clip frame by frame, so that Cancel is heard."""
    result = clip.new_empty((*clip.shape[:2], height, width))
    for small, frame in zip(result, clip, strict=True):
        comfy.model_management.throw_exception_if_processing_interrupted()
        small[:] = F.interpolate(frame[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)
    return result
