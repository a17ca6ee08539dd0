"""Samples that other processes make: what ends them is said, in one line, and nothing is lost between two looks."""

import os
import queue
import signal

import cv2
import numpy as np
import pytest

from ciri.errors import TrainingError
from ciri.training import beside
from ciri.training.attention import Settings, train_attention
from ciri.training.beside import Makers, makers
from ciri.training.sample_sources import SampleFiles, SamplePool, SampleStream


@pytest.fixture
def unreadable(tmp_path):
    """Data whose frames are no pictures."""
    for clip in "ab":
        folder = tmp_path / "data/JPEGImages/480p" / clip
        folder.mkdir(parents=True)
        (folder / "00000.jpg").write_bytes(b"torn")
    return tmp_path / "data"


def test_a_training_says_why_its_processes_gave_up(unreadable, tmp_path, capfd):
    with pytest.raises(TrainingError) as raised:
        train_attention(Settings(unreadable, tmp_path / "run", workers=1))
    assert str(raised.value).startswith("Too few samples to train on were made: No scene could be made; last trouble: ")
    assert "\n" not in str(raised.value) and "Traceback" not in capfd.readouterr().err


def interrupt(settings, number, count, go_on):
    os.kill(os.getpid(), signal.SIGINT)
    raise TrainingError(f"{settings}: process {number} of {count} outlived Ctrl-C")


def test_ctrl_c_is_the_training_s_and_no_traceback_of_its_processes(capfd):
    with pytest.raises(TrainingError, match="told: process 0 of 1 outlived"), makers(interrupt, "told", 1) as others:
        others.wait(lambda: False)
    assert "Traceback" not in capfd.readouterr().err


def test_workers_of_a_loader_say_it_in_one_line(unreadable, tmp_path):
    stream = SampleStream(unreadable, (32, 48), 4, seed=1)
    with pytest.raises(TrainingError, match=r"^Not all samples could be made and kept: No composite could be .*\.$"):
        SampleFiles(stream, tmp_path / "kept", 1, workers=1)
    pool = SamplePool(stream, workers=1, capacity=1, device="cpu")
    with pytest.raises(TrainingError, match=r"^The sample workers failed: No composite could be made; .*\.$"):
        pool.wait(1)
    pool.close()


def test_a_full_disk_is_named_and_not_a_traceback(tmp_path, monkeypatch):
    for clip in "ab":
        folder = tmp_path / "data/JPEGImages/480p" / clip
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "00000.jpg"), np.full((32, 48, 3), 90, np.uint8))
    full = OSError(28, "No space left on device")

    def write(*_):
        raise full

    monkeypatch.setattr("ciri.training.sample_sources.save_file", write)
    with pytest.raises(TrainingError, match="kept: .*No space left"):
        SampleFiles(SampleStream(tmp_path / "data", (32, 48), 4, seed=1), tmp_path / "kept", 1)
    with pytest.raises(TrainingError, match="cannot be kept .*No space left"), makers(write, None, 0):
        pass


def test_what_is_written_between_two_looks_counts():
    made = []

    class Ending:
        def is_alive(self):
            made.append("the last one")
            return False

    Makers([Ending()], queue.SimpleQueue()).wait(lambda: bool(made))


def test_nothing_is_waited_for_that_will_not_come():
    with pytest.raises(TrainingError, match="no more to be made"):
        Makers([], queue.SimpleQueue()).wait(lambda: False)


def test_the_last_line_of_a_traceback_is_the_reason():
    text = "Caught X in worker 0.\nOriginal Traceback (most recent call last):\n  File\nciri.errors.X: no clip: a, b."
    assert beside.reason(TrainingError(text)) == "no clip: a, b."
    assert beside.reason(TrainingError("no clip: a.")) == "no clip: a."
