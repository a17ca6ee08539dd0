"""E2FGVI as the driver uses it, on seeded weights and the smallest size, against its published form."""

import pytest
import torch

from benchmarks import plain_e2fgvi as plain
from ciri.checkpoints import write_safetensors
from ciri.errors import CheckpointError, ClipError
from ciri.frames import as_pair
from ciri.inpainting.e2fgvi import E2FGVI, E2FGVIHQ
from ciri.inpainting.load import load_backbone
from tests.parity.seeded_weights import seeded_state_dict

LOCAL = 2


def fill(network):
    """Weights with which every part matters and nothing saturates."""
    own = network.state_dict()
    drawn = seeded_state_dict(own, seed=1)
    drawn["sc.embedding.weight"] *= 0.05
    for name in ("mean", "std"):
        drawn[f"update_spynet.{name}"] = own[f"update_spynet.{name}"]
    network.load_state_dict(drawn)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network():
    return fill(E2FGVIHQ())


@pytest.fixture
def clip():
    """(1, T, 3, 60, 108): smooth, moving, with a grey hole."""
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 10, 18) * 2 - 1
    large = torch.nn.functional.interpolate(coarse, (80, 144), mode="bicubic")[0].clamp(-1, 1)
    frames = torch.stack([large[:, 3 * t : 3 * t + 60, 5 * t : 5 * t + 108] for t in range(4)])
    frames[:, :, 20:40, 30:60] = 0
    return frames[None]


def parts(network, clip):
    """Features and flows as the driver caches them."""
    features = network.encode(clip.flatten(0, 1))
    return features, network.flows(clip[0, : LOCAL - 1], clip[0, 1:LOCAL])[None]


def test_the_whole_is_the_published_form(network, clip):
    filled, _ = network(clip, LOCAL)
    torch.testing.assert_close(filled, plain.forward(network, clip, LOCAL), rtol=0, atol=2e-5)


def test_local_frames_alone_and_any_chunk_give_the_same(network, clip, monkeypatch):
    expected = network(clip, LOCAL)[0][:, :LOCAL]
    monkeypatch.setattr("ciri.inpainting.network.CHUNK_PIXELS", 60 * 108)
    for chunk in (1, 3):
        monkeypatch.setattr(network, "chunk", chunk)
        features, flows = parts(network, clip)
        found = network.decode_window(features["out"][None], LOCAL, flows)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_windows_in_one_batch_are_windows_one_by_one(network, clip):
    features, flows = parts(network, clip)
    other = features["out"].flip(3)
    both = network.decode_window(torch.stack([features["out"], other]), LOCAL, torch.cat([flows, flows.flip(4)]))
    torch.testing.assert_close(
        both[0], network.decode_window(features["out"][None], LOCAL, flows)[0], rtol=0, atol=2e-5
    )
    single = network.decode_window(other[None], LOCAL, flows.flip(4))[0]
    torch.testing.assert_close(both[1], single, rtol=0, atol=2e-5)


def test_one_frame_has_no_flow(network, clip):
    alone = network.encode(clip[0, :1])["out"][None]
    filled, flows = network(clip[:, :1], 1)
    assert flows.shape == (1, 0, 2, 2, 15, 27)
    torch.testing.assert_close(network.decode_window(alone, 1), filled, rtol=0, atol=2e-5)


def test_both_directions_of_a_pair(network, clip):
    a, b = clip[0, :1], clip[0, 1:2]
    assert torch.allclose(network.flows(a, b)[:, 0], network.flows(b, a)[:, 1], atol=1e-5)


def test_a_gradient_reaches_the_map_of_every_frame(network, clip):
    features, flows = parts(network, clip)
    maps = torch.full((4, 1, 60, 108), 0.3, requires_grad=True)
    output = network.decode_window(network.gate(features, maps)[None], LOCAL, flows)
    output.square().mean().backward()
    # references too: forgetting to gate them would let the transformer copy the target back
    assert (maps.grad.flatten(1).abs().amax(1) > 0).all()
    step = 1e-2 * maps.grad / maps.grad.abs().max()
    with torch.no_grad():
        moved = network.decode_window(network.gate(features, maps + step)[None], LOCAL, flows)
    predicted = (maps.grad * step).sum().item()
    assert (moved.square().mean() - output.square().mean()).item() == pytest.approx(predicted, rel=0.05)


def test_reduced_precision_stays_close(network, clip, monkeypatch):
    exact, exact_flows = network(clip, LOCAL)
    monkeypatch.setattr(network, "precision", torch.bfloat16)
    filled, flows = network(clip, LOCAL)
    assert filled.dtype == flows.dtype == torch.float32
    # on the scale of pixels in [0, 1]
    psnr = -10 * torch.log10(((filled - exact) / 2).square().mean())
    assert psnr > 50 and (flows - exact_flows).square().mean().sqrt() < 0.05


def test_files_of_both_variants_load_and_others_do_not(tmp_path, network):
    state = network.state_dict()
    write_safetensors(tmp_path / "hq.safetensors", state)
    loaded = load_backbone(tmp_path / "hq.safetensors").network
    assert isinstance(loaded, E2FGVIHQ) and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in state.items())
    lacking = {key: value for key, value in state.items() if not key.startswith("transformer.7.mlp")}
    write_safetensors(tmp_path / "lacking.safetensors", lacking)
    with pytest.raises(CheckpointError, match="E2FGVI-HQ: 4 missing.*transformer.7.mlp"):
        load_backbone(tmp_path / "lacking.safetensors")
    other = state | {"transformer.3.attn.valid_ind_rolled": torch.arange(120)}
    write_safetensors(tmp_path / "other.safetensors", other)
    with pytest.raises(CheckpointError, match="windows of another shape"):
        load_backbone(tmp_path / "other.safetensors")


def test_the_base_variant_is_bound_to_its_size():
    facts = E2FGVI.facts
    assert facts.fixed_size == (240, 432) and "non-commercial" in facts.licence
    assert E2FGVIHQ.facts.fixed_size is None and as_pair(E2FGVIHQ.facts.needs_divisible_by) == (60, 108)


def test_sizes_that_do_not_fit_are_refused_in_words(network):
    with pytest.raises(ClipError, match="multiples of 108 and heights that are multiples of 60, and got 112x64"):
        network.encode(torch.zeros(1, 3, 64, 112))
    with pytest.raises(ClipError, match="e2fgvi takes 432x240 only, and got 108x60"):
        E2FGVI.check_size(E2FGVI.__new__(E2FGVI), 60, 108)
    with pytest.raises(ValueError, match="2 local frames"):
        network.decode_window(torch.zeros(1, 3, 128, 15, 27), 2)
