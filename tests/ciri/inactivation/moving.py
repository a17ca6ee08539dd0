"""A clip with a known answer: a disc with a pattern of its own that moves over a picture that stands still."""

import cv2
import numpy as np
import torch


def moving_disc(frames=16, height=96, width=160, radius=18, shadow=0.0):
    """Return the clip (T, 3, H, W), the disc's masks (T, 1, H, W), and the picture behind it (3, H, W).

    With ``shadow``, a flat dark ellipse lies below the disc and moves along; it darkens by that share.
    """
    rng = np.random.default_rng(3)
    coarse = rng.random((height // 8 + 2, width // 8 + 2, 3)).astype(np.float32)
    fine = cv2.resize(rng.random((height // 2, width // 2, 3)).astype(np.float32), (width, height))
    picture = 0.25 + 0.5 * (0.7 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + 0.3 * fine)
    picture[..., 0] *= 0.6
    y, x = np.mgrid[:height, :width]
    clip, masks = [], []
    for t in range(frames):
        cx, cy = radius + 8 + t * (width - 2 * radius - 16) / max(frames - 1, 1), 0.42 * height
        inside = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
        stripes = 0.75 + 0.2 * np.sign(np.sin((x - cx) * 0.8 + (y - cy) * 0.5))
        paint = np.stack([stripes, 0.35 * stripes, 0.1 * stripes], -1)
        flat = ((x - cx) / radius) ** 2 + ((y - cy - 1.35 * radius) / (0.35 * radius)) ** 2 <= 1
        ground = picture * (1 - shadow * flat[..., None])
        clip.append(np.where(inside[..., None], paint, ground))
        masks.append(inside)
    frames_ = torch.from_numpy(np.stack(clip)).permute(0, 3, 1, 2).float().clamp(0, 1)
    return frames_, torch.from_numpy(np.stack(masks))[:, None].float(), torch.from_numpy(picture).permute(2, 0, 1)
