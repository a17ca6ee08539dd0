"""Mask quality of a propagator: J, F and J&F on clips with known masks, given the first mask only.

    python benchmarks/propagation_quality.py --eval DIR [--propagator flow] [--only bear camel] [--sheets OUT]
                                             [--working-size 480] [--precision fp32] [--against bf16]

DIR holds NAME.mp4 with NAME_mask.npz beside it, or NAME/ with the frames as pictures and mask.npz: `bits` = np.packbits
of the boolean masks, `shape` = (T, H, W).
Every frame after the first is scored. `--sheets` writes a picture per clip: the mask's outline (true one in green).
`--against` runs every clip in another precision too and counts the pixels that come out differently.

At the end: how well the confidence tells bad frames, as the chance that a frame with J < 0.7 has a lower confidence
than one with a higher J (0.5: it tells nothing), over all frames of all clips.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ciri import media
from ciri.errors import CiriError
from ciri.metrics.segmentation import segmentation_score
from ciri.propagation import registry
from ciri.propagation.base import Propagator

#: A mask that overlaps the truth less is bad.
BAD_BELOW = 0.7


def read_clip(path: Path) -> np.ndarray:
    """uint8 RGB (T, H, W, 3) of a folder of pictures, or of a video as OpenCV decodes it: the cards' figures are so."""
    if path.is_dir():
        return (media.read_clip(path).frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        frames.append(frame[..., ::-1])
    if not frames:
        raise CiriError(f"{path} cannot be read as a video.")
    return np.stack(frames)


def sources(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a clip and its masks are."""
    if (folder / name).is_dir():
        return folder / name, folder / name / "mask.npz"
    return folder / f"{name}.mp4", folder / f"{name}_mask.npz"


def names_in(folder: Path) -> list[str]:
    """The clips of a folder."""
    return sorted([p.stem for p in folder.glob("*.mp4")] + [p.parent.name for p in folder.glob("*/mask.npz")])


def read_masks(path: Path) -> np.ndarray:
    """bool (T, H, W)."""
    with np.load(path) as data:
        t, h, w = (int(v) for v in data["shape"])
        return np.unpackbits(data["bits"], count=t * h * w).reshape(t, h, w).astype(bool)


def contact_sheet(clip: np.ndarray, predicted: np.ndarray, true: np.ndarray, cells: int = 12) -> np.ndarray:
    """Frames spread over the clip: predicted mask in red, its outline white, the true outline green; BGR."""
    tiles = []
    for index in np.linspace(0, len(clip) - 1, cells).astype(int):
        tile = np.ascontiguousarray(clip[index][..., ::-1])
        tile[predicted[index]] = tile[predicted[index]] // 2 + np.array([0, 0, 127], np.uint8)
        for mask, colour in ((predicted[index], (255, 255, 255)), (true[index], (0, 255, 0))):
            outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(tile, outlines, -1, colour, 1)
        cv2.putText(tile, str(index), (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 255, 255), 1)
        tiles.append(tile)
    return np.vstack([np.hstack(tiles[row : row + 4]) for row in range(0, len(tiles), 4)])


def build(name: str, precision: str | None, working_size: int | None) -> Propagator:
    """The propagator, in a precision and at a size if they are given; CiriError if it has no such option."""
    options = {"precision": precision, "short_side": working_size}
    return registry.build(name, **{option: value for option, value in options.items() if value is not None})


def chance_of_lower(values: np.ndarray, chosen: np.ndarray) -> float:
    """The chance that a chosen value is lower than another one, ties half: the area under the ROC curve."""
    below = (values[chosen][:, None] < values[~chosen][None]).mean()
    return float(below + 0.5 * (values[chosen][:, None] == values[~chosen][None]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval", type=Path, required=True, metavar="DIR")
    parser.add_argument("--propagator", default="flow", choices=registry.names())
    parser.add_argument("--only", nargs="*", help="names of clips (default: all)")
    parser.add_argument("--sheets", type=Path, help="folder for overlay pictures")
    parser.add_argument("--working-size", type=int, help="shorter side at which a network looks, in pixels")
    parser.add_argument("--precision", help="fp32, bf16, fp16 or auto, for networks (default: auto)")
    parser.add_argument("--against", metavar="PRECISION", help="also run in this precision and compare the masks")
    arguments = parser.parse_args()
    names = arguments.only or names_in(arguments.eval)
    propagator = build(arguments.propagator, arguments.precision, arguments.working_size)
    other = None
    if arguments.against:
        other = build(arguments.propagator, arguments.against, arguments.working_size)
    rows, differing, overlaps, confidences = [], [], [], []
    print(f"{'clip':20} {'J':>6} {'F':>6} {'J&F':>6} {'conf':>6} {'lost':>5} {'ms/frame':>9}")
    for name in names:
        video, truth = sources(arguments.eval, name)
        clip, true = read_clip(video), read_masks(truth)
        frames = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
        start = time.process_time()
        track = propagator.propagate(frames, torch.from_numpy(true[:1, None]).float(), [0])
        seconds = (time.process_time() - start) / max(len(clip) - 1, 1)
        masks = track.probs[:, 0] > 0.5
        scored = segmentation_score(masks, torch.from_numpy(true))
        score = scored.mean(1, None)
        overlaps.append(scored.region.numpy()[1:])
        confidences.append(track.confidence.numpy()[1:])
        rows.append((*score, float(track.confidence[1:].mean()), len(track.lost_frames()), seconds * 1e3))
        print("{:20} {:6.3f} {:6.3f} {:6.3f} {:6.2f} {:5d} {:9.1f}".format(name, *rows[-1]), flush=True)
        if other is not None:
            again = other.propagate(frames, torch.from_numpy(true[:1, None]).float(), [0]).probs[:, 0] > 0.5
            differing.append(float((again != masks).float().mean()))
            print(f"{'':20} {arguments.against}: {differing[-1]:.3%} of the pixels differ", flush=True)
        if arguments.sheets:
            arguments.sheets.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(arguments.sheets / f"{name}.png"), contact_sheet(clip, masks.numpy(), true))
    print("{:20} {:6.3f} {:6.3f} {:6.3f} {:6.2f} {:5.0f} {:9.1f}".format("mean", *np.mean(rows, axis=0)))
    if differing:
        most = max(differing)
        print(f"{arguments.against}: {np.mean(differing):.3%} of the pixels differ, {most:.3%} in the worst clip")
    bad = np.concatenate(overlaps) < BAD_BELOW
    told = "no telling"
    if bad.any() and not bad.all():
        told = f"{chance_of_lower(np.concatenate(confidences), bad):.3f}"
    print(f"confidence tells bad frames ({bad.sum()} of {len(bad)}, J < {BAD_BELOW}): {told}")


if __name__ == "__main__":
    main()
