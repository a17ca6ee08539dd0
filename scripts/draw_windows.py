"""Draws which frames the published networks see together, for their help pages: ``python -m scripts.draw_windows``."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ciri.inpainting.windows import Schedule

ROOT = Path(__file__).resolve().parent.parent
NODES = ("CIRI_BackboneE2FGVI", "CIRI_BackboneFuseFormer", "CIRI_BackboneDSTT", "CIRI_BackboneSTTN")
FRAMES, CELL, ROW, LEFT, TOP = 41, 17, 30, 110, 64
INK, GRID, LOCAL, CENTRE, REFERENCE = (60, 60, 60), (225, 225, 225), (219, 152, 52), (170, 92, 20), (60, 160, 240)


def draw() -> np.ndarray:
    """Return the picture, uint8 BGR: a row per window, a column per frame."""
    windows = Schedule(num_ref=6).windows(FRAMES)
    image = np.full((TOP + ROW * len(windows) + 20, LEFT + CELL * FRAMES + 20, 3), 255, np.uint8)

    def text(words: str, x: int, y: int) -> None:
        cv2.putText(image, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)

    for x, colour, words in ((LEFT, LOCAL, "filled by this window"), (LEFT + 230, REFERENCE, "reference frame")):
        cv2.rectangle(image, (x, 12), (x + 14, 26), colour, -1)
        text(words, x + 22, 24)
    for frame in range(0, FRAMES, 5):
        text(str(frame), LEFT + CELL * frame, TOP - 8)
    for row, window in enumerate(windows):
        y = TOP + ROW * row
        text(f"window {row + 1}", 16, y + 18)
        for frame in range(FRAMES):
            colour = GRID
            if frame in window.local:
                colour = CENTRE if frame == window.centre else LOCAL
            elif frame in window.reference:
                colour = REFERENCE
            x = LEFT + CELL * frame
            cv2.rectangle(image, (x, y + 4), (x + CELL - 4, y + ROW - 6), colour, -1)
    return image


def main() -> None:
    image = draw()
    for node in NODES:
        folder = ROOT / "web" / "docs" / node
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "picture.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
