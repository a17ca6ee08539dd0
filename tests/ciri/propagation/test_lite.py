"""The small propagator's network: its arithmetic against brute force, its promises to the engine, its files."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ciri.errors import CheckpointError
from ciri.propagation import lite_encoder
from ciri.propagation.base import MaskTrack
from ciri.propagation.confidence import DISSENT, agreement
from ciri.propagation.engine import Annotation, MemoryPropagator, _lost_for_long
from ciri.propagation.lite import ARCHITECTURE, LiteNetwork, build_lite, load_lite
from ciri.propagation.lite_encoder import LITE0_BLOCKS, ScaledConv
from ciri.propagation.network import FrameFeatures
from ciri.propagation.tracking import aggregate
from ciri.training.propagator_report import export


@pytest.fixture(scope="module")
def network():
    """A network with random weights everywhere: layers that begin at zero would hide mistakes."""
    torch.manual_seed(3)
    network = LiteNetwork(folded=False)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "decoder" in name or "value_encoder" in name or "trunk" in name:
                parameter.normal_(0, 0.5 / max(1, parameter[0].numel()) ** 0.5)
            elif name.endswith("scale"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return network.eval()


def clip(count, height, width, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (33, 47)])
def test_an_encoder_that_works_in_strips_answers_as_the_whole_one(network, monkeypatch, size):
    frames = clip(2, *size)
    whole = network.encoder(frames)  # with gradients nothing is cut
    monkeypatch.setattr(lite_encoder, "STRIP_BYTES", 1 << 14)
    with torch.no_grad():
        strips = [block._strip(x) for block, x in zip(network.encoder.blocks[1:3], whole[:2], strict=True)]
        assert all(strip is not None for strip in strips)
        for got, expected in zip(network.encoder(frames), whole, strict=True):
            torch.testing.assert_close(got, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(6, 9), (7, 8), (12, 5)])
def test_strided_convolution_centres_its_windows_as_tensorflow_does(kernel, size):
    conv = ScaledConv(2, 3, kernel, stride=2)
    x = torch.randn(1, 2, *size)
    out = conv(x)
    assert out.shape[-2:] == (-(-size[0] // 2), -(-size[1] // 2))
    # "same": the total padding is the least that reaches the last window, the odd pixel goes to the end
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            expected = conv.bias.detach().clone()
            for dy in range(kernel):
                for dx in range(kernel):
                    y = 2 * row + dy - max((out.shape[2] - 1) * 2 + kernel - size[0], 0) // 2
                    x_ = 2 * column + dx - max((out.shape[3] - 1) * 2 + kernel - size[1], 0) // 2
                    if 0 <= y < size[0] and 0 <= x_ < size[1]:
                        expected += conv.weight[:, :, dy, dx] @ x[0, :, y, x_]
            assert torch.allclose(out[0, :, row, column], expected, atol=1e-5)


def test_encoder_has_the_published_number_of_weights(network):
    channels, expected = 32, 3 * 32 * 9
    for kernel, _, expansion, outputs in LITE0_BLOCKS:
        wide = channels * expansion
        expected += (channels * wide if expansion > 1 else 0) + wide * kernel**2 + wide * outputs
        channels = outputs
    weights = sum(p.numel() for n, p in network.encoder.named_parameters() if n.endswith("weight"))
    assert weights == expected


def test_folding_changes_nothing_but_the_number_of_tensors(network):
    folded = LiteNetwork(folded=False)
    folded.load_state_dict(network.state_dict())
    folded.fold().eval()
    frames = clip(1, 48, 80)
    with torch.no_grad():
        before, after = network.encode_key(frames), folded.encode_key(frames)
    assert torch.allclose(before.key, after.key, rtol=1e-4, atol=1e-4 * before.key.abs().max())
    assert not any(name.endswith("scale") for name in folded.state_dict())


def test_shapes_that_the_engine_relies_on(network):
    # 48 is an odd number of 1/16 cells: the 1/32 map does not divide it
    frames, masks = clip(2, 48, 80), torch.rand(3, 1, 48, 80)
    with torch.no_grad():
        features = network.encode_key(frames)
        value = network.encode_value(frames[:1], features[0:1], masks, torch.zeros_like(masks))
        logits = network.decode(value, features[0:1], torch.rand(3, 2, 48, 80))
    assert features.key.shape == (2, 64, 3, 5)
    assert [m.shape[-1] // 5 for m in features.maps] == [1, 2, 4, 8]
    assert value.shape == (3, network.value_channels, 3, 5)
    assert logits.shape == (3, 1, 48, 80) and logits.dtype == torch.float32


def test_frames_and_objects_do_not_see_each_other(network):
    frames, masks, hints = clip(2, 48, 80, seed=1), torch.rand(2, 1, 48, 80), torch.rand(2, 2, 48, 80)
    none = torch.zeros_like(masks)
    with torch.no_grad():
        both = network.encode_key(frames)
        second = network.encode_key(frames[1:])
        values = network.encode_value(frames[1:], second, masks, none)
        logits = network.decode(values, second, hints)
        alone = network.decode(network.encode_value(frames[1:], second, masks[1:], none[1:]), second, hints[1:])
    assert torch.allclose(both.key[1:], second.key, atol=1e-4 * second.key.abs().max())
    assert torch.allclose(logits[1:], alone, atol=1e-4)


def test_decoding_a_crop_with_the_margin_equals_decoding_the_frame(network):
    cells = 2 * network.decode_margin + 3
    features = FrameFeatures(
        torch.zeros(1, 64, cells, cells),
        tuple(torch.randn(1, c, n * cells, n * cells) for c, n in ((192, 1), (40, 2), (24, 4), (16, 8))),
    )
    readout = torch.randn(1, network.value_channels, cells, cells)
    margin, top = network.decode_margin, 2
    hints = torch.rand(1, 2, 16 * cells, 16 * cells)
    with torch.no_grad():
        whole = network.decode(readout, features, hints)
        cropped = hints[..., 16 * top :, 16 * top :]
        part = network.decode(readout[..., top:, top:], features.crop(top, top, cells, cells), cropped)
    inside = (top + margin) * 16
    assert torch.allclose(whole[..., inside:, inside:], part[..., margin * 16 :, margin * 16 :], atol=1e-4)
    # the margin is no larger than it has to be by much: two cells less are not exact
    less = (margin - 2) * 16
    assert not torch.allclose(whole[..., inside - 32 :, inside - 32 :], part[..., less:, less:], atol=1e-4)


def test_an_untrained_network_answers_with_its_hint():
    network, frames = LiteNetwork().eval(), clip(3, 48, 80)
    hints = torch.zeros(3, 2, 48, 80)
    hints[..., 10:30, 20:50] = torch.rand(3, 2, 20, 30) * 0.9 + 0.05
    with torch.no_grad():
        features = network.encode_key(frames)
        value = network.encode_value(frames[:1], features[0:1], torch.rand(1, 1, 48, 80), torch.zeros(1, 1, 48, 80))
        probs = [aggregate(network.decode(value, features[i : i + 1], hints[i : i + 1]).sigmoid()) for i in range(3)]
        nothing = aggregate(network.decode(value, features[0:1]).sigmoid())
    # hints surer than 0.97 are taken for 0.97
    assert torch.allclose(torch.cat(probs), hints[:, :1].clamp(0.03, 0.97), atol=1e-5)
    assert torch.allclose(nothing, torch.full_like(nothing, 0.03), atol=1e-5)


def test_the_guide_is_asked_for_every_object_and_its_answer_reaches_the_decoder():
    """An untrained network passes hints through, so the engine's masks have to be the guide's."""

    class Guide:
        name = "guide"

        def __init__(self):
            self.asked = []

        def propagate(self, frames, key_masks, key_frames, *, on_step=None):
            self.asked.append(list(key_frames))
            probs = 0.1 + 0.8 * key_masks[:1].roll(4, -1).expand(len(frames), -1, -1, -1)
            on_step(1, 1)
            return MaskTrack(probs, torch.tensor([1.0, 0.9, 0.0, 0.9]))

    guide, seen = Guide(), []
    propagator = MemoryPropagator(
        LiteNetwork().eval(), precision="fp32", store_above=None, guide=guide, short_side=None, crop_decoding=False
    )
    masks = torch.zeros(2, 1, 48, 80)
    masks[0, :, 8:20, 8:20] = masks[1, :, 24:40, 40:60] = 1
    annotations = [Annotation(0, 0, masks[0]), Annotation(0, 1, masks[1])]
    tracks = propagator.propagate_objects(clip(4, 48, 80), annotations, on_step=lambda *at: seen.append(at))
    assert guide.asked == [[0], [0]] and seen == sorted(seen) and seen[-1] == (1000, 1000)
    for t, shown in ((1, True), (2, False), (3, True)):
        for o in range(2):
            where = masks[o].roll(4, -1)[0] > 0.5
            assert bool((tracks.probs[t, o][where] > 0.5).all()) == shown
            assert not (tracks.probs[t, o][~where] > 0.5).any()


def test_two_that_disagree_are_believed_less():
    masks, hints = torch.zeros(4, 1, 8, 8), torch.zeros(4, 2, 8, 8)
    masks[:3, :, :4, :4] = 0.9
    hints[0, :, :4, :4], hints[1, :, :4, :2], hints[2, :, 4:, 4:] = 0.8, 0.8, 0.8
    hints[:3, 1] = 0.7  # the last one was not asked
    masks[3, :, :4, :4] = 0.9
    asked = torch.zeros(4, dtype=torch.bool)
    assert agreement(masks, hints, asked) == pytest.approx([1, 1 - 0.5 * DISSENT, 1 - DISSENT, 1])
    # one that looked and found nothing disagrees with every mask
    lost = torch.tensor([False, False, False, True])
    assert agreement(masks, hints, lost) == pytest.approx([1, 1 - 0.5 * DISSENT, 1 - DISSENT, 1 - DISSENT])


def test_another_shot_shows_nothing_of_the_target_and_is_not_remembered(network, monkeypatch):
    """A network that finds something everywhere, and a guide that says where the target is gone."""
    clip_with_cut = torch.cat([clip(3, 48, 80), clip(3, 48, 80).flip(2), clip(3, 48, 80)])
    mask = torch.zeros(1, 1, 48, 80)
    mask[..., 8:32, 16:48] = 1

    class Guide:
        name = "guide"

        def propagate(self, frames, key_masks, key_frames, *, on_step=None):
            seen = torch.ones(9)
            seen[3:6] = 0
            return MaskTrack(0.9 * mask.expand(9, -1, -1, -1) * seen.view(9, 1, 1, 1), seen)

    quite_sure = 0.8 * (2 * mask - 1)
    monkeypatch.setattr(LiteNetwork, "decode", lambda _, readout, *more: quite_sure.expand(len(readout), -1, -1, -1))
    options = {"precision": "fp32", "short_side": None, "crop_decoding": False}
    track = MemoryPropagator(network, **options, guide=Guide()).propagate(clip_with_cut, mask, [0])
    assert not track.probs[3:6].any() and (track.confidence[3:6] == 0).all()
    assert (track.probs[6:, :, 12:28, 20:44] > 0.5).all() and (track.confidence[6:] > 0.3).all()
    assert any("gone or lost in frames 3-5" in note for note in track.notes)
    alone = MemoryPropagator(network, **options).propagate(clip_with_cut, mask, [0])
    assert (alone.probs[3:6, :, 12:28, 20:44] > 0.5).all()

    # what is to stay is better kept too well: there an unsure mask counts
    tracks = MemoryPropagator(network, **options, guide=Guide()).propagate_objects(
        clip_with_cut, [Annotation(0, 0, mask[0])], spared=[0]
    )
    assert (tracks.probs[3:6, 0, 12:28, 20:44] > 0.5).all()


@pytest.mark.parametrize(
    ("lost", "believed"), [((4,), ()), ((3, 4), ()), ((0, 1, 2), (0, 1, 2)), ((2, 4, 5, 6), (4, 5, 6))]
)
def test_a_guide_that_stumbles_is_not_believed(lost, believed):
    confidence = torch.ones(7)
    confidence[list(lost)] = 0
    assert list(_lost_for_long(confidence, [])) == list(believed)


@pytest.mark.parametrize(("lost", "cuts"), [((6,), [6]), ((3, 4), [3, 5]), ((0, 1), [2])])
def test_a_guide_is_believed_of_a_whole_shot_however_short(lost, cuts):
    confidence = torch.ones(7)
    confidence[list(lost)] = 0
    assert list(_lost_for_long(confidence, cuts)) == list(lost)


def test_crops_are_decoded_around_the_hint_too(network):
    """Where memory sees nothing but the guide does, that part is decoded; and it is decoded as in the whole frame."""
    frames, hints = clip(3, 160, 320), torch.zeros(3, 1, 160, 320)
    mask = torch.zeros(1, 1, 160, 320)
    mask[..., 16:48, 16:48] = 1
    hints[:, :, 96:128, 112:160] = 0.9

    class Guide:
        name = "guide"

        def propagate(self, frames, key_masks, key_frames, *, on_step=None):
            return MaskTrack(hints, torch.ones(3))

    def probs(crop):
        options = {"precision": "fp32", "store_above": None, "guide": Guide(), "crop_decoding": crop}
        return MemoryPropagator(network, **options).propagate(frames, mask, [0]).probs[1:]

    whole, part = probs(False), probs(True)
    decoded = part > 0
    assert decoded[..., 96:128, 112:160].all()
    # values that memory keeps differ where frames were cropped, so only the first predicted frame is compared
    assert torch.allclose(whole[0][decoded[0]], part[0][decoded[0]], atol=2e-3)


def test_masks_are_nothing_away_from_the_target():
    """Traces of mask all over the frame would make removal work on all of it."""
    propagator = build_lite(precision="fp32", crop_decoding=False)
    frames, mask = clip(1, 96, 160).repeat(3, 1, 1, 1), torch.zeros(1, 1, 96, 160)
    mask[..., 30:60, 50:90] = 1
    frames[..., 30:60, 50:90] = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    probs = propagator.propagate(frames, mask, [0]).probs[1:]
    assert (probs[..., 30:60, 50:90] > 0.5).float().mean() > 0.9
    assert not probs[..., :14, :].any() and not probs[..., 110:].any()


def test_refinement_reaches_the_decoder_and_the_fuser_and_nothing_before(network):
    chosen = {id(p) for p in network.parameters_to_refine()}
    names = {name for name, p in network.named_parameters() if id(p) in chosen}
    assert names == {n for n, _ in network.named_parameters() if n.startswith(("decoder.", "value_encoder.fuser."))}
    frames = clip(1, 32, 32)
    features = network.encode_key(frames)
    value = network.encode_value(frames, features, torch.rand(1, 1, 32, 32), torch.zeros(1, 1, 32, 32))
    logits = network.decode(value, features, torch.rand(1, 2, 32, 32))
    gradients = torch.autograd.grad(logits.square().sum(), network.parameters_to_refine())
    assert all(torch.isfinite(g).all() for g in gradients) and sum(float(g.abs().sum() > 0) for g in gradients) > 20


def test_a_network_in_half_precision_keeps_keys_and_logits_in_full(network):
    half = LiteNetwork(folded=False)
    half.load_state_dict(network.state_dict())
    half = half.fold().bfloat16().eval()
    frames, mask = clip(1, 32, 48), torch.rand(1, 1, 32, 48)
    with torch.no_grad():
        features = half.encode_key(frames)
        value = half.encode_value(frames, features, mask, mask)
        logits = half.decode(value, features, torch.rand(1, 2, 32, 48))
    assert features.key.dtype == logits.dtype == torch.float32


def test_the_summary_of_a_large_frame_does_not_overflow_in_fp16(network):
    """20 x 20 cells of about 200 add up to 80000; fp16 ends at 65504."""
    whole = copy.deepcopy(network)
    with torch.no_grad():
        whole.value_encoder.fuser[1].conv2.bias += 200
        half = copy.deepcopy(whole).fold().half()
        frames, mask = clip(1, 320, 320), torch.ones(1, 1, 320, 320)
        expected = whole.encode_value(frames, whole.encode_key(frames), mask, mask)
        features = half.encode_key(frames)
        value = half.encode_value(frames, features, mask, mask)
    assert value.dtype == torch.float16
    torch.testing.assert_close(value.float(), expected, rtol=0.02, atol=0.5)


def test_exported_weights_are_read_back(network, tmp_path):
    file = tmp_path / "propagator_lite.safetensors"
    export(network, file, {"steps": "7"})
    assert file.stat().st_size < 16 << 20
    read = load_lite(file)
    frames = clip(1, 32, 48)
    with torch.no_grad():
        ours, theirs = network.encode_key(frames).key, read.encode_key(frames).key
    # stored in fp16: 11 bits
    assert float((ours - theirs).norm() / ours.norm()) < 5e-3


@pytest.mark.parametrize(
    ("metadata", "tensors", "said"),
    [
        ({"architecture": "something"}, {"a": torch.zeros(1)}, "something"),
        ({"architecture": ARCHITECTURE}, {"a": torch.zeros(1)}, "missing"),
        ({}, {"a": torch.zeros(1)}, "unknown network"),
    ],
)
def test_other_weights_are_refused_by_name(tmp_path, metadata, tensors, said):
    file = tmp_path / "other.safetensors"
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(CheckpointError, match=said):
        load_lite(file)


def test_a_truncated_file_is_refused(network, tmp_path):
    file = tmp_path / "cut.safetensors"
    export(network, file, {})
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError):
        load_lite(file)


def test_it_fits_the_engine(network):
    propagator = MemoryPropagator(network, precision="fp32", memory_every=2)
    mask = torch.zeros(1, 1, 40, 56)
    mask[..., 8:30, 10:34] = 1
    track = propagator.propagate(clip(4, 40, 56), mask, [0])
    assert track.probs.shape == (4, 1, 40, 56)
    assert torch.equal(track.probs[0] > 0.5, mask[0] > 0.5)
    assert F.relu(-track.probs).sum() == 0 and float(track.probs.max()) <= 1
