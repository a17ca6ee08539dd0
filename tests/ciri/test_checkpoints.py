"""ciri.checkpoints against files that are right, wrong, damaged and hostile."""

import json
import math
import os
import pickle
import struct
import zipfile

import pytest
import torch
from torch import nn

from ciri import checkpoints as ck
from ciri.errors import CheckpointError
from ciri.signatures import Signature, identify, register_signature


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [None, "netG", "state_dict", "model", "network"])
def test_every_wrapping_gives_the_bare_state_dict(tmp_path, net, wrap, zipped):
    state = dict(net.state_dict())
    content = state if wrap is None else {"it": 7, wrap: {f"module.{k}": v for k, v in state.items()}}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    read, metadata = ck.read_state_dict(tmp_path / "w.pth")
    assert same(read, state) and metadata == {}


def test_a_written_file_reads_back_with_its_metadata(tmp_path, net):
    tied = dict(net.state_dict()) | {"tied": net[0].weight.detach(), "view": torch.arange(6).reshape(2, 3).t()}
    ck.write_safetensors(tmp_path / "w.safetensors", tied, {"architecture": "mine"})
    read, metadata = ck.read_state_dict(tmp_path / "w.safetensors")
    assert same(read, tied) and metadata["architecture"] == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_failed_write_keeps_the_old_file(tmp_path, net, monkeypatch):
    path = tmp_path / "w.safetensors"
    ck.write_safetensors(path, {"a": torch.ones(3)})

    def fails(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(CheckpointError, match="no space left"):
        ck.write_safetensors(path, net.state_dict())
    assert torch.equal(ck.read_state_dict(path)[0]["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_the_summary_of_a_safetensors_file_needs_no_weights(tmp_path, net):
    path = tmp_path / "w.safetensors"
    ck.write_safetensors(path, net.state_dict(), {"architecture": "mine"})
    summary = ck.summarise(path)
    full = net.state_dict()
    assert {k: v.shape for k, v in summary.tensors.items()} == {k: tuple(v.shape) for k, v in full.items()}
    assert summary.parameters == sum(v.numel() for v in full.values())
    assert summary.dtypes == {"F32": 6, "I64": 1} and summary.model == "mine"
    torch.save(full, tmp_path / "w.pth")
    assert ck.summarise(tmp_path / "w.pth").tensors == dict(summary.tensors)


def test_strict_loading_uses_every_key(net):
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ck.load_strictly(other, net.state_dict(), model="mine", path="w.pth")
    assert same(other.state_dict(), net.state_dict())


def test_step_counters_may_be_missing_and_named_prefixes_dropped(net):
    state = {k: v for k, v in net.state_dict().items() if "num_batches" not in k} | {"head.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 unknown \(head.weight\)"):
        ck.load_strictly(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), state, model="mine", path="w.pth")
    ck.load_strictly(net, state, model="mine", path="w.pth", drop="head.")


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "0.weight"), r"1 missing \(0\.weight\)"),
        (lambda s: s | {"extra": torch.ones(1)}, r"1 unknown \(extra\)"),
        (lambda s: s | {"0.bias": torch.ones(5)}, r"0\.bias \(5,\) instead of \(4,\)"),
        (lambda s: s | {"0.bias": torch.ones(4, dtype=torch.int64)}, r"0\.bias torch.int64 instead of torch.float32"),
        (lambda s: s | {"0.bias": torch.tensor([0, 1, float("nan"), 2])}, r"not numbers: 1 in \(0\.bias\)"),
    ],
)
def test_strict_loading_names_what_does_not_fit_and_changes_nothing(net, change, message):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        ck.load_strictly(net, change(dict(net.state_dict())), model="mine", path="w.pth")
    assert same(net.state_dict(), before)


