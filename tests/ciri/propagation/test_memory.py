"""The memory read against a dense brute force, and what a bounded memory keeps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ciri.propagation.memory import Memory, RoughKeys, attend, gather, read, similarity, to_map, to_rows


def _random(n=50, q=7, k=2, ck=8, cv=5, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=rng, dtype=dtype) for shape in ((n, ck), (k, n, cv), (q, ck))]


def _brute_force(memory_key, memory_value, query_key, top_k):
    """One query at a time, distances written out, everything else weight 0."""
    answers = []
    for query in query_key:
        scores = torch.stack([-((m - query) ** 2).sum() / math.sqrt(len(query)) for m in memory_key])
        keep = scores.argsort(descending=True)[: top_k or len(scores)]
        weights = scores[keep].softmax(0)
        answers.append((memory_value[:, keep] * weights[:, None]).sum(1))
    return torch.stack(answers, 1)


@pytest.mark.parametrize("top_k", [1, 6, 50, 99, None])
@pytest.mark.parametrize("n", [1, 50])
def test_read_is_the_brute_force(top_k, n):
    arguments = _random(n=n)
    torch.testing.assert_close(read(*arguments, top_k), _brute_force(*arguments, top_k))


@given(n=st.integers(380, 900), k=st.integers(1, 6), seed=st.integers(0, 99))
def test_of_a_large_memory_the_nearest_answer(n, k, seed):
    """So large that its positions are searched in groups; the oracle sorts all distances."""
    memory_key, _, query_key = _random(n=n, seed=seed)
    chosen = attend(memory_key, query_key, k).index
    nearest = torch.cdist(query_key, memory_key).argsort(1)[:, :k]
    assert torch.equal(chosen.sort(1).values, nearest.sort(1).values)


@pytest.mark.parametrize("top_k", [6, None])
def test_gradients_are_those_of_finite_differences(top_k):
    arguments = [x.requires_grad_() for x in _random(n=12, q=3, ck=4, cv=2)]
    assert torch.autograd.gradcheck(lambda *x: read(*x, top_k), arguments)


@pytest.mark.parametrize("top_k", [6, None])
def test_pieces_change_nothing(top_k):
    memory_key, memory_value, query_key = _random()
    whole = attend(memory_key, query_key, top_k)
    pieces = attend(memory_key, query_key, top_k, chunk_bytes=2 * 50 * 8)
    torch.testing.assert_close(gather(memory_value, pieces), gather(memory_value, whole))
    torch.testing.assert_close(pieces.explained, whole.explained)


@pytest.mark.parametrize("top_k", [6, None])
def test_a_constant_added_to_all_keys_changes_nothing(top_k):
    memory_key, memory_value, query_key = _random()
    shift = 3 * torch.randn(8, dtype=torch.float64)
    moved = read(memory_key + shift, memory_value, query_key + shift, top_k)
    torch.testing.assert_close(moved, read(memory_key, memory_value, query_key, top_k))


def test_frames_stored_twice_change_nothing_without_top_k():
    memory_key, memory_value, query_key = _random()
    twice = read(memory_key.repeat(2, 1), memory_value.repeat(1, 2, 1), query_key, None)
    torch.testing.assert_close(twice, read(memory_key, memory_value, query_key, None))


def test_large_keys_give_numbers():
    memory_key, memory_value, query_key = (x.float() for x in _random())
    answer = read(100 * memory_key, memory_value, 100 * query_key, 6)
    nearest = torch.cdist(query_key, memory_key).argmin(1)
    torch.testing.assert_close(answer, memory_value[:, nearest])


def test_similarity_is_a_distance_up_to_a_term_of_the_query():
    memory_key, _, query_key = _random()
    distance = torch.cdist(query_key, memory_key) ** 2 / math.sqrt(8)
    difference = similarity(memory_key, query_key) + distance
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference))


@pytest.mark.parametrize("top_k", [6, None])
def test_explained_is_one_for_a_known_key_and_falls_with_the_distance(top_k):
    memory_key, _, _ = _random()
    away = torch.stack([memory_key[3], memory_key[3] + 0.1, memory_key[3] + 1.0, memory_key[3] + 100])
    explained = attend(memory_key, away, top_k).explained
    distances = torch.cdist(away, memory_key) ** 2
    torch.testing.assert_close(explained, 1 - distances.amin(1) / distances.mean(1))
    assert explained[0] == pytest.approx(1)
    assert (explained.diff() < 0).all()


@given(seed=st.integers(0, 1000), top_k=st.integers(1, 30), offset=st.sampled_from([0.0, 5.0]))
def test_rough_keys_choose_what_exact_ones_do(seed, top_k, offset):
    rng = torch.Generator().manual_seed(seed)
    memory_key, query_key = (torch.randn(n, 16, generator=rng) + offset for n in (2500, 20))
    exact = attend(memory_key, query_key, top_k)
    rough = RoughKeys.of(memory_key, memory_key[:50].mean(0))
    chosen = attend(memory_key, query_key, top_k, rough=rough)
    assert chosen.index.shape == (20, top_k) and chosen.index.dtype == torch.int64
    # the distances of what was chosen are exact, and next to none of it differs
    distances = torch.cdist(query_key, memory_key)
    best, got = (distances.gather(1, a.index).sort(1).values for a in (exact, chosen))
    torch.testing.assert_close(got, best, rtol=0.02, atol=0)
    assert (got == best).float().mean() > 0.98
    torch.testing.assert_close(chosen.explained, exact.explained)
    torch.testing.assert_close(chosen.weight.sum(1), torch.ones(20))


def test_a_memory_of_bfloat16_values_answers_as_one_of_float32():
    rng = torch.Generator().manual_seed(0)
    exact, rough = Memory(budget=3), Memory(budget=3)
    for t in range(9):
        key, value, mask = (torch.randn(*s, generator=rng) for s in ((90, 8), (2, 90, 3), (2, 90, 1)))
        value = value.bfloat16()
        exact.append(t, key, value.float(), mask, annotated=t == 0)
        rough.append(t, key, value, mask, annotated=t == 0)
    query = torch.randn(40, 8, generator=rng)
    one, other = (memory.gather(memory.attend(query, 5)).float() for memory in (exact, rough))
    torch.testing.assert_close(other, one, atol=0.03, rtol=0.03)


def test_rows_and_maps_are_inverse():
    maps = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(to_map(to_rows(maps), 3, 4), maps)
    assert to_rows(maps)[1, 4 * 1 + 2].tolist() == maps[1, :, 1, 2].tolist()


# --------------------------------------------------------------------------------------------- what is kept


def _store(memory, t, **kind):
    rng = torch.Generator().manual_seed(t)
    key, value, mask = (torch.randn(*s, generator=rng) for s in ((6, 4), (2, 6, 3), (2, 6, 1)))
    memory.append(t, key, value, mask, **kind)
    return key, value, mask


@given(
    budget=st.integers(1, 9),
    recent=st.integers(0, 9),
    annotated=st.sets(st.integers(0, 59), max_size=5),
    temporary=st.booleans(),
    every=st.integers(1, 4),
)
def test_a_bounded_memory_keeps_its_promises(budget, recent, annotated, temporary, every):
    memory = Memory(budget, recent)
    stored = {}
    for t in range(60):
        if t in annotated:
            stored[t] = _store(memory, t, annotated=True)
        elif t % every == 0:
            stored[t] = _store(memory, t)
        elif temporary:
            stored[t] = _store(memory, t, temporary=True)
        else:
            continue
        assert t in memory.frames
        assert {a for a in annotated if a <= t} <= set(memory.frames)
        assert len(memory) == len(set(memory.frames)) <= budget + len(annotated)
    # what is read is what those frames stored
    query = torch.randn(5, 4)
    if stored:
        key = torch.cat([stored[t][0] for t in memory.frames])
        value = torch.cat([stored[t][1] for t in memory.frames], 1)
        mask = torch.cat([stored[t][2] for t in memory.frames], 1)
        attention = memory.attend(query, 3)
        torch.testing.assert_close(memory.gather(attention), read(key, value, query, 3), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(memory.gather_masks(attention), read(key, mask, query, 3), rtol=1e-4, atol=1e-5)


def test_a_temporary_frame_gives_way_to_any_store():
    memory = Memory()
    _store(memory, 0, annotated=True)
    _store(memory, 1, temporary=True)
    _store(memory, 2, temporary=True)
    assert memory.frames == [0, 2]
    _store(memory, 5)
    assert memory.frames == [0, 5]
    _store(memory, 6)
    assert memory.frames == [0, 5, 6]


def test_old_frames_spread_and_recent_ones_stay():
    memory = Memory(budget=16, recent=4)
    _store(memory, 0, annotated=True)
    for t in range(5, 2000, 5):
        _store(memory, t)
    assert memory.frames[-4:] == [1980, 1985, 1990, 1995]
    gaps = [b - a for a, b in zip(memory.frames[:-4], memory.frames[1:-4], strict=False)]
    # twelve old frames over 1980: even spacing would be 165; halving keeps gaps within a factor of two of each other
    assert max(gaps) <= 2.5 * 165


def test_memory_does_not_grow_beyond_its_bound():
    memory = Memory(budget=4, recent=1)
    for t in range(200):
        _store(memory, t)
    assert len(memory._keys) <= 6
