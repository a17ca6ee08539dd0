"""The Frechet distance between two sets of features (VFID when the features are I3D's).

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017.

Dimensions: n, m samples, d features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ciri.errors import CiriError


def frechet_distance(first: Tensor, second: Tensor) -> float | None:
    """Return |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), exactly; None where a set has a single sample.

    With centred samples A and B the last trace is the sum of the singular values of A B^T over
    sqrt((n - 1)(m - 1)). No d x d matrix is formed and no matrix root taken, which on the singular covariances of few
    samples loses all digits.

    Args:
        first: floating (n, d).
        second: floating (m, d).

    Raises:
        CiriError: other shapes, or values that are not numbers.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise CiriError(
            f"The features have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected (samples, features) "
            "with as many features in both."
        )
    a, b = first.double().cpu(), second.double().cpu()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise CiriError("The features hold values that are not numbers.")
    n, m = len(a), len(b)
    if min(n, m) < 2:
        return None
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = a - mean_a, b - mean_b
    cross = torch.linalg.svdvals(a @ b.T).sum() / ((n - 1) * (m - 1)) ** 0.5
    spread = a.square().sum() / (n - 1) + b.square().sum() / (m - 1)
    # rounding can leave a negative zero for equal sets
    return max(float((mean_a - mean_b).square().sum() + spread - 2 * cross), 0.0)
