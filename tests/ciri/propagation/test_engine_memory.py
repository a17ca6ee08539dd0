"""What the engine remembers, decodes, encodes and keeps, and how it goes on when memory runs out."""

import threading
import time

import pytest
import torch

from ciri.errors import OutOfMemoryError
from ciri.propagation import memory as space_time_memory
from ciri.propagation.base import LOST_BELOW, MaskTrack
from ciri.propagation.engine import Annotation, MemoryPropagator
from ciri.propagation.units import LEAST_SIMILARITY_BYTES
from tests.ciri.propagation.toy_network import ColourNetwork, engine, moving_square, overlap


def test_a_budget_that_is_never_reached_changes_nothing():
    frames, masks = moving_square(20)
    options = {"memory_every": 2, "store_above": None}
    bounded = engine(memory_budget=10, **options).propagate(frames, masks[:1], [0])
    unbounded = engine(memory_budget=1000, **options).propagate(frames, masks[:1], [0])
    torch.testing.assert_close(bounded.probs, unbounded.probs)


@pytest.mark.parametrize("include_last", [False, True])
def test_which_frames_enter_the_memory(include_last, monkeypatch):
    from ciri.propagation.memory import Memory

    stores = []
    append = Memory.append
    monkeypatch.setattr(
        Memory, "append", lambda self, t, *args, **kind: (stores.append((t, kind)), append(self, t, *args, **kind))[1]
    )
    frames, masks = moving_square(12)
    engine(memory_every=4, include_last=include_last).propagate(frames, masks[:1], [0])
    forward = stores[:-1] if stores[-1][0] == 0 else stores
    permanent = [t for t, kind in forward if not kind.get("temporary")]
    temporary = [t for t, kind in forward if kind.get("temporary")]
    assert permanent == [0, 4, 8]
    # the last frame is read by nobody
    assert temporary == ([1, 2, 3, 5, 6, 7, 9, 10] if include_last else [])


def test_doubtful_frames_do_not_enter_the_memory():
    frames, masks = moving_square(12)
    frames[4:6] = moving_square(1, side=0)[0]
    trusting, careful = engine(store_above=None), engine(store_above=LOST_BELOW)
    for propagator in (trusting, careful):
        propagator.network.values = 0
        propagator._ready()

        def counted(*args, network=propagator._twin[1], root=propagator.network):
            root.values += 1
            return ColourNetwork.encode_value(network, *args)

        propagator._twin[1].encode_value = counted
        propagator.propagate(frames, masks[:1], [0])
    # two frames without a target, one of them due
    assert trusting.network.values - careful.network.values == 2


@pytest.mark.parametrize("size", [(48, 64), (37, 53)])
def test_decoding_a_part_is_decoding_the_whole(size):
    frames, masks = (x[..., : size[0], : size[1]] for x in moving_square(10))
    whole, part = engine(crop_decoding=False), engine()
    a, b = (p.propagate(frames, masks[:1], [0]).probs for p in (whole, part))
    # outside the part the mask is exactly 0, where the whole has the colour network's 1e-8
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert max(h * w for h, w in part.network.decoded) < min(h * w for h, w in whole.network.decoded)


def test_batches_change_nothing():
    frames, masks = moving_square(11)
    single, batched = engine(batch=1), engine(batch=4)
    a, b = (p.propagate(frames, masks[3:4], [3]).probs for p in (single, batched))
    torch.testing.assert_close(a, b)
    assert set(single.network.encoded) == {1} and max(batched.network.encoded) == 4
    assert sum(batched.network.encoded) == 11


def test_a_second_call_on_the_same_clip_encodes_nothing_again():
    frames, masks = moving_square(10)
    propagator = engine()
    first = propagator.propagate(frames, masks[:1], [0])
    count = sum(propagator.network.encoded)
    assert count == 10
    again = propagator.propagate(frames.clone(), masks[:1], [0])
    propagator.propagate(frames, masks[4:5], [4])
    assert sum(propagator.network.encoded) == count
    torch.testing.assert_close(again.probs, first.probs, rtol=0, atol=0)


def test_changed_pixels_or_weights_are_encoded_again():
    frames, masks = moving_square(6)
    propagator = engine()
    propagator.propagate(frames, masks[:1], [0])
    frames[2, 0, 0, 0] += 1e-3
    propagator.propagate(frames, masks[:1], [0])
    assert sum(propagator.network.encoded) == 7
    with torch.no_grad():
        propagator.network.scale.mul_(1 + 1e-6)
    propagator.propagate(frames, masks[:1], [0])
    assert sum(propagator.network.encoded) == 13


