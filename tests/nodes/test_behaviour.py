"""What the nodes hand on, with models whose answer is known."""

import av
import numpy as np
import pytest
import torch

from ciri.compare import MODES, compare, overlay
from tests.nodes.models import Grey, Hold


def clip(frames=4, height=40, width=64, channels=3, seed=0):
    return torch.rand((frames, height, width, channels), generator=torch.Generator().manual_seed(seed))


def disc(height=40, width=64, radius=9):
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy(((y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2).astype(np.float32))


def shown_video(output):
    """Frames of the video that a node shows inside itself."""
    import folder_paths

    (saved,) = output.ui.as_dict()["images"]
    assert saved["type"] == "temp" and output.ui.as_dict()["animated"] == (True,)
    with av.open(f"{folder_paths.get_temp_directory()}/{saved['subfolder']}/{saved['filename']}") as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


# ------------------------------------------------------------------------------------------------ propagate


def test_propagate_returns_masks_report_confidence_and_overlay(run):
    images, mask = clip(), disc()
    output = run("CIRI_PropagateMask", images=images, first_mask=mask[None], propagator=Hold())
    masks, report, confidence, tinted, kept = output.args
    assert kept.shape == masks.shape and not kept.any()
    assert torch.equal(masks, mask.expand(4, -1, -1)) and masks.dtype == torch.float32
    assert confidence == pytest.approx([1.0, 0.9, 0.8, 0.7])
    assert "hold: 4 frames, mean confidence 0.85, lowest 0.70 at frame 3" in report
    assert "Never lost." in report and "The mask was held." in report
    expected = overlay(images.movedim(-1, 1), masks[:, None]).movedim(1, -1)
    assert torch.equal(tinted, expected)
    video = shown_video(output)
    assert video.shape == (4, 40, 64, 3)
    # noise is the worst input for the codec: the mean colour of the tinted disc survives all the same
    assert np.abs(video[0][mask > 0].mean(0) / 255 - tinted[0][mask > 0].mean(0).numpy()).max() < 0.06


def test_propagate_names_the_frames_where_the_target_was_lost(run):
    output = run("CIRI_PropagateMask", images=clip(frames=12), first_mask=disc()[None], propagator=Hold())
    assert "Gone or lost in frames 8-11" in output.args[1]


def test_propagate_passes_key_masks_with_their_frames(run):
    propagator, corrections = Hold(), torch.stack([disc(radius=5), disc(radius=7)])
    run(
        "CIRI_PropagateMask",
        images=clip(frames=6),
        first_mask=disc()[None],
        propagator=propagator,
        painted_frame=-1,
        key_masks=corrections,
        key_frames="0; 2",
    )
    frames, masks, numbers = propagator.calls[0]
    assert frames.shape == (6, 3, 40, 64) and numbers == [5, 0, 2]
    assert torch.equal(masks[:, 0], torch.cat([disc()[None], corrections]))


def test_propagate_follows_further_objects_by_themselves_and_joins_the_masks(run):
    propagator, shadow, again = Hold(), disc(radius=4).roll(12, 1), torch.stack([disc(radius=5), disc(radius=6)])
    output = run(
        "CIRI_PropagateMask",
        images=clip(frames=6),
        first_mask=disc()[None],
        propagator=propagator,
        painted_frame=-1,
        key_masks=again,
        key_frames="2, 2",
        further_objects=shadow[None],
    )
    assert [numbers for _, _, numbers in propagator.calls] == [[5, 2], [5, 2]]
    own, other = (masks[:, 0] for _, masks, _ in propagator.calls)
    assert torch.equal(own, torch.stack([disc(), again[0]])) and torch.equal(other, torch.stack([shadow, again[1]]))
    assert torch.equal(output.args[0], torch.maximum(disc(), shadow).expand(6, -1, -1))
    assert "Object 2: The mask was held." in output.args[1]


def test_propagate_leaves_out_what_is_to_stay(run):
    propagator, other = Hold(), disc(radius=6).roll(8, 1)
    output = run(
        "CIRI_PropagateMask", images=clip(frames=6), first_mask=disc()[None], propagator=propagator, keep=other[None]
    )
    assert [numbers for _, _, numbers in propagator.calls] == [[0], [0]]
    beside = other * (disc() <= 0.5)
    assert torch.equal(propagator.calls[1][1][0, 0], beside)
    assert torch.equal(output.args[0], (disc() * (beside <= disc())).expand(6, -1, -1))
    assert torch.equal(output.args[4], (beside * (beside > disc())).expand(6, -1, -1))


def test_propagate_resizes_a_mask_of_the_same_shape_and_says_so(run):
    small = disc(20, 32, 5)
    output = run("CIRI_PropagateMask", images=clip(), first_mask=small[None], propagator=Hold())
    assert output.args[0].shape == (4, 40, 64)
    assert "resized from 32x20 to 64x40" in output.args[1]


# ------------------------------------------------------------------------------------------------ inpaint


def test_inpaint_fills_the_mask_and_keeps_every_other_pixel(run):
    images, mask = clip(), disc()
    masks = mask.repeat(4, 1, 1)
    masks[2] = 0  # the target is gone there
    output = run(
        "CIRI_InactivationInpaint", images=images, inactivation=masks, backbone=Grey(), grow=0, feather=0, crop=True
    )
    result, report = output.args
    expected = torch.where(masks[..., None] > 0, torch.tensor(0.5), images)
    assert torch.equal(result, expected)
    assert "grey: filled 3 of 4 frames of 64x40" in report and "1 frames have an empty mask" in report


def test_inpaint_uses_a_single_mask_for_all_frames_and_says_so(run):
    output = run("CIRI_InactivationInpaint", images=clip(), inactivation=disc(), backbone=Grey(), grow=0, feather=0)
    assert torch.equal(output.args[0][3][disc() > 0], torch.full((int(disc().sum()), 3), 0.5))
    assert "used for all 4 frames" in output.args[1]


def test_inpaint_returns_the_clip_when_nothing_is_masked(run):
    images = clip()
    output = run("CIRI_InactivationInpaint", images=images, inactivation=torch.zeros(4, 40, 64), backbone=Grey())
    assert torch.equal(output.args[0], images)
    assert "filled 0 of 4 frames" in output.args[1]


# ------------------------------------------------------------------------------------------------ looking


@pytest.mark.parametrize("mode", MODES)
def test_compare_gives_even_sizes_and_the_clips_pixels(run, mode):
    first, second = clip(3, 37, 53), clip(3, 37, 53, seed=1)
    output = run("CIRI_CompareVideo", first=first, second=second, mode=mode, first_label="", second_label="", gain=1.0)
    shown = output.args[0]
    assert shown.shape[0] == 3 and shown.shape[1] % 2 == 0 and shown.shape[2] % 2 == 0
    assert shown_video(output).shape == shown.shape
    if mode == "side by side":
        assert torch.equal(shown[:, :, :52], first[:, :36, :52]) and torch.equal(shown[:, :, -52:], second[:, :36, :52])
    if mode == "difference":
        assert torch.equal(shown, (first - second).abs()[:, :36, :52])


def test_a_comparison_is_handed_on_without_another_copy(pack):
    from ciri_pack.nodes._adapt import to_clip, to_image

    shown = compare(to_clip(clip()), to_clip(clip(seed=1)), "stacked", labels=("before", "after"))
    assert to_image(shown).data_ptr() == shown.data_ptr()


def test_mask_overlay_tints_only_the_mask(run):
    images, mask = clip(), disc()
    output = run("CIRI_MaskOverlay", images=images, masks=mask, colour="green", opacity=1.0, outline=0)
    inside = mask > 0
    assert torch.equal(output.args[0][:, ~inside], images[:, ~inside])
    assert torch.allclose(output.args[0][:, inside], torch.tensor([0.2, 0.9, 0.3]))


def test_a_large_clip_is_previewed_small(run):
    images, masks = torch.zeros(2, 360, 1290, 3), torch.zeros(2, 360, 1290)
    masks[:, 90:180, 645:] = 1
    overlaid = run("CIRI_MaskOverlay", images=images, masks=masks)
    assert overlaid.args[0].shape == images.shape
    assert shown_video(overlaid).shape == (2, 178, 640, 3)
    # the propagator's overlay is for looking: it must not double the memory that the clip takes
    propagated = run("CIRI_PropagateMask", images=images, first_mask=masks[:1], propagator=Hold())
    assert propagated.args[0].shape == masks.shape
    tinted = propagated.args[3]
    assert tinted.shape == (2, 179, 640, 3) and shown_video(propagated).shape == (2, 178, 640, 3)
    assert (tinted[:, 47:87, 325:] > 0).any(-1).all() and not tinted[:, :40].any() and not tinted[..., :315, :].any()


def test_a_small_copy_of_a_clip_is_a_picture_as_it_is(pack):
    from ciri_pack.nodes._preview import preview_size

    small = preview_size(torch.rand(2, 3, 360, 1280))
    assert small.shape == (2, 3, 180, 640) and small.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), av.error.EncoderNotFoundError(1, "none")])
