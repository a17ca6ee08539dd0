"""Loading backbones from weight files: the right ones work, every wrong one says what it is."""

import pytest
import torch
from safetensors.torch import save_file

from ciri.errors import CheckpointError
from ciri.inpainting.load import NETWORKS, gate_points, load_backbone
from ciri.inpainting.sttn import STTN
from ciri.signatures import signature_of
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


@pytest.mark.parametrize("points", ['["half", "out"]', "half,out"])
def test_gate_points_are_a_list_in_json_or_with_commas(points):
    assert gate_points({"gate_points": points}, STTN(), "mine.safetensors") == ("half", "out")
    assert gate_points({"gate_points": '"half"'}, STTN(), "mine.safetensors") == ("half",)


@pytest.mark.parametrize("points", ['["x0"]', "[]", "", "3", "null", '{"half": 1}', "[[1]]"])
def test_unknown_gate_points_are_refused(tmp_path, weights, points):
    save_file(weights, tmp_path / "mine.safetensors", {"gate_points": points})
    with pytest.raises(CheckpointError, match="names the gate points.*half, out"):
        load_backbone(tmp_path / "mine.safetensors")


def test_another_network_is_named(tmp_path, weights):
    torch.save(weights, tmp_path / "fuseformer.pth")
    with pytest.raises(CheckpointError, match="holds STTN weights; expected FuseFormer"):
        load_backbone(tmp_path / "fuseformer.pth", expected=["fuseformer"])


def hollow(model):
    """Every key and shape of a network, in as few bytes as may be."""
    with torch.device("meta"):
        shapes = NETWORKS[model]().state_dict()
    return {key: torch.zeros(value.shape, dtype=torch.int8) for key, value in shapes.items()}


@pytest.mark.parametrize("model", NETWORKS)
def test_each_network_is_refused_where_another_is_expected(tmp_path, model):
    """A HQ file offered as base among them."""
    torch.save({"netG": hollow(model)}, tmp_path / "renamed.pth")
    for other in sorted(set(NETWORKS) - {model}):
        with pytest.raises(CheckpointError) as caught:
            load_backbone(tmp_path / "renamed.pth", expected=[other])
        got, wanted = signature_of(model).title, signature_of(other).title
        assert str(caught.value).endswith(f"renamed.pth holds {got} weights; expected {wanted}.")
    (tmp_path / "renamed.pth").unlink()  # pytest keeps folders for days


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(tmp_path, weights, share):
    torch.save(weights, tmp_path / "sttn.pth")
    whole = (tmp_path / "sttn.pth").read_bytes()
    (tmp_path / "sttn.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"sttn\.pth"):
        load_backbone(tmp_path / "sttn.pth")


def test_a_tensor_of_another_shape_is_named(tmp_path, weights):
    torch.save({**weights, "decoder.6.bias": torch.zeros(4)}, tmp_path / "sttn.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.6\.bias"):
        load_backbone(tmp_path / "sttn.pth")


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
