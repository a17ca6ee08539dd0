"""The shipped residue detector: a small Siamese network whose weights are ours.

The first stages of an EfficientNet-Lite0 as ImageNet left them look at the annotated frame and at the inpainted ones,
both cut out at twice the target's box. At 1/4, 1/8 and 1/16 of the crop every cell is compared with the target's and
the background's cells (:mod:`ciri.residue.parts`); a decoder turns the evidence and the features into a logit per 4
pixels of the crop. Only projections and decoder are trained (``python -m ciri train residue``).

Where it is told how the target was removed, it also compares with the target as it looks in the very frame (under the
mask, before the removal), and knows what was covered and what changed: a fill is hardly ever residue, what lies beside
it may be. The paper's detector sees the annotated frame alone.

Dimensions: n search crops, m templates, s pixels of a crop's side, f4 f8 f16 maps at 1/4, 1/8, 1/16 of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.checkpoints import load_strictly
from ciri.errors import CheckpointError
from ciri.frames import check_annotation, grow_mask
from ciri.own_weights import read_own
from ciri.precision import choose_dtype, inference_copy
from ciri.propagation.lite_encoder import C4, C8, C16, Lite0Encoder, ScaledConv
from ciri.residue.base import Box, Removal
from ciri.residue.crops import crop, search_window, target_box
from ciri.residue.parts import Cells, choose_cells, evidence, gather_cells, similarity

#: What the header of the weight file calls this network.
ARCHITECTURE = "residue_lite"

#: Where the weights are that ship with the pack.
SHIPPED = Path(__file__).parents[2] / "weights" / "residue_lite.safetensors"

#: Side of the crops in pixels; divisible by 16.
CROP = 192
#: Blocks of the encoder up to the map at 1/16.
BLOCKS = 11
#: Channels of the maps, and of what they are projected to before they are compared.
SCALES = (4, 8, 16)
CHANNELS = (C4, C8, C16)
PROJECTED = (24, 40, 64)
#: Most cells that are remembered of target and background at each scale.
MOST_CELLS = (64, 128, 64)
#: Maps of evidence per scale: like the annotated target, like its background, the difference; like the target now,
#: and that less the background.
EVIDENCE = 5
#: Difference of a pixel, mean over its colours, that counts in full as changed.
CHANGED_FULLY = 24 / 255
#: Pixels of the crop around the target that count as neither target nor background.
RIM = 5

Maps = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Template:
    """What is remembered of the annotated frame: (target's, background's) cells per scale, and its mean colour."""

    cells: list[tuple[Cells, Cells]]
    fill: Tensor


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions; group norm, so that neither batch nor clip changes what a crop gets."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class ResidueNetwork(nn.Module):
    """Encoder, projections and decoder.

    Args:
        folded: whether the encoder's scales are part of its weights, as in the shipped file.
    """

    def __init__(self, *, folded: bool = True) -> None:
        super().__init__()
        self.encoder = Lite0Encoder()
        self.encoder.blocks = self.encoder.blocks[:BLOCKS]
        self.encoder.requires_grad_(False)
        self.project = nn.ModuleList(nn.Conv2d(c, p, 1) for c, p in zip(CHANNELS, PROJECTED, strict=True))
        for projection in self.project:
            assert isinstance(projection, nn.Conv2d)
            # at first the comparison is that of the encoder's own features
            nn.init.orthogonal_(projection.weight)
            nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        self.skip = nn.ModuleList(nn.Conv2d(c, r, 1) for c, r in zip(CHANNELS, (16, 24, 24), strict=True))
        self.decode8 = _block(24 + 24 + 3 * EVIDENCE + 1 + 2, 48)
        self.decode4 = _block(48 + 16 + EVIDENCE + 2, 32)
        self.answer = nn.Conv2d(32, 1, 3, padding=1)
        nn.init.constant_(self.answer.bias, -3.0)  # type: ignore[arg-type]
        if folded:
            self.fold()

    def fold(self) -> ResidueNetwork:
        """Fold the encoder's scales into its weights; the function stays the same."""
        for module in self.modules():
            if isinstance(module, ScaledConv):
                module.fold()
        return self

    def encode(self, crops: Tensor) -> Maps:
        """Turn crops (n, 3, s, s) in [0, 1] into f4 (24), f8 (40) and f16 (112 channels)."""
        _, f4, f8, f16 = self.encoder(crops.contiguous(memory_format=torch.channels_last))
        return f4, f8, f16

    def remember(self, maps: Maps, index: Sequence[list[tuple[Tensor, Tensor]]]) -> list[tuple[Cells, Cells]]:
        """Project and pick the template's cells at every scale.

        Args:
            maps: of m reference crops.
            index: for each of them, what :func:`cell_indices` returned.
        """
        cells = []
        for scale, (features, limit) in enumerate(zip(maps, MOST_CELLS, strict=True)):
            projected = self.project[scale](features)
            own, other = ([per_scale[scale][kind] for per_scale in index] for kind in (0, 1))
            cells.append((gather_cells(projected, own, limit), gather_cells(projected, other, limit)))
        return cells

    def respond(self, maps: Maps, cells: list[tuple[Cells, Cells]], now: list[Cells], traces: Tensor) -> Tensor:
        """Return logits (n, 1, s/4, s/4).

        Args:
            maps: of the search crops.
            cells: of a template (m = 1), or of one for each crop (m = n).
            now: per scale the target's cells in these frames before the removal (m = n).
            traces: (n, 2, s / 4, s / 4) in [0, 1] of the removal: what its masks covered, and what it changed.
        """
        found = []
        for project, x, (own, other), seen in zip(self.project, maps, cells, now, strict=True):
            projected = F.normalize(project(x), dim=1)
            first = evidence(projected, own, other)
            like = similarity(projected, seen)
            found.append(torch.cat([first, like, like - first[:, 1:2]], 1))
        e4, e8, e16 = found
        s4, s8, s16 = (skip(x) for skip, x in zip(self.skip, maps, strict=True))
        n, _, h, w = e8.shape
        middle = _distance(h, w).to(e8).expand(n, 1, h, w)
        x = self.decode8(
            torch.cat([s8, _double(s16), F.avg_pool2d(e4, 2), e8, _double(e16), middle, F.avg_pool2d(traces, 2)], 1)
        )
        x = self.decode4(torch.cat([_double(x), s4, e4, traces], 1))
        logits: Tensor = self.answer(x)
        return logits


