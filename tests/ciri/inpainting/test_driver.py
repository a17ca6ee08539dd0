"""The window driver against the published programs' plain loop, and what it promises about memory and interrupts."""

import re

import pytest
import torch

from ciri.errors import CiriError, OutOfMemoryError
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.driver import WindowBackbone
from ciri.inpainting.e2fgvi import E2FGVIHQ
from ciri.inpainting.network import WindowNetwork
from ciri.inpainting.sttn import STTN
from ciri.inpainting.windows import Schedule
from tests.published_loop import dilate_cross, plain_loop


class Stub(WindowNetwork):
    """Its features are the frames; what it predicts depends on content, order and length of the window."""

    name = "stub"
    facts = BackboneFacts(trained_for="hard mask")

    def __init__(self):
        super().__init__()
        self.encoded, self.decoded, self.fail_above, self.failed = [], [], None, 0
        self.failure = torch.OutOfMemoryError("CUDA out of memory")

    def stages(self):
        return {"out": self.note}

    def note(self, frames):
        if self.fail_above is not None and len(frames) > self.fail_above:
            self.failed += 1
            raise self.failure
        self.encoded.append(len(frames))
        return frames

    def decode_window(self, features, local, flows=None):
        self.decoded.append(features.shape[1])
        return predict(features, local)[None, :local]


def predict(window, local):
    x = window[0].double()
    n = len(x)
    place = torch.arange(n, dtype=torch.float64).reshape(n, 1, 1, 1)
    q = torch.floor(127.5 * (x + 1) + 0.25)
    total = ((place + 1) * q).sum(0)
    return ((torch.remainder(3 * q + total + 7 * place + 11 * n, 250) + 0.5) / 127.5 - 1).float()


def clip(t=23, h=24, w=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (t, 3, h, w), generator=generator) / 255
    masks = torch.zeros(t, 1, h, w)
    for i in range(t):
        masks[i, 0, 4:12, i % 20 : i % 20 + 8] = 1
    return frames, dilate_cross(masks)


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(3, 4), Schedule(5, 10, 2)])
def test_published_mode_is_the_plain_loop_to_the_bit(schedule):
    frames, masks = clip()
    backbone = WindowBackbone(Stub(), schedule=schedule, published=True)
    expected = plain_loop(frames, masks, predict, schedule)
    result = torch.where(masks > 0, backbone.inpaint(frames, masks), frames)
    assert torch.equal(result, expected)


def test_published_mode_is_the_plain_loop_on_a_network():
    torch.manual_seed(0)
    network = STTN().eval()
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(7, 3, 48, 96, generator=generator).mul(255).round() / 255
    masks = torch.zeros(7, 1, 48, 96)
    masks[:, :, 10:30, 20:60] = 1
    schedule = Schedule(2, 3)

    def generate(window, local):
        with torch.no_grad():
            return network.decode_window(network.encode(window[0])["out"][None], window.shape[1])[0]

    expected = plain_loop(frames, masks, generate, schedule)
    result = WindowBackbone(network, schedule=schedule, published=True).inpaint(frames, masks)
    # a last-bit difference may tip a truncation to 8 bit, by one level before the half-and-half average
    difference = (torch.where(masks > 0, result, frames) - expected).abs()
    assert (difference > 1e-4).float().mean() < 1e-3 and difference.max() <= 1.01 / 255


def test_each_frame_is_encoded_once_and_references_are_not_decoded():
    frames, masks = clip(t=60)
    network = Stub()
    WindowBackbone(network, schedule=Schedule()).inpaint(frames, masks)
    assert sum(network.encoded) == 60


def test_windows_without_holes_are_skipped_and_their_frames_untouched():
    frames, masks = clip(t=60)
    masks[10:] = 0
    network = Stub()
    result = WindowBackbone(network, schedule=Schedule(num_ref=0)).inpaint(frames, masks)
    assert len(network.decoded) == 3  # centres 0, 5 and 10 see frames 0 to 9
    assert torch.equal(result[20:], frames[20:])


