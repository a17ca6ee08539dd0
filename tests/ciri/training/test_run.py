import csv
import itertools
import math
import os
import pathlib
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ciri.errors import CheckpointError, TrainingError
from ciri.training.distributed import Team
from ciri.training.run import RunFolder, fit, open_run

ROOT = pathlib.Path(__file__).parents[3]

SETTINGS = {"what": "line", "seed": 1}


def problem(run, **options):
    """Fit y = 2x with Adam; every step's data is a function of the step alone."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    seen = []

    def step(index, progress):
        seen.append((index, progress))
        x = torch.rand(8, 1, generator=torch.Generator().manual_seed(index))
        loss = (model(x) - 2 * x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {"loss": loss}

    parts = {"model": model, "optimiser": optimiser}
    return model, seen, lambda **more: fit(run, parts, step, **{"log_every": 1, **options, **more})


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by 5 ms whenever it is asked: a machine that stalls changes nothing."""
    ticks = itertools.count()
    monkeypatch.setattr("ciri.training.run.time", SimpleNamespace(monotonic=lambda: 0.005 * next(ticks)))


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole, _, go = problem(RunFolder(tmp_path / "whole", SETTINGS))
    go(steps=12)

    class Stop(Exception):
        pass

    def stop_at_5(done, total):
        if done == 5:
            raise Stop

    _, _, go = problem(RunFolder(tmp_path / "halved", SETTINGS))
    with pytest.raises(Stop):
        go(steps=12, on_step=stop_at_5)
    resumed, seen, go = problem(RunFolder(tmp_path / "halved", SETTINGS))
    assert go(steps=12) == 12
    assert [i for i, _ in seen] == list(range(5, 12))
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    one, two = (RunFolder(tmp_path / n, SETTINGS).curves.read()["loss"] for n in ("whole", "halved"))
    assert one == two and [s for s, _ in one] == list(range(1, 13))


def test_minutes_end_a_call_and_progress_follows_the_clock(tmp_path, clock):
    _, seen, go = problem(RunFolder(tmp_path, SETTINGS))
    shares = []
    done = go(steps=10**9, minutes=0.2 / 60, on_step=lambda step, total: shares.append(step / total))
    assert shares == sorted(shares) and 0.5 < shares[-1] <= 1  # of the plan, which time ends long before the steps
    assert 0 < done < 10**9 and len(seen) == done
    assert seen[-1][1] > 0.5 and all(0 <= p <= 1 for _, p in seen)


def test_a_plan_that_is_over_is_looked_at_and_not_trained_on(tmp_path, clock):
    looks = []
    plan = {
        "steps": 10**9,
        "plan_minutes": 0.2 / 60,
        "look": lambda step: looks.append(step) or {},
        "look_every": 10**9,
    }
    _, seen, go = problem(RunFolder(tmp_path, SETTINGS))
    done = go(**plan)
    assert len(seen) == done and 0.5 < seen[-1][1] <= 1
    _, seen, go = problem(RunFolder(tmp_path, SETTINGS))
    assert go(**plan) == done and not seen and looks == [done, done]
    go(**{**plan, "plan_minutes": 0.4 / 60})  # a longer plan goes on
    assert seen and seen[0][0] == done


def test_a_call_after_the_minutes_of_the_schedule_says_so_and_trains_on(tmp_path, clock):
    said = []
    for call in range(2):
        _, seen, go = problem(RunFolder(tmp_path, SETTINGS))
        go(steps=10**9, minutes=0.2 / 60, say=said.append)
        assert seen and len(said) == call
    assert "The schedule of 0.00333 minutes (--minutes) ended with an earlier call" in said[0]
    assert all(word in said[0] for word in ("trains on with the last learning rate", "--plan-minutes", "--steps"))
    assert seen[0][1] == 1


def test_minutes_only_end_a_call_where_the_steps_are_the_plan(tmp_path, clock):
    said, before = [], -1
    for _ in range(2):
        _, seen, go = problem(RunFolder(tmp_path, SETTINGS))
        go(steps=10**6, minutes=0.1 / 60, plan_minutes=math.inf, say=said.append)
        assert seen[0][0] == before + 1 and all(progress == step / 10**6 for step, progress in seen)
        before = seen[-1][0]
    assert not said


