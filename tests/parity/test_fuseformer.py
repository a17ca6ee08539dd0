"""FuseFormer reproduces the published program on seeded weights: taps, blocks, output, inactivation."""

import pytest
import torch

from ciri.inpainting.discriminator import Discriminator
from ciri.inpainting.fuseformer import FuseFormer
from tests.parity.fixtures import find
from tests.parity.transformer_backbones import (
    Taps,
    assert_close,
    assert_stored_close,
    check_discriminator,
    clip_input,
    gated_output,
    noise,
    seeded,
)

NETWORKS = find("fuseformer", model="fuseformer", tensors=["frames_u8", "out"])
INACTIVATIONS = find("fuseformer", model="fuseformer", tensors=["iac_final_out", "iac_multi_out"])
BLOCKS = find("fuseformer", model="fuseformer", tensors=["attention", "fusion_ffn"])
DISCRIMINATORS = find("fuseformer", model="fuseformer.discriminator")


@pytest.mark.parametrize("fixture", NETWORKS, ids=str)
def test_network(fixture):
    network = seeded(FuseFormer(), fixture)
    frames, masks = clip_input(fixture)
    taps = Taps()
    for number, layer in enumerate(list(network.encoder.layers)[1::2], 1):
        taps.watch(f"enc_tap{number:02d}", layer)
    for name, module in {
        "tokens_split": network.ss,
        "tokens_pos": network.add_pos_emb,
        "block0": network.transformer[0],
        "block7": network.transformer[7],
        "soft_comp": network.sc,
        "pre_tanh": network.decoder,
    }.items():
        taps.watch(name, module)
    with torch.no_grad():
        features = network.encode(frames * (1 - masks))["out"]
        out = network.decode_window(features[None], len(frames))[0]
    found = {"out": out, "out_crop": out}
    for name, got in taps.seen().items():
        found[name] = got.reshape(1, -1, 512) if name.startswith(("tokens", "block")) else got
    assert_stored_close(fixture, found)


@pytest.mark.parametrize("fixture", INACTIVATIONS, ids=str)
def test_inactivation(fixture):
    network = seeded(FuseFormer(), fixture)
    assert_close(fixture, "iac_final_out", gated_output(network, fixture, ("out",)))
    assert_close(fixture, "iac_multi_out", gated_output(network, fixture, ("half", "x0", "out")))


@pytest.mark.parametrize("fixture", NETWORKS[:1], ids=str)
def test_references_are_not_decoded_and_change_nothing_else(fixture):
    network = seeded(FuseFormer(), fixture)
    frames, masks = clip_input(fixture)
    with torch.no_grad():
        features = network.encode(frames * (1 - masks))["out"][None]
        every, first = network.decode_window(features, len(frames)), network.decode_window(features, 1)
    assert first.shape[1] == 1 and torch.allclose(every[:, :1], first, atol=1e-5)


@pytest.mark.parametrize("fixture", BLOCKS, ids=str)
def test_blocks(fixture):
    network = seeded(FuseFormer(), fixture)
    block, seed, frames = network.transformer[0], int(fixture.meta["seed"]), int(fixture.meta["T"])
    tokens, features = noise(seed, 1, frames * 720, 512), noise(seed + 1, frames, 128, 60, 108)
    maps = tokens.view(frames, 20, 36, 512)
    with torch.no_grad():
        assert_close(fixture, "attention", block.attention(block.norm1(tokens)))
        assert_close(fixture, "fusion_ffn", block.ffn(block.norm2(maps), (60, 108)).reshape(1, -1, 512))
        assert_close(fixture, "block", block(maps[None], (60, 108)).reshape(1, -1, 512))
        assert_close(fixture, "soft_split", network.ss(features).reshape(1, -1, 512))
        assert_close(fixture, "soft_comp", network.sc(maps, (60, 108)))


@pytest.mark.parametrize("fixture", DISCRIMINATORS, ids=str)
def test_discriminator(fixture):
    check_discriminator(Discriminator(32), fixture)
