"""The guided filter against the least-squares definition of its paper, pixel by pixel."""

import numpy as np

from ciri.propagation.guided_filter import guided_filter


def test_coefficients_are_the_mean_of_each_window_s_ridge_regression():
    rng = np.random.default_rng(0)
    h, w, radius, epsilon = 13, 11, 2, 1e-2
    image = rng.random((h, w, 3)).astype(np.float32)
    mask = (rng.random((h, w)) > 0.5).astype(np.float32)
    filtered = guided_filter(image, mask, radius, epsilon)

    def window(x, r, c):
        rows = np.clip(np.arange(r - radius, r + radius + 1), 0, h - 1)
        columns = np.clip(np.arange(c - radius, c + radius + 1), 0, w - 1)
        return x[np.ix_(rows, columns)]

    slope, offset = np.zeros((h, w, 3)), np.zeros((h, w))
    for r in range(h):
        for c in range(w):
            colour, level = window(image, r, c).reshape(-1, 3).astype(float), window(mask, r, c).ravel().astype(float)
            centred = colour - colour.mean(0)
            gram = centred.T @ centred / len(level) + epsilon * np.eye(3)
            slope[r, c] = np.linalg.solve(gram, centred.T @ (level - level.mean()) / len(level))
            offset[r, c] = level.mean() - slope[r, c] @ colour.mean(0)
    for r in range(h):
        for c in range(w):
            np.testing.assert_allclose(filtered.slope[r, c], window(slope, r, c).mean((0, 1)), atol=1e-3)
            np.testing.assert_allclose(filtered.offset[r, c], window(offset, r, c).mean(), atol=1e-3)


def test_a_ragged_edge_moves_onto_the_colour_edge():
    image = np.zeros((40, 60, 3), np.float32)
    image[:, 30:] = (1, 0.5, 0.2)
    mask = np.zeros((40, 60), np.float32)
    mask[:20, 27:] = 1
    mask[20:, 33:] = 1
    found = guided_filter(image, mask, 8, 1e-4).on(image) > 0.5
    assert (found[:, 30:]).all() and not found[:, :30].any()
    doubled = np.repeat(np.repeat(image, 2, 0), 2, 1)
    assert (guided_filter(image, mask, 8, 1e-4).on(doubled)[:, 60:] > 0.5).all()
