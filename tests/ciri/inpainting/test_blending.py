"""Overlap blending against what it should do to clips whose answer is known."""

import pytest
import torch

from ciri.errors import ClipError
from ciri.inpainting.blending import PublishedBlend, SmoothBlend
from ciri.inpainting.windows import Schedule, without_holes


def run(blend, schedule, predict, length=23):
    frames = torch.zeros(length, 3, 4, 4)
    masks = torch.ones(length, 1, 4, 4)
    done = {}
    windows = schedule.windows(length)
    for window, following in zip(windows, [*windows[1:], None], strict=True):
        local = list(window.local)
        blend.add(window, predict(window), frames[local], masks[local])
        done |= dict(blend.finish(following.local[0] if following else length))
    assert sorted(done) == list(range(length))
    return torch.stack([done[i] for i in range(length)])


@pytest.mark.parametrize("blend", [PublishedBlend(), SmoothBlend(5)])
def test_windows_that_agree_are_not_changed(blend):
    result = run(blend, Schedule(), lambda w: torch.full((len(w.local), 3, 4, 4), 2 * 128 / 255 - 1 + 1e-4))
    assert (result - 128 / 255).abs().max() < 1e-4


def test_published_weights_are_a_half_each_time():
    # windows 0, 5, 10 predict levels 0, 100, 200: frame 5 is in all three
    result = run(
        PublishedBlend(), Schedule(), lambda w: torch.full((len(w.local), 3, 4, 4), (w.centre * 20 + 0.5) / 127.5 - 1)
    )
    assert result[5, 0, 0, 0] * 255 == pytest.approx(0 / 4 + 100 / 4 + 200 / 2)


def test_smooth_blend_is_continuous_in_time():
    # every window predicts its own centre: the blend has to move on steadily, without a beat
    value = run(SmoothBlend(5), Schedule(), lambda w: torch.full((len(w.local), 3, 4, 4), w.centre / 50 - 1))
    steps = value[:, 0, 0, 0].diff()
    # after the last centre, 20, there is nothing to move on to
    assert torch.allclose(steps[:20], torch.tensor(0.01), atol=1e-6) and torch.allclose(steps[20:], torch.tensor(0.0))


def test_smooth_blend_keeps_little_in_memory():
    blend = SmoothBlend(5)
    frames, masks, most = torch.zeros(500, 3, 4, 4), torch.ones(500, 1, 4, 4), 0
    windows = Schedule().windows(500)
    for window, following in zip(windows, [*windows[1:], None], strict=True):
        local = list(window.local)
        blend.add(window, frames[local], frames[local], masks[local])
        most = max(most, len(blend._sums))
        blend.finish(following.local[0] if following else 500)
    assert most <= 11


def test_windows_without_holes_are_skipped():
    has_hole = [False] * 30
    has_hole[12] = True
    assert [w.centre for w in without_holes(Schedule().windows(30), has_hole)] == [10, 15]


@pytest.mark.parametrize("count", range(8))
def test_in_the_middle_of_a_clip_there_are_as_many_references_as_were_asked_for(count):
    (window,) = [w for w in Schedule(num_ref=count).windows(97) if w.centre == 45]
    assert len(window.reference) == count


@pytest.mark.parametrize("wrong", [{"stride": 0}, {"step": 0}, {"num_ref": -2}])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ClipError, match="at least"):
        Schedule(**wrong)
