"""The weights that the fixtures were made with, and the search for fixtures."""

import json
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.parity.fixtures import documents, find
from tests.parity.seeded_weights import seeded_tensor
from tests.parity.transformer_backbones import Taps


def test_seeded_weights_follow_the_stated_rule():
    noise = np.random.RandomState(zlib.crc32(b"7:a.weight")).standard_normal((2, 8))
    drawn = seeded_tensor("a.weight", (2, 8), seed=7, gain=3.0)
    np.testing.assert_allclose(drawn, noise * 3 / np.sqrt(8), rtol=1e-6)
    noise = np.random.RandomState(zlib.crc32(b"7:a.bias")).standard_normal(3)
    np.testing.assert_allclose(seeded_tensor("a.bias", (3,), seed=7, gain=3.0), noise / 10, rtol=1e-6)
    assert seeded_tensor("x.running_var", (64,), seed=1).min() >= 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CIRI_PARITY_DIR", str(tmp_path))
    for name, meta in {"x": {"seed": "1", "rule": "mean of all"}, "y": {"seed": "2", "list": "[1, 2]"}}.items():
        path = tmp_path / "net" / "deep" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: torch.ones(2)}, path, metadata=meta)
    (tmp_path / "net" / "keys.json").write_text(json.dumps({"k": 1}))
    return tmp_path


def test_fixtures_are_found_by_what_they_say(folder):
    assert [f.meta["seed"] for f in find("net")] == [1, 2]
    assert [f.path.stem for f in find("net", has=["list"])] == ["y"]
    assert find("net", has=["list"])[0].meta["list"] == [1, 2]
    assert [f.path.stem for f in find("net", tensors=["x"])] == ["x"]
    assert find("net", seed=1)[0].meta["rule"] == "mean of all"
    assert find("net", seed=3) == find("other") == []
    assert find("net", seed=2)[0]["y"].tolist() == [1, 1]
    assert documents("net") == [{"k": 1}]


def test_taps_hold_every_frame_of_a_clip_that_is_encoded_in_parts():
    layer, taps = torch.nn.Identity(), Taps()
    taps.watch("layer", layer)
    for part in torch.arange(5).split(2):
        layer(part)
    assert taps.seen()["layer"].tolist() == [0, 1, 2, 3, 4]
