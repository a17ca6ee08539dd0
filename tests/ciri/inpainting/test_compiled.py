"""torch.compile of a network's parts: the same results, progress and names of weights; a missing compiler is told."""

import pytest
import torch

from ciri.errors import CiriError
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.compiled import check_compiler, compile_parts
from ciri.inpainting.driver import WindowBackbone
from ciri.inpainting.network import WindowNetwork
from ciri.inpainting.windows import Schedule


class Small(WindowNetwork):
    """Two convolutions, one of them in a list."""

    name = "small"
    facts = BackboneFacts(trained_for="hard mask")

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = torch.nn.ModuleList([torch.nn.Conv2d(4, 3, 3, padding=1)])

    def stages(self):
        return {"out": self.first}

    def decode_window(self, features, local, flows=None):
        return torch.stack([self.blocks[0](window[:local].float()).tanh() for window in features])


def test_a_compiled_network_gives_the_same_and_can_be_stopped():
    try:
        check_compiler(torch.device("cpu"))
    except CiriError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    network = Small().eval().requires_grad_(False)
    names = list(network.state_dict())
    frames, masks = torch.rand(8, 3, 24, 32), torch.zeros(8, 1, 24, 32)
    masks[:, :, 4:12, 8:20] = 1
    backbone = WindowBackbone(network, schedule=Schedule(2, 4))
    expected = backbone.inpaint(frames, masks)
    compile_parts(network, torch.device("cpu"))
    ticks = []
    result = backbone.inpaint(frames, masks, on_step=lambda done, total: ticks.append(done))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert list(network.state_dict()) == names and len(ticks) > 2 * max(ticks)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backbone.inpaint(frames, masks, on_step=stop)


def test_a_missing_compiler_is_told_at_once(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no such compiler: g++")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(CiriError, match=r"no such compiler: g\+\+. It needs a C\+\+ compiler"):
        compile_parts(Small(), torch.device("cpu"))