def test_what_is_kept_does_not_grow_with_the_clip(monkeypatch):
    most = {}
    for t in (100, 500):
        frames, masks = clip(t=t)
        backbone, kept = WindowBackbone(Stub()), []

        def note(window, kept_clip, original=backbone._predict, kept=kept):
            result = original(window, kept_clip)
            # of a view, the memory behind it counts: a frame must not hold those that were encoded with it
            storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in kept_clip.features.values()}
            kept.append((len(kept_clip.features), sum(storage.nbytes() for storage in storages.values())))
            return result

        monkeypatch.setattr(backbone, "_predict", note)
        backbone.inpaint(frames, masks)
        most[t] = max(count for count, _ in kept)
        assert all(size == count * frames[0].nbytes for count, size in kept)
    assert most[500] <= 1.1 * most[100]


def test_frames_may_be_read_lazily():
    frames, masks = clip()

    class Reader:
        asked = 0

        def __len__(self):
            return len(frames)

        def __getitem__(self, indices):
            Reader.asked = max(Reader.asked, len(indices))
            return frames[indices]

    expected = WindowBackbone(Stub()).inpaint(frames, masks)
    for index, frame in WindowBackbone(Stub()).stream(Reader(), masks):
        assert torch.equal(frame, expected[index])
    assert Reader.asked <= 11  # never more than the local frames of one window


#: What PyTorch says where memory ran out: on CUDA, on the CPU under Linux, and under Windows.
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory"),
]


@pytest.mark.parametrize("failure", SHORTAGES, ids=["cuda", "linux", "windows"])
def test_out_of_memory_halves_the_work_and_repeats_it(failure):
    frames, masks = clip()
    expected = WindowBackbone(Stub()).inpaint(frames, masks)
    network = Stub()
    network.failure = failure
    network.fail_above = 2
    assert torch.equal(WindowBackbone(network).inpaint(frames, masks), expected)
    assert max(network.encoded) <= 2 and network.chunk == Stub().chunk
    # eight frames and four did not fit; later windows do not try again
    assert network.failed == 2


def test_out_of_memory_for_good_names_the_knobs():
    frames, masks = clip(t=3)
    network = Stub()
    network.fail_above = 0
    with pytest.raises(OutOfMemoryError, match="reference frames.*crop"):
        WindowBackbone(network).inpaint(frames, masks)


def test_other_errors_pass_unchanged():
    class Broken(Stub):
        def note(self, frames):
            raise RuntimeError("a bug")

    frames, masks = clip(t=3)
    with pytest.raises(RuntimeError, match="a bug"):
        WindowBackbone(Broken()).inpaint(frames, masks)


def test_interrupt_in_mid_window_leaves_nothing_behind():
    torch.manual_seed(0)
    network = STTN().eval()
    frames = torch.rand(6, 3, 48, 48)
    masks = torch.zeros(6, 1, 48, 48)
    masks[..., 10:20, 10:20] = 1
    backbone = WindowBackbone(network)
    expected = backbone.inpaint(frames, masks)
    calls = []

    def stop(done, total):
        calls.append(done)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backbone.inpaint(frames, masks, on_step=stop)
    assert calls == [0] * 5  # the first window was not finished
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert torch.equal(backbone.inpaint(frames, masks), expected)


def test_what_the_callback_returns_does_not_matter():
    frames, masks = clip(3, 48, 48)
    backbone = WindowBackbone(STTN().eval())
    told = []
    result = backbone.inpaint(frames, masks, on_step=lambda done, total: told.append(done) or done + 1)
    assert len(told) > 3 and torch.equal(result, backbone.inpaint(frames, masks))


@pytest.mark.parametrize("t", [1, 2, 4])
def test_clips_shorter_than_a_window(t):
    frames, masks = clip(t=t)
    result = WindowBackbone(Stub()).inpaint(frames, masks)
    assert result.shape == frames.shape and torch.isfinite(result).all()


def test_modes_agree_where_they_must():
    torch.manual_seed(0)
    network = STTN().eval()
    frames, masks = torch.rand(3, 3, 48, 96), torch.zeros(3, 1, 48, 96)
    masks[:, :, :, :48] = 1
    hard, blend, gate = (
        WindowBackbone(network, mode=mode).gated_features(frames, masks) for mode in ("hard", "blend", "gate")
    )
    deep, far = slice(0, 8), slice(16, 24)  # feature columns inside the hole, and beyond the receptive field
    assert torch.allclose(blend[..., deep], hard[..., deep], atol=1e-6)
    assert torch.allclose(blend[..., far], hard[..., far], atol=1e-6)
    assert (gate[..., :12] == 0).all() and torch.allclose(gate[..., 12:], blend[..., 12:], atol=1e-6)
    empty = torch.zeros_like(masks)
    for mode in ("hard", "blend", "gate"):
        plain = network.encode(frames * 2 - 1)["out"]
        assert torch.allclose(WindowBackbone(network, mode=mode).gated_features(frames, empty), plain, atol=1e-6)


