"""The contextual loss (paper Eq. 8): how well the things in one region are found again in another, wherever they are.

Mechrez et al., "The Contextual Loss for Image Transformation with Non-Aligned Data", ECCV 2018. Two sets of feature
vectors are compared without regard to place. Every row spreads one unit over the columns, most of it over the nearest;
every column keeps the largest share that a row gave it; the mean over the columns is the similarity.

The order matters. With the **prediction as rows** the loss never rises when the predicted region grows: it punishes
missing parts. With the **template as rows** (Eq. 8 as printed) every column of background lowers the mean, and a region
of one cell is perfect: it punishes wrong inclusions. Only the mean of both orders has its minimum inside, on average at
the right size, so that is the default. It is a weak guide all the same: on soft masks its gradient sheds a wrong patch,
but does not regain a missing part (benchmarks/contextual_features.py). It can hold a mask back, not drive it.

Dimensions: n rows, m columns, c channels; leading dimensions are samples.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import CiriError

#: Which set is the rows; see the module's text.
Order = Literal["symmetric", "template rows", "prediction rows"]

#: The paper's and the authors' h: how fast a share falls with the distance relative to the nearest column's.
BANDWIDTH = 0.5
_EPSILON = 1e-5
#: Similarities below this count as this: the logarithm stays finite.
_SMALLEST = 1e-6


def contextual_similarity(
    rows: Tensor,
    columns: Tensor,
    *,
    row_weights: Tensor | None = None,
    column_weights: Tensor | None = None,
    bandwidth: float = BANDWIDTH,
) -> Tensor:
    """CX(rows, columns), in [0, 1]; 1: every column is the one that some row is nearest to.

    Weights in [0, 1] say how much a vector belongs to its set; with weights 0 and 1 the value is the plain one on the
    subsets. Columns that are all faint can bring it above 1, for it is their mass that is counted. Gradients flow to
    vectors and weights. It is computed in float32 at least, under autocast too: ratios of small distances do not
    survive in less.

    Args:
        rows: floating (..., n, c).
        columns: floating (..., m, c); the mean of these is taken off both sets, per sample.
        row_weights, column_weights: (..., n) and (..., m); default 1.
        bandwidth: h > 0.

    Returns:
        (...,); 0 where the weights of a set sum up to nothing.

    Raises:
        CiriError: a set without a vector, or sets that cannot be compared.
    """
    distances, column_weights = _distances(rows, columns, column_weights)
    with torch.autocast(distances.device.type, enabled=False):
        # a column outside the set must not be the nearest: distances end at 2
        nearest = (distances + 2 * (1 - column_weights[..., None, :])).amin(-1, keepdim=True)
        logits = (1 - distances / (nearest + _EPSILON)) / bandwidth
        attraction = (logits - logits.detach().amax(-1, keepdim=True)).exp()
        total = (attraction * column_weights[..., None, :]).sum(-1, keepdim=True)
        shares = attraction / total.clamp(min=torch.finfo(total.dtype).tiny)
        if row_weights is not None:
            shares = shares * row_weights.to(distances)[..., None]
        best = shares.amax(-2)
        return (best * column_weights).sum(-1) / column_weights.sum(-1).clamp(min=_SMALLEST)


def _distances(rows: Tensor, columns: Tensor, column_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """1 - cosine between rows and columns after the columns' weighted mean is taken off both, (..., n, m) in [0, 2].

    Also the weights (..., m) of the columns, in the same type.
    """
    if rows.shape[-1] != columns.shape[-1] or rows.ndim < 2 or columns.ndim < 2:
        raise CiriError(
            f"Feature vectors of shapes {tuple(rows.shape)} and {tuple(columns.shape)} cannot be compared; expected "
            "(..., vectors, channels) with the same number of channels. Both must come from one feature extractor."
        )
    if 0 in (rows.shape[-2], columns.shape[-2]):
        raise CiriError(
            f"There are {rows.shape[-2]} and {columns.shape[-2]} feature vectors to compare; expected at least one of "
            "each. A region is empty: leave this frame out."
        )
    dtype = torch.promote_types(torch.promote_types(rows.dtype, columns.dtype), torch.float32)
    with torch.autocast(rows.device.type, enabled=False):
        rows, columns = rows.to(dtype), columns.to(dtype)
        weights = columns.new_ones(columns.shape[:-1]) if column_weights is None else column_weights.to(columns)
        mean = (columns * weights[..., None]).sum(-2) / weights.sum(-1, keepdim=True).clamp(min=_SMALLEST)
        rows, columns = (F.normalize(vectors - mean[..., None, :], dim=-1) for vectors in (rows, columns))
        return (1 - rows @ columns.transpose(-1, -2)).clamp(min=0), weights


def contextual_loss(
    prediction: Tensor,
    template: Tensor,
    *,
    prediction_weights: Tensor | None = None,
    template_weights: Tensor | None = None,
    order: Order = "symmetric",
    bandwidth: float = BANDWIDTH,
) -> Tensor:
    """Return -log CX, (...,): Eq. 8 for regions that are given as feature vectors.

    It lies in [0, 13.9], but a prediction that is faint all over can bring it below 0 where the template is rows: never
    minimise that order by itself.

    Args:
        prediction: floating (..., n, c), vectors of the predicted region.
        template: floating (..., m, c), vectors of the annotated target.
        prediction_weights, template_weights: as in :func:`contextual_similarity`.
        order: "symmetric" (half the sum of both), "template rows" (as printed) or "prediction rows".
        bandwidth: h.

    Raises:
        CiriError: an unknown order, an empty set, or sets that cannot be compared.
    """
    if order not in get_args(Order):
        raise CiriError(
            f"There is no order {order!r} of the contextual loss; choose one of: {', '.join(get_args(Order))}."
        )
    given = (prediction, prediction_weights), (template, template_weights)
    losses = []
    for name, ((rows, row_weights), (columns, column_weights)) in (
        ("prediction rows", given),
        ("template rows", given[::-1]),
    ):
        if order in ("symmetric", name):
            similarity = contextual_similarity(
                rows, columns, row_weights=row_weights, column_weights=column_weights, bandwidth=bandwidth
            )
            losses.append(-similarity.clamp(min=_SMALLEST).log())
    return torch.stack(losses).mean(0)
