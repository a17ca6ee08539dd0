"""Training samples of the residue detector: composites from which the target was removed badly, and well.

What is left is known, because the clean clip is known. A pixel is labelled by how visible the difference to the clean
clip is, times how much of that difference is the target's: a blurred fill is not residue.

Dimensions: t frames of a clip, n samples, h w pixels of a frame, s pixels of a crop's side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.remove import remove, soft_edges
from ciri.residue.base import Box
from ciri.residue.crops import boxes_of_clip, crop, search_window, target_box
from ciri.training.composites import Composite, CompositeMaker
from ciri.training.masks import Mask, Rng, random_blob, wrong_masks

#: Side of the crops in pixels, and of the labels.
CROP, LABEL = 192, 96
#: Errors that leave something of the target behind, and how often each is chosen.
MISSES = {"lose part": 0.3, "lose spots": 0.2, "thin": 0.15, "erode": 0.15, "lag": 0.1, "vanish": 0.05, "shake": 0.05}
#: Where the difference to the clean frame begins to count as visible, and where it counts in full (of 255).
VISIBLE_FROM, VISIBLE_FULLY = 6, 30
#: Share of composites whose masks are complete, so that any removal of them is clean.
COMPLETE = 0.35
#: Errors that cover too much; how often complete and incomplete masks get some, so that neither is told by its shape.
TOO_MUCH, GENEROUS, ALSO_GENEROUS = ("leak", "dilate", "shake", "lag"), 0.7, 0.4
#: Smallest target in the annotated frame, in pixels.
LEAST_AREA = 150
#: What the product grows masks by, and the width of its seams, in pixels.
GROW, FEATHER = 4, 3
#: How a sample's target was removed.
KINDS = ("flow", "blend", "classical", "untouched")


@dataclass
class Pool:
    """Samples as uint8; sample i belongs to the target ``target[i]``.

    Attributes:
        search, filmed: (n, 3, s, s), crops of inpainted frames, and of these frames before.
        hidden: (n, 1, s, s), the mask by which the target was removed, 0 to 255.
        label, sure: (n, 1, s / 2, s / 2), what is left and how sure that is, 0 to 255.
        target: int64 (n,), which reference.
        kind: int64 (n,), index into :data:`KINDS`.
        complete: bool (n,), the mask missed nothing, so nothing is left.
        size, soft: float32 (n,), area of the residue over that of the target's box: where the label is at least 0.5,
            and the label's sum.
        reference: (m, 3, s, s), crops of the annotated frames.
        mask: (m, 1, s, s), the target in them, 0 to 255.
    """

    search: Tensor
    filmed: Tensor
    hidden: Tensor
    label: Tensor
    sure: Tensor
    target: Tensor
    kind: Tensor
    complete: Tensor
    size: Tensor
    soft: Tensor
    reference: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.search)

    @classmethod
    def joined(cls, pools: list[Pool]) -> Pool:
        """Put pools one after another."""
        offsets = np.cumsum([0, *(len(p.reference) for p in pools)])[:-1]
        moved = [replace(p, target=p.target + int(o)) for p, o in zip(pools, offsets, strict=True)]
        return cls(**{name: torch.cat([getattr(p, name) for p in moved]) for name in cls.__dataclass_fields__})

    def save(self, file: Path) -> None:
        """Write one .npz file."""
        np.savez(file, **{name: getattr(self, name).numpy() for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, file: Path) -> Pool:
        """Read what :meth:`save` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(**{name: torch.from_numpy(arrays[name]) for name in cls.__dataclass_fields__})


# ------------------------------------------------------------------------------------------------- labels


