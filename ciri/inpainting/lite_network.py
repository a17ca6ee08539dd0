"""The network of the backbone ``lite``: repairs what copying along the flow got wrong, and imagines the rest.

A U-net over frames and guidance. At an eighth of the resolution features are carried through time in both
directions along the completed flow; at a sixteenth every place looks at the visible places of all frames. Frame
features are inactivated by (1 - M_iac) at three scales (CIRI Eq. 1); the network never sees the target but through
the large receptive fields of what is beside it. The output is a blend of the copies, per pixel, plus a residual.

Dimensions: b clips, t frames, n = b t, c channels, h w pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ciri.flow.dis import warp
from ciri.inactivation.fusion import Fusion
from ciri.inactivation.gate import area_average, inactivate_scales
from ciri.inpainting.lite_guidance import Guidance

#: Height and width have to be multiples of this.
MULTIPLE = 16


@dataclass(frozen=True)
class LiteConfig:
    """Sizes and the variant.

    Attributes:
        half, quarter, eighth, sixteenth: channels at that share of the resolution.
        deep: residual blocks at a sixteenth.
        heads: attention heads.
        gate: inactivate features (Eq. 1); without it, frames are masked in image space (the ablation's baseline).
    """

    half: int = 32
    quarter: int = 64
    eighth: int = 128
    sixteenth: int = 192
    deep: int = 4
    heads: int = 4
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
        self.middle = nn.Sequential(conv(config.half, config.quarter, 2), Block(config.quarter))
        self.coarse = conv(config.quarter, config.eighth, 2)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """(n, 3, h, w) -> three scales, fine to coarse."""
        half = self.fine(F.pixel_unshuffle(frames * 2 - 1, 2))
        quarter = self.middle(F.leaky_relu(half, 0.1))
        return [half, quarter, self.coarse(F.leaky_relu(quarter, 0.1))]


class Recurrence(nn.Module):
    """Features carried through time, first backward, then forward, along the flow."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = nn.ModuleList([conv(2 * channels, channels), conv(2 * channels, channels)])
        self.refine = nn.ModuleList([Block(channels), Block(channels)])

    def forward(self, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        """(b, t, c, h, w) and flows (b, t - 1, 2, h, w) -> (b, t, c, h, w)."""
        steps = list(x.unbind(1))
        count = len(steps)
        for direction, order in enumerate((range(count - 1, -1, -1), range(count))):
            state: Tensor | None = None
            for t in order:
                if state is None:
                    carried = torch.zeros_like(steps[t])
                elif direction == 0:
                    carried = _carry(state, forward[:, t])
                else:
                    carried = _carry(state, backward[:, t - 1])
                update = self.merge[direction](torch.cat([steps[t], carried], 1))
                state = self.refine[direction](steps[t] + update)
                steps[t] = state
        return torch.stack(steps, 1)


def _carry(state: Tensor, flow: Tensor) -> Tensor:
    # grid coordinates need more digits than half precision has
    with torch.autocast(state.device.type, enabled=False):
        return warp(state.float(), flow.float()).to(state.dtype)


class VisibleAttention(nn.Module):
    """Every place of every frame looks at what is visible, in all frames of the window."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 2 * channels, 1)
        self.place = nn.Linear(16, channels)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, visible: Tensor, frames: int) -> Tensor:
        """x (n, c, h, w), visible (n, 1, h, w) in [0, 1], n = b frames -> (n, c, h, w)."""
        weight = visible + 1e-3
        # keys on half the grid, each the mean of what is visible of it
        pooled = F.avg_pool2d(x * weight, 2, ceil_mode=True) / F.avg_pool2d(weight, 2, ceil_mode=True)
        bias = F.avg_pool2d(weight, 2, ceil_mode=True).log()
        query = self.query(x) + self._places(x)
        key, value = self.key_value(pooled).chunk(2, 1)
        key = key + self._places(pooled)

        def split(z: Tensor) -> Tensor:
            return rearrange(z, "(b t) (m d) h w -> b m (t h w) d", t=frames, m=self.heads)

        mask = rearrange(bias, "(b t) 1 h w -> b 1 1 (t h w)", t=frames).to(query.dtype)
        query, key, value = split(query), split(key), split(value)
        mask = mask.expand(-1, self.heads, query.shape[2], -1)
        seen = F.scaled_dot_product_attention(query, key, value.to(query.dtype), attn_mask=mask)
        h, w = x.shape[-2:]
        return x + self.out(rearrange(seen, "b m (t h w) d -> (b t) (m d) h w", t=frames, h=h, w=w))

    def _places(self, x: Tensor) -> Tensor:
        """(1, c, h, w), where a cell is in the frame, as sines of its coordinates."""
        h, w = x.shape[-2:]
        y = ((torch.arange(h, device=x.device) + 0.5) / h)[:, None].expand(h, w)
        x_ = ((torch.arange(w, device=x.device) + 0.5) / w)[None].expand(h, w)
        angles = torch.stack([c * 3.14159 * 2.0**k for c in (x_, y) for k in range(4)], -1)
        return rearrange(self.place(torch.cat([angles.sin(), angles.cos()], -1)), "h w c -> 1 c h w")


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
        self.guide = conv(4 * 14, c2)
        self.down4, self.down8, self.down16 = conv(c2, c4, 2), conv(c4, c8, 2), conv(c8, c16, 2)
        self.block4, self.block8 = Block(c4), Block(c8)
        self.deep = nn.ModuleList([Block(c16, (1, 2, 4)[i % 3]) for i in range(config.deep)])
        self.attention = VisibleAttention(c16, config.heads)
        self.recurrence = Recurrence(c8)
        self.up8, self.up4, self.up2 = nn.Conv2d(c16, c8, 1), nn.Conv2d(c8, c4, 1), nn.Conv2d(c4, c2, 1)
        self.post8, self.post4, self.post2 = Block(c8), Block(c4), Block(c2)
        self.out = conv(c2, 24)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            # starts as the classical base; logits of base, before and after, then the residual, four pixels each
            self.out.bias.zero_()  # type: ignore[union-attr]
            self.out.bias[:4] = 4.0  # type: ignore[index]

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
        count = frames.shape[1]
        mask = inactivation.flatten(0, 1)
        if not self.config.gate:
            scales = self.encode((frames * (1 - inactivation)).flatten(0, 1))
        else:
            scales = inactivate_scales(scales or self.encode(frames.flatten(0, 1)), mask)
        copies = torch.stack([guide.base, guide.before, guide.after], 2).flatten(0, 1)
        told = torch.cat([copies.flatten(1, 2) * 2 - 1, guide.cues.flatten(0, 1), mask], 1)
        half = self.guide(F.pixel_unshuffle(told, 2)) + scales[0]
        quarter = self.block4(self.down4(F.leaky_relu(half, 0.1)) + scales[1])
        eighth = self.block8(self.down8(F.leaky_relu(quarter, 0.1)) + scales[2])
        eighth = self._through_time(eighth, guide, count)
        deep = self.down16(F.leaky_relu(eighth, 0.1))
        visible = 1 - area_average(mask, deep.shape[-2:])
        for index, block in enumerate(self.deep):
            if index == len(self.deep) // 2:
                deep = self.attention(deep, visible, count)
            deep = block(deep)
        eighth = self.post8(eighth + _double(self.up8(deep)))
        quarter = self.post4(quarter + _double(self.up4(eighth)))
        half = self.post2(half + _double(self.up2(quarter)))
        logits, residual = F.pixel_shuffle(self.out(F.leaky_relu(half, 0.1)), 2).float().split(3, 1)
        blended = (logits.softmax(1)[:, :, None] * copies).sum(1)
        return (blended + residual).unflatten(0, (-1, count))

    def _through_time(self, x: Tensor, guide: Guidance, count: int) -> Tensor:
        clips = self.recurrence(x.unflatten(0, (-1, count)), guide.forward, guide.backward)
        return clips.flatten(0, 1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
