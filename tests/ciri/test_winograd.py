"""Winograd's convolution against PyTorch's."""

import pytest
import torch
from torch import nn

from ciri import winograd


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (15, 27), (33, 18)])
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(64, 96, True), (80, 64, False)])
def test_it_computes_the_convolution(size, inputs, outputs, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    x = torch.randn(2, inputs, *size)
    expected = conv(x).detach()
    got = winograd.WinogradConv2d(conv)(x)
    assert got.shape == expected.shape and got.stride(1) == 1
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4 * expected.std().item())


def test_pieces_change_nothing(monkeypatch):
    conv = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(1, 64, 37, 21)
    whole = winograd.WinogradConv2d(conv)(x)
    monkeypatch.setattr(winograd, "PIECE_BYTES", 1)
    torch.testing.assert_close(winograd.WinogradConv2d(conv)(x), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "outputs", "options", "suits"),
    [
        (64, 64, {"padding": 1}, True),
        (32, 64, {"padding": 1}, False),
        (64, 64, {"padding": 0}, False),
        (64, 64, {"padding": 1, "stride": 2}, False),
        (64, 64, {"padding": 2, "dilation": 2}, False),
        (64, 64, {"padding": 1, "groups": 64}, False),
        (64, 64, {"padding": 1, "padding_mode": "reflect"}, False),
    ],
)
def test_only_convolutions_that_suit_are_replaced(inputs, outputs, options, suits):
    tree = nn.ModuleDict({"part": nn.Sequential(nn.Conv2d(inputs, outputs, 3, **options)), "kept": nn.Sequential()})
    tree["kept"].append(nn.Conv2d(64, 64, 3, padding=1))
    x = torch.randn(1, inputs, 9, 9)
    expected = tree["part"](x)
    winograd.replace_convolutions(tree, keep=["kept"])
    assert isinstance(tree["part"][0], winograd.WinogradConv2d) == suits
    assert isinstance(tree["kept"][0], nn.Conv2d)
    torch.testing.assert_close(tree["part"](x), expected, rtol=1e-3, atol=1e-4)
