"""Encoding once and gating later, on a small encoder, against Eq. 1 written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.network import WindowNetwork, in_chunks


class Small(WindowNetwork):
    """Three stages, as the published encoders have."""

    name, facts = "small", BackboneFacts()

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 1, 1)])

    def stages(self):
        names = ("half", "x0", "out")
        return {name: lambda x, conv=conv: conv(x).relu() for name, conv in zip(names, self.layers, strict=True)}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def frames():
    return torch.rand(5, 3, 16, 24) * 2 - 1


@pytest.fixture
def soft():
    return torch.rand(5, 1, 16, 24)


def written_out(network, frames, maps, points):
    x = frames
    for name, stage in network.stages().items():
        x = stage(x)
        if name in points:
            x = x * (1 - F.avg_pool2d(maps, 2 if name == "half" else 4))
    return x


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Count chunks in frames of this size."""
    monkeypatch.setattr("ciri.inpainting.network.CHUNK_PIXELS", 16 * 24)


@pytest.mark.parametrize("points", [(), ("out",), ("x0",), ("half", "out"), ("half", "x0", "out")])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_gating_the_cache_is_gating_while_encoding(network, frames, soft, points, chunk):
    network.gate_points, network.chunk = points, chunk
    features = network.encode(frames)
    assert set(features) == {*points, "out"}
    kept = {name: value.clone() for name, value in features.items()}
    torch.testing.assert_close(network.gate(features, soft), written_out(network, frames, soft, points))
    # the cache serves the next masks too
    assert all(torch.equal(features[name], kept[name]) for name in kept)


@pytest.mark.parametrize("points", [("out",), ("half", "x0", "out")])
def test_no_map_changes_nothing_and_a_full_map_leaves_nothing_of_the_frame(network, frames, points):
    network.gate_points = points
    features, other = network.encode(frames), network.encode(torch.rand_like(frames))
    none, full = torch.zeros(5, 1, 16, 24), torch.ones(5, 1, 16, 24)
    # from an inner point on, the layers run anew on all frames at once, which rounds differently on some processors
    torch.testing.assert_close(network.gate(features, none), features["out"])
    assert network.gate(features, full).abs().max() == 0
    torch.testing.assert_close(network.gate(features, none, other), features["out"])
    torch.testing.assert_close(network.gate(features, full, other), other["out"])


def test_one_map_for_each_point(network, frames, soft):
    network.gate_points = ("half", "out")
    maps = {"half": F.avg_pool2d(soft, 2), "out": F.avg_pool2d(soft, 4)}
    features = network.encode(frames)
    torch.testing.assert_close(network.gate(features, maps), network.gate(features, soft))


def test_blend_is_the_mix_of_both_encodings(network, frames, soft):
    visible, grey = network.encode(frames), network.encode(frames * (1 - soft))
    weight = F.avg_pool2d(soft, 4)
    expected = (1 - weight) * visible["out"] + weight * grey["out"]
    torch.testing.assert_close(network.gate(visible, soft, grey), expected)


def test_the_gate_is_differentiable_and_linear_in_the_map(network, frames, soft):
    features = {name: value.detach() for name, value in network.encode(frames).items()}
    soft.requires_grad_()
    network.gate(features, soft).sum().backward()
    # d/dM of sum (1 - M) F: minus the features of the cell, spread over its 16 pixels
    expected = F.interpolate(-features["out"].sum(1, keepdim=True) / 16, scale_factor=4)
    torch.testing.assert_close(soft.grad, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_reduced_precision_is_kept_in_the_cache(network, frames, soft):
    exact = network.gate(network.encode(frames), soft)
    network.precision = torch.bfloat16
    features = network.encode(frames)
    assert features["out"].dtype == torch.bfloat16
    assert (network.gate(features, soft).float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_chunks_are_put_together_in_order():
    sizes = []

    def double(part):
        sizes.append(len(part))
        return 2 * part

    assert torch.equal(in_chunks(double, torch.arange(7.0), 3), 2 * torch.arange(7.0))
    assert sizes == [3, 3, 1]


def test_larger_frames_are_fewer_at_a_time(network, frames, monkeypatch):
    sizes = []
    monkeypatch.setattr(network, "_encode_some", lambda part: sizes.append(len(part)) or {"out": part})
    network.chunk = 4
    network.encode(frames)
    network.encode(frames.repeat(1, 1, 1, 2))
    network.encode(frames.repeat(1, 1, 4, 4))
    assert sizes == [4, 1, 2, 2, 1, 1, 1, 1, 1, 1]
