"""Synthetic video object segmentation, made on the training device: clips, and the target's mask in every frame.

A clip is a scene (a real clip at its own frame spacing, or a still under camera motion), with or without an
annotated object of its own, and up to three pasted sprites above it. One object is the target, the others are
occluders and distractors, some of them its look-alikes, some close by: what comes out from behind a target, limb by
limb, is what trackers take along. Everything moves smoothly; targets deform, leave and come back;
light, shadow, blur, noise and compression are added. All of it is a function of the generator's state.

Dimensions: b clips, t frames, l sprite layers, h w pixels, s side of a sprite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.training.film import Dice, film, shadow, wave
from ciri.training.propagator_data import SMALLEST, Bank
from ciri.training.synth_paths import Gathering, Path

LAYERS = 3
#: Corners of the deformation's control grid, per side; it is made smooth before it is sampled.
CONTROL, SMOOTH = 4, 13


@dataclass(frozen=True)
class Recipe:
    """How clips are made.

    Attributes:
        frames: length of a clip.
        annotated: share of clips whose target is a real annotated object of its scene.
        moving: share of scenes that are real clips rather than stills under camera motion.
        spacing: largest distance between the frames that are taken from a real clip.
        speed: sprites' largest speed, pixels per frame at a height of 240.
        camera: strength of the added camera motion and of the scene's deformation.
        deform: strength of the sprites' deformation.
        crowd: probability that another layer holds an object.
        leave: probability that a target leaves the frame.
        union: probability that a second object belongs to the target.
        twin: probability that a target has a look-alike.
        company: probability that something moves about a pasted target, mostly behind it: the annotated object of a
            scene, or another sprite.
        blur: probability that the sprites' motion is blurred.
    """

    frames: int
    annotated: float = 0.45
    moving: float = 0.65
    spacing: int = 4
    speed: float = 14.0
    camera: float = 0.3
    deform: float = 0.06
    crowd: float = 0.55
    leave: float = 0.12
    union: float = 0.12
    twin: float = 0.3
    company: float = 0.0
    blur: float = 0.3


#: Real frame spacing, occlusion, distractors.
CLIPS = Recipe(5)


@dataclass
class Sample:
    """Clips and their targets.

    Attributes:
        frames: float32 (b, t, 3, h, w) in [0, 1].
        masks: float32 (b, t, 1, h, w), 1 = target; hard.
        usable: bool (b,), whether the target can be seen in the first frame.
    """

    frames: Tensor
    masks: Tensor
    usable: Tensor


@torch.no_grad()
def synthesise(bank: Bank, recipe: Recipe, batch: int, dice: Dice) -> Sample:
    """Make a batch of clips."""
    h, w = bank.size
    scene, own, meeting = _scenes(bank, recipe, batch, dice)
    scene = _camera(scene, recipe, dice)
    frames, alpha = scene[:, :, :3], scene[:, :, 3:]
    gathering = Gathering.about(alpha, meeting, recipe, dice)
    target = torch.where(own[:, None, None, None, None], alpha, torch.zeros_like(alpha))
    slot = torch.tensor([dice.below(LAYERS) for _ in range(batch)], device=frames.device)
    present = dice.uniform(batch, LAYERS) < recipe.crowd
    layers = torch.arange(LAYERS, device=frames.device)
    targets = (slot[:, None] == layers) & ~own[:, None]
    # several things removed at once are one target: another layer joins it
    targets |= (dice.uniform(batch, 1) < recipe.union) & ((slot[:, None] + 2) % LAYERS == layers)
    companion = ((slot[:, None] + 2) % LAYERS == layers) & (meeting & ~gathering.in_scene)[:, None]
    present |= targets | companion
    casts = _cast(bank, recipe, batch, slot.tolist(), dice)
    for layer in range(LAYERS):
        is_target = targets[:, layer]
        sprites = _sprites(bank, casts[layer], recipe.frames, dice)
        near = replace(gathering, which=gathering.which & (is_target | companion[:, layer]))
        paint = _paint(sprites, recipe, (h, w), is_target, near, dice)
        paint = paint * present[:, layer, None, None, None, None]
        colour, cover = paint[:, :, :3], paint[:, :, 3:]
        frames = shadow(frames, cover, dice) * (1 - cover) + colour
        target = target * (1 - cover) + cover * is_target[:, None, None, None, None]
    frames = film(frames, dice)
    masks = (target > 0.5).float()
    return Sample(frames, masks, masks[:, 0].sum((1, 2, 3)) >= SMALLEST)


# --------------------------------------------------------------------------------------------- scenes


def _scenes(bank: Bank, recipe: Recipe, batch: int, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
    """Return scenes (b, t, 4, h, w), the fourth channel an annotated object.

    And in which of them it is the target (b,), and in which a pasted target has company (b,); if there is an annotated
    object, that is the company.
    """
    t, frames, masks, own, company = recipe.frames, [], [], [], []
    moving = [i for i, (index, _) in enumerate(bank.tracks) if len(index) > 1]
    still = [i for i, (index, _) in enumerate(bank.tracks) if len(index) == 1]
    for _ in range(batch):
        from_clip = bool(bank.clips) and (dice.chance(recipe.moving) or not bank.stills)
        tracks = moving if from_clip else still
        own.append(bool(tracks) and dice.chance(recipe.annotated))
        company.append(not own[-1] and recipe.company > 0 and dice.chance(recipe.company))
        if own[-1] or (company[-1] and tracks and dice.chance(0.5)):
            index, mask = bank.tracks[tracks[dice.below(len(tracks))]]
            order = _order(len(index), t, max(1, recipe.spacing // 2), dice)
            frames += [index[i] for i in order]
            masks += [mask[i] for i in order]
        elif from_clip:
            first, length = bank.clips[dice.below(len(bank.clips))]
            frames += [first + i for i in _order(length, t, recipe.spacing, dice)]
            masks += [-1] * t
        else:
            frames += [bank.stills[dice.below(len(bank.stills))]] * t
            masks += [-1] * t
    device = bank.frames.device
    pixels = bank.frames[torch.tensor(frames, device=device)]
    shown = torch.tensor(masks, device=device)
    objects = bank.masks[shown.clamp(min=0)] * (shown >= 0)[:, None, None]
    scene = torch.cat([pixels, objects[:, None]], 1).unflatten(0, (batch, t)).float() / 255
    return scene, torch.tensor(own, device=device), torch.tensor(company, device=device)


def _order(length: int, wanted: int, spacing: int, dice: Dice) -> list[int]:
    """Frame numbers of a walk through a clip: a constant stride, either direction, turning back at the ends."""
    if length == 1:
        return [0] * wanted
    stride = 1 + dice.below(max(1, min(spacing, (length - 1) // max(1, wanted - 1) or 1)))
    room = max(1, length - stride * (wanted - 1))
    start = dice.below(room)
    walk = [start + stride * i for i in range(wanted)]
    if dice.chance(0.5):
        walk = [length - 1 - i for i in walk]
    period = 2 * (length - 1)
    return [min(i % period, period - i % period) for i in walk]


def _camera(scene: Tensor, recipe: Recipe, dice: Dice) -> Tensor:
    """Move, turn, zoom and bend whole scenes smoothly; the picture is mirrored at its borders."""
    b, t, _, h, w = scene.shape
    strength = recipe.camera * dice.uniform(b, 1).square() * 1.6
    time = torch.arange(t, device=scene.device).float()[None]
    zoom = (1 / (1.02 + 0.35 * dice.uniform(b, 1) * strength + 0.12 * strength * wave(b, time, dice))).clamp(0.5, 1.0)
    angle = 0.2 * strength * wave(b, time, dice)
    shift = torch.stack([0.18 * strength * wave(b, time, dice) for _ in range(2)], -1)
    flip = dice.sign(b, 1)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = torch.stack([cos * flip, -sin * h / w, shift[..., 0], sin * flip * w / h, cos, shift[..., 1]], -1)
    grid = F.affine_grid(rows.view(b * t, 2, 3), [b * t, 1, h, w], align_corners=False)
    grid = grid + _bend(b, time, grid, 0.12 * strength, dice)
    flat = F.grid_sample(scene.flatten(0, 1), grid, padding_mode="reflection", align_corners=False)
    return flat.unflatten(0, (b, t))


def _bend(b: int, time: Tensor, grid: Tensor, strength: Tensor, dice: Dice) -> Tensor:
    """Offsets (b t, h, w, 2) of a smooth deformation that changes over time (a thin plate's, on a coarse lattice)."""
    t = time.shape[-1]
    ends = dice.normal(3, b, 2, CONTROL, CONTROL)
    pace = dice.uniform(b, 1, low=0.2, high=0.9) * time
    weights = torch.stack([torch.ones_like(pace) * 0.5, torch.sin(pace), 1 - torch.cos(pace)])
    lattice = torch.einsum("nbt,nbcij->btcij", weights, ends) * strength.view(b, 1, 1, 1, 1)
    smooth = F.interpolate(lattice.flatten(0, 1), size=(SMOOTH, SMOOTH), mode="bicubic", align_corners=True)
    offsets = F.grid_sample(smooth, grid, padding_mode="border", align_corners=True)
    assert len(offsets) == b * t
    return offsets.permute(0, 2, 3, 1)


# --------------------------------------------------------------------------------------------- sprites


def _cast(bank: Bank, recipe: Recipe, batch: int, slots: list[int], dice: Dice) -> list[list[int]]:
    """Which object plays in which layer: (l)(b) indices of casts. A moving one as often as a still one."""
    moving = [i for i, (_, length) in enumerate(bank.casts) if length > 1]
    still = [i for i, (_, length) in enumerate(bank.casts) if length == 1]

    def choose() -> int:
        kinds = [kind for kind in (moving, still) if kind]
        kind = kinds[0] if len(kinds) == 1 or dice.chance(0.4) else kinds[1]
        return kind[dice.below(len(kind))]

    casts = [[choose() for _ in range(batch)] for _ in range(LAYERS)]
    for clip, slot in enumerate(slots):
        if dice.chance(recipe.twin):
            casts[(slot + 1) % LAYERS][clip] = casts[slot][clip]
    return casts


def _sprites(bank: Bank, cast: list[int], t: int, dice: Dice) -> Tensor:
    """Pictures of the objects over time, recoloured: (b, t, 4, s, s), colour multiplied by alpha."""
    index = []
    for number in cast:
        first, length = bank.casts[number]
        index += [first + i for i in _order(length, t, 2, dice)]
    sprites = bank.sprites[torch.tensor(index, device=bank.sprites.device)].float() / 255
    sprites = sprites.unflatten(0, (len(cast), t))
    b = len(cast)
    colour, alpha = sprites[:, :, :3], sprites[:, :, 3:]
    if bank.stills and dice.chance(0.5):
        # a shape filled with a picture: objects that no class has, and edges that mean nothing
        fill = torch.stack([_patch(bank, sprites.shape[-1], dice) for _ in range(b)])
        swap = dice.uniform(b, 1, 1, 1, 1) < 0.2
        colour = torch.where(swap, fill[:, None] * alpha, colour)
    gain = 1 + 0.25 * dice.normal(b, 1, 1, 1, 1) + 0.1 * dice.normal(b, 1, 3, 1, 1)
    offset = 0.06 * dice.normal(b, 1, 1, 1, 1)
    colour = torch.minimum((colour * gain.clamp(0.4, 1.8) + offset * alpha).clamp(min=0), alpha)
    return torch.cat([colour, alpha], 2)


def _patch(bank: Bank, side: int, dice: Dice) -> Tensor:
    """A square (3, side, side) out of a still."""
    picture = bank.frames[bank.stills[dice.below(len(bank.stills))]]
    h, w = picture.shape[-2:]
    cut = min(side, h, w)
    y, x = dice.below(h - cut + 1), dice.below(w - cut + 1)
    patch = picture[None, :, y : y + cut, x : x + cut].float() / 255
    return F.interpolate(patch, size=(side, side), mode="bilinear", align_corners=False)[0]


def _paint(
    sprites: Tensor, recipe: Recipe, size: tuple[int, int], is_target: Tensor, gathering: Gathering, dice: Dice
) -> Tensor:
    """Lay sprites into frames along smooth paths: (b, t, 4, h, w), colour multiplied by alpha."""
    b, t = sprites.shape[:2]
    path = Path(b, t, size, recipe, is_target, dice)
    path.join(gathering, dice)
    time = torch.arange(t, device=sprites.device).float()[None]
    # an exposure of up to 0.6 frames, in three parts, blurs what moves fast
    exposure = [0.0, 0.3, 0.6] if dice.chance(recipe.blur) else [0.0]
    bend = dice.generator.get_state()
    painted = sprites.new_zeros(b, t, 4, *size)
    for part in exposure:
        dice.generator.set_state(bend)
        grid = path.grid(time + part)
        grid = grid + _bend(b, time + part, grid.clamp(-1, 1), path.bend, dice)
        layer = F.grid_sample(sprites.flatten(0, 1), grid, padding_mode="zeros", align_corners=False)
        painted += layer.unflatten(0, (b, t)) / len(exposure)
    return painted
