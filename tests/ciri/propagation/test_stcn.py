"""STCN's weight files, good and bad, and its faster twin. That its numbers are the published ones: tests/parity."""

import pickle

import pytest
import torch

from benchmarks.propagation import synthetic_clip
from ciri.errors import CheckpointError
from ciri.precision import choose_dtype, cpu_speedup_of_bfloat16, fingerprint, inference_copy
from ciri.propagation import registry
from ciri.propagation.engine import MemoryPropagator
from ciri.propagation.stcn import STCN, build_stcn, load_stcn
from tests.parity.seeded_weights import seeded_state_dict


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    network = STCN()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def state():
    """A state dict of the right keys and shapes in a small file: all tensors are views of one."""
    expected = STCN().state_dict()
    pool = torch.full((max(value.numel() for value in expected.values()),), 0.01, dtype=torch.float16)
    return {
        key: pool[: value.numel()].view(value.shape) if value.is_floating_point() else value
        for key, value in expected.items()
    }


@pytest.mark.parametrize("wrap", ["bare", "snapshot", "parallel"])
def test_published_files_load_bare_and_wrapped(state, tmp_path, wrap):
    saved = {
        "bare": lambda: state,
        "snapshot": lambda: {"it": 5, "network": state, "optimizer": {"state": {}}, "scheduler": {"step": 1}},
        "parallel": lambda: {f"module.{key}": value for key, value in state.items()},
    }[wrap]()
    torch.save(saved, tmp_path / "stcn.pth")
    loaded = load_stcn(tmp_path / "stcn.pth")
    assert loaded.decoder.pred.weight.unique().item() == pytest.approx(0.01, rel=1e-3)
    assert not loaded.training


def test_a_file_without_the_other_objects_input_gets_zeros(state, tmp_path):
    state = {**state, "value_encoder.conv1.weight": torch.ones(64, 4, 7, 7)}
    torch.save(state, tmp_path / "stage0.pth")
    weight = load_stcn(tmp_path / "stage0.pth").value_encoder.conv1.weight
    assert (weight[:, :4] == 1).all() and (weight[:, 4] == 0).all()


def _without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: _without(s, "decoder.pred.bias"), "decoder.pred.bias"),
        (lambda s: {**s, "decoder.extra": torch.ones(1)}, "decoder.extra"),
        (lambda s: {**s, "value_encoder.conv1.weight": torch.ones(64, 3, 7, 7)}, "ImageNet"),
        (lambda s: {**s, "value_encoder.conv1.weight": torch.ones(64, 6, 7, 7)}, "(64, 6, 7, 7)"),
        (lambda s: {"encoder.layers.0.weight": torch.ones(3, 3)}, "STCN"),
        (lambda s: {**s, "key_comp.bias": torch.full((512,), float("nan"))}, "not numbers"),
    ],
    ids=["missing", "extra", "three channels", "six channels", "another model", "nan"],
)
def test_wrong_files_are_refused_in_words(state, tmp_path, change, says):
    torch.save(change(state), tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match="wrong.pth") as refused:
        build_stcn(tmp_path / "wrong.pth")
    assert says in str(refused.value)


class _Hostile:
    def __reduce__(self):
        return (open, ("hostile-was-run", "w"))


