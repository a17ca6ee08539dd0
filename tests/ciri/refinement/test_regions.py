"""Regions as they enter the contextual loss: which cells, which gradients."""

import pytest
import torch
import torch.nn.functional as F

from ciri.errors import CiriError
from ciri.refinement.contextual import contextual_loss
from ciri.refinement.regions import (
    Comparison,
    cell_weights,
    enlarged,
    image_space_points,
    informative,
    keep_features,
)
from ciri.residue.base import Box


class Patches:
    """Every cell is described by the pixels under it, so a test knows what it looks at."""

    name, fill = "patches", (0.5, 0.5, 0.5)

    def __call__(self, crops):
        return F.pixel_unshuffle(crops, 4)


def scene(seed=0):
    """A textured square on another texture: frame (3, 64, 64), mask (1, 64, 64), its box."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:44, 16:40] = 1
    target = 0.8 + 0.2 * torch.rand(3, 64, 64, generator=generator) * torch.tensor([1.0, 0.1, 0.1])[:, None, None]
    background = 0.3 * torch.rand(3, 64, 64, generator=generator)
    return mask * target + (1 - mask) * background, mask, Box(16, 20, 24, 24)


def test_cells_are_weighed_by_their_share_of_the_mask():
    mask = torch.zeros(1, 40, 40)
    mask[:, 10:20, 10:14] = 1
    weights = cell_weights(mask, Box(10, 10, 16, 16), (4, 4), size=16)
    expected = torch.zeros(4, 4)
    expected[:2, 0], expected[2, 0] = 1, 0.5
    torch.testing.assert_close(weights, expected.flatten())


def test_what_is_outside_the_frame_belongs_to_nothing():
    weights = cell_weights(torch.ones(1, 40, 40), Box(-16, 0, 32, 32), (8, 8), size=32)
    assert torch.equal(weights.view(8, 8), torch.tensor([0.0] * 4 + [1.0] * 4).expand(8, 8))


def test_image_space_takes_the_cells_that_are_mostly_inside():
    frame, mask, box = scene()
    points = image_space_points(Patches(), frame, mask, enlarged(box, 2.0), size=48)
    assert points.shape == (36, 48)
    inside = F.pixel_unshuffle(frame[None, :, 20:44, 16:40], 4)[0].flatten(1).T
    torch.testing.assert_close(points, inside)
    assert len(image_space_points(Patches(), frame, mask * 0.4, box, size=48)) == 0


def test_a_box_is_enlarged_about_its_centre():
    assert enlarged(Box(10, 20, 40, 20), 1.5) == Box(0, 15, 60, 30)


@pytest.mark.parametrize("order", ["symmetric", "prediction rows", "template rows"])
def test_kept_features_give_the_loss_of_their_vectors(order):
    (frame, mask, box), (second, _, _) = scene(), scene(1)
    template, other = keep_features(Patches(), frame, box, size=32), keep_features(Patches(), second, enlarged(box))
    soft = F.avg_pool2d(mask, 9, 1, 4).requires_grad_()
    comparison = Comparison(template, mask, other, order=order)
    expected = contextual_loss(
        other.points,
        template.points,
        prediction_weights=other.weights(soft),
        template_weights=template.weights(mask),
        order=order,
    )
    torch.testing.assert_close(comparison.loss(soft), expected)
    (gradient,) = torch.autograd.grad(expected, soft)
    (again,) = torch.autograd.grad(comparison.loss(soft), soft)
    torch.testing.assert_close(again, gradient)
    assert gradient.any()


def test_the_gradient_grows_missing_parts_in_one_order_and_sheds_background_in_the_other():
    frame, mask, box = scene()
    kept = keep_features(Patches(), frame, enlarged(box, 2.0), size=48)
    missing = mask.clone()
    missing[:, 36:44] = 0.05
    half = mask.clone()
    half[:, 20:44, 44:56] = 0.6
    for start, order, place in (
        (missing, "prediction rows", (slice(None), slice(36, 44), slice(16, 40))),
        (half, "template rows", (slice(None), slice(20, 44), slice(44, 56))),
    ):
        soft = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(Comparison(kept, mask, kept, order=order).loss(soft), soft)
        growing = float(gradient[place].sum())
        assert growing < 0 if order == "prediction rows" else growing > 0


def test_an_empty_annotation_is_an_error_and_an_empty_prediction_is_not():
    frame, mask, box = scene()
    kept = keep_features(Patches(), frame, box)
    with pytest.raises(CiriError, match="annotated mask is empty"):
        Comparison(kept, torch.zeros_like(mask), kept)
    empty = torch.zeros_like(mask).requires_grad_()
    loss = Comparison(kept, mask, kept).loss(empty)
    (gradient,) = torch.autograd.grad(loss, empty)
    assert loss.isfinite() and gradient.isfinite().all()


def test_frames_in_which_the_target_changed_its_looks_are_left_out():
    assert informative([1.0, 1.2, 2.8, 1.1, float("nan")]) == [True, True, False, True, False]
    assert informative([float("inf")]) == [False] and informative([]) == []
