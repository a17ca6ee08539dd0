"""What travels with a target and what stays behind, on clips whose motion is known."""

import numpy as np
import pytest
import torch

from ciri.refinement import growth
from ciri.refinement.company import FURTHEST, Company

H, W, COUNT, SPEED = 96, 160, 9, 3


def textured(seed: int, h: int, w: int) -> torch.Tensor:
    noise = torch.rand(1, 3, h // 4 + 2, w // 4 + 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, scale_factor=4, mode="bicubic", align_corners=False)[0, :, :h, :w]


@pytest.fixture(scope="module")
def clip() -> tuple[torch.Tensor, torch.Tensor]:
    """A textured body with a leg crosses a textured scene; the masks know the body only."""
    scene, target = textured(0, H, W).clamp(0, 1), textured(1, 60, 40).clamp(0, 1)
    frames, masks = scene.expand(COUNT, -1, -1, -1).clone(), torch.zeros(COUNT, 1, H, W)
    for t in range(COUNT):
        x = 20 + SPEED * t
        frames[t, :, 20:80, x : x + 40] = target
        masks[t, :, 20:56, x : x + 40] = 1
    return frames, masks


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    part = np.zeros((H, W), bool)
    part[top:bottom, left:right] = True
    return part


def test_a_leg_travels_and_a_post_stays_behind(clip) -> None:
    company, t = Company(*clip), 4
    x = 20 + SPEED * t
    leg, post = box(58, 78, x + 4, x + 36), box(20, 50, x + 44, x + 60)
    behind = company.staying_behind(t, leg | post)
    assert (behind == post).all()
    assert not company.staying_behind(t, leg).any()


def test_what_cannot_be_told_gets_the_benefit_of_the_doubt(clip) -> None:
    frames, masks = clip
    x = 20 + SPEED * 4
    post = box(20, 50, x + 44, x + 60)
    for still in (Company(frames[4:5], masks[4:5]), Company(frames, masks * 0)):
        t = min(4, len(still.frames) - 1)
        assert not still.staying_behind(t, post).any()
    # nothing moves: nothing can come away
    frozen = Company(frames[4:5].expand(COUNT, -1, -1, -1), masks[4:5].expand(COUNT, -1, -1, -1))
    assert not frozen.staying_behind(4, post).any()


def test_the_same_is_said_of_a_larger_clip(clip) -> None:
    frames, masks = (torch.nn.functional.interpolate(x, scale_factor=4, mode="nearest") for x in clip)
    x = 20 + SPEED * 4
    leg, post = (
        np.kron(part, np.ones((4, 4))) > 0 for part in (box(58, 78, x + 4, x + 36), box(20, 50, x + 44, x + 60))
    )
    assert (Company(frames, masks).staying_behind(4, leg | post) == post).all()


def test_a_flow_that_loses_the_target_proves_nothing(clip) -> None:
    """Flow that stands still on a moving leg ends on other colours, however sure it is of itself."""
    frames, masks = clip
    leg = box(58, 78, 20 + SPEED * 4 + 4, 20 + SPEED * 4 + 36)
    still = Company(frames, masks)
    still._flows = {t: (np.zeros((2, H, W), np.float32),) * 2 for t in range(COUNT - 1)}
    assert not still.staying_behind(4, leg).any()


def test_a_grown_mask_keeps_the_leg_and_loses_the_post(clip) -> None:
    company, t = Company(*clip), 4
    x = 20 + SPEED * t
    mask = clip[1][t]
    leg, post = (torch.from_numpy(p)[None].float() for p in (box(58, 78, x + 4, x + 36), box(20, 50, x + 46, x + 60)))
    kept, reason = growth.without_scene(torch.maximum(mask, leg + post), mask, t, company)
    assert not reason and torch.equal(kept, torch.maximum(mask, leg))
    kept, reason = growth.without_scene(torch.maximum(mask, post), mask, t, company)
    assert kept is mask and "does not travel with the target" in reason
    grown = torch.maximum(mask, leg)
    assert growth.without_scene(grown, mask, t, company) == (grown, "")


def test_what_is_kept_does_not_grow_with_the_clip(clip) -> None:
    frames, masks = (x[:1].expand(40, -1, -1, -1) for x in clip)
    company, part = Company(frames, masks), box(58, 78, 24, 56)
    for t in (4, 30):
        company.staying_behind(t, part)
    assert company._flows and all(abs(index - 30) <= FURTHEST for index in (*company._flows, *company._distances))
