"""STTN reproduces the published program on seeded weights: taps, blocks, output, inactivation, attention mask."""

import pytest
import torch

from ciri.inpainting.discriminator import Discriminator
from ciri.inpainting.sttn import STTN
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

NETWORKS = find("sttn", model="sttn", tensors=["frames_u8", "out"])
INACTIVATIONS = find("sttn", model="sttn", tensors=["iac_final_out", "iac_multi_out"])
MASKED = find("sttn", model="sttn", tensors=["out_attnmask_applied"])
BLOCKS = find("sttn", model="sttn", tensors=["attention", "attention_maskapplied_big"])
DISCRIMINATORS = find("sttn", model="sttn.discriminator")


@pytest.mark.parametrize("fixture", NETWORKS, ids=str)
def test_network(fixture):
    network = seeded(STTN(), fixture)
    frames, masks = clip_input(fixture)
    taps = Taps()
    for number, layer in enumerate(list(network.encoder)[1::2], 1):
        taps.watch(f"enc_tap{number:02d}", layer)
    for name, module in {
        "block0": network.transformer[0],
        "block7": network.transformer[7],
        "pre_tanh": network.decoder,
    }.items():
        taps.watch(name, module)
    with torch.no_grad():
        features = network.encode(frames * (1 - masks))["out"]
        out = network.decode_window(features[None], len(frames))[0]
    found = {"out": out, "out_crop": out}
    for name, got in taps.seen().items():
        found[name] = got[0] if name.startswith("block") else got
    assert_stored_close(fixture, found)


@pytest.mark.parametrize("fixture", MASKED, ids=str)
def test_attention_mask(fixture):
    network = seeded(STTN(), fixture)
    frames, masks = clip_input(fixture)
    network.attention_mask = True
    with torch.no_grad():
        features = network.encode(frames * (1 - masks))["out"]
        out = network.decode_window(features[None], len(frames), masks=masks[None])[0]
    assert_close(fixture, "out_attnmask_applied", out)


@pytest.mark.parametrize("fixture", INACTIVATIONS, ids=str)
def test_inactivation(fixture):
    network = seeded(STTN(), fixture)
    assert_close(fixture, "iac_final_out", gated_output(network, fixture, ("out",)))
    assert_close(fixture, "iac_multi_out", gated_output(network, fixture, ("half", "out")))


@pytest.mark.parametrize("fixture", NETWORKS[:1], ids=str)
def test_references_are_not_decoded_and_change_nothing_else(fixture):
    network = seeded(STTN(), fixture)
    frames, masks = clip_input(fixture)
    with torch.no_grad():
        features = network.encode(frames * (1 - masks))["out"][None]
        every, first = network.decode_window(features, len(frames)), network.decode_window(features, 1)
    assert first.shape[1] == 1 and torch.allclose(every[:, :1], first, atol=1e-5)


@pytest.mark.parametrize("fixture", BLOCKS, ids=str)
def test_blocks(fixture):
    network = seeded(STTN(), fixture)
    block, seed, frames = network.transformer[0], int(fixture.meta["seed"]), int(fixture.meta["T"])
    features = noise(seed, frames, 256, 60, 108)[None]
    holes = torch.zeros(1, frames, 1, 240, 432)
    for mask, (y0, y1, x0, x1) in zip(holes[0], fixture["big_boxes"].tolist(), strict=True):
        mask[:, y0:y1, x0:x1] = 1
    with torch.no_grad():
        assert_close(fixture, "attention", block.attention(features)[0])
        assert_close(fixture, "block", block(features)[0])
        masked = block.attention(features, holes=holes[..., ::4, ::4])
        assert_close(fixture, "attention_maskapplied_big", masked[0])


@pytest.mark.parametrize("fixture", DISCRIMINATORS, ids=str)
def test_discriminator(fixture):
    check_discriminator(Discriminator(64), fixture)