def test_broken_and_hostile_files_are_refused(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state, "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(content[: len(content) // 2])
    torch.save({**state, "x": _Hostile()}, "hostile.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(_Hostile(), protocol=2))
    (tmp_path / "empty.pth").touch()
    for name in ("truncated", "hostile", "pickle", "empty", "missing"):
        with pytest.raises(CheckpointError, match=f"{name}.pth"):
            load_stcn(f"{name}.pth")
    assert not (tmp_path / "hostile-was-run").exists()


def test_it_is_built_by_name(state, tmp_path):
    torch.save(state, tmp_path / "stcn.pth")
    propagator = registry.build("stcn", weights=tmp_path / "stcn.pth", memory_budget=7)
    assert propagator.name == "stcn" and propagator.policy.budget == 7
    assert not propagator.policy.include_last


# -------------------------------------------------------------------------------------------- the faster twin


@torch.no_grad()
def _outputs(network, frame, mask):
    features = network.encode_key(frame)
    value = network.encode_value(frame, features, mask, 0 * mask)
    return features.key, value.float(), network.decode(value, features)


def test_the_twin_computes_the_same_and_leaves_the_network_alone(network):
    before = fingerprint(network)
    twin = inference_copy(network, torch.device("cpu"), torch.float32)
    frame, mask = torch.rand(1, 3, 48, 64), (torch.rand(1, 1, 48, 64) > 0.5).float()
    for got, expected in zip(_outputs(twin, frame, mask), _outputs(network, frame, mask), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert fingerprint(network) == before
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in twin.modules())


def test_the_half_precision_twin_gives_float32_keys_and_logits(network):
    twin = inference_copy(network, torch.device("cpu"), torch.bfloat16)
    frame, mask = torch.rand(1, 3, 48, 64), torch.ones(1, 1, 48, 64)
    key, _, logits = _outputs(twin, frame, mask)
    expected_key, _, expected = _outputs(network, frame, mask)
    assert key.dtype == logits.dtype == torch.float32
    assert (key - expected_key).norm() < 0.03 * expected_key.norm()
    assert (logits - expected).norm() < 0.03 * expected.norm()


def test_half_precision_moves_the_masks_of_a_clip_by_less_than_half_a_percent():
    """On weights that react to the mask as the parity fixtures' do; keys rounded to 8 bits would move them by more."""
    network = STCN()
    own = network.state_dict()
    state = seeded_state_dict(own, 101)
    for prefix, gain in (("key_proj.", 2.0), ("value_encoder.conv1.", 8.0)):
        state |= seeded_state_dict({key: own[key] for key in own if key.startswith(prefix)}, 101, gain)
    network.load_state_dict(state)
    frames, first = synthetic_clip(5, 96, 160)
    exact, rounded = (
        MemoryPropagator(network, precision=precision, store_above=None).propagate(frames, first, [0]).probs[1:]
        for precision in ("fp32", "bf16")
    )
    assert 0.05 < (exact > 0.5).float().mean() < 0.95
    assert 0 < (exact - rounded).abs().mean() < 2e-3
    assert ((exact > 0.5) != (rounded > 0.5)).flatten(1).float().mean(1).max() < 5e-3


def test_a_crop_with_the_margin_decodes_as_the_whole(network):
    frame = torch.rand(1, 3, 240, 272)
    with torch.no_grad():
        features = network.encode_key(frame)
        readout = torch.randn(1, 512, 15, 17)
        whole = network.decode(readout, features)
        margin = network.decode_margin
        top, left = 6 - margin, 7 - margin
        part = network.decode(
            readout[..., top : 8 + margin, left : 9 + margin], features.crop(top, left, 8 + margin, 9 + margin)
        )
    inside = 16 * margin
    got = part[..., inside : inside + 32, inside : inside + 32]
    expected = whole[..., 96:128, 112:144]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["one frame", "few pixels", "half the frame", "new shot"])
def test_odd_clips(network, case):
    """What untrained weights see means nothing, but every clip gets masks, and what was painted comes back."""
    length = 1 if case == "one frame" else 4
    frames = torch.rand(1, 3, 48, 70, generator=torch.Generator().manual_seed(2)).repeat(length, 1, 1, 1)
    mask = torch.zeros(1, 1, 48, 70)
    mask[..., 20:22, 30:31] = 1
    if case == "half the frame":
        mask[..., :40] = 1
    if case == "new shot":
        frames[2:] = 0.9
    track = MemoryPropagator(network, precision="fp32").propagate(frames, mask, [0])
    assert track.probs.shape == (length, 1, 48, 70)
    assert track.probs.min() >= 0 and track.probs.max() <= 1
    assert torch.equal(track.probs[:1], mask) and track.confidence[0] == 1
    assert any("New shots seem to begin at frames 2:" in note for note in track.notes) == (case == "new shot")


def test_batch_norm_keeps_its_statistics_in_training(network):
    network.train()
    before = network.key_encoder.bn1.running_mean.clone()
    network.encode_key(torch.rand(1, 3, 32, 32))
    assert torch.equal(network.key_encoder.bn1.running_mean, before)
    assert network.decoder.training
    network.eval()


def test_a_fingerprint_sees_the_smallest_change(network):
    before = fingerprint(network)
    weight = network.decoder.pred.weight
    with torch.no_grad():
        old = weight.flatten()[5].clone()
        weight.view(-1)[5] = torch.nextafter(old, torch.tensor(10.0))
        assert fingerprint(network) != before
        weight.view(-1)[5] = old
    assert fingerprint(network) == before


def test_auto_precision_follows_the_measurement(monkeypatch):
    from ciri import precision

    cpu = torch.device("cpu")
    assert cpu_speedup_of_bfloat16(torch.get_num_threads()) > 0
    for speedup, dtype in ((4.0, torch.bfloat16), (0.5, torch.float32)):
        monkeypatch.setattr(precision, "cpu_speedup_of_bfloat16", lambda _, s=speedup: s)
        assert choose_dtype("auto", cpu) == dtype
    assert choose_dtype("fp32", cpu) == torch.float32


def test_without_a_weight_file_the_option_is_named():
    with pytest.raises(CheckpointError, match=r"stcn\.pth.*--propagator-weights"):
        registry.build("stcn", device="cpu")
