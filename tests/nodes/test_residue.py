"""Detection and refinement as nodes, with a detector whose answer is known, and the loaders of real ones."""

import pytest
import torch
from safetensors.torch import save_file

from ciri.compare import GAP, overlay
from ciri.errors import CheckpointError, CiriError, ClipError
from ciri.heat import heat
from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.remove import remove
from ciri.refinement.product import REACH
from ciri.refinement.refine import refine
from ciri.refinement.settings import RefinementSettings
from ciri.residue.detect import detect_residue
from ciri.residue.lite import ResidueNetwork
from ciri.residue.siammask_network import SiamMask
from scripts.comfyui import ROOT
from tests.nodes.models import Hold, Red
from tests.nodes.test_behaviour import shown_video
from tests.parity.seeded_weights import seeded_state_dict

FRAMES, HEIGHT, WIDTH = 6, 64, 96
#: The frame in whose mask a part of the target is missing.
CUT = 3


def scene():
    """A red square over grey noise, standing still while the noise drifts: images, first mask, masks with a cut."""
    wide = 0.3 + 0.2 * torch.rand((HEIGHT, WIDTH + 40, 1), generator=torch.Generator().manual_seed(0))
    images = torch.stack([wide[:, 6 * t : 6 * t + WIDTH].expand(-1, -1, 3) for t in range(FRAMES)]).clone()
    images[:, 16:48, 32:64] = torch.tensor([0.95, 0.1, 0.1])
    masks = torch.zeros(FRAMES, HEIGHT, WIDTH)
    masks[:, 16:48, 32:64] = 1
    first = masks[:1].clone()
    masks[CUT, 34:, :] = 0
    return images, first, masks


def grey_fill(images, masks):
    """The clip with what the masks cover painted grey: what a removal with these masks leaves behind."""
    return torch.where(masks[..., None] > 0, torch.tensor(0.4), images)


def detect(run, **more):
    images, first, masks = scene()
    inputs = {"images": images, "inpainted": grey_fill(images, masks), "first_mask": first, "masks": masks}
    return run("CIRI_DetectResidue", **{**inputs, "detector": Red(), **more})


# ------------------------------------------------------------------------------------------------ detection


def test_residue_is_shown_scored_and_told(run):
    images, first, masks = scene()
    inpainted = grey_fill(images, masks)
    output = detect(run)
    residue, scores, report, shown = output.args
    found = detect_residue(inpainted.movedim(-1, 1), first[:, None], images.movedim(-1, 1), masks[:, None], Red())
    assert torch.equal(residue, found.maps[:, 0])
    assert scores == pytest.approx(found.scores.tolist(), abs=1e-4)
    # 14 of 32 rows were left, red beyond doubt: 0.75 of their area in areas of the box
    assert scores[CUT] == pytest.approx(0.75 * 14 / 32, rel=0.2) and sum(scores) == scores[CUT]
    assert residue[CUT, 36:46, 36:60].min() > 0.9 and residue[CUT, 16:30].max() < 0.1
    assert f"seems to be left in frames {CUT}." in report and f"highest {scores[CUT]:.3f} at frame {CUT}" in report
    expected = heat(inpainted.movedim(-1, 1), residue[:, None], outline=masks[:, None])
    assert torch.equal(shown, expected.movedim(1, -1))
    assert shown_video(output).shape == (FRAMES, HEIGHT, WIDTH, 3)


def test_a_clean_clip_is_called_clean(run):
    images, first, _ = scene()
    clean = grey_fill(images, first.expand(FRAMES, -1, -1))
    _, scores, report, _ = detect(run, inpainted=clean).args
    assert scores == [0.0] * FRAMES and "Nothing seems to be left" in report


def test_detection_answers_bad_input_in_words(run):
    images, first, masks = scene()
    with pytest.raises(ClipError, match="inpainted clip has 5 frames of 96x64 and images has 6 frames of 96x64"):
        detect(run, inpainted=images[:5])
    with pytest.raises(CiriError, match=r"first mask is empty .*MaskEditor"):
        detect(run, first_mask=first * 0)
    with pytest.raises(CiriError, match="Frame number 6 is outside"):
        detect(run, painted_frame=6)
    with pytest.raises(CiriError, match="holds 4 masks but the clip has 6 frames"):
        detect(run, masks=masks[:4])


def test_interrupt_stops_detection(run):
    import comfy.model_management as management

    expected = detect(run).args[0]
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        detect(run)
    assert torch.equal(detect(run).args[0], expected)


# ----------------------------------------------------------------------------------------------- refinement


@pytest.fixture(scope="module")
def removed():
    """A removal that left a part: images, first mask, masks, the clip filled by the classical backbone."""
    images, first, masks = scene()
    filled = remove(images.movedim(-1, 1), masks[:, None], FlowBackbone(), grow=2)
    return images, first, masks, filled.movedim(1, -1).contiguous()


