"""Where appearance is compared: with a file, without one, and that either can drive the loss."""

import pytest
import torch

from ciri.checkpoints import write_safetensors
from ciri.refinement.features import extractor_for
from ciri.refinement.regions import Comparison, enlarged, image_space_points, keep_features
from ciri.refinement.vgg import VGG19Features
from ciri.residue.base import Box
from ciri.residue.lite import LiteDetector, ResidueNetwork


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return LiteDetector(ResidueNetwork(), 0.3)


def test_the_choice(detector, tmp_path):
    assert extractor_for(None) is None
    assert extractor_for(detector).name == "lite, 1/4"
    write_safetensors(tmp_path / "vgg.safetensors", VGG19Features().state_dict())
    assert extractor_for(detector, tmp_path / "vgg.safetensors").name == "vgg19"


def test_the_encoder_moves_a_mask_and_is_not_moved(detector):
    extractor = extractor_for(detector)
    before = {key: value.clone() for key, value in detector.network.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    frame, box = torch.rand(3, 96, 96, generator=generator), Box(30, 30, 36, 36)
    mask = torch.zeros(1, 96, 96)
    mask[:, 30:66, 30:66] = 1
    soft = (mask * 0.8 + 0.1).requires_grad_()
    kept = keep_features(extractor, frame, enlarged(box))
    assert kept.grid == (32, 32) and kept.points.shape == (1024, 24)
    (kept_gradient,) = torch.autograd.grad(Comparison(kept, mask, kept).loss(soft), soft)
    points = image_space_points(extractor, frame, soft, enlarged(box))
    (picture_gradient,) = torch.autograd.grad(points.square().sum(), soft)
    assert kept_gradient.any() and picture_gradient.any()
    assert all(torch.equal(value, before[key]) for key, value in detector.network.state_dict().items())
