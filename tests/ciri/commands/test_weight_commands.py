"""``python -m ciri inspect`` and ``convert`` on published layouts, and on files that are none."""

import hashlib
import json

import pytest
import torch

from ciri import cli
from ciri.checkpoints import read_state_dict, write_safetensors
from ciri.inactivation.attention_network import SHIPPED
from ciri.signatures import identify, signature_of

MODELS = ["stcn", "e2fgvi", "e2fgvi_hq", "fuseformer", "dstt", "sttn", "siammask", "i3d", "vgg19"]


def marked(model):
    """The smallest state dict that is taken for a model, without memory for its weights."""
    marks = signature_of(model).marks
    return {key: torch.zeros(1).expand(shape or (1,)).clone() for key, shape in marks.items()}


@pytest.fixture
def published(tmp_path):
    state = {f"module.{key}": value for key, value in marked("e2fgvi_hq").items()} | {"module.steps": torch.arange(3)}
    torch.save({"netG": state}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize("model", MODELS)
def test_marks_tell_the_models_apart(model):
    assert identify(marked(model)) == model


def test_inspect_tells_a_person_what_a_file_is(published, capsys):
    assert cli.main(["inspect", str(published), "--keys"]) == 0
    out = capsys.readouterr().out
    for words in ("E2FGVI-HQ (e2fgvi_hq)", "CC BY-NC 4.0", "hard mask", "180,227 numbers in 3 tensors", "2 F32, 1 I64"):
        assert words in out
    assert "[128, 256, 1, 1]" in out and "sc.bias_conv.weight" in out


def test_inspect_tells_a_program(published, capsys):
    assert cli.main(["inspect", str(published), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == "e2fgvi_hq" and said["numbers"] == 128 * 128 * 9 + 128 * 256 + 3
    assert "keys" not in said


def test_inspect_lists_a_folder_and_leaves_out_what_cannot_be_read(published, capsys):
    (published.parent / "broken.pth").write_bytes(b"PK\x03\x04 nothing")
    write_safetensors(published.parent / "other.safetensors", {"a": torch.ones(1)})
    assert cli.main(["inspect", str(published.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("no model") and lines[1].startswith("E2FGVI-HQ")


def test_convert_keeps_every_number_and_says_where_it_came_from(published, tmp_path, capsys):
    output = tmp_path / "new.safetensors"
    assert cli.main(["convert", str(published), str(output)]) == 0
    assert "non-commercial" in capsys.readouterr().err
    state, metadata = read_state_dict(output)
    original, _ = read_state_dict(published)
    assert state.keys() == original.keys() and all(torch.equal(state[k], original[k]) for k in state)
    assert metadata["architecture"] == "e2fgvi_hq" and metadata["source"] == "w.pth"
    assert metadata["source_sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()
    assert metadata["trained_for"] == "hard mask"


def test_convert_does_not_overwrite_unless_told(published, tmp_path, capsys):
    output = tmp_path / "new.safetensors"
    output.write_bytes(b"precious")
    assert cli.main(["convert", str(published), str(output)]) == 2
    assert "--force" in capsys.readouterr().err and output.read_bytes() == b"precious"
    assert cli.main(["convert", str(published), str(output), "--force"]) == 0
    assert identify(read_state_dict(output)[0]) == "e2fgvi_hq"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: torch.save({"a": torch.ones(1)}, path), "no model that is known"),
        (lambda path: path.write_text("<html>"), "not a PyTorch weight file"),
        (lambda path: None, "cannot be read"),
    ],
)
def test_convert_refuses_in_one_line(tmp_path, capsys, make, words):
    make(tmp_path / "w.pth")
    assert cli.main(["convert", str(tmp_path / "w.pth"), str(tmp_path / "out.safetensors")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out.safetensors").exists()


def test_convert_calls_our_own_weights_by_their_name(tmp_path, capsys):
    assert cli.main(["convert", str(SHIPPED), str(tmp_path / "out.safetensors")]) == 2
    assert "holds weights of attention_lite (first key: " in capsys.readouterr().err


def test_convert_says_where_it_cannot_write(published, tmp_path, capsys):
    assert cli.main(["convert", str(published), str(tmp_path / "missing" / "new.safetensors")]) == 2
    assert "new.safetensors could not be written: No such file or directory\n" in capsys.readouterr().err