def test_the_cache_is_bounded_and_keeps_the_first_frames():
    frames, masks = moving_square(10)
    one = 3 * 48 * 64 * 4 + 3 * 12 * 16 * 4
    propagator = engine(cache_bytes=4 * one)
    propagator.propagate(frames, masks[:1], [0])
    propagator.propagate(frames, masks[:1], [0])
    assert sum(propagator.network.encoded) == 10 + 6
    # another clip pushes out what the last call left
    propagator.propagate(1 - frames, masks[:1], [0])
    propagator.propagate(1 - frames, masks[:1], [0])
    assert sum(propagator.network.encoded) == 16 + 10 + 6
    assert propagator._cache._bytes <= 4 * one


def test_frames_that_repeat_are_counted_once():
    """Film at half the rate shows every frame twice, and both may be encoded in one batch."""
    frames, masks = moving_square(6)
    one = 3 * 48 * 64 * 4 + 3 * 12 * 16 * 4
    propagator = engine(batch=4, cache_bytes=7 * one)
    for brightness in (1.0, 0.9, 0.8):
        twice = (brightness * frames).repeat_interleave(2, 0)
        propagator.propagate(twice, masks[:1], [0])
        # room for all of them, and one of an earlier clip
        assert propagator._cache._bytes == one * len(propagator._cache) and len(propagator._cache) in (6, 7)
    count = sum(propagator.network.encoded)
    propagator.propagate(twice, masks[:1], [0])
    assert sum(propagator.network.encoded) == count


def test_two_thousand_frames_in_bounded_memory():
    frames, masks = moving_square(12, 24, 32, side=8)
    frames, masks = frames.repeat(167, 1, 1, 1)[:2000], masks.repeat(167, 1, 1, 1)[:2000]
    propagator = engine(memory_budget=8, cache_bytes=1 << 16)
    track = propagator.propagate(frames, masks[:1], [0])
    assert overlap(track.probs, masks).min() == 1
    assert propagator._cache._bytes <= 1 << 16


# --------------------------------------------------------------------------------------- when memory runs out


CUDA, LINUX = torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")


def refuse(monkeypatch, name, too_much, error=CUDA):
    """Let a method of the network fail where a condition on its first argument holds; count its calls."""
    original, calls = getattr(ColourNetwork, name), []

    def method(self, first, *rest):
        calls.append(len(first))
        if too_much(first):
            raise error
        return original(self, first, *rest)

    monkeypatch.setattr(ColourNetwork, name, method)
    return calls


@pytest.mark.parametrize("error", [CUDA, LINUX, MemoryError()], ids=["cuda", "cpu", "python"])
def test_fewer_frames_are_encoded_at_once_when_memory_runs_out(monkeypatch, error):
    frames, masks = moving_square(13)
    expected = engine().propagate(frames, masks[:1], [0])
    calls = refuse(monkeypatch, "encode_key", lambda x: len(x) > 2, error)
    track = engine(batch=8).propagate(frames, masks[:1], [0])
    torch.testing.assert_close(track.probs, expected.probs)
    # 1 the annotated frame, then 8 and 4 in vain, and no larger batch ever again
    assert calls[:4] == [1, 8, 4, 2] and max(calls[4:]) == 2


def test_the_memory_is_read_in_smaller_pieces_when_memory_runs_out(monkeypatch):
    frames, masks = moving_square(20, 96, 128)
    options = {"memory_every": 1, "crop_decoding": False}
    expected = engine(**options).propagate(frames, masks[:1], [0])
    original, pieces = space_time_memory.similarity, []

    def similarity(memory_key, query_key, length):
        size = len(memory_key) * len(query_key) * 4
        if size > 2 * LEAST_SIMILARITY_BYTES:
            raise CUDA
        pieces.append(size)
        return original(memory_key, query_key, length)

    monkeypatch.setattr(space_time_memory, "similarity", similarity)
    track = engine(**options).propagate(frames, masks[:1], [0])
    torch.testing.assert_close(track.probs, expected.probs)
    # every piece fits, so a frame takes many where one would have been enough
    assert len(pieces) > 10 * 19


