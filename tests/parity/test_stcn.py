"""STCN against outputs of the published program, on weights that anybody can make again."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F

from benchmarks import plain_propagation
from ciri.propagation.clip import Geometry
from ciri.propagation.engine import Annotation, MemoryPropagator
from ciri.propagation.memory import attend, read, to_map, to_rows
from ciri.propagation.stcn import MEAN, STCN, STD, load_stcn
from ciri.propagation.tracking import aggregate
from tests.parity.fixtures import Fixture, documents, find
from tests.parity.seeded_weights import seeded_state_dict

FEATURES, PROBABILITIES, HALF = 1e-3, 1e-4, 5e-4
LABEL_SHARE = 5e-4
GRADIENT_NORM = 1e-3
#: Of the root mean square: single precision turns units about 0 on or off, which moves single entries a little.
GRADIENT_ENTRY = 0.02

NETWORKS = find("stcn", tensors=["k16", "value_one", "logit"])
PROPAGATIONS = find("stcn", has=["variant"])
STABILITY = find("stcn", has=["reference_float32_gives_nan"])
GRADIENTS = [
    (fixture, setting)
    for fixture in find("stcn", has=["keys", "definition"])
    for setting, numbers in sorted(fixture.meta.items())
    if isinstance(numbers, dict) and "loss_f64" in numbers
]
STAGE0 = find("stcn", tensors=["conv1_weight_4ch"])
KEYS = [d for d in documents("stcn") if "key_proj.key_proj.weight" in d]


@functools.lru_cache(maxsize=1)
def _network(seed: int, gain: float, overrides: tuple[tuple[str, float], ...]) -> STCN:
    network = STCN()
    state = seeded_state_dict(network.state_dict(), seed, gain)
    for prefix, other in overrides:
        part = {key: value for key, value in network.state_dict().items() if key.startswith(prefix)}
        state.update(seeded_state_dict(part, seed, other))
    network.load_state_dict(state)
    return network.requires_grad_(False)


def network_of(fixture: Fixture, top_k: int | None = 20) -> STCN:
    """The published architecture, filled with the fixture's numbers."""
    network = _network(fixture.meta["seed"], fixture.meta["gain"], tuple(fixture.meta["gain_overrides"].items()))
    network.top_k = top_k
    return network


def inputs_of(fixture: Fixture) -> tuple[torch.Tensor, torch.Tensor]:
    """The clip that a fixture is about: frames (T, 3, h, w) in [0, 1] and labels (T, h, w)."""
    clips = find("stcn", tensors=["frames", "labels"], seed=fixture.meta["seed"])
    # fixtures of several sets may lie side by side: the clip is the one in the fixture's own folder
    clips.sort(key=lambda clip: clip.path.parent != fixture.path.parent)
    if not clips:
        pytest.skip("the clip of this fixture is not here")
    return clips[0]["frames"].permute(0, 3, 1, 2).float() / 255, clips[0]["labels"]


def masks_of(labels: torch.Tensor, objects: int) -> torch.Tensor:
    """One plane per object, (k, 1, h, w)."""
    return torch.stack([(labels == o + 1).float() for o in range(objects)])[:, None]


