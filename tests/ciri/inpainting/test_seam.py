"""The gradient-domain correction against a dense solve, and against offsets that have to disappear."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ciri.inpainting.seam import _level, _neighbour_sum, correction, solve_poisson


def dense_solution(right, hole, hold):
    """Solve the same equations as one dense linear system, for one channel."""
    h, w = hole.shape
    pixels = [tuple(p) for p in np.argwhere(hole)]
    number = {p: i for i, p in enumerate(pixels)}
    matrix, vector = np.zeros((len(pixels),) * 2), np.array([right[p] for p in pixels])
    for (y, x), i in number.items():
        matrix[i, i] += hold[y, x]
        for q in ((y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)):
            if 0 <= q[0] < h and 0 <= q[1] < w:
                matrix[i, i] += 1
                if q in number:
                    matrix[i, number[q]] -= 1
    solution = np.zeros((h, w))
    for p, value in zip(pixels, np.linalg.solve(matrix, vector), strict=True):
        solution[p] = value
    return solution


@pytest.mark.parametrize("size", [(24, 31), (17, 16)])
@pytest.mark.parametrize("most_held", [0.0, 0.5])
def test_multigrid_agrees_with_a_dense_solve(size, most_held):
    rng = np.random.default_rng(0)
    hole = np.zeros(size, dtype=bool)
    hole[3:14, 5:15] = True
    hole[10:, 8:12] = True  # down to the border of the picture
    right = rng.standard_normal(size) * hole
    hold = rng.uniform(0, most_held, size)
    tensors = (torch.from_numpy(x).float()[None, None] for x in (right, hole, hold))
    solved = solve_poisson(*tensors, cycles=30)
    np.testing.assert_allclose(solved[0, 0].numpy(), dense_solution(right, hole, hold), atol=1e-3)


def test_a_constant_offset_disappears():
    picture = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    hole = torch.zeros(40, 50, dtype=torch.bool)
    hole[10:30, 12:35] = True
    copied = picture + 0.1 * hole
    across = (picture.diff(dim=2) - copied.diff(dim=2)) * (hole[:, 1:] | hole[:, :-1])
    down = (picture.diff(dim=1) - copied.diff(dim=1)) * (hole[1:] | hole[:-1])
    fixed = copied + correction(across, down, hole)
    # a few cycles are enough for the eye: what is left of the tenth is less than a fifth of it
    torch.testing.assert_close(fixed, picture, atol=2e-2, rtol=0)
    assert (fixed - picture).abs()[:, hole].mean() < 1e-2
    assert torch.equal(fixed[:, ~hole], picture[:, ~hole])


def test_held_colours_are_changed_near_their_seam_alone():
    # a step of 0.1 between the halves of a hole: free, each half takes half of it; held, e'' = hold e beside the seam
    hole = torch.zeros(40, 80, dtype=torch.bool)
    hole[1:39, 1:79] = True
    across = torch.zeros(1, 40, 79)
    across[:, 1:39, 39] = -0.1
    reach = 4
    free, held = (
        correction(across, torch.zeros(1, 39, 80), hole, hold)[0, 20]
        for hold in (None, torch.full((40, 80), 1 / reach**2))
    )
    far = torch.exp(-torch.arange(3 * reach) / reach)
    torch.testing.assert_close(held[39 - torch.arange(3 * reach)] / held[39], far, atol=0.05, rtol=0)
    torch.testing.assert_close(held[40 + torch.arange(3 * reach)] / held[40], far, atol=0.05, rtol=0)
    assert abs(float(held[40] - held[39]) + 0.1) < 0.02
    assert abs(free[25]) > 0.01 > 5 * abs(held[25])


def test_without_a_hole_nothing_is_corrected():
    assert not correction(torch.ones(3, 5, 6), torch.ones(3, 4, 7), torch.zeros(5, 7, dtype=torch.bool)).any()


@given(
    seed=st.integers(0, 10_000),
    share=st.floats(0.05, 1),
    most_held=st.sampled_from([0.0, 0.03, 1.0]),
    h=st.integers(1, 40),
    w=st.integers(1, 40),
)
def test_no_hole_however_ragged_makes_it_worse(seed, share, most_held, h, w):
    generator = torch.Generator().manual_seed(seed)
    hole = (torch.rand(1, 1, h, w, generator=generator) < share).float()
    right = torch.randn(1, 3, h, w, generator=generator) * hole
    hold = most_held * torch.rand(1, 1, h, w, generator=generator)
    solved = solve_poisson(right, hole, hold)
    rest = hole * (right - _level(hole, hold)[1] * solved + _neighbour_sum(solved))
    assert rest.norm() <= right.norm() and torch.equal(solved * (1 - hole), torch.zeros_like(right))
