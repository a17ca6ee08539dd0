"""Packed convolutions against PyTorch's."""

import pytest
import torch
from torch import nn

from ciri import packed
from ciri.propagation.lite_encoder import ScaledConv


@pytest.fixture(autouse=True)
def _needs_onednn():
    if not packed.available():
        pytest.skip("this build of PyTorch cannot pack weights")


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (1, {}),
        (3, {"padding": 1}),
        (3, {"padding": 1, "bias": False}),
        (7, {"padding": 3, "stride": 2}),
        (3, {"padding": 2, "dilation": 2}),
        (3, {"padding": (0, 1), "groups": 8}),
    ],
)
def test_it_computes_the_convolution_whatever_the_size(kernel, options):
    torch.manual_seed(0)
    tree = nn.Sequential(nn.Conv2d(16, 24, kernel, **options)).to(torch.bfloat16).requires_grad_(False)
    images = [torch.randn(shape).bfloat16() for shape in ((1, 16, 30, 54), (3, 16, 9, 11), (1, 16, 120, 7))]
    images = [image.contiguous(memory_format=torch.channels_last) for image in images]
    expected = [tree(image) for image in images]
    packed.pack_convolutions(tree)
    assert isinstance(tree[0], packed.PackedConv2d)
    for _ in range(3):
        for image, one in zip(images, expected, strict=True):
            # another kernel may sum in another order
            torch.testing.assert_close(tree(image), one, rtol=0.01, atol=0.01)
    assert all(weight is not None for weight in tree[0]._packed.values())


def test_every_size_finds_the_weights_as_its_kernel_reads_them_and_they_are_kept_once(monkeypatch):
    # these sizes have been seen to ask for two arrangements, in one thread
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        conv = packed.PackedConv2d.of(nn.Conv2d(320, 192, 3, padding=1).bfloat16())
        images = [torch.randn(1, 320, *size).bfloat16() for size in ((30, 54), (22, 16), (16, 21), (30, 31))]
        for image in images:
            conv(image)
        # after the first, a size that is seen once is not worth it
        assert [weight is None for weight in conv._packed.values()] == [False, True, True, True]
        for image in images:
            conv(image)
        kept = list(conv._packed.values())
        for image, weight in zip(images, kept, strict=True):
            assert torch.equal(packed._content(weight), packed._content(conv._pack(image.shape, (1, 1))))
        arrangements = {packed._content(weight).numpy().tobytes() for weight in kept}
        assert len({id(weight) for weight in kept}) == len(arrangements)
        monkeypatch.setattr(packed, "MOST_KERNELS", 2)
        for image in images:
            assert len(conv._packed) <= 4 and conv(image[..., :-1]).isfinite().all()
        assert len(conv._packed) <= 2
    finally:
        torch.set_num_threads(threads)


def test_only_bfloat16_is_packed_and_nothing_where_the_build_cannot(monkeypatch):
    tree = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect").bfloat16())
    packed.pack_convolutions(tree)
    assert [type(child) for child in tree] == [nn.Conv2d, nn.Conv2d]
    monkeypatch.setattr(packed, "available", lambda: False)
    tree = nn.Sequential(nn.Conv2d(3, 4, 3)).bfloat16()
    packed.pack_convolutions(tree)
    assert type(tree[0]) is nn.Conv2d


def test_asking_draws_no_random_numbers():
    packed.available.cache_clear()
    before = torch.get_rng_state()
    assert packed.available()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_build_without_the_functions_is_told(monkeypatch):
    packed.available.cache_clear()

    def refuses(self, x):
        raise AttributeError("no such function")

    monkeypatch.setattr(packed.PackedConv2d, "forward", refuses)
    assert not packed.available()
    packed.available.cache_clear()


@pytest.mark.parametrize(("kernel", "stride", "depthwise"), [(1, 1, False), (3, 2, True), (5, 1, True), (3, 2, False)])
def test_scaled_convolutions_pack_themselves(kernel, stride, depthwise):
    torch.manual_seed(0)
    conv = ScaledConv(16, 16, kernel, stride, depthwise=depthwise)
    conv.bias.data.normal_()
    conv.fold()
    tree = nn.Sequential(conv).to(torch.bfloat16).requires_grad_(False)
    images = [torch.randn(1, 16, *size).bfloat16() * 9 for size in ((20, 31), (8, 8))]
    expected = [[conv(image, clamp=clamp) for clamp in (False, True)] for image in images]
    assert expected[0][0].min() < 0 and expected[0][0].max() > 6
    packed.pack_convolutions(tree)
    assert "_packed" in dict(conv.named_children())
    for image, (plain, clamped) in [*zip(images, expected, strict=True)] * 2:
        torch.testing.assert_close(conv(image), plain, rtol=0.01, atol=0.01)
        torch.testing.assert_close(conv(image, clamp=True), clamped, rtol=0.01, atol=0.01)
