"""Evaluate removal: its numbers are the library's, its plot shows them, bad input is answered in words."""

import math
import re

import pytest
import torch

from ciri.errors import CiriError

CLEAN, ORIGINAL = "clean: without the object", "original: with the object"


def scene(count=4):
    """A grey clip that is too bright by 26 grey levels inside a square."""
    clean = torch.full((count, 64, 96, 3), 100 / 255)
    masks = torch.zeros(count, 64, 96)
    masks[:, 20:40, 30:50] = 1
    return clean + masks[..., None] * 26 / 255, clean, masks


def test_numbers_of_a_known_error(run):
    result, clean, masks = scene()
    report, plot = run("CIRI_EvaluateRemoval", result=result, reference=clean, masks=masks, reference_is=CLEAN).args
    expected = 20 * math.log10(255 / 26)
    for name in ("local PSNR (box)", "local PSNR (mask)"):
        assert f"| {name} | {expected:.2f} dB" in report
    assert f"| global PSNR | {expected - 10 * math.log10(400 / 6144):.2f} dB" in report
    assert "| outside PSNR | 100.00 dB" in report
    assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[3] == 3 and plot.min() < 0.3


def test_tracked_masks_are_compared(run):
    result, clean, masks = scene()
    tracked = masks.roll(10, 2)
    inputs = {"result": result, "reference": clean, "masks": masks, "tracked_masks": tracked}
    report = run("CIRI_EvaluateRemoval", **inputs).args[0]
    assert re.search(r"\| J of the masks \| 0\.3333", report)


def test_against_the_original(run):
    result, original, masks = scene()
    report = run("CIRI_EvaluateRemoval", result=result, reference=original, masks=masks, reference_is=ORIGINAL).args[0]
    assert "outside PSNR | 100.00" in report and "E_warp" in report and "local PSNR" not in report
    assert "on the reference" in report and "clean clip" not in report, "there is none"


def test_one_frame(run):
    result, clean, masks = scene(1)
    for kind in (CLEAN, ORIGINAL):
        report, plot = run("CIRI_EvaluateRemoval", result=result, reference=clean, masks=masks, reference_is=kind).args
        assert "outside PSNR" in report and plot.shape[0] == 1


def test_interrupt_stops_within_a_step_and_the_next_run_is_whole(run):
    import comfy.model_management as management

    result, clean, masks = scene()
    inputs = {"result": result, "reference": clean, "masks": masks}
    expected = run("CIRI_EvaluateRemoval", **inputs).args
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        run("CIRI_EvaluateRemoval", **inputs)
    assert not management.processing_interrupted()
    report, plot = run("CIRI_EvaluateRemoval", **inputs).args
    assert report == expected[0] and torch.equal(plot, expected[1])


def test_progress_is_shown(run, monkeypatch):
    import comfy.utils

    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: shown.append(done / total))
    result, clean, masks = scene()
    run("CIRI_EvaluateRemoval", result=result, reference=clean, masks=masks)
    assert len(shown) > 20 and shown == sorted(shown) and shown[-1] == 1


def test_numbers_are_handed_on_though_the_plot_cannot_be_written(run, monkeypatch, caplog):
    from PIL import Image

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    result, clean, masks = scene()
    inputs = {"result": result, "reference": clean, "masks": masks}
    expected = run("CIRI_EvaluateRemoval", **inputs)
    monkeypatch.setattr(Image.Image, "save", full)
    output = run("CIRI_EvaluateRemoval", **inputs)
    assert output.args[0] == expected.args[0] and torch.equal(output.args[1], expected.args[1])
    assert set(output.ui) == {"text"} and output.ui["text"] == expected.ui["text"] and "images" in expected.ui
    assert len([record for record in caplog.records if "No space left" in record.getMessage()]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": scene()[1][:, :32, :48]}, "expected the same count and size"),
        ({"reference": scene(3)[1]}, "the clip 3 of"),
        ({"masks": torch.zeros(4, 64, 96)}, "No mask shows a target"),
        ({"masks": torch.ones(3, 64, 96)}, "3 masks but the clip has 4"),
        ({"result": scene()[0] * float("nan")}, "Frame 0"),
        ({"reference_is": "both"}, "expected one of"),
    ],
)
def test_bad_input_is_answered_in_words(run, change, message):
    result, clean, masks = scene()
    inputs = {"result": result, "reference": clean, "masks": masks, "reference_is": CLEAN} | change
    with pytest.raises(CiriError, match=message):
        run("CIRI_EvaluateRemoval", **inputs)
