"""Flow completion against closed forms: affine flows, harmonic functions, and what must stay as it is."""

import pytest
import torch

from ciri.flow.completion import complete_flow, fit_affine, membrane


def grid(h, w):
    y, x = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    return x, y


def hole_in(h, w, top, left, bottom, right):
    hole = torch.zeros(1, 1, h, w)
    hole[..., top:bottom, left:right] = 1
    return hole


@pytest.mark.parametrize("size", [(48, 64), (37, 53)])
def test_an_affine_flow_is_completed_exactly(size):
    x, y = grid(*size)
    flow = torch.stack([1.5 + 0.02 * x - 0.05 * y, -2 + 0.03 * x + 0.01 * y])[None]
    hole = hole_in(*size, 8, 10, 30, 40)
    spoiled = torch.where(hole > 0, torch.full_like(flow, 99.0), flow)
    torch.testing.assert_close(complete_flow(spoiled, hole), flow, atol=2e-3, rtol=0)


def test_the_camera_is_found_among_outliers():
    x, y = grid(60, 80)
    flow = torch.stack([2 + 0.01 * x, 0.02 * y - 1])[None]
    spoiled = flow.clone()
    spoiled[..., 10:40, 10:35] += 12  # a second object, a sixth of the picture
    torch.testing.assert_close(fit_affine(spoiled, torch.ones(1, 1, 60, 80)), flow, atol=0.05, rtol=0)


def test_visible_flow_is_kept_bit_for_bit():
    flow = torch.randn(2, 2, 30, 40, generator=torch.Generator().manual_seed(0))
    hole = hole_in(30, 40, 5, 5, 20, 25).expand(2, 1, 30, 40)
    done = complete_flow(flow, hole)
    assert torch.equal(done[hole.expand_as(done) == 0], flow[hole.expand_as(flow) == 0])


def test_a_soft_hole_lies_between_the_flow_and_its_completion():
    flow = torch.full((1, 2, 32, 32), 1.0)
    flow[..., 10:20, 10:20] = 5
    hole = hole_in(32, 32, 10, 10, 20, 20)
    torch.testing.assert_close(complete_flow(flow, hole)[..., 12:18, 12:18], torch.full((1, 2, 6, 6), 1.0))
    half = complete_flow(flow, hole * 0.5)[..., 12:18, 12:18]
    assert (half > 1).all() and (half < 5).all()


def test_a_full_hole_and_a_single_pixel_give_no_motion():
    flow = torch.randn(1, 2, 9, 7)
    assert torch.equal(complete_flow(flow, torch.ones(1, 1, 9, 7)), torch.zeros_like(flow))
    assert torch.equal(complete_flow(flow[..., :1, :1], torch.ones(1, 1, 1, 1)), torch.zeros(1, 2, 1, 1))


def test_the_membrane_meets_a_harmonic_function_and_obeys_the_maximum_principle():
    x, y = grid(40, 40)
    harmonic = ((x - 20) ** 2 - (y - 20) ** 2)[None, None] / 100
    hole = hole_in(40, 40, 12, 12, 28, 28)
    filled = membrane(torch.where(hole > 0, torch.tensor(1e6), harmonic), 1 - hole, sweeps=60)
    torch.testing.assert_close(filled, harmonic, atol=0.05, rtol=0)
    rim = harmonic[hole == 0]
    assert filled.min() >= rim.min() - 1e-5 and filled.max() <= rim.max() + 1e-5
