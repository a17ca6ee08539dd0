"""The appearance model against a ridge regression that is solved another way."""

import numpy as np
import pytest

from ciri.propagation.appearance import RIDGE, AppearanceModel, Placement, pixel_features, placement


def scene(seed=0, shape=(30, 40)):
    """Noise whose red half is the target: uint8 image and float32 mask."""
    image = np.random.default_rng(seed).integers(0, 160, (*shape, 3), dtype=np.uint8)
    mask = np.zeros(shape, np.float32)
    mask[8:22, 10:30] = 1
    image[..., 0] += (mask * 90).astype(np.uint8)
    return image, mask


def test_scores_are_those_of_the_weighted_ridge_regression():
    image, mask = scene()
    features = pixel_features(image)
    model = AppearanceModel(features, mask)
    where = placement(mask)
    everywhere = np.ones(mask.shape, bool)
    x = model._expand(model._inputs(features, where, np.arange(mask.size))).astype(float)
    y = np.where(mask.ravel() > 0.5, 1.0, -1.0)
    # the same weights, pixel by pixel: near background counts more, and both classes count the same
    inside = np.argwhere(mask > 0.5)
    weight = np.ones(mask.size)
    for index, pixel in enumerate(np.ndindex(mask.shape)):
        if mask[pixel] <= 0.5:
            distance = np.sqrt(((inside - pixel) ** 2).sum(1).min())
            weight[index] = np.exp(-distance / where.radius) + 0.05
    for side in (y > 0, y < 0):
        weight[side] /= weight[side].sum()
    root = np.sqrt(weight)[:, None]
    stacked = np.concatenate([x * root, np.sqrt(RIDGE) * np.eye(x.shape[1])])
    expected = x @ np.linalg.lstsq(stacked, np.concatenate([y * root[:, 0], np.zeros(x.shape[1])]), rcond=None)[0]
    got = model.score(features, where, everywhere).ravel()
    # OpenCV's 3 x 3 distance transform is approximate, hence not tighter
    np.testing.assert_allclose(got, expected, atol=0.05)
    assert ((got > 0) == (y > 0)).mean() > 0.95


def test_only_the_region_is_scored():
    image, mask = scene()
    features = pixel_features(image)
    model = AppearanceModel(features, mask)
    whole = model.score(features, placement(mask), np.ones(mask.shape, bool))
    region = np.zeros(mask.shape, bool)
    region[5:12, 7:33] = True
    part = model.score(features, placement(mask), region)
    np.testing.assert_allclose(part[region], whole[region], atol=1e-5)
    assert (part[~region] == -1).all()
    assert (model.score(features, placement(mask), np.zeros_like(region)) == -1).all()


def test_it_adapts_but_remembers_the_annotated_frame():
    image, mask = scene()
    features, where = pixel_features(image), placement(mask)
    model = AppearanceModel(features, mask)
    everywhere = np.ones(mask.shape, bool)
    for _ in range(100):
        model.adapt(features, np.zeros_like(mask), where)
    assert model.score(features, where, everywhere)[mask > 0.5].mean() > 0.3


def test_the_placement_of_a_rectangle():
    mask = np.zeros((40, 50), np.float32)
    mask[10:21, 20:25] = 1
    place = placement(mask)
    assert isinstance(place, Placement)
    assert (place.x, place.y) == pytest.approx((22, 15), abs=1e-3)
    # variances of 5 and 11 equidistant positions, and the 1 that keeps a single pixel's radius positive
    assert place.radius == pytest.approx(np.sqrt((25 - 1) / 12 + (121 - 1) / 12 + 1), abs=1e-3)
