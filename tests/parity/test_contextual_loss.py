"""The contextual loss and VGG-19's features against values made with float64 loops and the published layout."""

import functools
import re

import pytest
import torch

from ciri.refinement.contextual import contextual_loss, contextual_similarity
from ciri.refinement.regions import Comparison, image_space_points, keep_features
from ciri.refinement.vgg import VGG19Features
from ciri.residue.base import Box
from tests.parity.fixtures import documents, find
from tests.parity.seeded_weights import seeded_state_dict

#: Stated with the fixtures: relative, for A to D; of values and of gradients, for E and F.
VALUES, WHOLE_VALUES, WHOLE_GRADIENTS = 1e-4, 1e-3, 1e-2

FIXTURES = {name[0]: find("contextual_loss", tensors=[name]) for name in ("A.in.x", "B.in.x", "C.in.col_weights")}
#: Fixture, whether before or after the activation, and which channels are stored: every n-th.
TAPS = [
    (fixture, tap[1], int(tap[2]))
    for fixture in find("contextual_loss", tensors=["D.in.rgb_u8"])
    for tap in map(re.compile(r"D\.out\.conv3_2_(post|pre)_relu_c::(\d+)").fullmatch, sorted(fixture.names))
    if tap
]
PATHS = find("contextual_loss", tensors=["E.in.boxes_xywh"])
#: Side of the fixtures' crops.
SIZE = 96
ORDERS = {
    "prediction rows": ("pred_rows_template_cols", "pred_rows"),
    "template rows": ("template_rows_pred_cols", "template_rows"),
}
KEYS = [d for d in documents("contextual_loss") if "keys" in d]


def rows_of(maps):
    """(b, c, h, w) as vectors (b, h w, c)."""
    return maps.flatten(2).transpose(1, 2)


@functools.lru_cache(maxsize=2)
def network_of(seed, gain, after_relu=True):
    network = VGG19Features(after_relu=after_relu)
    network.load_state_dict(seeded_state_dict(network.state_dict(), seed, gain))
    return network.requires_grad_(False)


def close(got, expected, share):
    assert float((got - expected).abs().max()) <= share * float(expected.abs().max())


@pytest.mark.skipif(not find("contextual_loss"), reason="no fixtures of the contextual loss here")
def test_there_are_fixtures():
    assert any(FIXTURES.values()) or TAPS or PATHS


@pytest.mark.parametrize("fixture", FIXTURES["A"], ids=str)
def test_a_batch_is_compared_sample_by_sample(fixture):
    x, y = rows_of(fixture["A.in.x"]), rows_of(fixture["A.in.y"])
    close(contextual_similarity(x, y), fixture["A.out.cx_per_sample_mean_h0.5"], VALUES)


@pytest.mark.parametrize("fixture", FIXTURES["B"], ids=str)
def test_both_orders_at_every_bandwidth(fixture):
    x, y = rows_of(fixture["B.in.x"])[0], rows_of(fixture["B.in.y"])[0]
    bandwidths = fixture["B.in.h"].tolist()
    rows = torch.stack([contextual_similarity(x, y, bandwidth=h) for h in bandwidths])
    columns = torch.stack([contextual_similarity(y, x, bandwidth=h) for h in bandwidths])
    close(rows, fixture["B.out.cx_x_rows_y_cols"], VALUES)
    close(columns, fixture["B.out.cx_y_rows_x_cols"], VALUES)


@pytest.mark.parametrize(("order", "name"), [("prediction rows", "x_rows"), ("template rows", "x_cols")])
@pytest.mark.parametrize("fixture", FIXTURES["B"], ids=str)
def test_losses_and_their_gradients(fixture, order, name):
    maps = fixture["B.in.x"].requires_grad_()
    loss = contextual_loss(rows_of(maps)[0], rows_of(fixture["B.in.y"])[0], order=order)
    (gradient,) = torch.autograd.grad(loss, maps)
    close(loss.detach(), fixture[f"B.out.loss_{name}_h0.5"], VALUES)
    close(gradient, fixture[f"B.out.dloss_dx_{name}_h0.5"], VALUES)