def test_an_interruption_of_the_last_look_costs_no_step(tmp_path):
    def interrupt(step):
        raise KeyboardInterrupt

    _, _, go = problem(RunFolder(tmp_path, SETTINGS))
    with pytest.raises(KeyboardInterrupt):
        go(steps=3, look=interrupt)
    assert RunFolder(tmp_path, SETTINGS).saved_steps() == [3]


def test_checkpoints_are_pruned(tmp_path):
    run = RunFolder(tmp_path, SETTINGS, keep=2)
    for step in (1, 2, 3):
        assert run.save(step, 0.0, {})
    assert run.saved_steps() == [2, 3]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    model, _, go = problem(RunFolder(tmp_path, SETTINGS))
    go(steps=3)

    def full(state, file):
        with open(file, "wb") as stream:
            stream.write(b"half")
        raise OSError(28, "No space left on device")

    run = RunFolder(tmp_path, SETTINGS)
    monkeypatch.setattr(torch, "save", full)
    assert not run.save(4, 1.0, {"model": model})
    assert "could not be written" in run.notes[0]
    monkeypatch.undo()
    assert [f.name for f in run.checkpoints.iterdir()] == ["step_00000003.pt"]
    assert run.restore({"model": model})[0] == 3


def test_copies_beside_the_checkpoints_are_left_alone(tmp_path):
    run = RunFolder(tmp_path, SETTINGS, keep=1)
    for name in ("step_00000009 copy.pt", "step_best.pt"):
        (run.checkpoints / name).touch()
    assert run.save(3, 0.0, {}) and run.save(4, 0.0, {})
    assert run.saved_steps() == [4] and len(list(run.checkpoints.iterdir())) == 3


