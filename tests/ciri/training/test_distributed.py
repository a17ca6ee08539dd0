"""Two processes on one machine (gloo) against one process with the doubled batch."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ciri.errors import TrainingError
from ciri.training.curves import Curves
from ciri.training.distributed import average_gradients, join, team_mean
from ciri.training.sample_sources import SampleStream
from tests.ciri.training import distributed_worker as worker
from tests.ciri.training import test_data as pack
from tests.ciri.training.tiny_network import write_tiny

ROOT = pathlib.Path(__file__).parents[3]
STEPS = 3


def environment(**more):
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return {**own, **{name: str(value) for name, value in more.items()}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pack.write_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """The folder in which two processes left what they found."""
    out = tmp_path_factory.mktemp("pair")
    write_tiny(out / "tiny.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, worker.__file__, str(data), str(out), str(STEPS)]
    told = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(command, env=environment(RANK=r, LOCAL_RANK=r, **told), stderr=subprocess.PIPE, text=True)
        for r in (0, 1)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return out


def test_two_processes_lose_what_one_does_with_the_doubled_batch(pair, data):
    expected, trainer = worker.train(data, range(4), STEPS)
    found = [torch.load(pair / f"rank{rank}.pt") for rank in (0, 1)]
    assert found[0]["logged"] == found[1]["logged"] and len(expected) == STEPS
    for own, theirs in zip(expected, found[0]["logged"], strict=True):
        assert {"l1", "gradient", "psnr", "critic", "adversarial", "gradient norm"} <= set(own)
        assert theirs == pytest.approx(own, rel=2e-3, abs=1e-5)
    for part, module in (("weights", trainer.network), ("critic", trainer.critic)):
        for name, value in module.state_dict().items():
            assert torch.equal(found[0][part][name], found[1][part][name]), name
            torch.testing.assert_close(found[0][part][name], value, rtol=0, atol=3e-4, msg=name)
    # the comparison can fail: other samples give other losses
    others, _ = worker.train(data, (0, 1), 1)
    assert others[0]["l1"] != pytest.approx(expected[0]["l1"], rel=2e-3)


def test_the_recipe_for_published_backbones_does_the_same_in_two_processes(pair, data, tmp_path):
    alone = worker.fine_tune(data, pair / "tiny.safetensors", tmp_path, 2)
    expected, found = (Curves(folder / "curves.csv").read() for folder in (tmp_path, pair / "published"))
    for name in ("l1", "critic", "adversarial", "gradient norm", "beta", "inactivated share", "held back psnr"):
        assert len(expected[name]) == (1 if name.startswith("held") else 3)
        for own, theirs in zip(expected[name], found[name], strict=True):
            assert theirs == pytest.approx(own, rel=1e-3), name
    one, two = load_file(alone), load_file(pair / "published/tiny_ciri.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4, msg=name)


def test_gradients_that_some_lack_are_averaged_and_missing_ones_stay_missing(pair):
    for rank in (0, 1):
        facts = json.loads((pair / f"rank{rank}.json").read_text())
        assert facts["one"] == [1.0, 2.0] and facts["none"] is None


def test_all_stop_where_one_has_no_number_and_the_first_one_writes(pair):
    for rank in (0, 1):
        said = json.loads((pair / f"rank{rank}.json").read_text())["said"]
        assert "'loss' became nan before step 5" in said and "last good state is step 4" in said
    # the mean of both processes, each step once
    assert Curves(pair / "run/curves.csv").read()["loss"] == [(step, step - 0.5) for step in (1, 2, 3, 4)]


def test_torchrun_trains_the_backbone(data, tmp_path):
    small = "--batch 1 --window 3 --size 48x32 --length 4 --channels 8,8,16,16 --deep 1 --held-back 2 --workers 0"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ciri"]
    run = f"train backbone --data {data} --out {tmp_path / 'run'} --steps 2 --device cpu {small}".split()
    done = subprocess.run([*command, *run], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/backbone_lite_ciri.safetensors").exists()
    assert [file.name for file in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000002.pt"]
    assert [file.name for file in (tmp_path / "run/samples").iterdir()] == ["0000002.png"]
    assert done.stderr.count("copying alone") == 1


def test_streams_of_the_processes_are_disjoint(data):
    seen = []
    for rank in range(3):
        stream = SampleStream(data, (32, 48), 3, seed=1, start=2, share=(rank, 3))
        for number in range(2):
            numbers = stream.numbers(number, 2)
            seen += [next(numbers) for _ in range(5)]
    assert sorted(seen) == list(range(6, 36))
    alone = SampleStream(data, (32, 48), 3, seed=1, start=7).numbers(0, 1)
    assert [next(alone) for _ in range(3)] == [7, 8, 9]


def test_one_process_changes_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as team:
        assert team.main and team.size == 1
        parameter = torch.nn.Parameter(torch.zeros(1))
        average_gradients([parameter])
        assert parameter.grad is None and float(team_mean(torch.tensor(3.0))) == 3


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(TrainingError, match="torchrun"), join("cpu"):
        pass
