"""Soft split, soft composition and the fusion feed-forward layer against unfolding, linear layers and folding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ciri.inpainting import soft_split as ss

PATCHES = {"kernel_size": 7, "padding": 3, "stride": 3}
SIZES = [(15, 27), (16, 29), (17, 28), (1, 1), (2, 9)]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_split_is_unfolding_and_a_linear_layer(size):
    torch.manual_seed(0)
    module, x = ss.SoftSplit(4, 16), torch.randn(2, 4, *size)
    tokens = module.embedding(F.unfold(x, **PATCHES).transpose(1, 2))
    grid = ss.token_grid(*size)
    assert grid[0] * grid[1] == tokens.shape[1]
    close(module(x), tokens.view(2, *grid, 16))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ["plain", "map", "convolution"])
def test_composition_is_a_linear_layer_and_folding(size, variant):
    torch.manual_seed(0)
    module = ss.SoftComposition(
        4, 16, bias_size=size if variant == "map" else None, convolution=variant == "convolution"
    )
    if variant == "map":
        nn.init.normal_(module.bias)
    tokens = torch.randn(2, *ss.token_grid(*size), 16)
    composed = F.fold(module.embedding(tokens.flatten(1, 2)).transpose(1, 2), size, **PATCHES)
    composed = composed + module.bias if variant == "map" else composed
    close(module(tokens, size), module.bias_conv(composed) if variant == "convolution" else composed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", [F.gelu, F.relu])
def test_feed_forward_commutes_with_unfolding(size, activation):
    torch.manual_seed(0)
    expand, contract = nn.Linear(16, 5 * ss.TAPS), nn.Linear(5 * ss.TAPS, 16)
    tokens = torch.randn(2, *ss.token_grid(*size), 16, requires_grad=True)
    patches = expand(tokens.flatten(1, 2)).transpose(1, 2)
    folded = F.fold(patches, size, **PATCHES) / F.fold(torch.ones_like(patches), size, **PATCHES)
    expected = contract(activation(F.unfold(folded, **PATCHES)).transpose(1, 2)).view_as(tokens)
    found = ss.fusion_feed_forward(tokens, expand, contract, size, activation)
    close(found, expected)
    inputs = (tokens, expand.weight, expand.bias, contract.weight)
    for got, wanted in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_cover_count_counts_patches():
    counted = ss.cover_count((60, 108), torch.device("cpu"))
    assert counted[0, 0, :13, 50].div(counted[0, 0, 0, 50]).mul(2).tolist() == [2, 2, 2, 3, 2, 2, 3, 2, 2, 3, 2, 2, 3]
    assert counted.min() == 1 and counted.max() == 9


@torch.no_grad()
def test_reduced_precision_keeps_biases_and_counts_exact():
    torch.manual_seed(0)
    bias = torch.rand(2 * ss.TAPS)
    exact = ss.composed_bias(bias, (30, 54))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ss.composed_bias(bias, (30, 54)), exact)
        assert ss.cover_count((30, 54), bias.device).dtype == torch.float32
