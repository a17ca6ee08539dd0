"""Small cases on disk: a red square crosses a texture that drifts."""

import cv2
import numpy as np
import pytest

from ciri import media

COUNT, HEIGHT, WIDTH = 6, 48, 64


def write_case(folder, seed=5, count=COUNT, clean=True):
    """Write one case; the square is always 14 pixels a side and moves by 4 pixels a frame."""
    noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT, 2 * WIDTH, 3), np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 40, 215, cv2.NORM_MINMAX)
    for name in ("frames", "masks", *(["clean"] if clean else [])):
        (folder / name).mkdir(parents=True)
    for t in range(count):
        behind = np.ascontiguousarray(texture[:, t : t + WIDTH])
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[16:30, 6 + 4 * t : 20 + 4 * t] = 255
        frame = np.where(mask[..., None] > 0, np.uint8([230, 30, 40]), behind)
        for name, image in (("frames", frame), ("masks", mask), ("clean", behind)):
            if (folder / name).is_dir():
                media.write_png(folder / name / f"{t:05d}.png", image)
    return folder


@pytest.fixture
def cases(tmp_path):
    """Two cases with clean clips."""
    for number, name in enumerate(("alpha", "beta")):
        write_case(tmp_path / "cases" / name, seed=number)
    return tmp_path / "cases"