def test_a_full_disk_leaves_no_half_folder_and_no_half_curves(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def half(file, text):
        with open(file, "w") as stream:
            stream.write(text[: len(text) // 2])
        full()

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_text", half)
        with pytest.raises(TrainingError, match="cannot be made .No space left on device"):
            RunFolder(tmp_path, SETTINGS)
    curves = RunFolder(tmp_path, SETTINGS).curves
    for step in (1, 2):
        curves.add(step, {"l1": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(csv, "writer", full)
        curves.cut(1)
    assert curves.read() == {"l1": [(1, 0.5), (2, 0.5)]}
    curves.cut(1)
    assert curves.read() == {"l1": [(1, 0.5)]}


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)
    model = torch.nn.Linear(1, 1)
    run.save(1, 5.0, {"model": model})
    (run.checkpoints / "step_00000002.pt").write_bytes(b"torn")
    assert run.restore({"model": model}) == (1, 5.0)


def test_nan_stops_and_keeps_the_last_good_state(tmp_path):
    model = torch.nn.Linear(1, 1)
    run = RunFolder(tmp_path, SETTINGS)

    def step(index, progress):
        return {"loss": torch.tensor(float("nan") if index == 4 else 1.0)}

    fit(run, {"model": model}, step, steps=3, log_every=1)
    with pytest.raises(TrainingError, match=r"'loss' became nan before step 5.*last good state is step 3"):
        fit(run, {"model": model}, step, steps=9, log_every=1)
    assert run.saved_steps() == [3]


def test_a_bad_state_is_not_saved_between_two_looks_at_the_losses(tmp_path):
    run = RunFolder(tmp_path, SETTINGS, keep=9)

    def step(index, progress):
        return {"loss": torch.tensor(float("inf") if index == 3 else 1.0)}

    with pytest.raises(TrainingError, match=r"'loss' became inf before step 4.*last good state is step 3"):
        fit(run, {"model": torch.nn.Linear(1, 1)}, step, steps=9, log_every=100, save_minutes=0)
    assert run.saved_steps() == [1, 2, 3]


def test_what_training_can_do_without_may_fail(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)

    def full():
        raise OSError(28, "No space left on device")

    assert run.attempt("The picture", lambda: None) and not run.notes
    assert not run.attempt("The picture", full)
    assert "The picture could not be written" in run.notes[0] and "No space left" in run.notes[0]
    with pytest.raises(ZeroDivisionError):
        run.attempt("A mistake", lambda: 1 / 0)


def test_weights_are_tried_again_at_the_end(tmp_path):
    run, tries = RunFolder(tmp_path, SETTINGS), []

    def write():
        tries.append(len(tries))
        if len(tries) < 3:
            raise OSError(28, "No space left on device")

    run.finish()
    run.write_weights(1, write)
    assert tries == [0] and "The weights of step 1 could not be written" in run.notes[0]
    with pytest.raises(CheckpointError, match="No space left on device.*same command again.*checkpoints"):
        run.finish()
    run.finish()
    assert tries == [0, 1, 2]
    run.write_weights(2, write)
    run.finish()
    assert tries == [0, 1, 2, 3]


def test_a_run_that_is_over_is_looked_at_once(tmp_path):
    looks = []
    options = {"steps": 4, "look_every": 2, "look": lambda step: looks.append(step) or {}}
    for _ in range(2):
        problem(RunFolder(tmp_path, SETTINGS))[2](**options)
    assert looks == [2, 4, 4]


def test_a_reader_of_a_run_writes_nothing(tmp_path):
    run = RunFolder(tmp_path / "run", SETTINGS)
    run.curves.add(1, {"loss": 1.0})
    run.save(1, 2.0, {})
    run.curves.add(2, {"loss": 0.5})
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    reader = RunFolder(tmp_path / "run", SETTINGS, writes=False)
    assert reader.restore({}) == (1, 2.0)
    assert fit(reader, {}, lambda n, p: {"loss": 0.1}, steps=3, log_every=1, save_minutes=0) == 3
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    RunFolder(tmp_path / "none", SETTINGS, writes=False)
    assert not (tmp_path / "none").exists()


def test_a_folder_of_another_run_is_refused(tmp_path):
    RunFolder(tmp_path, SETTINGS)
    with pytest.raises(TrainingError, match="'seed' is 1 there and 2 here"):
        RunFolder(tmp_path, {**SETTINGS, "seed": 2})


#: Opens a run's folder, starts a process of its own as those that make samples are, and goes on until it is killed.
TRAINS = """
import multiprocessing, sys, time
from ciri.training.run import RunFolder
RunFolder(sys.argv[1], {"what": "line", "seed": 1})
if "fork" in multiprocessing.get_all_start_methods():
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid, flush=True)
print("trains", flush=True)
time.sleep(60)
"""


def test_two_processes_do_not_train_in_one_folder_and_a_killed_one_blocks_nobody(tmp_path):
    command = [sys.executable, "-c", TRAINS, str(tmp_path / "run")]
    workers = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            while (line := other.stdout.readline().strip()) != "trains":
                workers.append(int(line))
            with pytest.raises(TrainingError, match=f"Another training is writing into .*run .process {other.pid} on"):
                RunFolder(tmp_path / "run", SETTINGS)
            RunFolder(tmp_path / "another", SETTINGS)
            # of several processes of one training, only the first writes
            assert not open_run(tmp_path / "run", SETTINGS, Team(1, 2, "cpu")).writes
            other.kill()
            other.wait()
            run = RunFolder(tmp_path / "run", SETTINGS)
            assert RunFolder(tmp_path / "run", SETTINGS).save(1, 0.0, {}) and run.saved_steps() == [1]
        finally:
            other.kill()
            for worker in workers:
                os.kill(worker, signal.SIGKILL)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)
    run.save(1, 0.0, {"model": torch.nn.Linear(2, 1)})
    with pytest.raises(TrainingError, match="checkpoint of another run"):
        run.restore({"model": torch.nn.Linear(1, 1)})


def test_curves_are_cut_at_the_restored_step_and_drawn(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)
    for step in range(1, 6):
        run.curves.add(step, {"loss": 1 / step, "psnr": step})
    run.save(3, 0.0, {})
    run.restore({})
    assert run.curves.read()["psnr"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    run.curves.draw()
    assert (tmp_path / "curves.png").stat().st_size > 1000
