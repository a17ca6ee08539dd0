"""Softmax attention in bfloat16 against the definition in float64."""

import pytest
import torch
from einops import rearrange

from ciri.inpainting import attention as module
from ciri.inpainting import sttn
from ciri.inpainting.attention import attention


def _definition(query, key, value):
    query, key, value = (x.double() for x in (query, key, value))
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


def _random(asking, answering, *, offset=0.0, dtype=torch.bfloat16):
    rng = torch.Generator().manual_seed(0)
    tokens = [torch.randn(2, n, 4 * 32, generator=rng) for n in (asking, answering, answering)]
    tokens[1] += offset
    # views, as the networks make them
    return [rearrange(x.to(dtype), "b n (heads d) -> b heads n d", heads=4) for x in tokens]


@pytest.fixture(params=[False, True], ids=["fused", "plain"])
def form(request, monkeypatch):
    monkeypatch.setattr(module, "_fused", lambda x: not request.param)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("asking", "answering"), [(1, 1), (50, 7), (37, 301)])
@pytest.mark.parametrize("chunk", [1, 1 << 12, 1 << 22])
def test_attention_is_its_definition(asking, answering, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    inputs = _random(asking, answering)
    got, expected = attention(*inputs), _definition(*inputs)
    assert got.shape == (2, 4, asking, 32) and got.dtype == torch.bfloat16
    assert (got - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_what_all_keys_share_costs_no_digits(offset, monkeypatch):
    monkeypatch.setattr(module, "_fused", lambda x: False)
    inputs = _random(40, 200, offset=offset)
    expected = _definition(*inputs)
    # keys of offset 20 have digits of 1/16 only; the definition gets the same keys
    assert (attention(*inputs) - expected).norm() < 0.01 * expected.norm()


@pytest.mark.usefixtures("form")
def test_gradients_pass():
    query, key, value = (x.float().requires_grad_() for x in _random(9, 11))
    found = torch.autograd.grad(attention(query, key, value).square().sum(), (query, key, value))
    expected = torch.autograd.grad(_definition(query, key, value).square().sum(), (query, key, value))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=1e-4)


def test_a_compiler_is_given_the_fused_kernel():
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    inputs = _random(30, 40)
    got = torch.compile(attention, backend=backend, fullgraph=True)(*inputs)
    assert any("scaled_dot_product_attention" in name for name in seen)
    torch.testing.assert_close(got, attention(*inputs), rtol=0.05, atol=0.02)


def test_products_of_patches_keep_what_bfloat16_would_round():
    rng = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, n, 3000, generator=rng).add(0.5).bfloat16() for n in (20, 30))
    expected = q.double() @ k.double().transpose(1, 2)
    assert (sttn._products(q, k) - expected).abs().max() < 2e-5 * expected.abs().max()
    assert ((q @ k.transpose(1, 2)) - expected).abs().max() > 1e-3 * expected.abs().max()
