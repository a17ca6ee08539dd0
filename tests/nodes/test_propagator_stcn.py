"""The STCN node: which files it lists, what it hands on, what it says without a file."""

import pytest
import torch

from ciri.errors import CheckpointError
from ciri.propagation.stcn import STCN


@pytest.fixture(scope="module")
def state():
    """The right keys and shapes in a small file: all tensors are views of one."""
    expected = STCN().state_dict()
    pool = torch.full((max(value.numel() for value in expected.values()),), 0.01, dtype=torch.float16)
    return {
        key: pool[: value.numel()].view(value.shape) if value.is_floating_point() else value
        for key, value in expected.items()
    }


def _listed(nodes):
    inputs = nodes["CIRI_PropagatorSTCN"].GET_SCHEMA().inputs
    return next(i for i in inputs if i.id == "weights").options


def test_it_lists_files_by_content(nodes, folder, state):
    torch.save({"network": state}, folder / "renamed.pth")
    torch.save({"encoder.weight": torch.ones(2)}, folder / "stcn.pth")
    assert _listed(nodes) == ["renamed.pth"]


def test_it_hands_on_a_propagator_that_can_be_refined(nodes, run, folder, state):
    torch.save(state, folder / "stcn.pth")
    (propagator,) = run(
        "CIRI_PropagatorSTCN",
        weights="stcn.pth",
        precision="fp32",
        memory_every=3,
        remember_last=True,
        memory_frames=9,
        working_size=240,
    ).args
    assert propagator.name == "stcn" and propagator.short_side == 240
    assert (propagator.policy.every, propagator.policy.include_last, propagator.policy.budget) == (3, True, 9)
    assert not any(p.is_inference() for p in propagator.parameters_to_refine())


def test_without_a_file_it_names_model_and_folder(nodes, run, folder):
    (nothing,) = _listed(nodes)
    with pytest.raises(CheckpointError, match="STCN") as refused:
        run("CIRI_PropagatorSTCN", weights=nothing)
    assert str(folder) in str(refused.value)


def test_a_broken_file_is_refused_in_words(run, folder, state):
    torch.save(state, folder / "stcn.pth")
    content = (folder / "stcn.pth").read_bytes()
    (folder / "stcn.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="stcn.pth"):
        run("CIRI_PropagatorSTCN", weights="stcn.pth")
