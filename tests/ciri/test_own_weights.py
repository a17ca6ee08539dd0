"""Headers of weight files that lie about the network's sizes."""

import json

import pytest
import torch

from ciri.errors import CheckpointError
from ciri.inactivation import attention_network
from ciri.inactivation.attention_network import AttentionConfig, AttentionNetwork, load_attention
from ciri.inpainting import lite, lite_network
from ciri.own_weights import build_from_header, read_own
from ciri.training.attention import export

SMALL = AttentionConfig(8, 8, 8, 8, 1)


def lying(folder, **sizes):
    """Weights of a small network under a header that gives other sizes."""
    path = folder / "weights.safetensors"
    export(AttentionNetwork(SMALL), path, {"config": json.dumps({**SMALL.to_dict(), **sizes})})
    return path


def test_what_the_header_says_is_built(tmp_path):
    assert load_attention(lying(tmp_path)).config == SMALL


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (dict(deep=10**9), "deep = 1000000000; expected 1024 at most"),
        (dict(half=-(10**9)), "half = -1000000000"),
        (dict(half=1e400), "half = inf"),
        (dict(half=1000, quarter=1000, eighth=1000, sixteenth=1000), "a network of [0-9]{9,} weights, and [0-9]{5} in"),
        (dict(wide=3), "wide"),
        (dict(half="8"), "str"),
        (dict(half=7.5), ""),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_built(tmp_path, monkeypatch, sizes, said):
    built = []
    forward = torch.nn.Conv2d.reset_parameters
    monkeypatch.setattr(
        torch.nn.Conv2d, "reset_parameters", lambda self: (built.append(self.weight.device.type), forward(self))
    )
    path = lying(tmp_path, **sizes)
    built.clear()
    with pytest.raises(CheckpointError, match=f"does not say the sizes of the network .*{said}"):
        load_attention(path)
    assert "cpu" not in built


@pytest.mark.parametrize("module", [attention_network, lite])
def test_the_shipped_networks_are_within_the_limits(module):
    state, metadata = read_own(module.SHIPPED, module.ARCHITECTURE, "train")
    config = json.loads(metadata["config"])
    classes = (AttentionNetwork, AttentionConfig)
    if module is lite:
        classes = (lite_network.LiteNetwork, lite_network.LiteConfig)
    network = build_from_header(lambda **sizes: classes[0](classes[1](**sizes)), state, metadata, "file", "train")
    assert all(value.device.type == "cpu" for value in network.state_dict().values()) and config
