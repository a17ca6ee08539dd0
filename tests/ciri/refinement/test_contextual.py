"""The contextual loss against loops that follow its definition, and what the definition promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ciri.errors import CiriError
from ciri.refinement.contextual import contextual_loss, contextual_similarity


def by_loops(rows, columns, a, b, h):
    """The definition, one number at a time: Mechrez et al. with the weights of a soft region."""
    mean = [sum(w * y[c] for w, y in zip(b, columns, strict=True)) / sum(b) for c in range(len(columns[0]))]

    def centred(vectors):
        shifted = [[v - m for v, m in zip(vector, mean, strict=True)] for vector in vectors]
        return [[v / math.sqrt(sum(u * u for u in vector)) for v in vector] for vector in shifted]

    x, y = centred(rows), centred(columns)
    shares = []
    for i in range(len(x)):
        d = [1 - sum(p * q for p, q in zip(x[i], column, strict=True)) for column in y]
        nearest = min(dk + 2 * (1 - bk) for dk, bk in zip(d, b, strict=True))
        w = [math.exp((1 - dj / (nearest + 1e-5)) / h) for dj in d]
        total = sum(wk * bk for wk, bk in zip(w, b, strict=True))
        shares.append([a[i] * wj / total for wj in w])
    best = [max(row[j] for row in shares) for j in range(len(y))]
    return sum(bj * share for bj, share in zip(b, best, strict=True)) / sum(b)


def points(n, seed, channels=6):
    # positive, as features after a ReLU are
    return torch.rand(n, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def region(n, seed):
    return torch.rand(n, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)


seeds, counts = st.integers(0, 10_000), st.integers(2, 9)


@given(seeds, counts, counts, st.sampled_from([0.1, 0.5, 1.0]), st.booleans())
def test_similarity_is_what_the_definition_says(seed, n, m, h, weighted):
    x, y = points(n, seed), points(m, seed + 1)
    a, b = (region(n, seed), region(m, seed + 1)) if weighted else (torch.ones(n), torch.ones(m))
    expected = by_loops(x.tolist(), y.tolist(), a.tolist(), b.tolist(), h)
    got = contextual_similarity(x, y, row_weights=a, column_weights=b, bandwidth=h)
    assert float(got) == pytest.approx(expected, rel=1e-9)
    if not weighted:
        assert float(contextual_similarity(x, y, bandwidth=h)) == pytest.approx(expected, rel=1e-9)
    single = contextual_similarity(x.float(), y.float(), row_weights=a, column_weights=b, bandwidth=h)
    assert single.dtype == torch.float32 and float(single) == pytest.approx(expected, rel=2e-4)


@given(seeds, counts, counts)
def test_weights_of_nought_and_one_pick_subsets(seed, n, m):
    x, y = points(n, seed), points(m, seed + 1)
    a, b = region(n, seed) > 0.5, region(m, seed + 1) > 0.5
    # a cosine with a single column is taken to its own mean: nothing is left of it
    a[0] = b[0] = b[1] = True
    expected = contextual_similarity(x[a], y[b])
    got = contextual_similarity(x, y, row_weights=a.double(), column_weights=b.double())
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


@given(seeds, counts, counts, st.integers(1, 6))
def test_a_larger_prediction_never_costs_where_it_is_rows(seed, n, m, more):
    template, prediction = points(m, seed), points(n + more, seed + 1)
    small = contextual_loss(prediction[:n], template, order="prediction rows")
    large = contextual_loss(prediction, template, order="prediction rows")
    assert large <= small + 1e-12
    weights = torch.cat([torch.ones(n), region(more, seed)])
    between = contextual_loss(prediction, template, prediction_weights=weights, order="prediction rows")
    assert large - 1e-12 <= between <= small + 1e-12


@given(seeds, counts, counts, st.sampled_from(["symmetric", "template rows", "prediction rows"]))
def test_without_weights_the_loss_is_never_negative(seed, n, m, order):
    assert 0 <= float(contextual_loss(points(n, seed), points(m, seed + 1), order=order)) < 13.9


def test_faint_columns_count_by_their_mass():
    """The known hazard of soft columns, by hand: one column of weight b takes the whole unit, 1 / b of its mass."""
    x, y = points(6, 1), points(2, 2)
    similarity = contextual_similarity(x, y, column_weights=torch.tensor([0.25, 0.0]))
    # the only column of the set takes every row's unit, whatever the distances
    assert float(similarity) == pytest.approx(4)


def test_background_in_the_prediction_costs_where_the_template_is_rows():
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(1, 16, generator=generator) + 0.3 * torch.randn(60, 16, generator=generator)
    background = torch.randn(60, 16, generator=generator) * 3
    losses = {
        order: [
            float(contextual_loss(torch.cat([target[:inside], background[:outside]]), target, order=order))
            for inside, outside in ((15, 0), (30, 0), (60, 0), (60, 20), (60, 60))
        ]
        for order in ("template rows", "prediction rows", "symmetric")
    }
    assert losses["template rows"] == sorted(losses["template rows"])
    assert losses["prediction rows"] == sorted(losses["prediction rows"], reverse=True)
    mean = [sum(pair) / 2 for pair in zip(losses["template rows"], losses["prediction rows"], strict=True)]
    assert losses["symmetric"] == pytest.approx(mean, rel=1e-6)
    # the whole target, nothing else: only the mean of both orders says so
    assert min(range(5), key=losses["symmetric"].__getitem__) == 2


def test_a_set_is_found_in_itself():
    x = points(30, 1)
    assert float(contextual_similarity(x, x, bandwidth=0.05)) == pytest.approx(1, abs=1e-6)
    assert float(contextual_loss(x, x, bandwidth=0.05)) == pytest.approx(0, abs=1e-6)


def test_samples_do_not_mix():
    x, y = torch.rand(3, 7, 4), torch.rand(3, 5, 4) + torch.arange(3).view(3, 1, 1)
    together = contextual_similarity(x, y)
    torch.testing.assert_close(together, torch.stack([contextual_similarity(a, b) for a, b in zip(x, y, strict=True)]))


def test_gradients_are_those_of_finite_differences():
    x, y, a, b = points(5, 1), points(4, 2), region(5, 3), region(4, 4)
    given_ = [v.requires_grad_() for v in (x, y, a, b)]

    def loss(x, y, a, b):
        return contextual_loss(x, y, prediction_weights=a, template_weights=b)

    assert torch.autograd.gradcheck(loss, given_, eps=1e-7, atol=1e-5)


def test_half_precision_and_autocast_are_not_computed_in_half():
    x, y = torch.rand(40, 32), torch.rand(30, 32)
    exact = contextual_loss(x.half().double(), y.half().double())
    for halves in (contextual_loss(x.half(), y.half()), _under_autocast(x.half(), y.half())):
        assert halves.dtype == torch.float32 and float(halves) == pytest.approx(float(exact), rel=1e-3)


def _under_autocast(x, y):
    with torch.autocast("cpu", torch.bfloat16):
        return contextual_loss(x.float(), y.float())


def test_nothing_selected_is_the_largest_loss_and_a_number():
    x, y = torch.rand(6, 4), torch.rand(5, 4)
    for weights in ({"prediction_weights": torch.zeros(6)}, {"template_weights": torch.zeros(5)}):
        weights = {name: value.requires_grad_() for name, value in weights.items()}
        loss = contextual_loss(x, y, **weights)
        loss.backward()
        assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-5)
        assert all(value.grad.isfinite().all() for value in weights.values())


def test_equal_vectors_give_numbers():
    x = torch.ones(6, 4, requires_grad=True)
    loss = contextual_loss(x, torch.ones(5, 4))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("prediction", "template", "order", "message"),
    [
        (torch.rand(0, 4), torch.rand(3, 4), "symmetric", "at least one"),
        (torch.rand(3, 4), torch.rand(0, 4), "symmetric", "at least one"),
        (torch.rand(3, 4), torch.rand(3, 5), "symmetric", "same number of channels"),
        (torch.rand(3, 4), torch.rand(3, 4), "both", "symmetric, template rows, prediction rows"),
    ],
)
def test_what_cannot_be_compared_is_said(prediction, template, order, message):
    with pytest.raises(CiriError, match=message):
        contextual_loss(prediction, template, order=order)