def expect(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.to(expected.dtype), expected, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("keys", KEYS, ids=["stcn"] * len(KEYS))
def test_the_state_dict_is_the_published_one(keys):
    mine = {key: (list(value.shape), str(value.dtype)) for key, value in STCN().state_dict().items()}
    assert mine == {key: (entry["shape"], f"torch.{entry['dtype']}") for key, entry in keys.items()}


@pytest.mark.parametrize("fixture", find("stcn", has=["weight_sums"]), ids=str)
def test_weights_are_filled_as_the_fixture_says(fixture):
    state = network_of(fixture).state_dict()
    for key, total in fixture.meta["weight_sums"].items():
        assert state[key].double().sum().item() == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("fixture", NETWORKS, ids=str)
def test_key_encoder(fixture):
    network, (frames, _) = network_of(fixture), inputs_of(fixture)
    geometry = Geometry(*frames.shape[2:], 16, None)
    padded = geometry.frames_in(frames[:2])
    normalised = (padded - padded.new_tensor(MEAN).view(3, 1, 1)) / padded.new_tensor(STD).view(3, 1, 1)
    expect(normalised[:1], fixture["x"], 1e-6)
    stem = {}
    hook = network.key_encoder.res2.register_forward_pre_hook(lambda _, inputs: stem.update(out=inputs[0]))
    features = network.encode_key(padded)
    hook.remove()
    f16, f8, f4 = (m[:1] for m in features.maps)
    expect(stem["out"][:1, ::8], fixture["stem_s8"], FEATURES)
    expect(f4[:, ::16], fixture["f4_s16"], FEATURES)
    expect(f8[:, ::8], fixture["f8_s8"], FEATURES)
    expect(f16[:, ::2], fixture["f16_s2"], FEATURES)
    expect(features.key[:1], fixture["k16"], FEATURES)
    expect(features.key[1:], fixture["k16_frame1"], FEATURES)
    expect(network.key_comp(f16), fixture["f16_thin"], FEATURES)


@pytest.mark.parametrize("fixture", NETWORKS, ids=str)
def test_value_encoder_and_decoder(fixture):
    network, (frames, labels) = network_of(fixture), inputs_of(fixture)
    geometry = Geometry(*frames.shape[2:], 16, None)
    frame = geometry.frames_in(frames[:1])
    features = network.encode_key(frame)
    seen = {}
    fuser = network.value_encoder.fuser
    watched = {
        "vtrunk_one": (network.value_encoder.layer3, 2),
        "vblock1_one": (fuser.block1, 4),
        "vchannelgate_one": (fuser.attention.ChannelGate, 4),
        "vcbam_one": (fuser.attention, 4),
        "dec16_s8": (network.decoder.compress, 8),
        "dec8_s8": (network.decoder.up_16_8, 8),
        "dec4_s16": (network.decoder.up_8_4, 16),
        "logit4": (network.decoder.pred, 1),
    }
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name, (module, _) in watched.items()
    ]

    def value(masks):
        planes = aggregate(geometry.masks_in(masks))
        return network.encode_value(frame, features, planes, planes.sum(0, keepdim=True) - planes)

    one = value(masks_of(labels[0], 1))
    expect(network.decode(one, features), fixture["logit"], FEATURES)
    for hook in hooks:
        hook.remove()
    for name, (_, step) in watched.items():
        expect(seen[name][:, ::step], fixture[name], FEATURES)
    expect(one, fixture["value_one"], FEATURES)
    two = masks_of(labels[0], 2)
    expect(value(two)[:, ::2], fixture["value_two_s2"], FEATURES)
    soft = F.avg_pool2d(two, 9, stride=1, padding=4)
    expect(value(soft)[:, ::4], fixture["value_soft_s4"], FEATURES)
    expect(aggregate(geometry.masks_in(soft))[:, 0], fixture["agg_soft"][1:], 1e-6)


@pytest.mark.parametrize("fixture", NETWORKS, ids=str)
@pytest.mark.parametrize("objects", [1, 2])
def test_aggregation(fixture, objects):
    expected = fixture[f"agg_out_{objects}"]
    expect(aggregate(fixture[f"agg_in_{objects}"]), expected[1:], 1e-6)


@pytest.mark.parametrize("fixture", STAGE0, ids=str)
def test_a_four_channel_checkpoint_loads_and_works(fixture, tmp_path):
    network = network_of(fixture)
    weight = fixture["conv1_weight_4ch"]
    state = {**network.state_dict(), "value_encoder.conv1.weight": weight}
    torch.save(state, tmp_path / "stage0.pth")
    loaded = load_stcn(tmp_path / "stage0.pth")
    frames, labels = inputs_of(fixture)
    geometry = Geometry(*frames.shape[2:], 16, None)
    frame = geometry.frames_in(frames[:1])
    with torch.no_grad():
        features = loaded.encode_key(frame)
        for objects, name in ((1, "value_one_from_single_object_net"), (2, "value_two_after_zero_padding")):
            planes = aggregate(geometry.masks_in(masks_of(labels[0], objects)))
            value = loaded.encode_value(frame, features, planes, planes.sum(0, keepdim=True) - planes)
            expect(value, fixture[name], FEATURES)


# ------------------------------------------------------------------------------------------- whole propagations


def _published(network: STCN, every: int, last: bool = False) -> MemoryPropagator:
    return MemoryPropagator(
        network,
        precision="fp32",
        memory_every=every,
        include_last=last,
        memory_budget=10**6,
        short_side=None,
        crop_decoding=False,
        store_above=None,
        directions=("forward",),
        cache_bytes=0,
    )


