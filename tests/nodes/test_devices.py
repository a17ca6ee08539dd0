"""Inputs of a node on two devices, as ComfyUI's --gpu-only gives them: loaded on the processor, handed on by the card.

The card is pretended, so that the pictures can be compared bit for bit with those of a run on one device.
"""

from unittest import mock

import pytest
import torch
from torch import Tensor

from ciri.inpainting.flow import FlowBackbone
from ciri.propagation.flow import FlowPropagator
from tests.nodes.models import Grey, Red
from tests.nodes.test_behaviour import clip, disc
from tests.pretended_gpu import pretended_gpu

BATCH, OTHER = disc().repeat(4, 1, 1), disc(radius=3).roll(20, 1)[None]
KEY = {"key_masks": disc(radius=7)[None], "key_frames": "3"}
#: name -> node, and its inputs; those that are tensors are put on either device in turn.
NODES = {
    "further objects": ("PropagateMask", {"images": clip(), "first_mask": disc(), "further_objects": OTHER}),
    "key masks": ("PropagateMask", {"images": clip(), "first_mask": disc(), "keep": OTHER, **KEY}),
    "keep": ("PropagateMask", {"first_mask": disc(), "images": clip(), "keep": OTHER}),
    "bridge": ("BridgeMasks", {"images": clip(), "masks": BATCH}),
    "attention": ("ComplementaryAttention", {"images": clip(), "masks": BATCH, "first_mask": disc(), "kept": BATCH}),
    "fuse": ("FuseInactivation", {"masks": BATCH, "attention": BATCH * 0.5, "images": clip()}),
    "fuse without images": ("FuseInactivation", {"masks": BATCH, "attention": BATCH * 0.5}),
    "inpaint": ("InactivationInpaint", {"images": clip(), "inactivation": BATCH}),
    "overlay": ("MaskOverlay", {"images": clip(), "masks": BATCH}),
    "compare": ("CompareVideo", {"first": clip(), "second": clip(seed=1)}),
    "detect": ("DetectResidue", {"images": clip(), "inpainted": clip(), "first_mask": disc(), "masks": BATCH}),
    "refine": ("RefinePropagator", {"images": clip(), "inpainted": clip(), "masks": BATCH, "first_mask": disc()}),
    "evaluate": (
        "EvaluateRemoval",
        {"result": clip(), "reference": clip(seed=1), "tracked_masks": BATCH, "masks": BATCH},
    ),
}


def models(node):
    given = {
        "PropagateMask": {"propagator": FlowPropagator()},
        "BridgeMasks": {"propagator": FlowPropagator()},
        "ComplementaryAttention": {"backbone": FlowBackbone()},
        "InactivationInpaint": {"backbone": Grey()},
        "DetectResidue": {"detector": Red()},
        "RefinePropagator": {"detector": Red(), "backbone": Grey()},
    }
    return given.get(node, {})


@pytest.mark.parametrize("on_card", [0, 1], ids=["first on the card", "second on the card"])
@pytest.mark.parametrize("case", NODES)
def test_inputs_may_be_on_two_devices(run, case, on_card):
    import comfy.model_management as management

    node, inputs = NODES[case]
    expected = run(f"CIRI_{node}", **inputs, **models(node)).args
    tensors = [name for name, value in inputs.items() if isinstance(value, Tensor)]
    with pretended_gpu() as gpu, mock.patch.object(management, "intermediate_device", return_value=gpu):
        moved = {name: inputs[name].to(gpu) for name in tensors[on_card::2]}
        got = run(f"CIRI_{node}", **{**inputs, **moved}, **models(node)).args
        assert all(made.device == gpu for made in got if isinstance(made, Tensor))
        got = [made.cpu() if isinstance(made, Tensor) else made for made in got]
    for ours, theirs in zip(got, expected, strict=True):
        if isinstance(theirs, Tensor):
            assert torch.equal(ours, theirs)
