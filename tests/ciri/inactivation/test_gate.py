import torch

from ciri.inactivation.gate import area_average, inactivate, inactivate_scales


def test_area_average_agrees_with_block_means():
    mask = torch.rand(2, 1, 8, 12)
    expected = mask.reshape(2, 1, 4, 2, 4, 3).mean((3, 5))
    assert torch.allclose(area_average(mask, (4, 4)), expected, atol=1e-6)


def test_the_gate_is_equation_1_at_every_scale():
    mask = torch.rand(2, 1, 16, 16)
    features = [torch.rand(2, 3, 16, 16), torch.rand(2, 5, 8, 8), torch.rand(2, 7, 4, 4)]
    fine, half, quarter = inactivate_scales(features, mask)
    assert torch.allclose(fine, (1 - mask) * features[0], atol=1e-6)
    assert torch.allclose(half, (1 - mask.reshape(2, 1, 8, 2, 8, 2).mean((3, 5))) * features[1], atol=1e-6)
    assert torch.allclose(quarter, (1 - mask.reshape(2, 1, 4, 4, 4, 4).mean((3, 5))) * features[2], atol=1e-6)


def test_nothing_is_inactivated_by_0_and_everything_by_1():
    features = torch.rand(1, 4, 5, 5)
    assert torch.equal(inactivate(features, torch.zeros(1, 1, 10, 10)), features)
    assert inactivate(features, torch.ones(1, 1, 10, 10)).abs().max() == 0


def test_a_gradient_reaches_the_map():
    mask = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    features = torch.rand(1, 2, 4, 4)
    inactivate(features, mask).sum().backward()
    expected = -features.sum(1, keepdim=True).repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    assert torch.allclose(mask.grad, expected, atol=1e-6)
