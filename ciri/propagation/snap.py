"""The painted mask, moved onto the edges of what was painted.

Everything downstream believes the painted mask: flow carries it, the memory networks remember it, and background that
was painted along is followed as if it were the target. So before anything is followed, a network corrects the mask: the
shipped propagator's own encoders look at the frame and at what was painted, and a decoder of the same kind, trained for
this (``python -m ciri train snap``), says what was meant. It starts from the painted mask as the propagator starts from
its hint.

Dimensions: K masks of a frame, H W pixels of the frame, h w of the window that the network sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.checkpoints import load_strictly
from ciri.errors import CheckpointError
from ciri.frames import check_annotation, check_key_frames, check_masks
from ciri.numbering import number
from ciri.own_weights import read_own
from ciri.precision import choose_dtype, fingerprint, inference_copy
from ciri.propagation.lite import ENLARGE, LiteNetwork, load_lite
from ciri.propagation.lite import SHIPPED as PROPAGATOR
from ciri.propagation.network import FrameFeatures

#: What the header of the weight file calls this network.
ARCHITECTURE = "snap_lite"

#: Where the weights are that ship with the pack.
SHIPPED = Path(__file__).parents[2] / "weights" / "snap_lite.safetensors"

#: How far an edge moves at most, in shares of the frame's shorter side, where nothing else is said.
REACH = 0.1
#: Outwards it moves by this share of that: people rather paint too much, and what else is near may look like a part.
OUTWARDS = 0.3
#: The window around the painted mask: beyond it on every side, this share of its longer side, and so many pixels.
AROUND, AT_LEAST = 0.4, 48
#: Most pixels of the window as the network sees it; larger ones are shrunk.
LARGEST = 480 * 864


class Snapper:
    """Corrects painted masks.

    Args:
        network: the shipped propagator's network with the decoder trained for this.
        device: where to compute.
        precision: "auto", "fp32", "bf16" or "fp16".
    """

    def __init__(self, network: LiteNetwork, *, device: torch.device | str = "cpu", precision: str = "auto") -> None:
        self.device = torch.device(device)
        self._network = inference_copy(network, self.device, choose_dtype(precision, self.device))

    @torch.no_grad()
    def snap(self, frame: Tensor, masks: Tensor, *, reach: float = REACH) -> Tensor:
        """Correct masks of one frame, each by itself.

        Args:
            frame: float32 (3, H, W) in [0, 1].
            masks: (K, 1, H, W) in [0, 1], what was painted.
            reach: how far the edge may move inwards, in shares of the frame's shorter side; outwards by ``OUTWARDS`` of
                that.

        Returns:
            float32 (K, 1, H, W) in [0, 1], on the device of the masks. A part of a mask of which nothing would be left
            comes back as it was.
        """
        pixels = reach * min(frame.shape[1:])
        return torch.cat([self._snapped(frame, mask[None].float(), pixels) for mask in masks])

    def _snapped(self, frame: Tensor, mask: Tensor, reach: float) -> Tensor:
        if not (mask > 0.5).any() or reach <= 0:
            return mask
        top, left, bottom, right = _window(mask[0, 0])
        cut = (..., slice(top, bottom), slice(left, right))
        size = _working_size(bottom - top, right - left)
        image = _resized(frame[None][cut].to(self.device), size)
        painted = _resized(mask[cut].to(self.device), size)
        # half the log odds, as the propagator's decoder gives them
        odds = self._network.decode(*seen(self._network, image, painted))
        found = torch.zeros_like(mask)
        found[cut] = F.interpolate(torch.sigmoid(2 * odds), size=(bottom - top, right - left), mode="bilinear").to(mask)
        lost = _lost_parts(mask[0, 0] > 0.5, found[0, 0] > 0.5)
        inside, outside = beyond(mask[0, 0] > 0.5, reach, OUTWARDS * reach)
        return torch.where(inside | lost, mask, found) * ~outside


def beyond(mask: Tensor, inwards: float, outwards: float) -> tuple[Tensor, Tensor]:
    """What lies further inside and outside a mask's edge than so many pixels; bool (H, W) each, as the mask."""
    painted = mask.cpu().numpy().astype(np.uint8)
    # beyond the frame there is no edge: a mask that fills it is deep inside everywhere
    inside, outside = (
        cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > distance
        for part, distance in ((painted, inwards), (1 - painted, outwards))
    )
    return torch.from_numpy(inside).to(mask.device), torch.from_numpy(outside).to(mask.device)


