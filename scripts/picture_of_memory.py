"""Draw which frames STCN remembers while a clip is worked through, for its help page.

python -m scripts.picture_of_memory
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from ciri.propagation.memory import Memory
from scripts.comfyui import ROOT

LENGTH, EVERY, BUDGET, PAINTED = 160, 5, 8, (0, 90)
CELL, LEFT, TOP = 4, 120, 46
INK, FAINT, ACCENT = (60, 50, 45), (215, 210, 205), (40, 90, 230)


def draw() -> np.ndarray:
    """Time runs down; in each row, the frames that are remembered then."""
    picture = np.full((TOP + LENGTH * 2 + 14, LEFT + LENGTH * CELL + 20, 3), 255, np.uint8)
    memory, nothing = Memory(BUDGET, recent=3), torch.zeros(1, 1, 1)
    for t in PAINTED:
        memory.append(t, nothing[0], nothing, nothing, annotated=True)
    for t in range(LENGTH):
        y = TOP + 2 * t
        for stored in memory.frames:
            colour = ACCENT if stored in PAINTED else INK
            picture[y : y + 2, LEFT + CELL * stored : LEFT + CELL * (stored + 1)] = colour
        picture[y : y + 2, LEFT + CELL * t + 1 : LEFT + CELL * t + 3] = FAINT
        if t % EVERY == 0 and t not in PAINTED:
            memory.append(t, nothing[0], nothing, nothing)
    for text, place, colour in (
        ("remembered frames", (LEFT, 30), INK),
        ("painted by hand: never forgotten", (LEFT + 230, 30), ACCENT),
        ("frame 0", (14, TOP + 12), INK),
        (f"frame {LENGTH - 1}", (14, TOP + 2 * LENGTH - 2), INK),
        ("is followed", (14, TOP + LENGTH), INK),
    ):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return picture


def main() -> None:
    """Write the picture beside the page."""
    cv2.imwrite(str(ROOT / "web" / "docs" / "CIRI_PropagatorSTCN" / "picture.png"), draw())


if __name__ == "__main__":
    main()
