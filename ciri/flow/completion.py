"""Completing optical flow inside a hole: what the background does where the target hides it.

A robust affine motion (the camera's, mostly) is fitted to what is visible and taken out; the rest is continued
into the hole as a membrane, the smoothest surface that meets the visible flow at the rim. An affine flow is
therefore completed exactly, and everything else at least meets the rim.

Dimensions: n fields, c channels, h w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Rounds of the robust fit; each halves the scale at which a residual counts as an outlier.
FIT_ROUNDS = 6
#: Relaxation sweeps per level of the membrane's pyramid.
SWEEPS = 6


def complete_flow(flow: Tensor, hole: Tensor, trust: Tensor | None = None) -> Tensor:
    """Replace flow inside a soft hole by a smooth continuation of the flow around it.

    Args:
        flow: float32 (N, 2, H, W) in pixels.
        hole: float32 (N, 1, H, W) in [0, 1]; where 0 the flow is kept as it is, where 1 it is not used at all.
        trust: optional float32 (N, 1, H, W) in [0, 1]; visible flow counts by it (see
            :func:`ciri.flow.dis.consistency`).

    Returns:
        float32 (N, 2, H, W). A field whose hole is everything is 0.
    """
    known = 1 - hole
    weight = (2 * known - 1).clamp(min=0)  # what is rather hidden than visible says nothing about the rest
    if trust is not None:
        weight = weight * trust
    affine = fit_affine(flow, weight)
    rest = membrane(flow - affine, weight, finest_sweeps=1) + affine
    return torch.lerp(rest, flow, known)


def membrane(values: Tensor, weight: Tensor, *, sweeps: int = SWEEPS, finest_sweeps: int = SWEEPS) -> Tensor:
    """Continue values from where they are known to where they are not, by Laplace's equation.

    Cascadic multigrid: solved on the coarsest level, then carried up and relaxed with
    u <- w v + (1 - w) mean of the four neighbours. Where ``weight`` is 1 the values are kept exactly.

    Args:
        values: float32 (N, C, H, W); what it holds where the weight is 0 does not matter.
        weight: float32 (N, 1, H, W) in [0, 1].
        sweeps: relaxation sweeps per level.
        finest_sweeps: the same on the finest level, which costs as much as three of all the others.

    Returns:
        float32 (N, C, H, W); 0 where a field has no weight anywhere.
    """
    pyramid = [(values, weight)]
    while min(weight.shape[-2:]) > 1:
        total = _halve(weight)
        values = _halve(values * weight) / total.clamp(min=1e-8)
        weight = (total * 4).clamp(max=1)  # one known pixel in four is enough to know the coarse one
        pyramid.append((values, weight))
    known, weight = pyramid.pop()
    mass = weight.sum((-2, -1), keepdim=True)
    mean = (known * weight).sum((-2, -1), keepdim=True) / mass.clamp(min=1e-8)
    result = torch.lerp(mean.expand_as(known), known, weight)
    while pyramid:
        known, weight = pyramid.pop()
        result = F.interpolate(result, size=known.shape[-2:], mode="bilinear", align_corners=False)
        for _ in range(sweeps if pyramid else finest_sweeps):
            result = torch.lerp(_neighbour_mean(result), known, weight)
    return result


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def _neighbour_mean(x: Tensor) -> Tensor:
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return (p[..., 1:-1, :-2] + p[..., 1:-1, 2:] + p[..., :-2, 1:-1] + p[..., 2:, 1:-1]) / 4


def fit_affine(flow: Tensor, weight: Tensor) -> Tensor:
    """Return the affine flow that fits best where the weight is, outliers set aside.

    Iteratively reweighted least squares (Geman-McClure) with a shrinking scale.

    Args:
        flow: float32 (N, 2, H, W).
        weight: float32 (N, 1, H, W) in [0, 1].

    Returns:
        float32 (N, 2, H, W); 0 where a field has no weight.
    """
    n, _, h, w = flow.shape
    step = max(1, min(h, w) // 60)  # a sixty-row grid pins six numbers down as well as every pixel does
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y], dim=-1).to(flow).reshape(h, w, 3)
    a = basis[::step, ::step].reshape(1, -1, 3)
    b = flow[..., ::step, ::step].reshape(n, 2, -1).transpose(1, 2)
    given = weight[..., ::step, ::step].reshape(n, -1, 1)
    ridge = 1e-6 * torch.eye(3).to(flow)
    robust, scale = given, 8.0
    for _ in range(FIT_ROUNDS):
        left = (a * robust).transpose(1, 2) @ a / robust.sum(1, keepdim=True).clamp(min=1e-8) + ridge
        right = (a * robust).transpose(1, 2) @ b / robust.sum(1, keepdim=True).clamp(min=1e-8)
        motion = torch.linalg.solve(left, right)
        error = (b - a @ motion).square().sum(-1, keepdim=True)
        robust = given * (scale**2 / (scale**2 + error)).square()
        scale = max(scale / 2, 0.5)
    return torch.einsum("hwk,nkc->nchw", basis, motion)
