"""Loading backbones from weight files: the right ones work, every wrong one says what it is."""

import pytest
import torch
from safetensors.torch import save_file

from ciri.errors import CheckpointError
from ciri.inpainting.load import load_backbone
from ciri.inpainting.sttn import STTN
from tests.parity.seeded_weights import seeded_state_dict


@pytest.fixture(scope="module")
def weights():
    return seeded_state_dict(STTN().state_dict(), 7, 0.8)


def clip():
    frames = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(3, 1, 48, 48)
    masks[..., 10:30, 10:30] = 1
    return frames, masks


@pytest.mark.parametrize(
    "wrap", [lambda w: w, lambda w: {"netG": w}, lambda w: {"netG": {f"module.{k}": v for k, v in w.items()}}]
)
def test_published_wrappings_load(tmp_path, weights, wrap):
    torch.save(wrap(weights), tmp_path / "sttn.pth")
    backbone = load_backbone(tmp_path / "sttn.pth", precision="fp32")
    assert backbone.name == "sttn" and backbone.facts.trained_for == "hard mask" and backbone.resolved_mode() == "hard"
    assert torch.equal(backbone.network.state_dict()["decoder.6.weight"], weights["decoder.6.weight"])


def test_weights_trained_with_inactivation_say_so(tmp_path, weights):
    facts = {"trained_for": "inactivation", "gate_points": '["half", "out"]'}
    save_file(weights, tmp_path / "mine.safetensors", facts)
    backbone = load_backbone(tmp_path / "mine.safetensors", precision="fp32")
    assert backbone.facts.trained_for == "inactivation" and backbone.resolved_mode() == "gate"
    assert backbone.network.gate_points == ("half", "out")
    result = backbone.inpaint(*clip())
    assert torch.isfinite(result).all()


def test_unknown_gate_points_are_refused(tmp_path, weights):
    save_file(weights, tmp_path / "mine.safetensors", {"gate_points": '["x0"]'})
    with pytest.raises(CheckpointError, match="x0.*half, out"):
        load_backbone(tmp_path / "mine.safetensors")


def test_another_network_is_named(tmp_path, weights):
    torch.save(weights, tmp_path / "fuseformer.pth")
    with pytest.raises(CheckpointError, match="holds STTN weights; expected FuseFormer"):
        load_backbone(tmp_path / "fuseformer.pth", expected=["fuseformer"])


def test_a_missing_key_is_named(tmp_path, weights):
    torch.save({k: v for k, v in weights.items() if k != "decoder.6.bias"}, tmp_path / "sttn.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.6\.bias"):
        load_backbone(tmp_path / "sttn.pth")


def test_something_else_is_refused(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "else.pth")
    with pytest.raises(CheckpointError, match="no model that is known"):
        load_backbone(tmp_path / "else.pth")


def test_bfloat16_stays_close_to_float32(tmp_path, weights):
    torch.save(weights, tmp_path / "sttn.pth")
    frames, masks = clip()
    full, half = (load_backbone(tmp_path / "sttn.pth", precision=p).inpaint(frames, masks) for p in ("fp32", "bf16"))
    error = (full - half).square().mean()
    assert 10 * torch.log10(1 / error) > 45 and error > 0
