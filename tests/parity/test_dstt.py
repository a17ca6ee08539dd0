"""DSTT reproduces the published program on seeded weights: taps, blocks, output, inactivation."""

import pytest
import torch

from ciri.inpainting.discriminator import Discriminator
from ciri.inpainting.dstt import DSTT
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

NETWORKS = find("dstt", model="dstt", tensors=["frames_u8", "out"])
INACTIVATIONS = find("dstt", model="dstt", tensors=["iac_final_out", "iac_multi_out"])
BLOCKS = find("dstt", model="dstt", tensors=["attention_temporal"])
DISCRIMINATORS = find("dstt", model="dstt.discriminator")


@pytest.mark.parametrize("fixture", NETWORKS, ids=str)
def test_network(fixture):
    network = seeded(DSTT(), fixture)
    frames, masks = clip_input(fixture)
    taps = Taps()
    activations = [*list(network.encoder)[1::2], *list(network.hier_enc.layers)[1::2]]
    for number, layer in enumerate(activations, 1):
        taps.watch(f"enc_tap{number:02d}", layer)
    for name, module in {
        "tokens_patch2vec": network.patch2vec,
        "block0": network.transformer[0],
        "block1": network.transformer[1],
        "block7": network.transformer[7],
        "vec2patch": network.vec2patch,
        "pre_tanh": network.decoder,
    }.items():
        taps.watch(name, module)
    with torch.no_grad():
        features = network.encode(frames * (1 - masks))["out"]
        out = network.decode_window(features[None], len(frames))[0]
    found = {"out": out, "out_crop": out}
    for name, got in taps.seen().items():
        found[name] = got.reshape(len(frames), -1, 512) if name.startswith("block") else got
    assert_stored_close(fixture, found)


@pytest.mark.parametrize("fixture", INACTIVATIONS, ids=str)
def test_inactivation(fixture):
    network = seeded(DSTT(), fixture)
    assert_close(fixture, "iac_final_out", gated_output(network, fixture, ("out",)))
    assert_close(fixture, "iac_multi_out", gated_output(network, fixture, ("half", "x0", "out")))


@pytest.mark.parametrize("fixture", NETWORKS[:1], ids=str)
def test_references_are_not_decoded_and_change_nothing_else(fixture):
    network = seeded(DSTT(), fixture)
    frames, masks = clip_input(fixture)
    with torch.no_grad():
        features = network.encode(frames * (1 - masks))["out"][None]
        every, first = network.decode_window(features, len(frames)), network.decode_window(features, 1)
    assert first.shape[1] == 1 and torch.allclose(every[:, :1], first, atol=1e-5)


@pytest.mark.parametrize("fixture", BLOCKS, ids=str)
def test_blocks(fixture):
    network = seeded(DSTT(), fixture)
    seed, frames = int(fixture.meta["seed"]), int(fixture.meta["T"])
    tokens = noise(seed, frames, 720, 512).view(1, frames, 20, 36, 512)
    features = noise(seed + 1, frames, 128, 60, 108)
    with torch.no_grad():
        for index, kind in enumerate(("temporal", "spatial")):
            block = network.transformer[index]
            attended = block.attend(block.norm1(tokens), frames)
            assert_close(fixture, f"attention_{kind}", attended.reshape(frames, 720, 512))
            assert_close(fixture, f"block{index}_{kind}", block(tokens).reshape(frames, 720, 512))
        assert_close(fixture, "patch2vec", network.patch2vec(features))
        assert_close(fixture, "vec2patch", network.vec2patch(tokens[0], (60, 108)))


@pytest.mark.parametrize("fixture", DISCRIMINATORS, ids=str)
def test_discriminator(fixture):
    check_discriminator(Discriminator(32), fixture)