def test_gradient_reaches_the_map():
    torch.manual_seed(0)
    network = STTN().eval().requires_grad_(False)
    frames = torch.rand(2, 3, 48, 48)
    for mode in ("blend", "gate"):
        maps = torch.full((2, 1, 48, 48), 0.3)
        maps[..., 16:32, 16:32] = 0.8
        maps.requires_grad_()
        features = WindowBackbone(network, mode=mode).gated_features(frames, maps)
        network.decode_window(features[None], 2).mean().backward()
        assert maps.grad is not None and maps.grad.abs().sum() > 0


@pytest.mark.parametrize("seed", range(4))
def test_the_description_counts_the_windows_that_are_run(seed):
    generator = torch.Generator().manual_seed(seed)
    frames, masks = clip(t=47, seed=seed)
    masks *= (torch.rand(47, generator=generator) < 0.1).view(-1, 1, 1, 1)
    backbone = WindowBackbone(Stub(), schedule=Schedule(2, 7, 3))
    has_hole = (masks > 0).flatten(1).any(1).tolist()
    backbone.inpaint(frames, masks)
    lengths = backbone.network.decoded
    words = re.match(r"(\d+) windows? of up to (\d+) frames and (\d+) references", backbone.describe(has_hole))
    count, local, references = (int(number) for number in words.groups())
    assert count == len(lengths) < 24 and max(lengths) <= local + references
    assert backbone.describe([False] * 9).startswith("0 windows of up to 0 frames and 0 references")


def test_unknown_mode_is_refused():
    with pytest.raises(CiriError, match="soft.*auto, hard, blend, gate"):
        WindowBackbone(Stub(), mode="soft")


class Joined(Stub):
    """Also counts how many windows come together, and fails above so many."""

    most = None

    def decode_window(self, features, local, flows=None):
        self.decoded.append(len(features))
        if self.most is not None and len(features) > self.most:
            self.failed += 1
            raise self.failure
        return torch.stack([predict(window[None], local)[:local] for window in features])


def together(published, at_once, most=None):
    network = Joined()
    network.most = most
    frames, masks = clip(t=41)
    backbone = WindowBackbone(network, schedule=Schedule(5, 10, 2), published=published, windows_at_once=at_once)
    told = []
    result = backbone.inpaint(frames, masks, on_step=lambda done, total: told.append((done, total)))
    return result, network, told


@pytest.mark.parametrize("published", [True, False])
def test_windows_that_pass_together_give_what_they_give_alone(published):
    alone, one, _ = together(published, 1)
    joined, several, told = together(published, 3)
    assert torch.equal(alone, joined)
    assert max(one.decoded) == 1 and max(several.decoded) == 3 and sum(several.decoded) == sum(one.decoded)
    assert sum(several.encoded) == sum(one.encoded)
    assert told[-1] == (sum(one.decoded),) * 2


def test_windows_that_do_not_fit_together_go_one_by_one():
    alone, _, _ = together(False, 1)
    crowded, network, _ = together(False, 3, most=1)
    assert torch.equal(alone, crowded) and max(network.decoded) == 3 and network.failed == 1
    with pytest.raises(CiriError, match="windows_at_once is 0"):
        together(False, 0)


@pytest.mark.parametrize(("network", "size"), [(STTN, (48, 96)), (E2FGVIHQ, (60, 108))])
def test_windows_pass_together_through_a_network(network, size):
    torch.manual_seed(0)
    model = network().eval().requires_grad_(False)
    frames, masks = clip(t=9, h=size[0], w=size[1])
    backbone = WindowBackbone(model, schedule=Schedule(1, 4, 1))
    alone = backbone.inpaint(frames, masks)
    backbone.windows_at_once = 3
    torch.testing.assert_close(backbone.inpaint(frames, masks), alone, atol=1e-5, rtol=0)