def _top_k(fixture: Fixture) -> int | None:
    top_k = fixture.meta["top_k"]
    return top_k if isinstance(top_k, int) else None


def _annotations(fixture: Fixture, labels: torch.Tensor) -> list[Annotation]:
    objects = fixture.meta["objects"]
    # "object 1 given at frame 0 (labels[0]==1), object 2 given at frame N (labels of frame N ==2)"
    late = re.findall(r"object (\d+) given at frame (\d+)", fixture.meta.get("late", ""))
    given = {int(o) - 1: int(t) for o, t in late} or dict.fromkeys(range(objects), 0)
    return [Annotation(t, o, masks_of(labels[t], objects)[o]) for o, t in sorted(given.items())]


@pytest.mark.parametrize("fixture", PROPAGATIONS, ids=str)
def test_propagation(fixture):
    frames, labels = inputs_of(fixture)
    network = network_of(fixture, _top_k(fixture))
    engine = _published(network, fixture.meta["mem_every"], fixture.meta["include_last"])
    probs = engine.propagate_objects(frames, _annotations(fixture, labels)).probs
    k_first = probs.transpose(0, 1)
    expect(k_first[:, fixture.meta["prob_sel_frames"]], fixture["prob_sel"], PROBABILITIES)
    expect(k_first[:, fixture.meta["prob_all_f16_frames"]].half(), fixture["prob_all_f16"], HALF)
    expect(1 - probs[-1].sum(0), fixture["bg_prob_last"], PROBABILITIES)
    _expect_labels(probs, fixture["labels"])
    size = fixture.meta["resized_to"]
    _expect_labels(F.interpolate(probs, size=size, mode="bilinear", align_corners=False), fixture["labels_resized"])


def _expect_labels(probs: torch.Tensor, expected: torch.Tensor) -> None:
    everything = torch.cat([1 - probs.sum(1, keepdim=True), probs], 1)
    assert (everything.argmax(1) != expected).float().mean() <= LABEL_SHARE


@pytest.mark.parametrize("fixture", [f for f in PROPAGATIONS if "affinity_row_last" in f], ids=str)
def test_what_the_last_frame_reads(fixture):
    frames, labels = inputs_of(fixture)
    network = network_of(fixture, _top_k(fixture))
    geometry = Geometry(*frames.shape[2:], 16, None)
    padded = geometry.frames_in(frames)
    masks = aggregate(geometry.masks_in(masks_of(labels[0], fixture.meta["objects"])))
    probs = plain_propagation.propagate(
        network, padded, masks, every=fixture.meta["mem_every"], last=fixture.meta["include_last"]
    )
    stored = _stored(fixture)
    with torch.no_grad():
        features = network.encode_key(padded)
        values = []
        for t in stored:
            planes = probs[t][:, None]
            others = planes.sum(0, keepdim=True) - planes
            values.append(to_rows(network.encode_value(padded[t : t + 1], features[t : t + 1], planes, others)))
        keys = to_rows(features.key)
        memory_key, memory_value = keys[stored].flatten(0, 1), torch.cat(values, 1)
        attention = attend(memory_key, keys[-1], network.top_k)
        grid = features.key.shape[2:]
        readout = to_map(read(memory_key, memory_value, keys[-1], network.top_k), *grid)
        logits = network.decode(readout, features[-1:])
    middle = len(keys[-1]) // 2
    row = torch.zeros(len(memory_key))
    row[attention.index[middle] if attention.index is not None else slice(None)] = attention.weight[middle]
    assert len(memory_key) == fixture.meta["memory_elements_per_query"][-1]
    expect(row, fixture["affinity_row_last"], 1e-5)
    expect(readout[:, ::2], fixture["readout_last_s2"], FEATURES)
    expect(logits, fixture["logits_last"], FEATURES)


def _stored(fixture: Fixture) -> list[int]:
    """Frames in memory when the last frame is read, in the order of storing."""
    last = fixture.meta["T"] - 1
    stored = list(range(0, last, fixture.meta["mem_every"]))
    return [*stored, last - 1] if fixture.meta["include_last"] and stored[-1] != last - 1 else stored


