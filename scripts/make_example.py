"""Makes the bundled clip in ``assets/``: a flying coffee saucer over a launch pad, and the same clip without it.

    python -m scripts.make_example

Both photographs are in the public domain (CC0) and come with scikit-image; see assets/README.md. The camera pans,
zooms, rolls and trembles; the saucer flies, tilts, wobbles and is blurred by its motion. Everything is computed from
frame numbers, so the clip is the same each time.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import data

from ciri.media import Clip, write_clip, write_png

ASSETS = Path(__file__).resolve().parent.parent / "assets"
WIDTH, HEIGHT, COUNT, FPS = 432, 240, 48, 24

#: Moments within the shutter's opening that are averaged to motion blur.
SHUTTER = np.linspace(-0.2, 0.2, 5)
#: Rendered at this multiple of the size and reduced, so that edges are smooth.
OVERSAMPLING = 2


def main() -> None:
    background, saucer = data.rocket().astype(np.float32) / 255, cut_out_saucer()
    frames, clean, masks = zip(*[render(index, background, saucer) for index in range(COUNT)], strict=True)
    ASSETS.mkdir(exist_ok=True)
    like = Clip(torch.empty(0), fps=float(Fraction(FPS)))
    write_clip(ASSETS / "ciri_example.mp4", to_clip(frames), like)
    write_clip(ASSETS / "ciri_example_clean.mp4", to_clip(clean), like)
    painted = paint_by_hand(masks[0])
    write_png(ASSETS / "ciri_example_mask.png", painted)
    first = np.round(frames[0] * 255).astype(np.uint8)
    # as ComfyUI's mask editor saves it: transparent where something was painted
    write_png(ASSETS / "ciri_example_frame0.png", np.dstack([first, 255 - painted]))
    shares = [float((mask > 0.5).mean()) for mask in masks]
    print(f"{COUNT} frames, the saucer covers {min(shares):.1%} to {max(shares):.1%} of a frame")
    for file in sorted(ASSETS.glob("ciri_example*")):
        print(f"{file.stat().st_size / 1000:7.1f} kB  {file.name}")


def cut_out_saucer() -> np.ndarray:
    """The coffee cup on its saucer, float32 (H, W, 4): colour times alpha, and alpha."""
    photo = data.coffee().astype(np.float32) / 255
    outline = np.zeros(photo.shape[:2], np.uint8)
    # ellipses of the saucer and of the cup's rim, and the spoon's handle, measured in the photograph
    cv2.ellipse(outline, ((278.3, 220.6), (335.5, 398.0), 96.06), 255, -1, cv2.LINE_AA)
    cv2.ellipse(outline, ((290.0, 113.0), (236.0, 186.0), 4.0), 255, -1, cv2.LINE_AA)
    handle = np.array([[396, 76], [403, 69], [414, 68], [422, 74], [416, 108], [400, 130]])
    cv2.fillPoly(outline, [handle], 255, cv2.LINE_AA)
    alpha = cv2.GaussianBlur(outline.astype(np.float32) / 255, (0, 0), 0.8)
    # dusk: less light, and the sky's blue in what is left of it
    colour = np.clip(photo * np.float32([0.86, 0.84, 0.98]) + np.float32([0.0, 0.01, 0.03]), 0, 1)
    margin = 24
    return cv2.copyMakeBorder(np.dstack([colour * alpha[..., None], alpha]), *[margin] * 4, cv2.BORDER_CONSTANT)


def render(index: int, background: np.ndarray, saucer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frame, clean frame (H, W, 3) and the saucer's alpha (H, W), all in 0..1."""
    big = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING)
    clean, layer = np.zeros((*big[::-1], 3), np.float32), np.zeros((*big[::-1], 4), np.float32)
    for offset in SHUTTER:
        moment = (index + offset) / COUNT
        clean += cv2.warpPerspective(background, camera(moment), big, flags=cv2.INTER_CUBIC) / len(SHUTTER)
        layer += fly(saucer, moment, big) / len(SHUTTER)
    clean = np.clip(reduce(clean), 0, 1)
    layer = np.clip(reduce(layer), 0, 1)
    return clean * (1 - layer[..., 3:]) + layer[..., :3], clean, layer[..., 3]


def reduce(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def camera(moment: float) -> np.ndarray:
    """From the photograph to the oversampled frame: pan, zoom, roll, keystone and a trembling hand."""
    angle = 2 * np.pi * moment
    centre = np.array([296 + 62 * moment, 246 - 16 * moment])
    tremble = 0.9 * np.array([np.sin(3.1 * angle + 1) + 0.6 * np.sin(7.3 * angle), np.sin(4.3 * angle) * 0.8])
    scale = OVERSAMPLING * (0.86 + 0.09 * moment)
    roll = np.deg2rad(1.6 * np.sin(0.8 * angle))
    cos, sin = scale * np.cos(roll), scale * np.sin(roll)
    linear = np.array([[cos, -sin], [sin, cos]])
    target = np.array([WIDTH, HEIGHT]) * OVERSAMPLING / 2
    affine = np.eye(3)
    affine[:2, :2] = linear
    affine[:2, 2] = target - linear @ (centre + tremble)
    keystone = np.eye(3)
    keystone[2, 0] = 4e-5 * (moment - 0.5)
    return keystone @ affine


def fly(saucer: np.ndarray, moment: float, size: tuple[int, int]) -> np.ndarray:
    """The saucer at a moment, (H, W, 4): an arc across the sky, with tilt, breathing size and a travelling wobble."""
    height, width = saucer.shape[:2]
    angle = 2 * np.pi * moment
    where = np.array([96 + 236 * moment, 104 - 46 * np.sin(np.pi * moment) + 7 * np.sin(2.6 * angle)])
    scale = 0.34 + 0.05 * np.sin(np.pi * moment)
    squash = 0.70 + 0.08 * np.sin(1.3 * angle + 0.5)
    tilt = np.deg2rad(-9 + 17 * np.sin(1.1 * angle + 0.4))
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    linear = OVERSAMPLING * scale * turn @ np.diag([1.0, squash])
    # inverse map: each pixel of the frame asks where on the saucer it lies
    inverse = np.linalg.inv(linear)
    x, y = np.meshgrid(np.arange(size[0], dtype=np.float64), np.arange(size[1], dtype=np.float64))
    dx, dy = x - OVERSAMPLING * where[0], y - OVERSAMPLING * where[1]
    u = inverse[0, 0] * dx + inverse[0, 1] * dy + width / 2
    v = inverse[1, 0] * dx + inverse[1, 1] * dy + height / 2
    v += 9 * np.sin(u / 62 - 2 * angle)
    u += 6 * np.sin(v / 55 + 1.5 * angle)
    return cv2.remap(saucer, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR)


def paint_by_hand(alpha: np.ndarray) -> np.ndarray:
    """A mask as a person paints it: a little too large, its outline rounded off. uint8 (H, W), 255 = painted."""
    solid = (alpha > 0.05).astype(np.uint8) * 255
    generous = cv2.dilate(solid, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    return np.where(cv2.GaussianBlur(generous, (0, 0), 3) > 127, 255, 0).astype(np.uint8)


def to_clip(images: tuple[np.ndarray, ...]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


if __name__ == "__main__":
    main()
