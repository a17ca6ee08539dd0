"""Odd input works, bad input is answered in words (design: "when something is wrong")."""

import traceback

import pytest
import torch

from ciri.errors import CiriError
from ciri.inpainting.flow import FlowBackbone
from tests.nodes.models import Grey, Hold
from tests.nodes.test_behaviour import clip, disc


def propagate(run, images=None, mask=None, **more):
    images = clip() if images is None else images
    mask = disc()[None] if mask is None else mask
    return run("CIRI_PropagateMask", images=images, first_mask=mask, propagator=Hold(), **more)


def inpaint(run, images=None, mask=None, backbone=None):
    images = clip() if images is None else images
    mask = disc()[None] if mask is None else mask
    return run("CIRI_InactivationInpaint", images=images, inactivation=mask, backbone=backbone or Grey())


@pytest.mark.parametrize("node", [propagate, inpaint])
@pytest.mark.parametrize(
    "images",
    [
        pytest.param(clip(frames=1), id="one frame"),
        pytest.param(clip(height=37, width=53), id="37x53"),
        pytest.param(clip(channels=4), id="RGBA"),
        pytest.param(clip().half(), id="half precision"),
        pytest.param(clip() * 3 - 1, id="values outside [0, 1]"),
        pytest.param(clip().movedim(-1, 1).contiguous().movedim(1, -1), id="strided"),
    ],
)
def test_odd_clips_work(run, node, images):
    count, height, width = images.shape[:3]
    output = node(run, images, disc(height, width)[None])
    pictures = output.args[3] if node is propagate else output.args[0]
    assert pictures.shape == (count, height, width, 3) and pictures.dtype == torch.float32
    assert 0 <= pictures.min() and pictures.max() <= 1
    corner = images[0, 0, 0, :3].float().clamp(0, 1)
    assert torch.equal(pictures[0, 0, 0], corner)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 900), (900, 2)])
def test_any_size_can_be_previewed(run, size):
    """The codec is the picky one; the node must not fail for a picture of its own."""
    images = torch.rand(2, *size, 3)
    output = run("CIRI_MaskOverlay", images=images, masks=torch.zeros(2, *size))
    assert torch.equal(output.args[0], images) and output.ui.as_dict()["images"]


@pytest.mark.parametrize("node", [propagate, inpaint])
def test_a_mask_without_batch_works(run, node):
    whole, flat = node(run, mask=disc()[None]), node(run, mask=disc())
    assert torch.equal(whole.args[0], flat.args[0])


def _nan_clip():
    images = clip()
    images[2, 3, 3, 0] = float("nan")
    return images


BAD = {
    "mask of an image without alpha": ({"mask": torch.zeros(1, 64, 64)}, "LoadImage gives for an image"),
    "empty mask": ({"mask": torch.zeros(1, 40, 64)}, r"first mask is empty .*MaskEditor"),
    "full mask": ({"mask": torch.ones(1, 40, 64)}, "covers the whole frame"),
    "mask of another shape": ({"mask": disc(40, 40)[None]}, "40x40 but the frames are 64x40"),
    "a mask for every frame": ({"mask": disc().repeat(4, 1, 1)}, "first_mask holds 4 masks.*Inactivation inpaint"),
    "not a number": ({"images": _nan_clip()}, "Frame 2 of the clip holds values that are not numbers"),
    "one picture without batch": ({"images": clip()[0]}, r"The clip has shape \(40, 64, 3\)"),
    "two channels": ({"images": clip(channels=2)}, r"shape \(4, 40, 64, 2\); expected .* 3 or 4 channels\)"),
    "frame outside": ({"painted_frame": 4}, "Frame number 4 is outside the clip; it has frames 0 to 3"),
    "key mask without a number": (
        {"key_masks": disc()[None]},
        "key_masks holds 1 masks and key_frames 0 frame numbers",
    ),
    "number without a key mask": ({"key_frames": "1"}, "key_masks holds 0 masks and key_frames 1 frame numbers"),
    "a frame painted twice": ({"key_masks": disc()[None], "key_frames": "0"}, "each frame can be annotated once"),
    "empty key mask": ({"key_masks": torch.zeros(1, 40, 64), "key_frames": "1"}, "key mask is empty"),
    "three masks of two objects": (
        {
            "further_objects": disc()[None],
            "key_masks": disc().repeat(3, 1, 1),
            "key_frames": "1, 1, 1",
        },
        "Frame 1 has 3 masks; each frame can be annotated once for each of the 2 objects",
    ),
    "a clip of further objects": ({"further_objects": disc().repeat(8, 1, 1)}, "9 objects are painted"),
    "empty further object": ({"further_objects": torch.zeros(1, 40, 64)}, "further object is empty"),
    "nothing that is to stay": ({"keep": torch.zeros(1, 40, 64)}, "to stay is empty; paint in white what has to stay"),
    "it is to go as well": ({"keep": disc()[None]}, "to stay lies within what is to be removed"),
    "words as key frames": ({"key_masks": disc()[None], "key_frames": "one"}, "key_frames is 'one'; expected frame"),
}