def cell_indices(mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the (target's, background's) flat cell indices at each scale for a mask (1, s, s) in [0, 1].

    A mask without a target has none of either.
    """
    near = grow_mask(mask[None], RIM)
    pairs = []
    if float(mask.max()) < 0.5:
        nothing = torch.zeros(0, dtype=torch.int64, device=mask.device)
        return [(nothing, nothing)] * len(SCALES)
    for scale, limit in zip(SCALES, MOST_CELLS, strict=True):
        own, around = (F.avg_pool2d(x, scale)[0, 0] for x in (mask[None], near))
        pairs.append(choose_cells(own, around, limit))
    return pairs


def traces_of(hidden: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return what a removal covered and what it changed, (n, 2, s / 4, s / 4) in [0, 1].

    Args:
        hidden: (n, 1, s, s) in [0, 1], its masks.
        before, after: (n, 3, s, s) in [0, 1], crops of the frames.
    """
    changed = ((after - before).abs().mean(1, keepdim=True) / CHANGED_FULLY).clamp(max=1)
    return F.avg_pool2d(torch.cat([hidden, changed], 1), 4)


class LiteDetector:
    """See :class:`ciri.residue.base.ResidueDetector`.

    Args:
        network: with trained weights.
        threshold: tau.
        device: where it computes.
        precision: "auto", "fp32", "bf16" or "fp16", for the encoder; where gradients flow, and for all that follows it,
            it is float32.
    """

    name = "lite"

    def __init__(
        self,
        network: ResidueNetwork,
        threshold: float,
        device: torch.device | str = "cpu",
        *,
        precision: str = "auto",
    ) -> None:
        self.device = torch.device(device)
        network = network.eval().requires_grad_(False)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.threshold = threshold
        self._dtype = choose_dtype(precision, self.device)
        self._encoder = inference_copy(self.network.encoder, self.device, self._dtype)

    @torch.no_grad()
    def template(self, frame: Tensor, mask: Tensor) -> Template:
        """See the protocol."""
        check_annotation(mask[None])
        box = target_box(mask)
        assert box is not None
        fill = frame.mean((1, 2))
        window = [search_window(box)]
        crops = crop(frame[None], window, CROP, fill, antialias=True)
        target = crop(mask[None], window, CROP, fill.new_zeros(1), antialias=True)[0]
        return Template(self.network.remember(self._encode(crops), [cell_indices(target)]), fill)

    def detect(
        self, template: Template, frames: Tensor, boxes: Sequence[Box], removal: Removal | None = None
    ) -> Tensor:
        """See the protocol; the maps are 48 x 48. Without a removal it decides by the annotated frame alone."""
        windows = [search_window(box) for box in boxes]
        maps = self._encode(crop(frames, windows, CROP, template.fill, antialias=True))
        with torch.no_grad():
            if removal is None:
                hidden = frames.new_zeros(len(frames), 1, CROP, CROP)
                traces, filmed = frames.new_zeros(len(frames), 2, CROP // 4, CROP // 4), maps
            else:
                hidden = crop(removal.masks.to(frames), windows, CROP, frames.new_zeros(1), antialias=True)
                before, after = (
                    crop(x.to(frames), windows, CROP, template.fill, antialias=True)
                    for x in (removal.filmed, removal.inpainted)
                )
                traces, filmed = traces_of(hidden, before, after), self._encode(before)
            now = self.network.remember(filmed, [cell_indices(mask) for mask in hidden])
        return self.network.respond(maps, template.cells, [own for own, _ in now], traces)

    def _encode(self, crops: Tensor) -> Maps:
        """As :meth:`ResidueNetwork.encode`, sooner where no gradients flow."""
        if crops.requires_grad:
            return self.network.encode(crops)
        _, *maps = self._encoder(crops.to(self._dtype, memory_format=torch.channels_last))
        f4, f8, f16 = (x.float() for x in maps)
        return f4, f8, f16


def load_lite(path: str | Path) -> tuple[ResidueNetwork, float]:
    """Read the weights (.safetensors, fp16) into a float32 network; return it and its threshold.

    Raises:
        CheckpointError: no such file, a broken one, the weights of another network, or no usable threshold.
    """
    state, metadata = read_own(path, ARCHITECTURE, "train residue")
    network = ResidueNetwork()
    load_strictly(network, state, model=ARCHITECTURE, path=path)
    try:
        threshold = float(metadata["threshold"])
    except (KeyError, ValueError):
        threshold = float("nan")
    if not 0 < threshold < 1:
        raise CheckpointError(
            f"{path} says the threshold is {metadata.get('threshold')!r}; expected a number between 0 and 1. "
            "Export the weights again with: python -m ciri train residue."
        )
    return network.eval(), threshold


def build_lite(
    weights: str | Path | None = None, *, device: torch.device | str = "cpu", precision: str = "auto"
) -> LiteDetector:
    """Return the shipped detector.

    Args:
        weights: a weight file; None: the one that ships with the pack.
        device, precision: as :class:`LiteDetector` takes them.

    Raises:
        CheckpointError: see :func:`load_lite`.
    """
    return LiteDetector(*load_lite(weights or SHIPPED), device=device, precision=precision)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _distance(h: int, w: int) -> Tensor:
    """Distance from the middle of a map, (1, 1, h, w), 1 at the middle of its sides: residue is seldom far out."""
    y = torch.linspace(-1, 1, h)[:, None]
    x = torch.linspace(-1, 1, w)[None]
    return (y**2 + x**2).sqrt()[None, None]
