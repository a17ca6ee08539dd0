"""FuseFormer, DSTT and STTN against their published forms: the rewrites change how, not what."""

import pytest
import torch

from benchmarks import plain_transformers as plain
from ciri.inpainting.dstt import DSTT
from ciri.inpainting.fuseformer import FuseFormer
from ciri.inpainting.sttn import STTN
from tests.parity.seeded_weights import seeded_state_dict

LOCAL = 1


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def seeded(network):
    network.load_state_dict(seeded_state_dict(network.state_dict(), 3, 0.8))
    return network.eval()


def window(length, height, width):
    frames = torch.rand(length, 3, height, width, generator=torch.Generator().manual_seed(5)) * 2 - 1
    frames[:, :, height // 4 : height // 2, width // 4 : width // 2] = 0
    return frames


def check(network, frames, expected):
    features = network.encode(frames)["out"][None]
    found = network.decode_window(features, LOCAL)[0]
    assert expected.std() > 0.1, "an output that hardly varies shows no difference"
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.std()))


def test_fuseformer():
    network, frames = seeded(FuseFormer()), window(LOCAL + 1, 240, 432)
    check(network, frames, plain.fuseformer(network, frames)[:LOCAL])


def test_dstt():
    network, frames = seeded(DSTT()), window(LOCAL + 2, 48, 72)
    check(network, frames, plain.dstt(network, frames)[:LOCAL])


def test_sttn():
    network, frames = seeded(STTN()), window(LOCAL + 2, 48, 96)
    check(network, frames, plain.sttn(network, network.encoder(frames), LOCAL))
