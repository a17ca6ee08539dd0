"""A training run on disk: checkpoints that survive an accident, and the loop that keeps to a time budget.

A run is a folder::

    run.json              what is trained, with which settings; a folder of another run is refused
    run.lock              held by the process that trains, until it ends
    checkpoints/*.pt      the newest few states, each named by its step
    curves.csv, .png      every logged value
    samples/              pictures that the trainer wrote
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from ciri.errors import CheckpointError, TrainingError
from ciri.progress import OnStep, ignore
from ciri.replacing import replacing
from ciri.training.curves import Curves
from ciri.training.distributed import Team, agree, mean_values, wait_for_all
from ciri.training.lock import lock


class Stateful(Protocol):
    """Anything whose state a checkpoint holds: networks, optimisers, averages."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class RunFolder:
    """The folder of one run; creating it twice with the same settings continues the run.

    Args:
        path: the folder; made if missing.
        settings: what identifies the run (architecture, variant, seed, ...), JSON values.
        keep: how many checkpoints are kept.
        writes: False in all but the first process of a distributed run: the folder is there, and only read.

    Raises:
        TrainingError: the folder belongs to a run with other settings, is in use by another process, or cannot be
            written.
    """

    def __init__(self, path: Path | str, settings: Mapping[str, Any], *, keep: int = 2, writes: bool = True) -> None:
        self.path = Path(path)
        self.keep, self.writes = keep, writes
        self.notes: list[str] = []
        self._unwritten: Callable[[], Any] | None = None
        self.curves = Curves(self.path / "curves.csv")
        if not writes:
            return
        try:
            for folder in (self.checkpoints, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
            lock(self.path)
            self._claim(json.loads(json.dumps(dict(settings))))
        except OSError as error:
            raise TrainingError(f"The run folder {self.path} cannot be made ({error.strerror}).") from error

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def _claim(self, settings: dict[str, Any]) -> None:
        """Write the settings, or compare them with those that are there."""
        file = self.path / "run.json"
        if not file.exists():
            with replacing(file) as part:
                part.write_text(json.dumps(settings, indent=2) + "\n")
            return
        try:
            there = json.loads(file.read_text())
        except ValueError as error:
            raise TrainingError(f"{file} is not readable JSON; start in an empty folder.") from error
        differing = sorted(k for k in {*there, *settings} if there.get(k) != settings.get(k))
        if differing:
            first = differing[0]
            raise TrainingError(
                f"{self.path} holds another run: '{first}' is {there.get(first)!r} there and {settings.get(first)!r} "
                "here. Give another folder, or the same settings to continue that run."
            )

    def saved_steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending; copies that somebody made under other names do not count."""
        return sorted(int(file.stem[5:]) for file in self.checkpoints.glob(f"step_{8 * '[0-9]'}.pt"))

    def save(self, step: int, seconds: float, parts: Mapping[str, Stateful]) -> bool:
        """Write a checkpoint atomically and prune old ones.

        Returns False, with a note, if it could not be written (a full disk): the checkpoints before survive.
        """
        state = {"step": step, "seconds": seconds, **{name: part.state_dict() for name, part in parts.items()}}
        target = self.checkpoints / f"step_{step:08d}.pt"
        try:
            with replacing(target) as part:
                torch.save(state, part)
        except (OSError, RuntimeError) as error:
            self.notes.append(f"The checkpoint of step {step} could not be written ({error}); the one before is kept.")
            return False
        for old in self.saved_steps()[: -self.keep]:
            (self.checkpoints / f"step_{old:08d}.pt").unlink(missing_ok=True)
        return True

    def attempt(self, what: str, write: Callable[[], Any]) -> bool:
        """Write something that training can do without; a failure (a full disk) is noted and does not end it."""
        try:
            write()
        except (OSError, CheckpointError, SafetensorError) as error:
            self.notes.append(f"{what} could not be written ({error}); training went on.")
            return False
        return True

    def write_weights(self, step: int, write: Callable[[], Any]) -> None:
        """Export the weights as they are after a step; a failure is noted, and :meth:`finish` tries once more."""
        self._unwritten = None if self.attempt(f"The weights of step {step}", write) else write

    def finish(self) -> None:
        """Export the weights that could not be written at the last look.

        Raises:
            CheckpointError: they still cannot be written.
        """
        if self._unwritten is None:
            return
        try:
            self._unwritten()
        except (OSError, CheckpointError, SafetensorError) as error:
            raise CheckpointError(
                f"The trained weights could not be written ({error}). Make room, then give the same command again: it "
                f"goes on from the newest checkpoint in {self.checkpoints}."
            ) from error

    def restore(self, parts: Mapping[str, Stateful], device: torch.device | str = "cpu") -> tuple[int, float]:
        """Load the newest readable checkpoint into the parts; return its step and seconds, (0, 0.0) if none.

        Raises:
            TrainingError: the checkpoint holds other parts or other shapes than the run has.
        """
        for step in reversed(self.saved_steps()):
            file = self.checkpoints / f"step_{step:08d}.pt"
            try:
                state = torch.load(file, map_location=device, weights_only=True)
            except Exception as error:  # a torn file raises many kinds: skip it, an older one may be whole
                self.notes.append(f"{file.name} is not readable ({type(error).__name__}); trying the one before.")
                continue
            try:
                for name, part in parts.items():
                    part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise TrainingError(
                    f"{file} is a checkpoint of another run ({str(error).splitlines()[0]}); "
                    "give another folder, or the settings that it was made with."
                ) from error
            if self.writes:
                self.curves.cut(step)
            return int(state["step"]), float(state["seconds"])
        return 0, 0.0


def open_run(path: Path, settings: Mapping[str, Any], team: Team) -> RunFolder:
    """Make or continue a run's folder; only the first process of a team writes into it, and does so first."""
    run = RunFolder(path, settings) if team.main else None
    wait_for_all()
    return run or RunFolder(path, settings, writes=False)


#: One optimisation step: (steps done so far, progress of the whole plan in [0, 1]) -> losses to log, 0-d tensors.
StepFunction = Callable[[int, float], Mapping[str, Tensor | float]]


def fit(
    run: RunFolder,
    parts: Mapping[str, Stateful],
    step: StepFunction,
    *,
    steps: int,
    minutes: float | None = None,
    plan_minutes: float | None = None,
    log_every: int = 20,
    save_minutes: float = 2.0,
    look_every: int = 500,
    look: Callable[[int], Mapping[str, float]] | None = None,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    on_step: OnStep = ignore,
) -> int:
    """Train until the steps or the minutes are used up; return the number of steps done in all calls together.

    A schedule should depend on ``progress`` only: it runs from 0 to 1 over the plan, whether steps or time end it,
    and continues where an interrupted run was.

    Args:
        run: where the state is kept; training continues from its newest checkpoint.
        parts: networks, optimisers and averages by name; all that a checkpoint has to hold.
        step: does one optimisation step.
        steps: steps of the whole plan.
        minutes: stop this call after so many minutes; None = no limit.
        plan_minutes: minutes of the whole plan, all calls together; infinite: the steps alone are the plan. A call
            after its end trains no more, and looks once. Default: ``minutes``; a call after their end says so, and
            trains on at progress 1.
        log_every: steps between rows of the curves (means over these steps); losses are checked there.
        save_minutes: minutes between checkpoints.
        look_every, look: every so many steps, and at the end, ``look(steps done)`` validates, writes samples and
            returns values to log.
        device: where restored tensors go.
        say: told a sentence where the schedule is over.
        on_step: progress callback, in shares of the plan (steps, or minutes where these end first); if it raises,
            the state is saved first.

    Raises:
        TrainingError: a loss is not a number. The message names it and the step of the last good checkpoint.
    """
    done, before = run.restore(parts, device)
    began = saved = time.monotonic()
    plan = 60 * (plan_minutes or minutes or math.inf)
    pending: dict[str, list[Tensor | float]] = {}
    looked = -1

    def seconds() -> float:
        return before + time.monotonic() - began

    def log(*, together: bool) -> None:
        _log(run, done, pending, device if together else None)

    def save() -> None:
        if run.writes:
            run.save(done, seconds(), parts)

    def progress() -> float:
        return min(1.0, max(done / steps, seconds() / plan))

    def over() -> bool:
        return plan_minutes is not None and seconds() >= plan

    # not to the second: a call that reads its data more quickly trains a little longer
    if plan_minutes is None and minutes is not None and done < steps and before >= 0.95 * plan:
        say(
            f"The schedule of {plan / 60:.3g} minutes (--minutes) ended with an earlier call: this one trains on with "
            "the last learning rate. For a longer schedule give --plan-minutes, the minutes of all calls, or --steps."
        )
    out_of_time = over()
    try:
        while done < steps and not out_of_time:
            losses = step(done, progress())
            done += 1
            for name, value in losses.items():
                pending.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)
            if done % log_every == 0:
                log(together=True)
            if look is not None and run.writes and done % look_every == 0:
                run.curves.add(done, look(done))
                looked = done
            now = time.monotonic()
            # the processes' clocks differ: the first one's decides, so that all save and stop at the same step
            late = over() or (minutes is not None and now - began > 60 * minutes)
            due, out_of_time = agree((now - saved > 60 * save_minutes, late), device)
            if due:
                log(together=True)
                save()
                saved = time.monotonic()
            on_step(round(progress() * steps), steps)
    except TrainingError:
        raise
    except BaseException:
        # the other processes may be elsewhere: nothing that waits for them
        log(together=False)
        save()
        raise
    log(together=True)
    # before the last look, which may take minutes, and may be interrupted
    save()
    if look is not None and run.writes and looked != done:
        run.curves.add(done, look(done))
    if run.writes:
        run.curves.draw()
    return done


def _log(
    run: RunFolder, done: int, pending: dict[str, list[Tensor | float]], together: torch.device | str | None
) -> None:
    """Add the means of the pending losses to the curves and forget them; refuse what is not a number.

    ``together`` is the device on which the means of all processes are taken; None: of this one only.
    """
    means = {name: float(torch.stack([torch.as_tensor(v).float() for v in vs]).mean()) for name, vs in pending.items()}
    pending.clear()
    if together is not None:
        # what is not a number in one process is not in the mean, so all of them stop
        means = mean_values(means, together)
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        good = run.saved_steps()
        raise TrainingError(
            f"The loss '{bad[0]}' became {means[bad[0]]} before step {done}, so training stopped. "
            + (f"The last good state is step {good[-1]} in {run.checkpoints}; " if good else "No state was saved yet; ")
            + "continue with a lower learning rate."
        )
    if means and run.writes:
        run.curves.add(done, means)
