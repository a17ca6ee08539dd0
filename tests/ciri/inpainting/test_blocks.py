"""The shared encoder against convolutions done group by group."""

import pytest
import torch
import torch.nn.functional as F

from ciri.inpainting import blocks


@pytest.mark.parametrize("widths", [blocks.WIDE_HIERARCHY, blocks.NARROW_HIERARCHY])
@torch.no_grad()
def test_every_group_sees_its_share_of_x0_and_of_the_features(widths):
    torch.manual_seed(0)
    layers, x0 = blocks.hierarchy_layers(widths), torch.randn(2, 256, 5, 6)
    taps = []
    out = blocks.merge_levels(layers, x0, taps)
    x = x0
    for level, (_, width, groups) in enumerate(widths):
        conv, results = layers[2 * level], []
        for group in range(groups):
            share = [x.chunk(groups, 1)[group]] if level == 0 else [y.chunk(groups, 1)[group] for y in (x0, x)]
            weight, bias = conv.weight.chunk(groups)[group], conv.bias.chunk(groups)[group]
            results.append(F.conv2d(torch.cat(share, 1), weight, bias, padding=1))
        x = torch.cat(results, 1)
        x = torch.where(x > 0, x, 0.2 * x)
        assert x.shape[1] == width
        torch.testing.assert_close(taps[level], x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-5)


def test_parts_follow_one_another_group_by_group():
    a, b = torch.arange(4.0).view(1, 4, 1, 1), torch.arange(10.0, 16).view(1, 6, 1, 1)
    assert blocks.interleave(a, b, 2).flatten().tolist() == [0, 1, 10, 11, 12, 2, 3, 13, 14, 15]
    assert blocks.interleave(a, b, 1).flatten().tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 14, 15]


@torch.no_grad()
def test_the_encoder_sees_29_pixels_around_and_no_further():
    torch.manual_seed(0)
    encoder = blocks.HierarchicalEncoder()
    frame = torch.randn(1, 3, 128, 128)
    features = encoder(frame)
    assert features.shape == (1, 128, 32, 32)
    # the feature at (16, 16) is centred on the pixel (64, 64)
    for distance, seen in ((29, True), (30, False)):
        changed = frame.clone()
        changed[:, :, 64 + distance] += 100
        assert ((encoder(changed) - features)[0, :, 16, 16].abs().max() > 0) == seen
