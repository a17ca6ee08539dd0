"""One clip measured on its own: the text's numbers are the scores', and the raster plot is the chart's."""

import math

import pytest
import torch

from ciri.errors import EvaluationError, MaskError
from ciri.evaluation.charts import PALETTE, Chart, Series
from ciri.evaluation.clip import evaluate_clip
from ciri.evaluation.raster import rasterise


def scene():
    clean = torch.full((3, 3, 48, 64), 100 / 255)
    masks = torch.zeros(3, 1, 48, 64)
    masks[:, :, 10:30, 20:40] = 1
    result = clean + masks * torch.tensor([10.0, 20.0, 30.0]).reshape(3, 1, 1, 1) / 255
    return result, masks, clean


def test_text_names_mean_and_worst_frame():
    result, masks, clean = scene()
    report = evaluate_clip(result, masks, clean, clean=True)
    values = [20 * math.log10(255 / error) for error in (10, 20, 30)]
    assert report.scores["psnr_mask"] == pytest.approx(values)
    assert f"| local PSNR (mask) | {sum(values) / 3:.2f} dB | {values[2]:.2f} dB | 2 |" in report.text
    assert [p[1] for p in report.plot.series[0].points] == pytest.approx(values)


def test_without_clean_clip_only_what_can_be_known():
    result, masks, original = scene()
    report = evaluate_clip(result, masks, original, clean=False)
    assert "psnr_mask" not in report.scores and report.scores["psnr_outside"] == [100.0] * 3
    # a still scene whose filled part brightens by 10 levels a frame
    assert report.scores["e_warp_masked"] == pytest.approx([(10 / 255) ** 2] * 2, rel=1e-3)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("count", [3, 1])
def test_progress_only_moves_forward_and_ends(clean, count):
    result, masks, reference = (x[:count] for x in scene())
    steps = []
    evaluate_clip(result, masks, reference, clean=clean, tracked=masks, on_step=lambda *s: steps.append(s))
    done = [step / total for step, total in steps]
    assert done == sorted(done) and done[-1] == 1 and all(0 < d <= 1 for d in done)
    # nothing takes longer than a metric of a frame (or of a pair of frames) between two steps
    metrics = [2 + 2, 4 + 1 + 1 if clean else 2]
    assert len(steps) == metrics[0] * (count - 1) + metrics[1] * count


def test_it_can_be_stopped_at_every_step():
    class Stopped(Exception):
        pass

    result, masks, clean = scene()
    steps = []
    evaluate_clip(result, masks, clean, clean=True, on_step=lambda *s: steps.append(s))
    for last in range(1, len(steps) + 1):
        left = [last]

        def stop(done, total, left=left):
            left[0] -= 1
            if not left[0]:
                raise Stopped

        with pytest.raises(Stopped):
            evaluate_clip(result, masks, clean, clean=True, on_step=stop)


def test_bad_input_is_named():
    result, masks, clean = scene()
    with pytest.raises(EvaluationError, match="expected the same count and size"):
        evaluate_clip(result[:2], masks[:2], clean, clean=True)
    with pytest.raises(MaskError, match="No mask shows a target"):
        evaluate_clip(result, masks * 0, clean, clean=True)


def test_raster_puts_ink_where_the_chart_says():
    chart = Chart([Series("a", [(0, 10), (10, 10)])], "x", "y", size=(400, 300))
    picture = rasterise(chart, scale=2.0)
    assert picture.shape == (3, 600, 800)
    frame = chart.frame()
    colour = torch.tensor([int(PALETTE[0][i : i + 2], 16) for i in (1, 3, 5)]) / 255
    on_line = picture[:, round(2 * frame.y(10)), round(2 * frame.x(5))]
    assert torch.allclose(on_line, colour, atol=0.02)
    assert (picture[:, round(2 * frame.y(10)) - 12, round(2 * frame.x(5.3))] == 1).all()
    assert (rasterise(Chart([], "x", "y")) == 1).all()
