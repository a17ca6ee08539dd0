"""The network of the backbone ``lite``: decides between the copies that optical flow finds, and repairs them.

A U-net over single frames. What it is given already agrees from frame to frame, since neighbouring frames' copies come
from the same sources, so it carries nothing through time itself. Frame features are inactivated by (1 - M_iac) at three
scales (CIRI Eq. 1): the network never sees the target but through the receptive fields of what is beside it. The
output is a blend of the classical fill, softened forms of it and the copies it was made of, per pixel, plus a residual.

Dimensions: b clips, t frames, n = b t, c channels, h w pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.inactivation.fusion import Fusion
from ciri.inactivation.gate import inactivate_scales
from ciri.inpainting.lite_guidance import Guidance

#: Height and width have to be multiples of this.
MULTIPLE = 16
#: Pixels beyond which the picture around a place hardly changes what is filled in there.
REACH = 48
#: Standard deviations, in pixels, of the softened forms of the classical fill: where a copy is in the wrong place, a
#: blurred one is nearer to the truth, and looks it.
SOFTENED = (1.5, 4.0)
#: How much of the detail finer than the last of these that blending took is given back where copies are not trusted.
DETAIL = 0.5
#: Softness of the edge between what other frames show and what is synthesised, likewise.
EDGE = 1.5
#: What is blended: the fill, the copies from before and after, and the softened fills.
CANDIDATES = 3 + len(SOFTENED)
#: Cues of the guidance, the disagreement of the two copies, and the map.
CUES = 4 + 1 + 1


@dataclass(frozen=True)
class LiteConfig:
    """Sizes and the variant.

    Attributes:
        half, quarter, eighth, sixteenth: channels at that share of the resolution.
        deep: residual blocks at a sixteenth.
        gate: inactivate features (Eq. 1); without it, frames are masked in image space (the ablation's baseline).
    """

    half: int = 32
    quarter: int = 64
    eighth: int = 96
    sixteenth: int = 128
    deep: int = 4
    gate: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON has them."""
        return asdict(self)


def conv(c_in: int, c_out: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size (or halves it)."""
    return nn.Conv2d(c_in, c_out, 3, stride, dilation, dilation)


class Block(nn.Module):
    """Two convolutions on a residual branch that starts at zero."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.one, self.two = conv(channels, channels, dilation=dilation), conv(channels, channels)
        nn.init.zeros_(self.two.weight)
        nn.init.zeros_(self.two.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.leaky_relu(self.one(F.leaky_relu(x, 0.1)), 0.1))


class FrameEncoder(nn.Module):
    """Features of single frames at 1/2, 1/4 and 1/8, before inactivation."""

    def __init__(self, config: LiteConfig) -> None:
        super().__init__()
        self.fine = conv(12, config.half)
        self.middle = conv(config.half, config.quarter, 2)
        self.coarse = conv(config.quarter, config.eighth, 2)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """(n, 3, h, w) -> three scales, fine to coarse."""
        half = self.fine(F.pixel_unshuffle(frames * 2 - 1, 2))
        quarter = self.middle(F.leaky_relu(half, 0.1))
        return [half, quarter, self.coarse(F.leaky_relu(quarter, 0.1))]


class LiteNetwork(nn.Module):
    """See the module's text.

    Args:
        config: sizes and variant.
    """

    def __init__(self, config: LiteConfig = LiteConfig()) -> None:
        super().__init__()
        self.config = config
        c2, c4, c8, c16 = config.half, config.quarter, config.eighth, config.sixteenth
        self.encoder = FrameEncoder(config)
        self.fusion = Fusion()
        self.guide = conv(4 * (3 * CANDIDATES + CUES), c2)
        self.down4, self.down8, self.down16 = conv(c2, c4, 2), conv(c4, c8, 2), conv(c8, c16, 2)
        self.block2 = Block(c2)
        self.block4 = nn.Sequential(Block(c4), Block(c4))
        self.block8 = nn.Sequential(Block(c8), Block(c8, 2))
        self.deep = nn.Sequential(*(Block(c16, (1, 2, 4)[i % 3]) for i in range(config.deep)))
        self.up8, self.up4, self.up2 = nn.Conv2d(c16, c8, 1), nn.Conv2d(c8, c4, 1), nn.Conv2d(c4, c2, 1)
        self.post8, self.post4, self.post2 = Block(c8), Block(c4), Block(c2)
        self.out = conv(c2, 4 * (CANDIDATES + 3))
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            # starts as nearly the classical fill; the candidates' logits, then the residual, four pixels each
            self.out.bias.zero_()  # type: ignore[union-attr]
            self.out.bias[:4] = 3.0  # type: ignore[index]

    def encode(self, frames: Tensor) -> list[Tensor]:
        """Features (n, c, h/2^k, w/2^k) of frames (n, 3, h, w) in [0, 1] before inactivation, fine to coarse."""
        return self.encoder(frames)

    def forward(
        self, frames: Tensor, guide: Guidance, inactivation: Tensor, scales: list[Tensor] | None = None
    ) -> Tensor:
        """Return the filled clips (b, t, 3, h, w), not clamped.

        Args:
            frames: (b, t, 3, h, w) in [0, 1].
            guide: its tensors with a leading b.
            inactivation: (b, t, 1, h, w), M_iac.
            scales: of :meth:`encode`, where they are known already.
        """
        mask = inactivation.flatten(0, 1)
        if not self.config.gate:
            scales = self.encode((frames * (1 - inactivation)).flatten(0, 1))
        else:
            scales = inactivate_scales(scales or self.encode(frames.flatten(0, 1)), mask)
        candidates = candidates_of(guide)
        apart = (candidates[:, 1] - candidates[:, 2]).abs().mean(1, keepdim=True)
        told = torch.cat([candidates.flatten(1, 2) * 2 - 1, guide.cues.flatten(0, 1), 4 * apart, mask], 1)
        half = self.block2(self.guide(F.pixel_unshuffle(told, 2)) + scales[0])
        quarter = self.block4(self.down4(F.leaky_relu(half, 0.1)) + scales[1])
        eighth = self.block8(self.down8(F.leaky_relu(quarter, 0.1)) + scales[2])
        deep = self.deep(self.down16(F.leaky_relu(eighth, 0.1)))
        eighth = self.post8(eighth + double(self.up8(deep)))
        quarter = self.post4(quarter + double(self.up4(eighth)))
        half = self.post2(half + double(self.up2(quarter)))
        found = F.pixel_shuffle(self.out(F.leaky_relu(half, 0.1)), 2).float()
        logits, residual = found.split([CANDIDATES, 3], 1)
        blended = (logits.softmax(1)[:, :, None] * candidates).sum(1)
        repaired = with_detail(blended + residual, candidates, guide.cues[:, :, :2].flatten(0, 1))
        # what no frame shows stays as it was synthesised: the network could only blur that, into a patch that is seen
        filled = torch.lerp(candidates[:, 0], repaired, shown_somewhere(guide))
        return filled.unflatten(0, frames.shape[:2])


def candidates_of(guide: Guidance) -> Tensor:
    """What the network blends, (n, CANDIDATES, 3, h, w): the fill, before, after, and the softened fills."""
    base = guide.base.flatten(0, 1)
    softened = [soften(base, sigma) for sigma in SOFTENED]
    return torch.stack([base, guide.before.flatten(0, 1), guide.after.flatten(0, 1), *softened], 1)


def with_detail(repaired: Tensor, candidates: Tensor, trust: Tensor) -> Tensor:
    """Give back some of the classical fill's detail where the network did not trust it and answered with a blur.

    On average the blur is nearer to the truth, by little; but grass that lies a little differently is not noticed, and
    a haze is.

    Args:
        repaired: (n, 3, h, w), what the network made.
        candidates: of :func:`candidates_of`.
        trust: (n, 2, h, w) in [0, 1], in the copies from before and after.
    """
    lost = candidates[:, 0] - candidates[:, -1] - (repaired - soften(repaired, SOFTENED[-1]))
    return repaired + DETAIL * (1 - trust.amax(1, keepdim=True)) * lost


def shown_somewhere(guide: Guidance) -> Tensor:
    """Where another frame shows what is filled in, (n, 1, h, w) in [0, 1] with soft edges."""
    found = (guide.cues[:, :, :2].flatten(0, 1).amax(1, keepdim=True) > 0).to(guide.base)
    return soften(found, EDGE).clamp(0, 1)


def soften(image: Tensor, sigma: float) -> Tensor:
    """Blur (n, c, h, w) with a Gaussian of that standard deviation in pixels; the rim is repeated outwards."""
    reach = round(3 * sigma)
    x = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, -1)
    padded = F.pad(image, (reach, reach, reach, reach), mode="replicate")
    # these are colours, not features: half precision would show as steps in the finished picture
    with torch.autocast(image.device.type, enabled=False):
        across = F.conv2d(padded, kernel, groups=image.shape[1])
        return F.conv2d(across, kernel.transpose(2, 3), groups=image.shape[1])


def double(x: Tensor) -> Tensor:
    """Enlarge (n, c, h, w) to twice its height and width."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
