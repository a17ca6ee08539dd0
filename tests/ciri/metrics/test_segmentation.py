"""J and F against a brute-force twin, closed forms, and values computed by the benchmark's own definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ciri.errors import MaskError
from ciri.metrics.segmentation import boundary_accuracy, boundary_radius, contour, region_similarity, segmentation_score

FIXTURE = Path(__file__).parents[2] / "data/parity/metrics/segmentation.npz"

masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def slow_contour(mask):
    """Pixel by pixel: compare with the right, lower and lower-right neighbour; the last row looks right only,
    the last column down only, the last corner nowhere."""
    h, w = mask.shape
    edge = np.zeros_like(mask)
    for y in range(h):
        for x in range(w):
            looks = []
            if x + 1 < w:
                looks.append((y, x + 1))
            if y + 1 < h:
                looks.append((y + 1, x))
            if x + 1 < w and y + 1 < h:
                looks.append((y + 1, x + 1))
            edge[y, x] = any(mask[y, x] != mask[n] for n in looks)
    return edge


def slow_share_near(points, others, radius):
    here, there = np.argwhere(points), np.argwhere(others)
    if not len(here):
        return 1.0
    hits = sum(any((p - q) @ (p - q) <= radius**2 for q in there) for p in here)
    return hits / len(here)


@given(masks)
def test_contour_and_scores_equal_the_brute_force_twin(pair):
    predicted, true = pair
    edges = slow_contour(predicted), slow_contour(true)
    assert (contour(predicted) == edges[0]).all()
    radius = boundary_radius(*true.shape)
    f, p, r = boundary_accuracy(predicted, true)
    assert p == pytest.approx(slow_share_near(edges[0], edges[1], radius))
    assert r == pytest.approx(slow_share_near(edges[1], edges[0], radius))
    assert f == pytest.approx(2 * p * r / (p + r) if p + r else 0)
    union = sum(a or b for a, b in zip(predicted.flat, true.flat, strict=True))
    both = sum(a and b for a, b in zip(predicted.flat, true.flat, strict=True))
    assert region_similarity(predicted, true) == pytest.approx(both / union if union else 1)


def square(top, left, side, shape=(240, 432)):
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_a_shifted_square_has_the_closed_form_scores():
    shift, side = 3, 60
    predicted, true = square(50, 100 + shift, side), square(50, 100, side)
    assert region_similarity(predicted, true) == pytest.approx((side - shift) / (side + shift))
    # 3 px is within the 4 px tolerance at this size, so every contour pixel agrees
    assert boundary_accuracy(predicted, true) == (1, 1, 1)
    f, p, r = boundary_accuracy(square(50, 200, side), true)
    assert (f, p, r) == (0, 0, 0)


@pytest.mark.parametrize(("height", "width", "radius"), [(240, 432, 4), (480, 854, 8), (1, 1, 1), (1080, 1920, 18)])
def test_the_tolerance_follows_the_diagonal(height, width, radius):
    assert boundary_radius(height, width) == radius


def test_empty_masks():
    empty, full = np.zeros((20, 30), bool), square(5, 5, 8, (20, 30))
    assert region_similarity(empty, empty) == 1
    assert boundary_accuracy(empty, empty) == (1, 1, 1)
    assert region_similarity(empty, full) == 0
    assert boundary_accuracy(empty, full) == (0, 1, 0)
    assert boundary_accuracy(full, empty) == (0, 0, 1)


def test_the_mean_leaves_out_the_first_and_the_last_frame():
    true = torch.from_numpy(np.stack([square(50, 100, 60)] * 4))
    predicted = true.clone()
    predicted[0] = predicted[3] = False
    predicted[2] = torch.from_numpy(square(50, 103, 60))
    j, f, both = segmentation_score(predicted[:, None].float(), true[:, None].float()).mean()
    assert j == pytest.approx((1 + 57 / 63) / 2)
    assert f == 1
    assert both == pytest.approx((j + f) / 2)
    assert segmentation_score(predicted, true).mean(1, None)[0] == pytest.approx((1 + 57 / 63 + 0) / 3)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(MaskError, match="same"):
        segmentation_score(torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 9))
    with pytest.raises(MaskError, match="at least 3"):
        segmentation_score(torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)).mean()


@pytest.mark.parametrize("seed", [31, 32])
def test_scores_equal_the_reference_fixture(seed):
    """Seven 90x120 mask pairs (drifting, empty on either side, noisy) with scores computed outside this project."""
    with np.load(FIXTURE) as data:
        shape = tuple(data["shape"])
        count = int(np.prod(shape))
        predicted, true = (
            torch.from_numpy(np.unpackbits(data[f"{name}_{seed}"], count=count).reshape(shape).astype(bool))
            for name in ("pred", "gt")
        )
        rows, mean = data[f"scores_{seed}"], data[f"mean_{seed}"]
    score = segmentation_score(predicted, true)
    got = torch.stack([score.region, score.boundary, score.precision, score.recall], 1)
    np.testing.assert_allclose(got, rows[:, :4], atol=1e-12)
    np.testing.assert_allclose(score.mean(), mean, atol=1e-12)