@pytest.mark.parametrize("name", ["encode_value", "decode"])
def test_fewer_objects_are_worked_on_at_once_when_memory_runs_out(monkeypatch, name):
    frames, red = moving_square(8)
    parts = [red[0] * (torch.arange(64) % 3 == i) for i in range(3)]
    annotations = [Annotation(0, i, part) for i, part in enumerate(parts)]
    expected = engine().propagate_objects(frames, annotations)
    position = 2 if name == "encode_value" else 0
    original, calls = getattr(ColourNetwork, name), []

    def method(self, *arguments):
        calls.append(len(arguments[position]))
        if calls[-1] > 1:
            raise CUDA
        return original(self, *arguments)

    monkeypatch.setattr(ColourNetwork, name, method)
    track = engine().propagate_objects(frames, annotations)
    torch.testing.assert_close(track.probs, expected.probs)
    assert max(calls) == 3 and calls[-1] == 1


def test_what_is_kept_for_later_calls_gives_way_first(monkeypatch):
    frames, masks = moving_square(8)
    propagator = engine(batch=4)
    propagator.propagate(1 - frames, masks[:1], [0])
    kept = []

    def too_much(_):
        kept.append(len(propagator._cache))
        return kept[-1] > 0

    refuse(monkeypatch, "decode", too_much)
    propagator.propagate(frames, masks[:1], [0])
    assert kept[0] > 0 and not any(kept[1:]) and len(propagator._cache) == 0
    # the next call may keep things again
    monkeypatch.undo()
    propagator.propagate(frames, masks[:1], [0])
    assert len(propagator._cache) == 8


@pytest.mark.parametrize("name", ["encode_key", "encode_value", "decode"])
def test_running_out_of_memory_for_good_names_the_knobs(monkeypatch, name):
    frames, masks = moving_square(3)
    propagator = engine(batch=4)
    calls = refuse(monkeypatch, name, lambda _: True)
    with pytest.raises(OutOfMemoryError, match="working size.*480.*memory budget.*32"):
        propagator.propagate(frames, masks[:1], [0])
    assert 2 < len(calls) < 20 and len(propagator._cache) == 0
    monkeypatch.undo()
    assert overlap(propagator.propagate(frames, masks[:1], [0]).probs, masks).min() == 1


def test_other_errors_pass_at_once(monkeypatch):
    frames, masks = moving_square(3)
    calls = refuse(monkeypatch, "decode", lambda _: True, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        engine().propagate(frames, masks[:1], [0])
    assert len(calls) == 1


class Guided(ColourNetwork):
    """Takes hints, and has no use for them."""

    takes_hints = True


class Guide:
    """Finds nothing; ``work`` is called with its progress callback when it is asked."""

    name = "guide"

    def __init__(self, work):
        self.work = work

    def propagate(self, frames, key_masks, key_frames, *, on_step):
        self.work(on_step)
        return MaskTrack(torch.zeros(len(frames), 1, *frames.shape[2:]), torch.zeros(len(frames)))


@pytest.mark.parametrize(
    ("directions", "visited"), [(("forward", "backward"), 9), (("forward",), 6), (("backward",), 4)]
)
def test_while_the_guide_looks_the_frames_that_masks_reach_are_encoded(directions, visited):
    frames, masks = moving_square(9)
    network, together = Guided(), []

    def work(on_step):
        late = time.monotonic() + 30
        while sum(network.encoded) < visited and time.monotonic() < late:
            time.sleep(0.01)
        together.append(sum(network.encoded))

    propagator = MemoryPropagator(network, precision="fp32", guide=Guide(work), directions=directions)
    propagator.propagate(frames, masks[3:4], [3])
    assert together == [visited] and sum(network.encoded) == visited


def test_a_full_cache_ends_encoding_ahead():
    frames, masks = moving_square(10)
    one = 3 * 48 * 64 * 4 + 3 * 12 * 16 * 4
    network = Guided()
    propagator = MemoryPropagator(network, precision="fp32", guide=Guide(lambda _: None), cache_bytes=4 * one)
    propagator.propagate(frames, masks[:1], [0])
    # the fifth was encoded to find that there is no room
    assert sum(network.encoded) == 11 and len(propagator._cache) == 4


def test_who_stops_the_guide_stops_the_encoding():
    class StopError(Exception):
        pass

    def stop(*_):
        raise StopError

    frames, masks = moving_square(10)
    before = threading.active_count()
    propagator = MemoryPropagator(Guided(), precision="fp32", guide=Guide(lambda on_step: on_step(1, 2)))
    with pytest.raises(StopError):
        propagator.propagate(frames, masks[:1], [0], on_step=stop)
    assert threading.active_count() == before