def test_a_file_of_another_known_model_is_named(net, monkeypatch):
    monkeypatch.setattr("ciri.signatures._SIGNATURES", {})
    register_signature(Signature("mine", "My Net", {"0.weight": (4, 3, 3, 3)}))
    register_signature(Signature("other", "Other Net", {"z": (2,)}, absent=("0.weight",)))
    with pytest.raises(CheckpointError, match=r"x\.pth.*weights of My Net.*looks like Other Net"):
        ck.load_strictly(net, {"z": torch.ones(2)}, model="mine", path="x.pth")
    assert identify(net.state_dict()) == "mine"
    assert identify({"z": torch.ones(3)}) is None
    assert identify({"z": torch.ones(3)}, {"architecture": "third"}) == "third"


def test_listing_finds_the_files_of_one_model_and_survives_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("ciri.signatures._SIGNATURES", {})
    register_signature(Signature("mine", "My Net", {"a": (2,)}))
    (tmp_path / "sub").mkdir()
    (tmp_path / "folder.pth").mkdir()
    ck.write_safetensors(tmp_path / "b.safetensors", {"a": torch.ones(2)})
    torch.save({"netG": {"a": torch.ones(2)}}, tmp_path / "sub" / "a.pth")
    torch.save({"a": torch.ones(3)}, tmp_path / "no.pth")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "readme.txt").write_text("hello")
    assert [p.name for p in ck.list_files([tmp_path], "mine")] == ["b.safetensors", "a.pth"]


