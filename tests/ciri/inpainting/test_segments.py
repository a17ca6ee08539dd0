"""Long clips in segments: what is seen, what is filled, and that the seams between segments do not show."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ciri.inpainting.flow import BYTES_PER_PIXEL, FlowBackbone
from ciri.inpainting.segments import FEWEST, fill_in_segments, segments


@given(st.integers(1, 400), st.integers(FEWEST, 120))
def test_every_frame_is_filled_once_in_order_and_no_segment_sees_too_much(count, most):
    filled = []
    for segment in segments(count, most):
        assert len(segment.seen) <= most
        assert segment.seen.start <= segment.filled.start and segment.filled.stop <= segment.seen.stop
        # except at the clip's ends there is context on both sides
        assert segment.seen.start == 0 or segment.filled.start - segment.seen.start == most // 4
        assert segment.seen.stop == count or segment.seen.stop - segment.filled.stop == most // 4
        filled += segment.filled
    assert filled == list(range(count))


def test_a_segment_sees_what_the_one_before_made():
    """A fill that adds one to the largest value it sees: each segment goes on where the last one stopped."""
    frames, hole = torch.zeros(60, 3, 2, 2), torch.ones(60, 1, 2, 2)
    calls = []

    def fill(window, mask, on_step):
        calls.append((len(window), int((mask > 0).any((1, 2, 3)).sum())))
        on_step(1, 1)
        return torch.where(mask > 0, window.max() + 1, window)

    steps = []
    result = fill_in_segments(fill, frames, hole, 24, on_step=lambda done, total: steps.append(done / total))
    assert result[:, 0, 0, 0].tolist() == [1] * 18 + [2] * 12 + [3] * 12 + [4] * 18
    assert calls == [(24, 24), (24, 18), (24, 18), (24, 18)]
    assert frames.max() == 0 and hole.min() == 1  # the inputs stay as they were
    assert steps == sorted(steps) and steps[-1] == 1


@pytest.fixture(scope="module")
def long_pan():
    """A camera pans over a texture; a bar stands in the picture's middle, 60 frames long."""
    texture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 12, 60, generator=torch.Generator().manual_seed(2)), size=(48, 240), mode="bicubic"
    )[0].clamp(0, 1)
    clean = torch.stack([texture[:, :, 2 * t : 2 * t + 64] for t in range(60)])
    masks = torch.zeros(60, 1, 48, 64)
    masks[..., 10:38, 28:38] = 1
    return clean, torch.where(masks > 0, torch.tensor([1.0, 0.0, 0.0])[:, None, None], clean), masks


def test_segments_fill_as_well_as_the_whole_clip_at_once(long_pan):
    clean, frames, masks = long_pan
    whole = FlowBackbone(passes=1).inpaint(frames, masks)
    parts = FlowBackbone(passes=1, memory=FEWEST * BYTES_PER_PIXEL * 48 * 64).inpaint(frames, masks)
    inside = masks.expand_as(clean) > 0
    error = [(result - clean).abs()[inside].mean() * 255 for result in (whole, parts)]
    assert error[0] < 2 and error[1] < error[0] + 0.5
    assert not torch.equal(whole, parts)  # segments did run
    assert torch.equal(parts[~inside], frames[~inside])


def test_a_clip_that_fits_is_filled_whole(long_pan):
    _, frames, masks = long_pan
    enough = FlowBackbone(passes=1, memory=30 * BYTES_PER_PIXEL * 48 * 64)
    assert torch.equal(enough.inpaint(frames[:30], masks[:30]), FlowBackbone(passes=1).inpaint(frames[:30], masks[:30]))
