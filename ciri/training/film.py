"""Light and film: shadows, changing light, blur, noise and compression, on batches of synthetic clips.

Dimensions: b clips, t frames, h w pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Dice:
    """Random numbers of one batch, on the device, from a seed."""

    def __init__(self, seed: int, device: torch.device | str) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        # choices among the material are made on the host: they index Python lists
        self.host = torch.Generator().manual_seed(seed + 1)
        self.device = torch.device(device)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Even numbers in [low, high)."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers of variance 1."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def sign(self, *shape: int) -> Tensor:
        """-1 and 1, as often."""
        return torch.where(self.uniform(*shape) < 0.5, -1.0, 1.0)

    def chance(self, probability: float) -> bool:
        """True with a probability in [0, 1]."""
        return float(torch.rand((), generator=self.host)) < probability

    def below(self, n: int) -> int:
        """One of 0 .. n - 1; n at least 1."""
        return int(torch.randint(n, (), generator=self.host))


def wave(b: int, time: Tensor, dice: Dice) -> Tensor:
    """Smooth random motion (b, t), about -1 .. 1, 0 at the start: a drift and a swing."""
    pace, phase = dice.uniform(b, 1, low=0.1, high=0.7), dice.uniform(b, 1, high=2 * math.pi)
    drift = dice.normal(b, 1) * 0.12 * time
    swing = torch.sin(pace * time + phase) - torch.sin(phase)
    return drift + 0.6 * dice.normal(b, 1) * swing


def shadow(frames: Tensor, cover: Tensor, dice: Dice) -> Tensor:
    """Darken what is beside an object, softly: shadows move with it and are not part of it."""
    if not dice.chance(0.4):
        return frames
    dy, dx = dice.below(17) - 4, dice.below(33) - 16
    flat = torch.roll(cover.flatten(0, 1), (dy, dx), (2, 3))
    soft = F.avg_pool2d(flat, 9, stride=1, padding=4).unflatten(0, cover.shape[:2])
    depth = 0.6 * dice.uniform(len(frames), 1, 1, 1, 1)
    return frames * (1 - depth * soft)


def film(frames: Tensor, dice: Dice) -> Tensor:
    """What happens between the scene and the file: light that changes, blur, noise, compression."""
    b, t = frames.shape[:2]
    time = torch.arange(t, device=frames.device).float()[None]

    def some(share: float) -> Tensor:
        return (dice.uniform(b, 1, 1, 1, 1) < share).float()

    light = (0.12 * wave(b, time, dice)).view(b, t, 1, 1, 1) * some(0.4)
    tint = 0.05 * dice.normal(b, 1, 3, 1, 1) * some(0.5)
    frames = frames * (1 + light + tint)
    grey = frames.mean(2, keepdim=True)
    frames = torch.lerp(frames, grey.expand_as(frames), some(0.06))
    if dice.chance(0.4):
        small = F.interpolate(frames.flatten(0, 1), scale_factor=0.6, mode="bilinear", antialias=True)
        soft = F.interpolate(small, size=frames.shape[-2:], mode="bilinear").unflatten(0, (b, t))
        frames = torch.lerp(frames, soft, some(0.5))
    noise = torch.randn(frames.shape, generator=dice.generator, device=frames.device)
    frames = frames + noise * 0.04 * dice.uniform(b, 1, 1, 1, 1).square() * some(0.5)
    if dice.chance(0.4):
        frames = torch.lerp(frames, compress(frames, dice), some(0.6))
    return frames.clamp(0, 1)


def compress(frames: Tensor, dice: Dice) -> Tensor:
    """Block transform coding: the cosine transform of 8x8 blocks, rounded more coarsely at high frequencies."""
    n = torch.arange(8, device=frames.device).float()
    basis = torch.cos(math.pi / 8 * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / 8)
    basis[0] /= math.sqrt(2)
    blocks = frames.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    coefficients = basis @ blocks @ basis.T
    strength = dice.uniform(len(frames), 1, 1, 1, 1, 1, 1, low=0.01, high=0.05)
    step = strength * (1 + 0.5 * (n[None] + n[:, None]))
    blocks = basis.T @ (torch.round(coefficients / step) * step) @ basis
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
