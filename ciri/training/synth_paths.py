"""Where synthetic objects are, how large and how turned, as a smooth function of time.

Dimensions: b clips, t frames, h w pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.training.film import Dice
from ciri.training.propagator_data import FILLED, SMALLEST

if TYPE_CHECKING:
    from ciri.training.synth_vos import Recipe


@dataclass(frozen=True)
class Gathering:
    """Where several things move about together, each on its own way.

    Attributes:
        which: bool (b,), the clips that have such a place.
        in_scene: bool (b,), those of them in which the scene's object is one of the things.
        start: (b, 2), its middle in the first frame, in pixels.
        velocity: (b, 2), pixels per frame.
        side: (b, 1), of the things there, in pixels.
    """

    which: Tensor
    in_scene: Tensor
    start: Tensor
    velocity: Tensor
    side: Tensor

    @classmethod
    def about(cls, alpha: Tensor, which: Tensor, recipe: Recipe, dice: Dice) -> Gathering:
        """Gather about the scenes' objects, shown by alpha (b, t, 1, h, w), or anywhere where there is none."""
        b, t, _, h, w = alpha.shape
        unit = h / 240
        anywhere = torch.cat(
            [dice.uniform(b, 1, low=0.2, high=0.8) * w, dice.uniform(b, 1, low=0.25, high=0.75) * h], 1
        )
        drift = recipe.speed * unit * 0.4 * dice.normal(b, 2)
        side = torch.exp(dice.uniform(b, 1, low=math.log(50), high=math.log(200))) * unit
        middles, areas = _middles(alpha)
        seen = areas > SMALLEST
        in_scene = which & seen[:, 0]
        last = t - 1 - seen.flip(1).float().argmax(1)
        moved = middles[torch.arange(b, device=alpha.device), last] - middles[:, 0]
        inside = in_scene[:, None]
        return cls(
            which,
            in_scene,
            torch.where(inside, middles[:, 0], anywhere),
            torch.where(inside, moved / last.clamp(min=1)[:, None], drift),
            torch.where(inside, 1.3 * areas[:, :1].sqrt().clamp(min=34 * unit), side),
        )


def _middles(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Centroids (b, t, 2), x and y in pixels, and areas (b, t) of objects (b, t, 1, h, w)."""
    h, w = alpha.shape[-2:]
    shown = alpha[:, :, 0]
    areas = shown.sum((2, 3))
    x = (shown.sum(2) * torch.arange(w, device=alpha.device)).sum(2)
    y = (shown.sum(3) * torch.arange(h, device=alpha.device)).sum(2)
    return torch.stack([x, y], 2) / areas.clamp(min=1)[..., None], areas


class Path:
    """Where a sprite is, how large and how turned, as a function of time."""

    def __init__(self, b: int, t: int, size: tuple[int, int], recipe: Recipe, is_target: Tensor, dice: Dice) -> None:
        self.size = size
        height, width = size
        unit = height / 240
        # sides are log-uniform: small targets are as frequent as large ones
        self.side = torch.exp(dice.uniform(b, 1, low=math.log(34), high=math.log(220))) * unit
        self.growth = 0.05 * dice.normal(b, 1)
        self.angle, self.spin = 0.25 * dice.normal(b, 1), 0.06 * dice.normal(b, 1)
        self.flip = dice.sign(b, 1)
        self.stretch = torch.exp(0.15 * dice.normal(b, 1))
        self.start = torch.cat(
            [dice.uniform(b, 1, low=0.12, high=0.88) * width, dice.uniform(b, 1, low=0.15, high=0.85) * height], 1
        )
        heading, speed = dice.uniform(b, high=2 * math.pi), recipe.speed * unit * dice.uniform(b).square()
        self.velocity = torch.stack([torch.cos(heading), 0.6 * torch.sin(heading)], 1) * speed[:, None]
        self.swing = recipe.speed * unit * 0.5 * dice.normal(b, 2)
        self.pace = dice.uniform(b, 2, low=0.3, high=1.4)
        self.bend = recipe.deform * dice.uniform(b, 1) * 2
        # leaves to the side and comes back: away in the middle of the clip
        leaves = (dice.uniform(b) < recipe.leave) & is_target
        self.away = torch.where(leaves, dice.sign(b) * (width + self.side[:, 0]), torch.zeros(b, device=heading.device))
        self.middle = dice.uniform(b, 1, low=0.45, high=0.7) * max(t - 1, 1)
        self.width = dice.uniform(b, 1, low=0.12, high=0.22) * max(t - 1, 1)

    def join(self, gathering: Gathering, dice: Dice) -> None:
        """Move about with the others, where there is a gathering: near them, and a few pixels a frame apart."""
        b, unit, which = len(self.side), self.size[0] / 240, gathering.which[:, None]
        side = gathering.side * torch.exp(0.3 * dice.normal(b, 1))
        start = gathering.start + 0.25 * side * dice.normal(b, 2)
        velocity = gathering.velocity + 2.5 * unit * dice.normal(b, 2)
        self.side = torch.where(which, side.clamp(24 * unit, 240 * unit), self.side)
        self.start = torch.where(which, start, self.start)
        self.velocity = torch.where(which, velocity, self.velocity)
        self.swing = torch.where(which, 0.3 * self.swing, self.swing)

    def grid(self, time: Tensor) -> Tensor:
        """Sampling grid (b t, h, w, 2) in the sprite's coordinates, for times (1, t)."""
        (h, w), b = self.size, len(self.side)
        time = time.expand(b, -1)
        ticks = time[..., None]
        centre = self.start[:, None] + self.velocity[:, None] * ticks
        centre = centre + self.swing[:, None] * (torch.cos(self.pace[:, None] * ticks) - 1)
        absence = torch.exp(-(((time - self.middle) / self.width) ** 2)) * (time > 0)
        centre = centre + torch.stack([self.away[:, None] * absence, torch.zeros_like(absence)], -1)
        side = self.side * torch.exp((self.growth * time).clamp(-0.7, 0.7)) / FILLED
        angle = self.angle + self.spin * time
        cos, sin = 2 * torch.cos(angle) / side, 2 * torch.sin(angle) / side
        # output pixels, then pixels from the centre, then the sprite's -1 .. 1
        a, c = cos * self.flip * self.stretch, sin * self.flip * self.stretch
        rows = torch.stack([a * w / 2, c * h / 2, -sin / self.stretch * w / 2, cos / self.stretch * h / 2], -1)
        away = torch.stack([w / 2 - centre[..., 0], h / 2 - centre[..., 1]], -1)
        to_x = a * away[..., 0] + c * away[..., 1]
        to_y = (-sin * away[..., 0] + cos * away[..., 1]) / self.stretch
        theta = torch.stack([rows[..., 0], rows[..., 1], to_x, rows[..., 2], rows[..., 3], to_y], -1)
        return F.affine_grid(theta.view(-1, 2, 3), [theta.shape[0] * theta.shape[1], 1, h, w], align_corners=False)