def residue_label(
    inpainted: Tensor, clean: Tensor, filmed: Tensor, mask: Tensor, cover: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how much of the target each pixel still shows, and how sure that is, (N, 1, H, W) each, in [0, 1].

    Where nothing was filled in, any visible difference to the clean clip that points towards the filmed frame is the
    target. Where something was, it is not; but a visibly wrong fill may be a part of the target that was copied from
    elsewhere as well as a blur, so it is not sure.

    Args:
        inpainted, clean, filmed: float32 (N, 3, H, W) in [0, 1]: after the removal, the truth, with the target.
        mask: float32 (N, 1, H, W), the target's true mask.
        cover: float32 (N, 1, H, W) in [0, 1], how much of each pixel the removal replaced.
    """

    def around(x: Tensor) -> Tensor:
        return F.avg_pool2d(x.sum(1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)

    left, whole = inpainted - clean, filmed - clean
    visible = (left.abs().mean(1, keepdim=True) * 255 - VISIBLE_FROM) / (VISIBLE_FULLY - VISIBLE_FROM)
    share = (around(left * whole) / (around(whole**2) + 1e-4)).clamp(0, 1)
    shown = F.max_pool2d(mask, 7, stride=1, padding=3) * visible.clamp(0, 1)
    return shown * share * (1 - cover), 1 - (shown * cover > 0.2).float()


# ------------------------------------------------------------------------------------------------- masks


def incomplete_masks(true: Mask, rng: Rng) -> Mask:
    """Return masks (T, H, W) that miss something of the target, mostly."""
    names = rng.choice(list(MISSES), int(rng.integers(1, 3)), replace=False, p=list(MISSES.values()))
    wrong = wrong_masks(true, rng, errors=tuple(str(n) for n in names if n != "thin"))
    if "thin" in names:
        size = int(rng.integers(3, 10))
        ball = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * size + 1, 2 * size + 1))
        wrong[1:] = [cv2.morphologyEx(m.astype(np.uint8), cv2.MORPH_OPEN, ball) > 0 for m in wrong[1:]]
    return wrong_masks(wrong, rng, errors=("leak",)) if rng.random() < ALSO_GENEROUS else wrong


def complete_masks(true: Mask, rng: Rng) -> Mask:
    """Return masks (T, H, W) that miss nothing of the target, but mostly cover more."""
    if rng.random() >= GENEROUS:
        return true
    names = rng.choice(TOO_MUCH, int(rng.integers(1, 3)), replace=False)
    return true | wrong_masks(true, rng, errors=tuple(str(n) for n in names))


# ------------------------------------------------------------------------------------------------- removal


def removed_by_blending(c: Composite, t: int, mask: np.ndarray, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """The clean frame shows through the mask's feathered edge; what the mask misses may be half transparent.

    Returns the frame and, as all of these do, how much of each pixel was replaced by something unknown (here: 0).
    """
    feather = float(rng.uniform(0, 6))
    alpha: np.ndarray = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.float32)
    if feather > 0.3:
        # outwards only: inside the mask nothing may shine through
        alpha = np.maximum(cv2.GaussianBlur(alpha, (0, 0), feather), mask)
    opacity = 1.0 if rng.random() < 0.4 else float(rng.uniform(0.3, 1))
    shown = ((1 - alpha) * opacity)[..., None]
    return np.clip(c.clean[t] * (1 - shown) + c.frames[t] * shown, 0, 255), np.zeros(mask.shape, np.float32)


def removed_classically(c: Composite, t: int, mask: np.ndarray, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Fill one frame without looking at the others: by diffusion, by a heavy blur, or by the median over time."""
    hole = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8))
    frame = np.ascontiguousarray(c.frames[t])
    how = rng.random()
    if how < 0.5:
        method = cv2.INPAINT_TELEA if how < 0.25 else cv2.INPAINT_NS
        return cv2.inpaint(frame, hole, 5, method).astype(np.float32), hole.astype(np.float32)
    if how < 0.75:
        sigma = float(rng.uniform(6, 16))
        known = (1 - hole).astype(np.float32)
        paint = cv2.GaussianBlur(frame * known[..., None], (0, 0), sigma)
        fill: np.ndarray = paint / (cv2.GaussianBlur(known, (0, 0), sigma)[..., None] + 1e-3)
    else:
        fill = np.median(c.clean, axis=0).astype(np.float32)
    soft = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), 1.5)[..., None]
    soft = np.maximum(soft, hole[..., None])
    return np.clip(frame * (1 - soft) + fill * soft, 0, 255), soft[..., 0]