@pytest.mark.parametrize("case", BAD)
def test_propagate_answers_bad_input_in_words(run, case):
    inputs, message = BAD[case]
    with pytest.raises(CiriError, match=message):
        propagate(run, **inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"mask": torch.zeros(4, 64, 64)}, "LoadImage gives for an image"),
        ({"mask": disc().repeat(3, 1, 1)}, "holds 3 masks but the clip has 4 frames"),
        # nodes that hand on a list of images run the next one once for each
        ({"images": clip(frames=1), "mask": disc().repeat(3, 1, 1)}, "3 masks but .* 1 frames.*made one batch first"),
        ({"mask": disc(40, 40)[None]}, "aspect ratios differ"),
        ({"mask": disc()[None] * float("nan")}, "inactivation mask holds values that are not numbers"),
        (
            {"mask": torch.ones(1, 40, 64), "backbone": FlowBackbone()},
            "grown by 4 pixels, cover every pixel of the clip",
        ),
        ({"images": _nan_clip()}, "Frame 2"),
    ],
)
def test_inpaint_answers_bad_input_in_words(run, inputs, message):
    with pytest.raises(CiriError, match=message):
        inpaint(run, **inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"second": clip(frames=3)}, "4 and 3 frames"),
        ({"second": clip(height=64)}, "aspect ratios differ"),
        ({"second": _nan_clip()}, "Frame 2 of the second clip holds"),
        ({"first": clip(channels=1)}, r"The first clip has shape \(4, 40, 64, 1\)"),
        ({"mode": "diagonal"}, "'diagonal'; expected one of side by side"),
    ],
)
def test_compare_answers_bad_input_in_words(run, inputs, message):
    with pytest.raises(CiriError, match=message):
        run("CIRI_CompareVideo", **{"first": clip(), "second": clip(), **inputs})


def test_overlay_refuses_an_unknown_colour(run):
    with pytest.raises(CiriError, match="The colour is 'teal'; expected one of magenta, red"):
        run("CIRI_MaskOverlay", images=clip(), masks=disc(), colour="teal")


NAN, INFINITE = float("nan"), float("inf")
ATTENTION = {"images": clip(), "masks": disc()[None], "first_mask": disc()[None], "backbone": FlowBackbone()}
OVERLAY = {"images": clip(), "masks": disc()[None]}


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("CIRI_ComplementaryAttention", {**ATTENTION, "region": NAN}, "region is nan; expected a number from 0 to 100"),
        ("CIRI_ComplementaryAttention", {**ATTENTION, "region": 1e6}, "region is 1000000.0; expected a number from 0"),
        (
            "CIRI_ComplementaryAttention",
            {**ATTENTION, "key_frames": "24.5"},
            "key_frames is '24.5'; expected frame",
        ),
        ("CIRI_MaskOverlay", {**OVERLAY, "fps": NAN}, "fps is nan; expected a number from 1 to 120"),
        ("CIRI_MaskOverlay", {**OVERLAY, "fps": INFINITE}, "fps is inf"),
        ("CIRI_MaskOverlay", {**OVERLAY, "fps": 0}, "fps is 0"),
        ("CIRI_MaskOverlay", {**OVERLAY, "opacity": 5.0}, "opacity is 5.0; expected a number from 0 to 1"),
        ("CIRI_MaskOverlay", {**OVERLAY, "outline": 1.5}, "outline is 1.5; expected a whole number from 0 to 32"),
        ("CIRI_MaskOverlay", {**OVERLAY, "outline": None}, "outline is None"),
        ("CIRI_MaskOverlay", {**OVERLAY, "masks": None}, "masks was given nothing; expected MASK"),
        ("CIRI_MaskOverlay", {**OVERLAY, "images": [clip()]}, "images was given list; expected IMAGE"),
        ("CIRI_BackboneLite", {"weights": None}, "The weight file 'None' is not there"),
    ],
)
def test_what_other_nodes_hand_on_is_checked_too(run, node, inputs, message):
    """ComfyUI checks what is typed in, not what is linked."""
    with pytest.raises(CiriError, match=message):
        run(node, **inputs)


def test_what_other_nodes_hand_on_may_be_of_a_type_that_says_the_same(run):
    expected = run("CIRI_MaskOverlay", **OVERLAY, outline=3)
    for more in ({"outline": 3.0}, {"outline": 3, "fps": 240}, {"outline": torch.tensor(3)}):
        assert torch.equal(run("CIRI_MaskOverlay", **OVERLAY, **more).args[0], expected.args[0])
    one = propagate(run, key_masks=disc()[None], key_frames=2)
    assert torch.equal(one.args[0], propagate(run, key_masks=disc()[None], key_frames="2").args[0])
    assert torch.equal(propagate(run, key_masks=None, key_frames=None).args[0], propagate(run).args[0])


def test_errors_carry_no_frames_of_the_library(run):
    """ComfyUI logs the traceback of every failure: of ours, only the node shows."""
    with pytest.raises(CiriError) as caught:
        propagate(run, mask=torch.zeros(1, 40, 64))
    frames = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not any("/ciri/" in name for name in frames)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("text", ["24\uff0c57", "24\u300157", "\uff12\uff14\uff1b57", "24 ;57,"])
def test_frame_numbers_may_be_typed_on_a_chinese_keyboard(nodes, text):
    from ciri_pack.nodes.propagate import parse_key_frames

    assert parse_key_frames(text) == [24, 57]