def correct(run, removed, **more):
    images, first, masks, inpainted = removed
    inputs = {"images": images, "first_mask": first, "masks": masks, "inpainted": inpainted}
    models = {"backbone": FlowBackbone(), "detector": Red(), "grow": 2}
    return run("CIRI_RefinePropagator", **{**inputs, **models, **more})


def test_what_was_left_is_covered_and_filled_as_the_library_does(run, removed):
    images, first, masks, inpainted = removed
    propagator = Hold()
    output = correct(run, removed, propagator=propagator)
    handed_on, refined, filled, report, shown = output.args
    assert handed_on is propagator
    direct = refine(
        images.movedim(-1, 1),
        first[:, None],
        masks[:, None],
        inpainted.movedim(-1, 1),
        backbone=FlowBackbone(),
        detector=Red(),
        settings=RefinementSettings(grow=2),
    )
    assert torch.equal(refined, direct.masks[:, 0]) and torch.equal(filled, direct.inpainted.movedim(1, -1))
    # the missing rows are there now, and the red is gone
    assert refined[CUT, 36:46, 34:62].mean() > 0.9
    red = (filled[CUT, ..., 0] - filled[CUT, ..., 1]) > 0.3
    assert red.float().mean() < 0.2 * (inpainted[CUT, ..., 0] - inpainted[CUT, ..., 1] > 0.3).float().mean()
    kept = [t for t in range(FRAMES) if t != CUT]
    assert torch.equal(refined[kept], masks[kept])
    assert "masks of 1 frames were corrected" in report
    assert shown.shape[0] == FRAMES and shown_video(output).shape == shown.shape
    assert shown.shape[1:3] == (2 * HEIGHT + GAP, WIDTH)
    # above: the given mask's tint, the new mask's outline
    small = images.movedim(-1, 1)
    tinted = overlay(small, masks[:, None], opacity=0.35, outline=1)
    assert torch.equal(shown.movedim(-1, 1)[0, :, 20:44, 36:60], tinted[0, :, 20:44, 36:60])


# the frame of two painted objects is named twice
@pytest.mark.parametrize("key_frames", [f"{CUT - FRAMES}", f"{CUT}, {CUT}", f"{CUT}, {CUT - FRAMES}, 0"])
def test_a_frame_that_was_painted_too_keeps_its_mask(run, removed, key_frames):
    _, refined, filled, report, _ = correct(run, removed, key_frames=key_frames).args
    assert torch.equal(refined, removed[2]) and torch.equal(filled, removed[3]) and "were corrected" not in report
    with pytest.raises(CiriError, match="Frame number 6 is outside"):
        correct(run, removed, key_frames="6")
    with pytest.raises(CiriError, match="key_frames is 'last'"):
        correct(run, removed, key_frames="last")


def test_what_is_kept_is_not_grown_over(run, removed):
    _, first, masks, _ = removed
    kept = first.expand(FRAMES, -1, -1) - masks
    _, refined, _, report, _ = correct(run, removed, kept=kept).args
    assert torch.equal(refined, masks) and "to stay" in report
    with pytest.raises(CiriError, match="what is to stay holds 2 masks"):
        correct(run, removed, kept=kept[:2])


@pytest.mark.parametrize("page", ["CIRI_RefinePropagator.md", "CIRI_RefinePropagator/zh.md"])
def test_frames_around_a_corrected_one_are_filled_again_as_the_help_says(run, removed, page):
    """They may have copied what was left."""
    filled, before = correct(run, removed).args[2], removed[3]
    assert not torch.equal(filled[CUT - 1], before[CUT - 1])
    assert f" {REACH} " in (ROOT / "web" / "docs" / page).read_text(encoding="utf-8")


def test_a_clean_clip_comes_back_bit_for_bit(run):
    images, first, _ = scene()
    clean = grey_fill(images, first.expand(FRAMES, -1, -1))
    whole = first.expand(FRAMES, -1, -1).contiguous()
    output = run(
        "CIRI_RefinePropagator",
        images=images,
        first_mask=first,
        masks=whole,
        inpainted=clean,
        backbone=FlowBackbone(),
        detector=Red(),
    )
    _, refined, filled, report, _ = output.args
    assert torch.equal(refined, whole) and torch.equal(filled, clean)
    assert "Nothing of the target was found" in report


def test_without_a_propagator_the_output_says_so_where_it_is_used(run, removed):
    from comfy_execution.graph_utils import ExecutionBlocker

    blocked = correct(run, removed, time_budget=0.001).args[0]
    assert isinstance(blocked, ExecutionBlocker) and "was given no propagator" in blocked.message


def test_a_time_budget_ends_it_and_is_named(run, removed):
    _, refined, filled, report, _ = correct(run, removed, time_budget=0.001).args
    assert torch.equal(refined, removed[2]) and torch.equal(filled, removed[3])
    assert "time budget of 0.001 s" in report