def snapped(
    frames: Tensor,
    masks: Tensor,
    key_frames: Sequence[int],
    snapper: Snapper,
    *,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Correct what was painted for a clip.

    Of several masks of one frame only the first is corrected: what goes along with the object is often its shadow, and
    that has no edges to speak of.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        masks: (H, W), (K, H, W) or (K, 1, H, W) in [0, 1]: the object, or several, on the annotated frames.
        key_frames: the frame number of each mask; negative ones count from the end.
        snapper: what corrects.
        keep: what is to stay, painted on the frame of the first mask.

    Returns:
        (K, 1, H, W), (N, 1, H, W) or None, and sentences on what was changed.

    Raises:
        MaskError: masks that show nothing or cannot belong to the clip; another number of frame numbers.
    """
    painted, notes = check_masks(masks, *frames.shape[2:], what="first mask")
    check_annotation(painted)
    numbers = check_key_frames(key_frames, len(painted), len(frames), repeated=True)
    result = painted.clone()
    for k, t in enumerate(numbers):
        if t not in numbers[:k]:
            result[k] = snapper.snap(frames[t], painted[k : k + 1])[0]
    notes += [said for t, *pair in zip(numbers, painted, result, strict=True) if (said := described(*pair, frame=t))]
    if keep is None:
        return result, None, notes
    staying, more = check_masks(keep, *frames.shape[2:], what="mask of what is to stay")
    return result, snapper.snap(frames[numbers[0]], staying), notes + more


def described(painted: Tensor, snapped: Tensor, *, frame: int) -> str:
    """What became of a painted mask (1, H, W), in a sentence; empty where next to nothing did."""
    before, after = painted > 0.5, snapped > 0.5
    area = int(before.sum())
    less, more = (round(100 * int(part.sum()) / area) for part in (before & ~after, after & ~before))
    if not (less or more):
        return ""
    return f"The mask of frame {number(frame)} was moved onto the object's edges: {less} % less of it, {more} % more."


@torch.no_grad()
def seen(network: LiteNetwork, frames: Tensor, masks: Tensor) -> tuple[Tensor, FrameFeatures, Tensor]:
    """What the decoder is given, in its order: a value per cell, the frames' features, and the painted masks as hints.

    Args:
        network: the propagator's.
        frames: (b, 3, h, w) in [0, 1], sides divisible by 16.
        masks: (b, 1, h, w) in [0, 1].
    """
    features = network.encode_key(frames)
    values = network.encode_value(frames, features, masks, torch.zeros_like(masks))
    return values, features, torch.cat([masks, torch.ones_like(masks)], 1)


def network_with(decoder: str | Path) -> LiteNetwork:
    """The shipped propagator's network with the decoder of a weight file.

    Raises:
        CheckpointError: no such file, a broken one, the weights of another network, or trained with another propagator.
    """
    network = load_lite(PROPAGATOR)
    state, header = read_own(decoder, ARCHITECTURE, "train snap")
    if header.get("propagator") != (wanted := propagator_of(network)):
        raise CheckpointError(
            f"{decoder} was trained with another propagator ({header.get('propagator')}) than the shipped one "
            f"({wanted}), whose encoders it needs: train it again with 'python -m ciri train snap'."
        )
    load_strictly(network.decoder, state, model=ARCHITECTURE, path=decoder)
    return network.eval()


def propagator_of(network: LiteNetwork) -> str:
    """A name for the weights of a network's encoders."""
    return str(sum(fingerprint(part) for part in (network.encoder, network.trunk, network.value_encoder)) % 2**32)


@lru_cache(maxsize=2)
def shipped(device: str = "cpu") -> Snapper:
    """What ships with the pack."""
    return Snapper(network_with(SHIPPED), device=device)


def _lost_parts(painted: Tensor, found: Tensor) -> Tensor:
    """The connected parts of a painted mask in which nothing was found; bool (H, W) each.

    Nobody paints a part to have it left out, and small ones may be too small for the network's eyes.
    """
    _, parts = cv2.connectedComponents(painted.cpu().numpy().astype(np.uint8))
    kept = np.unique(parts[found.cpu().numpy()])
    return torch.from_numpy((parts > 0) & ~np.isin(parts, kept)).to(painted.device)


def _window(mask: Tensor) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what the network sees of a frame, around a mask (H, W)."""
    ys, xs = torch.nonzero(mask > 0.5, as_tuple=True)
    first, last = (int(ys.min()), int(xs.min())), (int(ys.max()) + 1, int(xs.max()) + 1)
    margin = AT_LEAST + round(AROUND * max(b - a for a, b in zip(first, last, strict=True)))
    top, left = (max(0, a - margin) for a in first)
    bottom, right = (min(side, b + margin) for side, b in zip(mask.shape, last, strict=True))
    return top, left, bottom, right


def _working_size(height: int, width: int) -> tuple[int, int]:
    """Height and width as the network sees a window: enlarged as the propagator enlarges frames, divisible by 16."""
    scale = min(ENLARGE, (LARGEST / (height * width)) ** 0.5)
    h, w = (max(32, round(side * scale / 16) * 16) for side in (height, width))
    return h, w


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
