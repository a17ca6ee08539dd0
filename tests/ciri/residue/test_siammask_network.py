"""SiamMask's checkpoints in every wrapping that is around, and what the network promises apart from parity."""

import pytest
import torch

from ciri.checkpoints import summarise, write_safetensors
from ciri.errors import CheckpointError
from ciri.residue.siammask_network import Response, SiamMask, load_siammask
from ciri.residue.siammask_tracking import anchors, decode_boxes
from ciri.residue.siammask_trunk import without_border
from ciri.signatures import signature_of


@pytest.fixture(scope="module")
def published():
    """The state dict of the sharp variant, with weights that differ from a fresh network's."""
    network = SiamMask()
    generator = torch.Generator().manual_seed(5)
    return {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + 7
        for key, value in network.state_dict().items()
    }


def without_counters(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


WRAPPINGS = {
    "bare": lambda state: state,
    "wrapped": lambda state: {"epoch": 20, "state_dict": state, "best_acc": 0.1},
    "data parallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "old PyTorch": without_counters,
    "base variant": lambda state: {k: v for k, v in state.items() if not k.startswith("refine_model.")},
    "base variant of an old PyTorch, data parallel": lambda state: {
        f"module.{k}": v for k, v in without_counters(state).items() if not k.startswith("refine_model.")
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_published_form_is_recognised_and_loads(published, tmp_path, wrapping):
    path = tmp_path / "SiamMask.pth"
    torch.save(WRAPPINGS[wrapping](published), path)
    assert summarise(path).model == "siammask"
    network = load_siammask(path)
    path.unlink()  # 86 MB each
    assert (network.refine_model is None) == wrapping.startswith("base")
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, published[key]), key


def test_the_licence_of_the_weights_is_told():
    licence = signature_of("siammask").licence
    assert "MIT code" in licence and "no licence" in licence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "refine_model.post1.bias"}, r"1 missing \(refine_model\.post1"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("rpn_model.")}, r"missing \(rpn_model\.cls"),
        (lambda s: s | {"features.features.layer4.0.conv1.weight": torch.ones(1)}, r"1 unknown \(features.*layer4"),
        (lambda s: s | {"refine_model.deconv.bias": torch.full((32,), torch.nan)}, "not numbers"),
    ],
)
def test_other_files_are_refused(published, tmp_path, change, message):
    write_safetensors(tmp_path / "w.safetensors", change(published))
    with pytest.raises(CheckpointError, match=message):
        load_siammask(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").unlink()


def test_training_mode_keeps_the_stored_statistics():
    network = SiamMask(sharp=False).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        network.encode(torch.rand(2, 3, 127, 127) * 255)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_only_a_template_loses_its_border():
    template, search = torch.rand(1, 2, 15, 15), torch.rand(1, 2, 31, 31)
    assert torch.equal(without_border(template), template[..., 4:11, 4:11])
    assert torch.equal(without_border(search), search)


def test_scores_belong_to_anchors_and_boxes_to_cells():
    """One strong anchor, found where its box is."""
    anchor, row, column = 3, 5, 20
    classes, boxes = torch.zeros(1, 10, 25, 25), torch.zeros(1, 20, 25, 25)
    classes[0, 5 + anchor, row, column] = 9
    boxes[0, 0 * 5 + anchor, row, column] = 0.5
    boxes[0, 3 * 5 + anchor, row, column] = 1.0
    response = Response(classes, boxes, torch.zeros(0))
    best = int(response.scores().flatten().argmax())
    shape = anchors()[anchor * 625]
    width, height = float(shape[2]), float(shape[3])
    expected = torch.tensor([-96 + 8 * column + width / 2, -96 + 8 * row, width, height * 2.718281828])
    torch.testing.assert_close(decode_boxes(boxes)[0, best], expected)
    assert response.scores().max() == pytest.approx(1 / (1 + 2.718281828**-9))