def test_a_mode_that_the_propagator_does_not_allow_is_refused_in_words(run, removed):
    # of the modes that need no propagator, the recommended one is named
    for propagator, why in ((Hold(), "the propagator 'hold' has no weights"), (None, "no propagator was given")):
        with pytest.raises(CiriError, match=f"{why}. Use mode 'auto', which needs none"):
            correct(run, removed, mode="weights", propagator=propagator)
    with pytest.raises(CiriError, match="expected one of auto, mask, weights, paper"):
        correct(run, removed, mode="harder")


@pytest.mark.parametrize("step", [1, 3, 6])
def test_interrupt_at_any_step_restores_everything(run, removed, step, monkeypatch):
    import comfy.model_management as management

    calls = []
    real = management.throw_exception_if_processing_interrupted

    def press_cancel_at_step():
        calls.append(1)
        if len(calls) == step:
            management.interrupt_current_processing(True)
        real()

    kept = [tensor.clone() for tensor in removed]
    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", press_cancel_at_step)
    with pytest.raises(management.InterruptProcessingException):
        correct(run, removed)
    monkeypatch.undo()
    assert not management.processing_interrupted()
    assert all(torch.equal(a, b) for a, b in zip(kept, removed, strict=True))
    assert "were corrected" in correct(run, removed).args[3]


# -------------------------------------------------------------------------------------------------- loaders


@pytest.fixture
def folder(nodes, tmp_path, monkeypatch):
    """A models/ciri folder of the test's own."""
    import folder_paths

    endings = folder_paths.folder_names_and_paths["ciri"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ciri", ([str(tmp_path)], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def offered(nodes, node_id):
    return nodes[node_id].GET_NODE_INFO_V1()["input"]["required"]["weights"][1]["options"]


def put_lite(folder, name="mine.safetensors", threshold=0.4):
    torch.manual_seed(3)
    state = {key: value.half() for key, value in ResidueNetwork().state_dict().items()}
    save_file(state, folder / name, {"architecture": "residue_lite", "threshold": str(threshold)})


def test_the_shipped_weights_come_first_and_own_ones_are_found_by_content(nodes, folder):
    put_lite(folder)
    save_file({"a": torch.zeros(2)}, folder / "other.safetensors")
    assert offered(nodes, "CIRI_ResidueDetectorLite") == ["shipped", "mine.safetensors"]
    assert offered(nodes, "CIRI_ResidueDetectorSiamMask") == ["(no file found)"]


def test_a_loaded_detector_works_under_inference_mode_and_can_be_differentiated_through(run, folder):
    put_lite(folder)
    detector = run("CIRI_ResidueDetectorLite", weights="mine.safetensors").args[0]
    assert detector.threshold == 0.4 and not any(p.is_inference() for p in detector.network.parameters())
    residue, scores, report, _ = detect(run, detector=detector).args
    assert residue.shape == (FRAMES, HEIGHT, WIDTH) and len(scores) == FRAMES and "below 0.40" in report
    images, first, _ = scene()
    with torch.inference_mode(False):
        frames = images.movedim(-1, 1)[:1].clone().requires_grad_()
        from ciri.residue.crops import target_box

        template = detector.template(frames[0].detach(), first)
        detector.detect(template, frames, [target_box(first)]).sum().backward()
    assert frames.grad is not None and frames.grad.abs().sum() > 0


def test_siammask_is_found_by_content_and_looks(nodes, run, folder):
    state = seeded_state_dict(SiamMask(sharp=False).state_dict(), 5, 0.7)
    torch.save({"state_dict": state}, folder / "renamed.pth")
    assert offered(nodes, "CIRI_ResidueDetectorSiamMask") == ["renamed.pth"]
    detector = run("CIRI_ResidueDetectorSiamMask", weights="renamed.pth").args[0]
    residue, scores, report, _ = detect(run, detector=detector).args
    assert (
        residue.shape == (FRAMES, HEIGHT, WIDTH) and len(scores) == FRAMES and report.startswith("siammask: 6 frames")
    )


def test_without_siammask_s_file_the_folder_is_named(run, folder):
    with pytest.raises(CheckpointError, match="no weight file of SiamMask") as caught:
        run("CIRI_ResidueDetectorSiamMask", weights="(no file found)")
    assert str(folder) in str(caught.value)


def test_a_missing_file_of_one_s_own_is_named_and_what_to_do(run, folder):
    words = "'gone.safetensors' is not there. Choose 'shipped', .*'python -m ciri train residue' made into "
    with pytest.raises(CheckpointError, match=words + str(folder)):
        run("CIRI_ResidueDetectorLite", weights="gone.safetensors")


def test_a_replaced_file_is_loaded_again(nodes, folder):
    cls = nodes["CIRI_ResidueDetectorLite"]
    put_lite(folder)
    before = cls.fingerprint_inputs(weights="mine.safetensors")
    put_lite(folder, threshold=0.123456)
    assert cls.fingerprint_inputs(weights="mine.safetensors") != before
    assert cls.fingerprint_inputs(weights="shipped") == cls.fingerprint_inputs(weights="shipped")
