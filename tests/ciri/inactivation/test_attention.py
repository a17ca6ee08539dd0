import pytest
import torch

from ciri.errors import MaskError
from ciri.inactivation.attention import attention_map, pool_target, target_similarity


def test_pooling_is_the_mean_over_the_target():
    features = torch.rand(1, 5, 6, 8)
    mask = torch.zeros(1, 1, 24, 32)
    mask[..., 4:12, 8:16] = 1  # exactly cells 1-2 x 2-3
    expected = features[0, :, 1:3, 2:4].flatten(1).mean(1)
    assert torch.allclose(pool_target(features, mask).flatten(), expected, atol=1e-6)


def test_a_cell_counts_by_its_share_of_target():
    features = torch.tensor([1.0, 5.0]).reshape(1, 1, 1, 2)
    mask = torch.zeros(1, 1, 2, 4)
    mask[..., 0, :2] = 0.5  # a quarter of the first cell
    mask[..., 2:] = 1  # all of the second
    assert pool_target(features, mask).item() == pytest.approx((0.25 * 1 + 1 * 5) / 1.25)


def test_an_empty_mask_is_refused():
    with pytest.raises(MaskError, match="empty"):
        pool_target(torch.rand(1, 2, 2, 2), torch.zeros(1, 1, 4, 4))


def test_similarity_agrees_with_a_brute_force_twin():
    features, target = torch.randn(2, 4, 3, 5), torch.randn(1, 4, 1, 1)
    out = target_similarity(features, target)
    for t in range(2):
        for y in range(3):
            for x in range(5):
                a, b = features[t, :, y, x].double(), target.flatten().double()
                expected = max(0.0, float(a @ b / (a.norm() * b.norm())))
                assert out[t, 0, y, x].item() == pytest.approx(expected, abs=1e-5)
    assert (out >= 0).all() and (out <= 1).all()


def test_the_map_is_1_on_the_target_and_0_away_from_the_prediction():
    target = torch.randn(1, 6, 1, 1)
    features = -target.repeat(1, 1, 8, 8)
    features[..., 2:6, 2:6] = 3 * target
    predicted = torch.zeros(1, 1, 32, 32)
    predicted[..., 10:14, 10:14] = 1
    out = attention_map(features, target, predicted, dilation=4)
    assert out[0, 0, 12, 12] == pytest.approx(1, abs=1e-5)  # found
    assert out[0, 0, 12, 16] == pytest.approx(1, abs=1e-5)  # found beside the prediction, inside its dilation
    assert out[0, 0, 12, 20] == 0  # target-like, but too far from the prediction
    assert attention_map(features, target, torch.zeros_like(predicted)).abs().max() == 0


def test_a_gradient_reaches_the_features():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    mask = torch.ones(1, 1, 8, 8)
    attention_map(features, pool_target(features, mask), mask).sum().backward()
    assert features.grad is not None and features.grad.abs().sum() > 0