class Runs:
    """A pickle that writes a file when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def hostile_zip(path, target):
    torch.save({"a": Runs(target)}, path)


def hostile_legacy(path, target):
    torch.save({"a": Runs(target)}, path, _use_new_zipfile_serialization=False)


def hostile_pickle(path, target):
    path.write_bytes(pickle.dumps(Runs(target), protocol=2))


@pytest.mark.parametrize("make", [hostile_zip, hostile_legacy, hostile_pickle])
def test_code_in_a_file_is_not_run(tmp_path, make):
    make(tmp_path / "w.pth", tmp_path / "proof")
    with pytest.raises(CheckpointError):
        ck.read_state_dict(tmp_path / "w.pth")
    assert not (tmp_path / "proof").exists()


def header(text, claim=None, data=b""):
    raw = text.encode()
    return struct.pack("<Q", len(raw) if claim is None else claim) + raw + data


def entry(shape, start, end):
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}})


SAFETENSORS = {
    "header longer than the file": header("{}", claim=1 << 62),
    "header of a gigabyte": header("{}", claim=1 << 30),
    "no json": header("{nothing"),
    "no entries of the right kind": header('{"a": 3}'),
    "data missing": header(entry([4], 0, 16), data=b"\0" * 8),
    "shape larger than the data": header(entry([1 << 40], 0, 16), data=b"\0" * 16),
    "a side of 2 ** 63": header(entry([1 << 63], 0, 16), data=b"\0" * 16),
    "sides whose product overflows": header(entry([1 << 40, 1 << 40], 0, 16), data=b"\0" * 16),
    "a negative side": header(entry([-4], 0, 16), data=b"\0" * 16),
    "an infinite side": header(entry([math.inf], 0, 16), data=b"\0" * 16),
    "an infinite end": header(entry([4], 0, math.inf), data=b"\0" * 16),
    "no end": header(entry([4], 0, 16).replace(", 16", ""), data=b"\0" * 16),
    "metadata of another kind": header('{"__metadata__": [1], ' + entry([4], 0, 16)[1:], data=b"\0" * 16),
    "deeply nested": header('{"a":' * 5000 + "1" + "}" * 5000),
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_damaged_safetensors_files_are_refused_and_left_out_of_lists(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    for read in (ck.read_state_dict, ck.summarise):
        with pytest.raises(CheckpointError, match=r"w\.safetensors"):
            read(tmp_path / "w.safetensors")
    ck.write_safetensors(tmp_path / "z.safetensors", {"a": torch.ones(1)}, {"architecture": "mine"})
    assert [p.name for p in ck.list_files([tmp_path], "mine")] == ["z.safetensors"]


def test_metadata_of_null_is_none(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(header('{"__metadata__": null, ' + entry([2], 0, 8)[1:], data=b"\0" * 8))
    state, metadata = ck.read_state_dict(path)
    assert torch.equal(state["a"], torch.zeros(2)) and metadata == {}
    assert ck.summarise(path).parameters == 2


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64])
def test_numbers_of_another_precision_are_taken_and_checked(tmp_path, net, kind):
    rounded = {k: v.to(kind) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    ck.write_safetensors(tmp_path / "w.safetensors", rounded)
    state = ck.read_state_dict(tmp_path / "w.safetensors")[0]
    ck.load_strictly(net, state, model="mine", path="w.safetensors")
    assert torch.equal(net[0].weight, rounded["0.weight"].float())
    state["0.bias"] = torch.full((4,), float("nan")).to(kind)
    with pytest.raises(CheckpointError, match=r"not numbers: 1 in \(0\.bias\)"):
        ck.load_strictly(net, state, model="mine", path="w.safetensors")


def test_numbers_of_half_a_byte_are_refused(net):
    kind = getattr(torch, "float4_e2m1fn_x2", None)
    if kind is None:
        pytest.skip("this PyTorch has no such numbers")
    state = dict(net.state_dict()) | {"0.bias": torch.zeros(4, dtype=torch.uint8).view(kind)}
    with pytest.raises(CheckpointError, match=r"float4_e2m1fn_x2 under '0\.bias'.*expected float32"):
        ck.load_strictly(net, state, model="mine", path="w.safetensors")


def compressed(path):
    torch.save({"a": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, data)


def stretched(path):
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, path)


def truncated(path):
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def truncated_legacy(path):
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "make",
    [
        compressed,
        stretched,
        truncated,
        truncated_legacy,
        lambda path: path.write_text("<html>Quota exceeded</html>"),
        lambda path: path.touch(),
        lambda path: path.mkdir(),
        lambda path: None,
        lambda path: torch.save(torch.ones(2), path),
        lambda path: torch.save({}, path),
        lambda path: torch.save({"a": "text"}, path),
        lambda path: torch.save({1: torch.ones(1)}, path),
        lambda path: torch.save(nn.Linear(1, 1), path),
        lambda path: torch.save({"a": torch.ones(2, 2).to_sparse()}, path),
        lambda path: torch.save({"a": torch.ones(2, device="meta")}, path),
        lambda path: torch.save({"a": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])}, path),
        lambda path: torch.save({"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, path),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_everything_else_that_is_not_a_state_dict_is_refused(tmp_path, make):
    make(tmp_path / "w.pth")
    for read in (ck.read_state_dict, ck.summarise):
        with pytest.raises(CheckpointError, match=r"w\.pth"):
            read(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [bytes(5000), b"hello"], ids=["room kept for a download", "text"])
def test_bytes_that_are_no_pickle_are_called_so(tmp_path, content):
    """PyTorch would say of the first to read it unsafely, and of the second "101"."""
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file: it is not a PyTorch weight file\. It may be damaged") as refused:
        ck.read_state_dict(tmp_path / "w.pth")
    assert "weights_only" not in str(refused.value)


def test_names_and_contents_must_agree(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    (tmp_path / "w.pth").rename(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"rename it to \.pth"):
        ck.read_state_dict(tmp_path / "w.safetensors")
    ck.write_safetensors(tmp_path / "v.safetensors", {"a": torch.ones(1)})
    (tmp_path / "v.safetensors").rename(tmp_path / "v.pt")
    with pytest.raises(CheckpointError, match=r"rename it to \.safetensors"):
        ck.read_state_dict(tmp_path / "v.pt")
    with pytest.raises(CheckpointError, match=r"expected one of \.safetensors"):
        ck.read_state_dict(tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        ck.write_safetensors(tmp_path / "w.pth", {})
