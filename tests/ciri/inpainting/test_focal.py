"""Focal attention by index lists against the published form with shifted copies and masks."""

import pytest
import torch

from benchmarks import plain_e2fgvi as plain
from ciri.inpainting import focal

#: One window, whose ring wraps onto itself; a few; more than the pooled neighbourhood reaches.
GRIDS = [(5, 9), (10, 18), (40, 9), (5, 99)]


@pytest.fixture
def block():
    torch.manual_seed(0)
    block = focal.FocalBlock(32, 4)
    # peaked attention shows a wrong key, flat attention would average it away
    torch.nn.init.normal_(block.attn.qkv.weight, std=1.0)
    return block


@pytest.mark.parametrize("grid", GRIDS)
def test_the_block_is_the_published_one(block, grid):
    tokens = torch.randn(2, 2, *grid, 32)
    size = (3 * grid[0], 3 * grid[1])
    for windows_at_once in (1, 1 << 40):
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(focal, "CACHED_PRODUCTS", windows_at_once)
            found, expected = block(tokens, size, chunk=3), plain.block_forward(block, tokens, size)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)


def test_gradients_are_the_published_ones(block):
    tokens = torch.randn(1, 2, 10, 18, 32, requires_grad=True)
    inputs = [tokens, *block.parameters()]
    seed = torch.randn(1, 2, 10, 18, 32)
    found = torch.autograd.grad((block(tokens, (30, 54)) * seed).sum(), inputs)
    expected = torch.autograd.grad((plain.block_forward(block, tokens, (30, 54)) * seed).sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@torch.no_grad()
def test_asking_for_some_frames_changes_nothing_in_them(block):
    tokens = torch.randn(1, 4, 5, 18, 32)
    whole = block(tokens, (15, 54))
    torch.testing.assert_close(block(tokens, (15, 54), queries=2), whole[:, :2], rtol=1e-5, atol=1e-6)


def test_lists_made_in_inference_mode_serve_training(block):
    focal.key_indices.cache_clear()
    tokens = torch.randn(1, 1, 5, 9, 32)
    with torch.inference_mode():
        block(tokens, (15, 27))
    block(tokens.requires_grad_(), (15, 27)).sum().backward()
    assert tokens.grad.abs().sum() > 0


def test_windows_are_cut_and_put_back():
    tokens = torch.arange(2 * 3 * 10 * 18.0).view(2, 3, 10, 18, 1)
    windows = focal.to_windows(tokens)
    assert windows.shape == (2, 4, 3 * 45, 1)
    # second window of the first row, third frame, its first token
    assert windows[1, 1, 90, 0] == tokens[1, 2, 0, 9, 0]
    assert torch.equal(focal.from_windows(windows, (10, 18)), tokens)
