import pytest
import torch

from ciri.errors import MaskError
from ciri.inactivation.fusion import Fusion, fuse, spared


def test_fusion_is_equation_3():
    predicted, attention = torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    assert torch.allclose(fuse(predicted, attention, 0.3), 0.3 * predicted + 0.7 * attention)
    assert torch.equal(fuse(predicted, attention, 1.0), predicted)
    assert torch.equal(fuse(predicted, attention, 0.0), attention)


def test_of_what_is_to_stay_no_more_is_taken_than_was_predicted():
    found, predicted, kept = (torch.rand(2, 1, 4, 5) for _ in range(3))
    result = spared(found, predicted, kept)
    stays = kept > 0.5
    assert torch.equal(result[~stays], found[~stays])
    assert torch.equal(result[stays], torch.minimum(found, predicted)[stays])
    with pytest.raises(MaskError, match="same clip"):
        spared(found, predicted, kept[:1])


def test_beta_starts_where_asked_and_is_learned():
    fusion = Fusion(0.6)
    assert fusion.beta.item() == pytest.approx(0.6, abs=1e-6)
    predicted, attention = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    fusion(predicted, attention).sum().backward()
    # d/dlogit of 4 sigmoid(logit)
    assert fusion.logit.grad.item() == pytest.approx(4 * 0.6 * 0.4, abs=1e-5)


def test_maps_of_different_clips_and_an_impossible_beta_are_refused():
    with pytest.raises(MaskError, match="same clip"):
        fuse(torch.rand(2, 1, 3, 3), torch.rand(3, 1, 3, 3), 0.5)
    for beta in (1.5, 2, float("nan")):
        with pytest.raises(MaskError, match=f"beta is {beta}"):
            fuse(torch.rand(1, 1, 3, 3), torch.rand(1, 1, 3, 3), beta)