def with_lookalike(c: Composite, rng: Rng) -> Composite:
    """Make a patch of the target's own surface a part of the scene, in the clean clip and in the frames."""
    ys, xs = np.nonzero(c.mask[0])
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    patch = c.frames[0, y0:y1, x0:x1]
    h, w = c.mask.shape[1:]
    side = int(np.clip(max(patch.shape[:2]) * rng.uniform(0.3, 0.9), 8, min(h, w) - 1))
    texture = cv2.resize(np.ascontiguousarray(patch), (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    shape = cv2.GaussianBlur(random_blob(rng, side, side).astype(np.float32) / 255, (3, 3), 0.7)[..., None]
    reach = 1.3 * max(patch.shape[:2])
    angle = rng.uniform(0, 2 * np.pi)
    y = int(np.clip((y0 + y1 - side) / 2 + reach * np.sin(angle), 0, h - side))
    x = int(np.clip((x0 + x1 - side) / 2 + reach * np.cos(angle), 0, w - side))
    clean, frames = c.clean.copy(), c.frames.copy()
    window = (slice(None), slice(y, y + side), slice(x, x + side))
    clean[window] = clean[window] * (1 - shape) + texture * shape
    behind = shape * ~c.mask[window][..., None]
    frames[window] = frames[window] * (1 - behind) + texture * behind
    return Composite(frames, clean, c.mask)


# ------------------------------------------------------------------------------------------------- samples


def jittered(box: Box, rng: Rng) -> Box:
    """A box as a tracker might have given it."""
    width, height = (max(8, round(side * rng.uniform(0.8, 1.25))) for side in (box.width, box.height))
    x, y = (c + side * rng.uniform(-0.12, 0.12) for c, side in zip(box.centre, (box.width, box.height), strict=True))
    return Box(round(x - width / 2), round(y - height / 2), width, height)


def photometric(crops: Tensor, rng: Rng) -> Tensor:
    """Change light, sharpness and compression of crops (n, 3, s, s) in [0, 1], all alike."""
    if rng.random() < 0.5:
        crops = ((crops * rng.uniform(0.85, 1.15)).clamp(0, 1)) ** float(np.exp(rng.normal(0, 0.1)))
    images = (crops.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    blur, quality = float(rng.choice([0, 0, 0, 0.6, 1.0])), int(rng.integers(40, 96)) if rng.random() < 0.4 else None
    for i, image in enumerate(images):
        if blur:
            image = cv2.GaussianBlur(image, (0, 0), blur)
        if quality is not None:
            image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
        images[i] = image
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def make_samples(maker: CompositeMaker, rng: Rng, *, flow: int = 3, others: int = 4) -> Pool | None:
    """Make one composite and the samples of it; None if its target is too small in the first frame.

    Args:
        flow: frames that are taken from the removal by the flow backbone.
        others: frames from each of which one other, cheaper, removal is taken.
    """
    c = maker.make(rng)
    if c.mask[0].sum() < LEAST_AREA or c.mask[0].mean() > 0.5:
        return None
    if rng.random() < 0.15:
        c = with_lookalike(c, rng)
    complete = rng.random() < COMPLETE
    masks = complete_masks(c.mask, rng) if complete else incomplete_masks(c.mask, rng)
    frames, clean = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (c.frames, c.clean))
    truth = torch.from_numpy(c.mask)[:, None].float()
    boxes = boxes_of_clip(torch.from_numpy(masks)[:, None].float(), truth[0])
    wrong = torch.from_numpy(masks)[:, None].float()
    result, cover = remove(frames, wrong, FlowBackbone(passes=1)), soft_edges(wrong, GROW, FEATHER)[1]
    later = np.arange(1, len(frames))
    chosen = [
        _Removal(int(t), 0, complete, result[t], wrong[t], cover[t])
        for t in rng.choice(later, min(flow, len(later)), False)
    ]
    for _ in range(others):
        t, complete = int(rng.choice(later)), bool(rng.random() < COMPLETE)
        draw = rng.random()
        complete |= draw >= 0.85
        mask = (complete_masks(c.mask, rng) if complete else incomplete_masks(c.mask, rng))[t]
        if draw < 0.5:
            kind, (image, replaced) = 1, removed_by_blending(c, t, mask, rng)
        elif draw < 0.85:
            kind, (image, replaced) = 2, removed_classically(c, t, mask, rng)
        else:
            kind, image, replaced = 3, c.clean[t].astype(np.float32), np.zeros(mask.shape, np.float32)
        picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        hidden, cover_here = (torch.from_numpy(x)[None].float() for x in (mask, replaced))
        chosen.append(_Removal(t, kind, complete, picture, hidden, cover_here))
    return _cut(chosen, boxes, frames, clean, truth, rng)


@dataclass
class _Removal:
    """Frame t after a removal by a mask (1, H, W): image (3, H, W), and cover (1, H, W), how much was replaced."""

    t: int
    kind: int
    complete: bool
    image: Tensor
    mask: Tensor
    cover: Tensor


def _cut(
    chosen: list[_Removal], boxes: list[Box | None], frames: Tensor, clean: Tensor, truth: Tensor, rng: Rng
) -> Pool:
    """Cut the search crops, their labels and the reference out."""
    at = [r.t for r in chosen]
    images = torch.stack([r.image for r in chosen])
    places = [box for t in at if (box := boxes[t]) is not None]
    places = [jittered(box, rng) if rng.random() < 0.5 else box for box in places]
    windows = [search_window(box) for box in places]
    fill = frames[0].mean((1, 2))
    label, sure = residue_label(images, clean[at], frames[at], truth[at], torch.stack([r.cover for r in chosen]))
    # a complete mask leaves nothing, whatever the fill looks like
    incomplete = 1 - torch.tensor([r.complete for r in chosen]).float()[:, None, None, None]
    label, sure = label * incomplete, 1 - (1 - sure) * incomplete
    # the same light and compression before and after: both come out of one clip
    both = crop(torch.cat([images, frames[at]]), windows * 2, CROP, fill, antialias=True)
    search, filmed = photometric(both, rng).chunk(2)
    hidden = crop(torch.stack([r.mask for r in chosen]), windows, CROP, torch.zeros(1), antialias=True)
    maps = crop(torch.cat([label, sure], 1), windows, CROP, torch.tensor([0.0, 1.0]), antialias=True)
    maps = F.avg_pool2d(maps, CROP // LABEL)
    first = target_box(truth[0])
    assert first is not None
    window = [search_window(first)]
    reference = photometric(crop(frames[:1], window, CROP, fill, antialias=True), rng)
    mask = crop(truth[:1], window, CROP, torch.zeros(1), antialias=True)
    areas = torch.tensor([box.width * box.height for box in places])
    cells = torch.tensor([(w.width / LABEL) * (w.height / LABEL) for w in windows])
    return Pool(
        search=_bytes(search),
        filmed=_bytes(filmed),
        hidden=_bytes(hidden),
        label=_bytes(maps[:, :1]),
        sure=_bytes(maps[:, 1:]),
        target=torch.zeros(len(at), dtype=torch.int64),
        kind=torch.tensor([r.kind for r in chosen]),
        complete=torch.tensor([r.complete for r in chosen]),
        size=(maps[:, 0] >= 0.5).sum((1, 2)) * cells / areas,
        soft=maps[:, 0].sum((1, 2)) * cells / areas,
        reference=_bytes(reference),
        mask=_bytes(mask),
    )


def _bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().byte()