@pytest.mark.parametrize("fixture", FIXTURES["B"], ids=str)
def test_the_symmetric_loss_is_half_the_sum(fixture):
    x, y = rows_of(fixture["B.in.x"])[0], rows_of(fixture["B.in.y"])[0]
    both = (fixture["B.out.loss_x_rows_h0.5"] + fixture["B.out.loss_x_cols_h0.5"]) / 2
    close(contextual_loss(x, y), both, VALUES)


@pytest.mark.parametrize("fixture", FIXTURES["C"], ids=str)
def test_weights(fixture):
    x, y = rows_of(fixture["B.in.x"])[0], rows_of(fixture["B.in.y"])[0]
    rows, columns = fixture["C.in.row_weights"], fixture["C.in.col_weights"].requires_grad_()
    similarity = contextual_similarity(x, y, row_weights=rows, column_weights=columns)
    (gradient,) = torch.autograd.grad(-similarity.log(), columns)
    close(similarity.detach(), fixture["C.out.cx_weighted_h0.5"], VALUES)
    close(gradient, fixture["C.out.dloss_dcol_weights"], VALUES)
    binary = (columns.detach() > 0.5).float()
    weighted, subset = contextual_similarity(x, y, column_weights=binary), contextual_similarity(x, y[binary > 0])
    for got in (weighted, subset):
        close(got, fixture["C.out.cx_binary_weights_equals_subset"], VALUES)


@pytest.mark.parametrize("keys", KEYS, ids=["vgg19"] * len(KEYS))
def test_the_state_dict_is_the_published_one(keys):
    mine = {key: list(value.shape) for key, value in VGG19Features().state_dict().items()}
    assert mine == {key: entry["shape"] for key, entry in keys["keys"].items()}


@pytest.mark.parametrize(("fixture", "tap", "step"), TAPS, ids=str)
def test_features_after_and_before_the_activation(fixture, tap, step):
    network = network_of(fixture.meta["seed"], fixture.meta["gain"], tap == "post")
    close(network(fixture["D.in.rgb_u8"] / 255)[:, ::step], fixture[f"D.out.conv3_2_{tap}_relu_c::{step}"], VALUES)


def inputs_of(fixture):
    """Both frames (3, h, w), both masks (1, h, w), both boxes."""
    frames = [fixture[f"E.in.frame{which}_rgb_u8"][0].float() / 255 for which in "1t"]
    masks = [fixture["E.in.mask1_u8"][0].float(), fixture["E.in.soft_mask_t"][0].requires_grad_()]
    return frames, masks, [Box(*box) for box in fixture["E.in.boxes_xywh"].tolist()]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fixture", PATHS, ids=str)
def test_regions_painted_free_in_the_picture(fixture, order):
    network = network_of(fixture.meta["seed"], fixture.meta["gain"])
    frames, masks, boxes = inputs_of(fixture)
    template, prediction = (
        image_space_points(network, *given, size=SIZE) for given in zip(frames, masks, boxes, strict=True)
    )
    assert [len(template), len(prediction)] == fixture["E.out.n_points_template_pred"].tolist()
    expect(contextual_loss(prediction, template, order=order), masks[1], fixture, "E", order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fixture", PATHS, ids=str)
def test_regions_as_weights_of_kept_features(fixture, order):
    network = network_of(fixture.meta["seed"], fixture.meta["gain"])
    frames, masks, boxes = inputs_of(fixture)
    template, frame = (keep_features(network, *given, size=SIZE) for given in zip(frames, boxes, strict=True))
    loss = Comparison(template, masks[0], frame, order=order).loss(masks[1])
    expect(loss, masks[1], fixture, "F", order)


def expect(loss, mask, fixture, path, order):
    value, gradient = (
        f"{path}.out.{kind}_{name}" for kind, name in zip(("cx", "dloss_dmask"), ORDERS[order], strict=True)
    )
    (got,) = torch.autograd.grad(loss, mask)
    close((-loss.detach()).exp(), fixture[value], WHOLE_VALUES)
    close(got, fixture[gradient][0], WHOLE_GRADIENTS)
