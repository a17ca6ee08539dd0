"""How near the texture that fills what no frame shows comes to the truth, on stills with silhouettes cut out.

    python -m benchmarks.texture IMAGES CASES [--count 60] [--pictures FOLDER]

IMAGES holds pictures; out of CASES, with a folder of ``masks`` (PNG) per case, come the silhouettes, which are scaled
to 2 to 8 % of a frame of 432x240 and put anywhere in it (seeded). Printed are the PSNR under the silhouette, the mean
of its worst twelfth, a perceptual distance (:mod:`ciri.training.perceptual`) and how strong detail is beside that of
the truth, for the smooth first guess and for the texture. All but the last praise what is smooth, so look at the
pictures: the silhouette, the first guess, the texture and the truth of every still.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.flow.completion import membrane
from ciri.inpainting.texture import synthesise
from ciri.training.perceptual import PerceptualLoss

WIDTH, HEIGHT = 432, 240
#: Shares of the frame that a silhouette covers.
SMALLEST, LARGEST = 0.02, 0.08
#: Pictures that would have to be enlarged by more are left out.
MOST_ENLARGED = 1.4
#: Pixels by which silhouettes are grown, so that nothing of a soft edge is left out.
GROWN = 2


def stills(images: Path, cases: Path, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (picture (3, h, w) in [0, 1], bool (h, w), what is missing of it)."""
    random = np.random.default_rng(4)
    outlines = [np.asarray(cv2.imread(str(p), 0)) > 127 for p in sorted(cases.glob("*/masks/*.png"))]
    outlines = [x for x in outlines if x.mean() > SMALLEST / 2]
    for file in random.permutation(np.array(sorted(map(str, images.iterdir())))):
        if not count:
            return
        picture = cv2.imread(str(file))
        if picture is None:
            continue
        scale = max(WIDTH / picture.shape[1], HEIGHT / picture.shape[0])
        if scale > MOST_ENLARGED:
            continue
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        y, x = (picture.shape[0] - HEIGHT) // 2, (picture.shape[1] - WIDTH) // 2
        rgb = np.ascontiguousarray(picture[y : y + HEIGHT, x : x + WIDTH, ::-1])
        missing = silhouette(outlines[random.integers(len(outlines))], random)
        yield torch.from_numpy(rgb).permute(2, 0, 1).float() / 255, torch.from_numpy(missing)
        count -= 1


def silhouette(outline: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return bool (HEIGHT, WIDTH): an outline at another size and place."""
    x, y, w, h = cv2.boundingRect(outline.astype(np.uint8))
    part = outline[y : y + h, x : x + w].astype(np.uint8)
    scale = (random.uniform(SMALLEST, LARGEST) * WIDTH * HEIGHT / part.sum()) ** 0.5
    part = cv2.resize(part, None, fx=scale, fy=scale)[: HEIGHT - 40, : WIDTH - 40]
    result = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = (random.integers(size - side + 1) for size, side in zip(result.shape, part.shape, strict=True))
    result[y : y + part.shape[0], x : x + part.shape[1]] = part
    return cv2.dilate(result, np.ones((2 * GROWN + 1,) * 2, np.uint8)) > 0


def detail(picture: Tensor, region: Tensor) -> float:
    """Mean difference of neighbouring pixels in a region."""
    across, down = picture.diff(dim=2)[:, :-1].abs(), picture.diff(dim=1)[:, :, :-1].abs()
    return float((across + down).mean(0)[region[:-1, :-1]].mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    perceptual = PerceptualLoss().eval()
    fills: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"smooth": lambda guess, _: guess, "texture": synthesise}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in fills}
    for number, (truth, missing) in enumerate(stills(options.images, options.cases, options.count)):
        spoiled, known = torch.where(missing, 0.0, truth), (~missing).float()
        guess = membrane(spoiled[None], known[None, None], sweeps=3, finest_sweeps=1)[0]
        row = [spoiled]
        for name, fill in fills.items():
            filled = fill(guess, missing).clamp(0, 1)
            error = float((filled - truth).square().mean(0)[missing].mean())
            with torch.no_grad():
                apart = float(perceptual(filled[None], truth[None], missing[None, None].float()))
            sharp = detail(filled, missing) / max(detail(truth, missing), 1e-6)
            found[name].append((-10 * float(np.log10(max(error, 1e-9))), apart, sharp))
            row.append(filled)
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            picture = torch.cat([*row, truth], 2).permute(1, 2, 0).numpy()[..., ::-1] * 255
            cv2.imwrite(str(options.pictures / f"{number:03d}.png"), picture.astype(np.uint8))
    for name, rows in found.items():
        psnr, apart, sharp = np.array(rows).T
        worst = np.sort(psnr)[: max(1, len(psnr) // 12)].mean()
        print(f"{name:8s} {len(psnr)} stills  PSNR {psnr.mean():6.2f} dB (worst {worst:6.2f})  ", end="")
        print(f"perceptual distance {apart.mean():.3f}  detail {sharp.mean():.2f}")


if __name__ == "__main__":
    main()
