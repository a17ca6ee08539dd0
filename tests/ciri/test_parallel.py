"""Two pieces of work at once: results, modes, progress, and what happens when either is stopped."""

import threading

import pytest
import torch

from ciri.parallel import both, helper
from ciri.progress import ignore


def test_both_results_and_progress_of_the_first_only():
    seen, threads = [], []

    def work(answer):
        def run(on_step):
            threads.append(threading.get_ident())
            on_step(answer, 2)
            return answer

        return run

    assert both(work(1), work(2), lambda done, total: seen.append(done)) == (1, 2)
    assert seen == [1] and len(set(threads)) == 2 and threading.get_ident() in threads


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_are_the_callers(mode):
    with mode():
        expected = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        _, got = both(lambda _: None, lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()), ignore)
        assert got == expected


def test_tensors_of_either_thread_can_be_written_to_under_inference_mode():
    with torch.inference_mode():
        here = torch.zeros(3)
        _, there = both(lambda _: None, lambda _: here.add_(1).clone(), ignore)
        there += 1
    assert there.tolist() == [2, 2, 2] and here.tolist() == [1, 1, 1]


def test_stopping_the_first_ends_the_second():
    started, ended = threading.Event(), threading.Event()

    def endless(on_step):
        started.set()
        try:
            while True:
                on_step(0, 1)
        finally:
            ended.set()

    def stopped(on_step):
        started.wait(10)
        on_step(1, 2)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        both(stopped, endless, interrupt)
    assert ended.is_set()


def test_an_error_of_the_second_reaches_the_caller():
    def fail(on_step):
        raise ValueError("there")

    with pytest.raises(ValueError, match="there"):
        both(lambda _: 1, fail, ignore)


def test_the_helper_keeps_order_and_is_joined():
    done = []
    with helper() as submit:
        for number in range(20):
            submit(lambda n=number: done.append(n))
    assert done == list(range(20))
