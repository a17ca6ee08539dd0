"""The node of the propagator that ships: its weights, its options, and masks under ComfyUI's inference mode."""

import pytest
import torch

from ciri.errors import CheckpointError, CiriError
from ciri.propagation.lite import SHORT_SIDE, LiteNetwork
from ciri.training.propagator_report import export

OPTIONS = {"weights": "shipped", "precision": "fp32", "memory_every": 3, "memory_frames": 9, "working_size": 240}


def _listed(nodes):
    inputs = nodes["CIRI_PropagatorLite"].GET_SCHEMA().inputs
    return next(i for i in inputs if i.id == "weights").options


def test_the_shipped_weights_follow_an_object(run):
    with torch.inference_mode():
        (propagator,) = run("CIRI_PropagatorLite", **OPTIONS).args
        assert propagator.name == "lite" and propagator.short_side == 240 and propagator.guide.name == "flow"
        assert (propagator.policy.every, propagator.policy.budget) == (3, 9)
        assert not any(p.is_inference() for p in propagator.parameters_to_refine())
        noise = torch.rand(1, 120, 160, 3, generator=torch.Generator().manual_seed(0))
        images = torch.nn.functional.avg_pool2d(noise.movedim(-1, 1), 5, 1, 2).movedim(1, -1).repeat(6, 1, 1, 1)
        masks = torch.zeros(6, 120, 160)
        for t in range(6):
            masks[t, 40:80, 30 + 6 * t : 70 + 6 * t] = 1
            images[t, 40:80, 30 + 6 * t : 70 + 6 * t] = torch.tensor([0.9, 0.3, 0.1])
        followed = run("CIRI_PropagateMask", images=images, first_mask=masks[:1], propagator=propagator).args[0]
    overlap = ((followed > 0.5) & (masks > 0.5)).sum((1, 2)) / ((followed > 0.5) | (masks > 0.5)).sum((1, 2))
    assert float(overlap.min()) > 0.85


def test_the_node_looks_at_the_size_that_the_library_does(nodes):
    size = next(i for i in nodes["CIRI_PropagatorLite"].GET_SCHEMA().inputs if i.id == "working_size")
    assert size.default == SHORT_SIDE


def test_other_weights_are_listed_by_content_and_used(nodes, run, folder):
    assert _listed(nodes) == ["shipped"]
    export(LiteNetwork(folded=False), folder / "renamed.safetensors", {"steps": "0"})
    import folder_paths

    folder_paths.filename_list_cache.pop("ciri", None)
    assert _listed(nodes) == ["shipped", "renamed.safetensors"]
    (propagator,) = run("CIRI_PropagatorLite", **{**OPTIONS, "weights": "renamed.safetensors"}).args
    # an untrained head adds nothing
    assert not propagator.network.decoder.predict4.weight.any()


def test_a_missing_file_is_named_and_what_to_do(run, folder):
    words = "'gone.safetensors' is not there. Choose 'shipped', .*'python -m ciri train propagator' made into "
    with pytest.raises(CheckpointError, match=words + str(folder)):
        run("CIRI_PropagatorLite", **{**OPTIONS, "weights": "gone.safetensors"})


@pytest.mark.parametrize("size", [-5, 0, 16])
def test_a_size_at_which_nothing_is_seen_is_refused(run, size):
    """ComfyUI checks the limits of a number that is typed in, not of one that comes from another node."""
    with pytest.raises(CiriError, match=f"working_size is {size}; expected a whole number from 128"):
        run("CIRI_PropagatorLite", **{**OPTIONS, "working_size": size})
