import cv2
import pytest
import torch

from ciri.training.perceptual import PerceptualLoss


@pytest.fixture(scope="module")
def loss():
    return PerceptualLoss()


@pytest.fixture(scope="module")
def picture():
    """Edges and texture, float32 (1, 3, 64, 96) in [0, 1]."""
    random = torch.Generator().manual_seed(2)
    fine = torch.rand(1, 3, 32, 48, generator=random)
    coarse = torch.nn.functional.interpolate((torch.rand(1, 3, 4, 6, generator=random) > 0.5).float(), (64, 96))
    return 0.4 * torch.nn.functional.interpolate(fine, (64, 96)) + 0.6 * coarse


def blurred(picture, sigma):
    image = cv2.GaussianBlur(picture[0].permute(1, 2, 0).numpy(), (0, 0), sigma)
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def test_a_picture_is_at_no_distance_from_itself(loss, picture):
    assert loss(picture, picture, torch.ones(1, 1, 64, 96)) == 0


def test_the_distance_grows_with_blur(loss, picture):
    everywhere = torch.ones(1, 1, 64, 96)
    distances = [float(loss(blurred(picture, s), picture, everywhere)) for s in (0.6, 1.5, 4.0)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_a_blur_costs_more_than_a_brighter_picture_of_the_same_squared_error(loss, picture):
    everywhere = torch.ones(1, 1, 64, 96)
    soft = blurred(picture, 2.0)
    error = (soft - picture).square().mean().sqrt()
    brighter = picture + error
    assert loss(soft, picture, everywhere) > 2 * loss(brighter, picture, everywhere)


def test_only_the_region_counts_and_the_gradient_reaches_the_output(loss, picture):
    region = torch.zeros(1, 1, 64, 96)
    region[..., :24, :24] = 1
    other = picture.clone()
    other[..., 56:, 80:] = 0
    assert loss(other, picture, region) < 1e-6
    output = blurred(picture, 2.0).requires_grad_()
    loss(output, picture, region).backward()
    assert output.grad[..., :24, :24].abs().sum() > 0 and torch.isfinite(output.grad).all()
    assert output.grad[..., 60:, 90:].abs().max() == 0
