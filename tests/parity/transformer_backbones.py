"""What the parity tests of FuseFormer, DSTT and STTN share: inputs, taps, and the comparison with stored views.

A fixture stores a strided view of each tensor (metadata ``slices``) and, for whole networks, the full tensor's
statistics (``stats``); the stated tolerance is 2e-4 of the tensor's standard deviation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ciri.inpainting.network import WindowNetwork
from tests.parity.fixtures import Fixture
from tests.parity.seeded_weights import seeded_state_dict

TOLERANCE = 2e-4


def seeded(network: nn.Module, fixture: Fixture) -> nn.Module:
    """Fill a network with the fixture's weights."""
    network.load_state_dict(
        seeded_state_dict(network.state_dict(), int(fixture.meta["seed"]), float(fixture.meta["gain"]))
    )
    return network.eval()


def view(tensor: Tensor, text: str) -> Tensor:
    """Cut a tensor as a slice expression such as ``[:, ::8, 96:144]`` or ``[..., ::16]`` says."""
    parts = [part.strip() for part in text.strip("[]").split(",")]
    numbers = [[int(n) if n.strip() else None for n in part.split(":")] for part in parts if part != "..."]
    cuts = [slice(*given) for given in numbers]
    return tensor[(..., *cuts) if parts[0] == "..." else tuple(cuts)]


def assert_close(fixture: Fixture, name: str, got: Tensor) -> None:
    """Compare a full tensor with the fixture's stored view of it."""
    expected = fixture[name]
    stats = fixture.meta.get("stats", {}).get(name, {})
    std = stats.get("std", float(expected.std()))  # crops and blocks have no statistics of the full tensor
    assert list(got.shape) == stats.get("shape", list(got.shape)), f"{name}: {list(got.shape)}, not {stats['shape']}"
    difference = (view(got.detach(), fixture.meta["slices"][name]) - expected).abs().max().item()
    assert difference <= TOLERANCE * std, f"{name} differs by {difference:.2e} with a standard deviation of {std:.2e}"


def assert_stored_close(fixture: Fixture, found: Mapping[str, Tensor]) -> None:
    """Compare those of some tensors that the fixture stores; at least one."""
    names = [name for name in found if name in fixture]
    assert names, f"{fixture} stores none of {', '.join(found)}"
    for name in names:
        assert_close(fixture, name, found[name])


def clip_input(fixture: Fixture) -> tuple[Tensor, Tensor]:
    """Return the frames (T, 3, H, W) in [-1, 1], not masked, and the masks (T, 1, H, W) of the fixture's boxes."""
    frames = fixture["frames_u8"].permute(0, 3, 1, 2).float() / 255 * 2 - 1
    masks = torch.zeros(len(frames), 1, *frames.shape[2:])
    for mask, (y0, y1, x0, x1) in zip(masks, fixture["boxes"].tolist(), strict=True):
        mask[:, y0:y1, x0:x1] = 1
    return frames, masks


def noise(seed: int, *shape: int) -> Tensor:
    """White noise as the fixtures' input rules make it."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


class Taps:
    """Records what submodules put out, by hooks: the published intermediate tensors."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Tensor]] = {}

    def watch(self, name: str, module: nn.Module) -> None:
        """Keep a module's output. A copy: activations work in place on some of them."""
        parts = self._seen[name] = []
        module.register_forward_hook(lambda _m, _i, output: parts.append(output.clone()))

    def seen(self) -> dict[str, Tensor]:
        """What came out; a long clip passes some modules a few frames at a time."""
        return {name: torch.cat(parts) for name, parts in self._seen.items()}


def gated_output(network: WindowNetwork, fixture: Fixture, points: tuple[str, ...]) -> Tensor:
    """Run the inactivation variant of a fixture: unmasked frames, maps as stored, all frames local."""
    frames, _ = clip_input(fixture)
    maps = {p: fixture[f"iac_map_{'half' if p == 'half' else 'quarter'}_u8"] / 255 for p in ("half", "x0", "out")}
    network.gate_points = points
    with torch.no_grad():
        gated = network.gate(network.encode(frames), maps)
        return network.decode_window(gated[None], len(frames))[0]


def check_discriminator(discriminator: nn.Module, fixture: Fixture) -> None:
    """One forward pass in training mode: scores and the vectors of the power iteration after it."""
    seeded(discriminator, fixture).train()
    # "RandomState(seed).standard_normal((4,3,64,96)) float32 = one clip of 4 frames"
    shape = re.findall(r"\d+", fixture.meta["input_rule"].split("standard_normal(")[1].split(")")[0])
    out = discriminator(noise(int(fixture.meta["seed"]), *map(int, shape))[None])
    found = {"out": out} | {f"{name}_after": value for name, value in discriminator.state_dict().items()}
    for name in found.keys() & fixture.names:
        expected = fixture[name]
        assert (found[name].detach() - expected).abs().max() <= TOLERANCE * expected.std(), name