def test_work_is_handed_on_though_its_preview_cannot_be_written(run, monkeypatch, caplog, error):
    from comfy_api.latest import InputImpl

    def full(*_, **__):
        raise error

    inputs = {"images": clip(), "first_mask": disc()[None], "propagator": Hold()}
    expected = run("CIRI_PropagateMask", **inputs)
    monkeypatch.setattr(InputImpl.VideoFromComponents, "save_to", full)
    output = run("CIRI_PropagateMask", **inputs)
    assert output.ui is None
    assert all(torch.equal(output.args[i], expected.args[i]) for i in (0, 3, 4))
    assert output.args[1:3] == expected.args[1:3]
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(error) in warning.getMessage() and "its outputs are whole" in warning.getMessage()


@pytest.mark.parametrize("kind", ["interrupt", "fault"])
def test_only_what_writing_raises_is_let_pass(run, monkeypatch, kind):
    import comfy.model_management as management
    from comfy_api.latest import InputImpl

    error = management.InterruptProcessingException() if kind == "interrupt" else ValueError("a fault of the program")

    def stopped(*_, **__):
        raise error

    monkeypatch.setattr(InputImpl.VideoFromComponents, "save_to", stopped)
    with pytest.raises(type(error)):
        run("CIRI_MaskOverlay", images=clip(), masks=disc())


