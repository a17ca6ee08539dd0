"""Deformable convolution and warping against loops and closed forms."""

import itertools
import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from ciri.inpainting import deform


def bilinear(image, y, x):
    """One sample of (H, W), zero outside."""
    total, (h, w) = 0.0, image.shape
    for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        if 0 <= row < h and 0 <= column < w:
            total += float(image[row, column]) * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def by_loops(x, offset, mask, weight, deform_groups, stride, padding, dilation):
    """The definition, one product at a time."""
    n, c, _, _ = x.shape
    out, per_group, kh, kw = weight.shape
    groups = c // per_group
    result = torch.zeros(n, out, *offset.shape[2:])
    for b, o, i, j in itertools.product(range(n), range(out), *map(range, offset.shape[2:])):
        first = o // (out // groups) * per_group
        for k, channel in itertools.product(range(kh * kw), range(first, first + per_group)):
            g = channel // (c // deform_groups)
            dy, dx = (float(offset[b, 2 * (g * kh * kw + k) + axis, i, j]) for axis in (0, 1))
            y = i * stride - padding + k // kw * dilation + dy
            column = j * stride - padding + k % kw * dilation + dx
            sample = bilinear(x[b, channel], y, column) * float(mask[b, g * kh * kw + k, i, j])
            result[b, o, i, j] += sample * float(weight[o, channel - first, k // kw, k % kw])
    return result


@pytest.mark.parametrize(
    ("kernel", "groups", "deform_groups", "stride", "padding", "dilation"),
    [((3, 3), 1, 2, 1, 1, 1), ((3, 3), 2, 1, 2, 2, 2), ((1, 3), 1, 4, 1, 0, 1)],
)
def test_deformable_convolution_is_its_definition(kernel, groups, deform_groups, stride, padding, dilation):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(4, 4 // groups, *kernel)
    size = [(s + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for s, k in zip((6, 7), kernel, strict=True)]
    taps = deform_groups * kernel[0] * kernel[1]
    offset, mask = 3 * torch.randn(2, 2 * taps, *size), torch.rand(2, taps, *size)
    found = deform.modulated_deform_conv(x, offset, mask, weight, stride=stride, padding=padding, dilation=dilation)
    expected = by_loops(x, offset, mask, weight, deform_groups, stride, padding, dilation)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_offsets_it_is_a_convolution_and_rows_may_be_done_apart(monkeypatch):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 32, 9, 11), torch.randn(5, 32, 3, 3), torch.randn(5)
    offset, mask = torch.zeros(1, 2 * 16 * 9, 9, 11), torch.ones(1, 16 * 9, 9, 11)
    found = deform.modulated_deform_conv(x, offset, mask, weight, bias, padding=1)
    torch.testing.assert_close(found, F.conv2d(x, weight, bias, padding=1), rtol=1e-4, atol=1e-4)
    offset = offset + torch.randn_like(offset)
    whole = deform.modulated_deform_conv(x, offset, mask, weight, bias, padding=1)
    monkeypatch.setattr(deform, "CACHED_SAMPLES", 32 * 9 * 11 * 2)
    torch.testing.assert_close(deform.modulated_deform_conv(x, offset, mask, weight, bias, padding=1), whole)


def test_warping_by_whole_pixels_shifts():
    image = torch.rand(1, 2, 5, 6)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 5, 6)
    shifted = torch.zeros_like(image)
    shifted[:, :, 1:, :4] = image[:, :, :4, 2:]
    torch.testing.assert_close(deform.warp(image, flow), shifted, rtol=0, atol=1e-5)
    border = deform.warp(image, flow, "border")
    torch.testing.assert_close(border[:, :, 1:, 4:], image[:, :, :4, 5:].expand(1, 2, 4, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1)])
def test_standing_still_is_the_identity_at_every_size(size):
    image = torch.rand(2, 3, *size)
    for padding in ("zeros", "border"):
        torch.testing.assert_close(deform.warp(image, torch.zeros(2, 2, *size), padding), image, rtol=0, atol=1e-6)


def test_coordinates_are_not_rounded_in_reduced_precision():
    ramp = torch.arange(500.0).expand(1, 1, 2, 500)
    flow = torch.full((1, 2, 2, 500), 0.25) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        moved = deform.warp(ramp, flow)
    torch.testing.assert_close(moved[0, 0, 0, :-1], torch.arange(499) + 0.25, rtol=0, atol=1e-3)


def right(x, offset, weight, bias, stride, padding, dilation, mask):
    """What torchvision computes, with its order of arguments."""
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    return deform.modulated_deform_conv(x, offset, mask, weight, bias, **geometry)


def wrong(*arguments):
    return right(*arguments) + 1


def failing(*arguments):
    raise RuntimeError("Couldn't load custom C++ ops.")


@pytest.mark.parametrize(("operator", "used"), [(right, True), (wrong, False), (failing, False), (None, False)])
def test_the_compiled_operator_is_used_only_where_it_works_and_is_right(monkeypatch, operator, used):
    installed = types.SimpleNamespace(deform_conv2d=operator) if operator else None
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(ops=installed))
    monkeypatch.setitem(sys.modules, "torchvision.ops", installed)
    # the processor under another name: the probe itself does not care where it runs
    compiled = deform.compiled_deform_conv.__wrapped__("cpu:0")
    assert (compiled is not None) == used
    if compiled is not None:
        x, weight = torch.rand(1, 4, 5, 6), torch.rand(2, 4, 3, 3, dtype=torch.bfloat16)
        offset, mask = torch.randn(1, 36, 5, 6), torch.rand(1, 18, 5, 6)
        found = compiled(x, offset, weight, None, 1, 1, 1, mask)
        expected = deform.modulated_deform_conv(x, offset, mask, weight.float(), padding=1)
        assert torch.equal(found, expected)


def test_a_full_card_says_nothing_of_the_compiled_operator(monkeypatch):
    """What is asked once is remembered: with less memory in use it has to be asked again."""

    def short_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    installed = types.SimpleNamespace(deform_conv2d=short_of_memory)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(ops=installed))
    monkeypatch.setitem(sys.modules, "torchvision.ops", installed)
    with pytest.raises(torch.OutOfMemoryError):
        deform.compiled_deform_conv("cpu:0")


def test_on_a_processor_results_do_not_depend_on_what_is_installed():
    assert deform.compiled_deform_conv("cpu") is None
