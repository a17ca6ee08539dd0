"""Shortages of memory are told from other errors, and work is repeated until it fits or nothing is left to give."""

import pytest
import torch

from ciri.out_of_memory import is_out_of_memory, repeat_smaller


def test_a_real_shortage_is_recognised():
    with pytest.raises(RuntimeError) as shortage:
        torch.empty(1 << 50)
    assert is_out_of_memory(shortage.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("not enough memory"), KeyError("x")])
def test_other_errors_are_not_shortages(error):
    assert not is_out_of_memory(error)
    calls = []

    def work():
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        repeat_smaller(work, lambda: True)
    assert len(calls) == 1


def test_work_is_repeated_until_it_fits_or_nothing_is_left_to_give():
    size = [16]

    def work(fits):
        if size[0] > fits:
            raise MemoryError
        return size[0]

    def halve():
        size[0] //= 2
        return size[0] > 0

    assert repeat_smaller(lambda: work(5), halve) == 4
    with pytest.raises(MemoryError):
        repeat_smaller(lambda: work(-1), halve)


def test_what_a_failed_call_held_is_gone_before_the_next():
    class Large:
        alive = 0

        def __init__(self):
            Large.alive += 1

        def __del__(self):
            Large.alive -= 1

    seen = []

    def work():
        seen.append(Large.alive)
        large = Large()
        if len(seen) < 4:
            raise MemoryError
        return type(large)

    assert repeat_smaller(work, lambda: True) is Large
    assert seen == [0, 0, 0, 0]
