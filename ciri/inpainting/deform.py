"""Modulated deformable convolution (DCN v2, Zhu et al., CVPR 2019), and sampling along a flow.

Dimensions: N images, C channels, H W size, G deform groups, K taps of the kernel, P output positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ciri.out_of_memory import is_out_of_memory

#: Sampled values held at once; more output rows than this allows are done a few at a time. A processor is fastest
#: when they stay in its cache (1.4 to 1.8 times, measured), other devices when there are few calls.
CACHED_SAMPLES, MOST_SAMPLES = 1 << 21, 1 << 26


def modulated_deform_conv(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Convolve at displaced positions: every tap samples x bilinearly at its own offset and is scaled by its own mask.

    Outside the image x is 0; a sample between the border and the outside fades linearly.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * G * K, h, w) in pixels: channel 2 * (g * K + k) is dy of tap k in deform group g, the next dx.
        mask: (N, G * K, h, w).
        weight: float32 (out, C / groups, kernel height, kernel width); ``groups`` follows from its shape.
        bias: float32 (out,).

    Returns:
        (N, out, h, w). Sampling is done in float32; what follows is multiplied as autocast says, where it is on.
    """
    compiled = compiled_deform_conv(x.device.type)
    if compiled is not None:
        return compiled(x, offset, weight, bias, stride, padding, dilation, mask)
    budget = CACHED_SAMPLES if x.device.type == "cpu" else MOST_SAMPLES
    rows = max(1, budget // (x.shape[0] * x.shape[1] * weight[0, 0].numel() * offset.shape[3]))
    taps = tap_positions(weight.shape[2:], offset.shape[2:], stride, padding, dilation, offset.device)
    parts = [
        convolve_samples(sample_taps(x, o, m, t), weight)
        for o, m, t in zip(offset.split(rows, 2), mask.split(rows, 2), taps.split(rows, 2), strict=True)
    ]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    return out if bias is None else out + bias.view(1, -1, 1, 1)


def tap_positions(
    kernel: torch.Size, size: torch.Size, stride: int, padding: int, dilation: int, device: torch.device
) -> Tensor:
    """Undisplaced position (y, x) of every tap of every output: float32 (2, K, h, w)."""

    def axis(taps: int, length: int) -> Tensor:
        outputs = torch.arange(length, device=device) * stride - padding
        return torch.arange(taps, device=device)[:, None] * dilation + outputs

    y, x = axis(kernel[0], size[0])[:, None, :, None], axis(kernel[1], size[1])[None, :, None, :]
    return torch.stack([part.flatten(0, 1) for part in torch.broadcast_tensors(y, x)]).float()


def sample_taps(x: Tensor, offset: Tensor, mask: Tensor, taps: Tensor) -> Tensor:
    """Sample every channel at every displaced tap and scale by the mask: (N, C, K, h, w)."""
    groups = offset.shape[1] // (2 * taps.shape[1])
    position = rearrange(offset, "n (g k c) h w -> (n g) c k h w", g=groups, c=2) + taps
    images = rearrange(x, "n (g c) h w -> (n g) c h w", g=groups)
    k, h = position.shape[2], position.shape[3]
    flat = rearrange(position, "n c k h w -> n c (k h) w")
    sampled = rearrange(sample(images, flat[:, 1], flat[:, 0]), "n c (k h) w -> n c k h w", k=k, h=h)
    scaled = sampled * rearrange(mask, "n (g k) h w -> (n g) 1 k h w", g=groups)
    return rearrange(scaled, "(n g) c k h w -> n (g c) k h w", g=groups)


def convolve_samples(columns: Tensor, weight: Tensor) -> Tensor:
    """Matrix product of samples (N, C, K, h, w) with the kernel: (N, out, h, w)."""
    groups = columns.shape[1] // weight.shape[1]
    kernel = rearrange(weight, "(g o) c y x -> g o (c y x)", g=groups)
    grouped = rearrange(columns, "n (g c) k h w -> n g (c k) (h w)", g=groups)
    return rearrange(kernel @ grouped, "n g o (h w) -> n (g o) h w", h=columns.shape[3])


def sample(images: Tensor, x: Tensor, y: Tensor, padding: str = "zeros") -> Tensor:
    """Sample (N, C, H, W) bilinearly at pixel coordinates (N, h, w); in float32, as coordinates need it.

    Args:
        padding: what lies outside: "zeros", or "border" for the nearest border pixel.
    """
    h, w = images.shape[2:]
    # pixel p has its centre at (2 p + 1) / size - 1; unlike the convention of aligned corners this works for size 1
    grid = torch.stack([(2 * x.float() + 1) / w - 1, (2 * y.float() + 1) / h - 1], -1)
    with torch.autocast(images.device.type, enabled=False):
        return F.grid_sample(images.float(), grid, "bilinear", padding, align_corners=False)


def warp(images: Tensor, flow: Tensor, padding: str = "zeros") -> Tensor:
    """Fetch (N, C, H, W) along a flow (N, 2, H, W) of (dx, dy) in pixels: result(p) = images(p + flow(p))."""
    h, w = flow.shape[2:]
    columns = torch.arange(w, device=flow.device, dtype=torch.float32)
    rows = torch.arange(h, device=flow.device, dtype=torch.float32)[:, None]
    return sample(images, flow[:, 0].float() + columns, flow[:, 1].float() + rows, padding)


@cache
def compiled_deform_conv(device: str) -> Callable[..., Tensor] | None:
    """torchvision's compiled operator if it is installed, works on this kind of device, and is right; else None.

    On a processor the form above is used in any case, so that results do not depend on what is installed.
    """
    if device == "cpu":
        return None
    try:
        from torchvision.ops import deform_conv2d  # type: ignore[import-not-found,import-untyped,unused-ignore]

        x = torch.arange(9.0, device=device).view(1, 1, 3, 3)
        # one tap, moved half a pixel down: the mean of two rows, and half of the last one
        offset = torch.tensor([0.5, 0.0], device=device).view(1, 2, 1, 1).expand(1, 2, 3, 3).contiguous()
        ones = torch.ones(1, 1, 3, 3, device=device)
        moved = deform_conv2d(x, offset, ones[:, :, :1, :1], None, 1, 0, 1, ones).flatten()
    except Exception as error:  # mismatched installs fail in many ways: at import, at loading, at the first call
        if is_out_of_memory(error):
            raise  # that says nothing of the operator, and what is returned is remembered
        return None
    expected = torch.tensor([1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 3.0, 3.5, 4.0], device=device)
    if not torch.allclose(moved, expected):
        return None

    def in_float32(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, *rest: object) -> Tensor:
        *geometry, mask = rest
        assert isinstance(mask, Tensor)
        b = None if bias is None else bias.float()
        return deform_conv2d(x.float(), offset.float(), weight.float(), b, *geometry, mask.float())

    return in_float32