# ------------------------------------------------------------------------------------------------ ComfyUI's rules


def test_inputs_are_not_changed(run):
    images, mask = clip(), disc().repeat(4, 1, 1)
    kept_images, kept_mask = images.clone(), mask.clone()
    run("CIRI_PropagateMask", images=images, first_mask=mask[:1], propagator=Hold())
    run("CIRI_InactivationInpaint", images=images, inactivation=mask, backbone=Grey())
    run("CIRI_CompareVideo", first=images, second=images, mode="wipe")
    run("CIRI_MaskOverlay", images=images, masks=mask)
    assert torch.equal(images, kept_images) and torch.equal(mask, kept_mask)


@pytest.mark.parametrize(
    "node", ["CIRI_PropagateMask", "CIRI_InactivationInpaint", "CIRI_MaskOverlay", "CIRI_CompareVideo"]
)
def test_interrupt_stops_within_a_step_and_the_next_run_is_whole(run, node):
    import comfy.model_management as management

    images, mask = clip(), disc()[None]
    inputs = {
        "CIRI_PropagateMask": {"images": images, "first_mask": mask, "propagator": Hold()},
        "CIRI_InactivationInpaint": {"images": images, "inactivation": mask, "backbone": Grey()},
        "CIRI_MaskOverlay": {"images": images, "masks": mask},
        "CIRI_CompareVideo": {"first": images, "second": images},
    }[node]
    expected = run(node, **inputs)
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        run(node, **inputs)
    assert not management.processing_interrupted()
    assert torch.equal(run(node, **inputs).args[0], expected.args[0])


@pytest.mark.parametrize("node", ["CIRI_PropagateMask", "CIRI_BridgeMasks", "CIRI_FuseInactivation"])
def test_an_interrupt_is_heard_while_the_preview_is_made(run, monkeypatch, node):
    """On a long clip that takes a while, and nothing else asks any more."""
    import ciri_pack.nodes.bridge as bridge
    import comfy.model_management as management

    class Late(Hold):
        def propagate(self, *arguments, **more):
            track = super().propagate(*arguments, **more)
            management.interrupt_current_processing(True)
            return track

    def late(_frames, masks, *_):
        management.interrupt_current_processing(True)
        return masks, []

    images, masks = clip(), disc().repeat(4, 1, 1)
    monkeypatch.setattr(bridge, "bridged_masks", late)
    if node == "CIRI_FuseInactivation":
        management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        run(
            node,
            **{
                "CIRI_PropagateMask": {"images": images, "first_mask": disc()[None], "propagator": Late()},
                "CIRI_BridgeMasks": {"images": images, "masks": masks, "propagator": Hold()},
                "CIRI_FuseInactivation": {"images": images, "masks": masks, "attention": masks},
            }[node],
        )


def test_a_network_built_in_a_node_can_be_trained_later(pack):
    from ciri_pack.nodes._adapt import building_network

    with torch.inference_mode():
        with building_network():
            layer = torch.nn.Linear(3, 1).to(torch.float64)
    layer(torch.rand(2, 3, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is not None


def test_the_model_folder_is_registered_with_its_file_types(pack):
    import folder_paths

    folders, extensions = folder_paths.folder_names_and_paths["ciri"]
    assert folders == [f"{folder_paths.models_dir}/ciri"] and extensions == {".safetensors", ".pth", ".pt"}
