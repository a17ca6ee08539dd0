"""The Frechet distance against SciPy's matrix root, closed forms and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from ciri.errors import CiriError
from ciri.metrics.frechet import frechet_distance


def sample(seed, count=40, features=6):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((count, features)) @ rng.standard_normal((features, features)) + 1)


@given(st.integers(0, 99))
def test_against_the_matrix_root(seed):
    a, b = sample(seed), sample(seed + 100, 55)
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    expected = np.square(a.numpy().mean(0) - b.numpy().mean(0)).sum() + np.trace(
        cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b))
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 99), st.floats(-3, 3))
def test_shifting_a_set_costs_the_squared_shift(seed, shift):
    a = sample(seed, 8, 30)  # fewer samples than features: singular covariances
    assert frechet_distance(a, a + shift) == pytest.approx(30 * shift**2, abs=1e-8)


def test_a_single_sample_has_no_distance():
    assert frechet_distance(sample(1)[:1], sample(2)) is None


def test_bad_input_is_named():
    with pytest.raises(CiriError, match="as many features"):
        frechet_distance(sample(1), sample(1)[:, :3])
    with pytest.raises(CiriError, match="not numbers"):
        frechet_distance(sample(1) * float("nan"), sample(1))