@pytest.mark.parametrize("fixture", [f for f in PROPAGATIONS if "late" not in f.meta], ids=str)
def test_the_plain_path_agrees_too(fixture):
    frames, labels = inputs_of(fixture)
    network = network_of(fixture, _top_k(fixture))
    geometry = Geometry(*frames.shape[2:], 16, None)
    masks = geometry.masks_in(masks_of(labels[0], fixture.meta["objects"]))
    every, last = fixture.meta["mem_every"], fixture.meta["include_last"]
    probs = plain_propagation.propagate(network, geometry.frames_in(frames), masks, every=every, last=last)
    shown = geometry.masks_out(probs).transpose(0, 1)
    expect(shown[:, fixture.meta["prob_sel_frames"]], fixture["prob_sel"], PROBABILITIES)


@pytest.mark.parametrize("fixture", STABILITY, ids=str)
def test_large_keys_do_not_overflow(fixture):
    expected = fixture["prob_f64_as_f32"]
    frames, labels = inputs_of(fixture)
    engine = _published(network_of(fixture, _top_k(fixture)), fixture.meta["mem_every"])
    given = [Annotation(0, 0, masks_of(labels[0], 1)[0])]
    probs = engine.propagate_objects(frames[: len(expected)], given).probs[:, 0]
    expect(probs, expected, PROBABILITIES)


# ---------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(("fixture", "setting"), GRADIENTS, ids=str)
def test_gradients(fixture, setting):
    frames, labels = inputs_of(fixture)
    top = re.search(r"top(\d+)", setting)
    objects = ("one", "two", "three").index(setting.split("_")[0]) + 1
    network = network_of(fixture, int(top[1]) if top else None).requires_grad_(True)
    try:
        network.zero_grad()
        geometry = Geometry(*frames.shape[2:], 16, None)
        probs = _three_frames(network, frames, masks_of(labels[0], objects), detached="detached" in setting)
        shown = geometry.masks_out(probs)
        # detached memory gives the same masks, so they are stored once
        expect(shown[:, 0], fixture[f"{setting.removesuffix('_detached')}.frame2_prob"], PROBABILITIES)
        loss = shown.sum()
        loss.backward()
        assert loss.item() == pytest.approx(fixture.meta[setting]["loss_f64"], rel=1e-5)
        parameters = dict(network.named_parameters())
        without = sum(p.grad is None or not p.grad.any() for p in parameters.values())
        assert sum(p.grad is None for p in parameters.values()) == fixture.meta[setting]["parameters_without_gradient"]
        assert without <= fixture.meta[setting]["parameters_without_gradient"] + 1
        for i, key in enumerate(fixture.meta["keys"]):
            _expect_gradient(key, parameters[key].grad, fixture, setting, i)
    finally:
        network.zero_grad()
        network.requires_grad_(False)


def _expect_gradient(key, gradient, fixture, setting, i):
    norm = fixture[f"{setting}.grad_norm_f64"][i].item()
    if gradient is None:
        assert norm == 0, key
        return
    total = fixture.meta[setting]["total_grad_norm_f64"]
    if norm < 1e-9 * total:
        # zero in theory (a constant added to all keys changes nothing), rounding in practice
        assert gradient.norm().item() <= 1e-5 * total
        return
    assert gradient.double().norm().item() == pytest.approx(norm, rel=GRADIENT_NORM), key
    head = fixture[f"{setting}.grad_head_f64"][i]
    mine = F.pad(gradient.flatten()[:8].double(), (0, max(0, 8 - gradient.numel())))
    torch.testing.assert_close(mine, head, rtol=GRADIENT_NORM, atol=GRADIENT_ENTRY * norm / gradient.numel() ** 0.5)


def _three_frames(network: STCN, frames: torch.Tensor, masks: torch.Tensor, *, detached: bool) -> torch.Tensor:
    """Frame 1 from the memory of frame 0, frame 2 from the memory of both; returns frame 2's (k, 1, h, w)."""
    geometry = Geometry(*frames.shape[2:], 16, None)
    padded = geometry.frames_in(frames[:3])
    probs, keys, values = aggregate(geometry.masks_in(masks)), [], []
    for t in range(3):
        features = network.encode_key(padded[t : t + 1])
        query = to_rows(features.key)[0]
        if t:
            rows = read(torch.cat(keys), torch.cat(values, 1), query, network.top_k)
            probs = aggregate(network.decode(to_map(rows, *features.key.shape[2:]), features).sigmoid())
        others = probs.sum(0, keepdim=True) - probs
        value = to_rows(network.encode_value(padded[t : t + 1], features, probs, others))
        keys.append(query.detach() if detached else query)
        values.append(value.detach() if detached else value)
    return probs
