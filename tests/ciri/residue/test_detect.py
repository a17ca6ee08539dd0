"""Detection over a clip, with a detector whose answer is known: it responds to pure red."""

from unittest.mock import Mock

import pytest
import torch

from ciri.errors import MaskError, OutOfMemoryError
from ciri.residue.base import ResidueDetector
from ciri.residue.crops import crop, search_window
from ciri.residue.detect import BATCH, detect_residue

H, W = 40, 60


class Red:
    name, threshold, device = "red", 0.25, torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def template(self, frame, mask):
        return frame.mean((1, 2))

    def detect(self, template, frames, boxes, removal=None):
        self.batches.append(len(frames))
        assert removal.filmed.shape == frames.shape and removal.masks.shape == frames[:, :1].shape
        cut = crop(frames, [search_window(b) for b in boxes], 32, template)
        return 20 * (cut[:, :1] - cut[:, 1:2] - 0.5)


def clip(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    frames = torch.full((count, 3, H, W), 0.5)
    masks = torch.zeros(count, 1, H, W)
    masks[:, :, 10:30, 20:40] = 1
    filmed = frames.clone()
    filmed[:, 0, 10:30, 20:40], filmed[:, 1, 10:30, 20:40] = 1, 0
    return frames, masks[0], filmed, masks


def test_what_is_left_is_found_where_it_is() -> None:
    frames, first_mask, filmed, masks = clip(19)
    frames[7, 0, 24:28, 30:38], frames[7, 1, 24:28, 30:38] = 1, 0
    detector, steps = Red(), []
    assert isinstance(detector, ResidueDetector)
    found = detect_residue(frames, first_mask, filmed, masks, detector, on_step=lambda d, t: steps.append((d, t)))
    assert found.maps.shape == (19, 1, H, W) and found.scores.shape == (19,)
    assert max(detector.batches) <= BATCH and steps[-1] == (19, 19)
    assert [t for t in range(19) if found.scores[t] > 0] == [7]
    ys, xs = torch.nonzero(found.maps[7, 0] > 0.5, as_tuple=True)
    for value, expected in zip((ys.min(), ys.max(), xs.min(), xs.max()), (24, 27, 30, 37), strict=True):
        assert abs(int(value) - expected) <= 1
    assert float(found.scores[7]) == pytest.approx(0.75 * 32 / 400, rel=0.25)


class Hungry(Red):
    """Runs out of memory with more than so many frames."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def detect(self, template, frames, boxes, removal=None):
        if len(frames) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return super().detect(template, frames, boxes, removal)


def test_less_memory_gives_the_same_result() -> None:
    frames, first_mask, filmed, masks = clip(19)
    frames[7, 0, 24:28, 30:38], frames[7, 1, 24:28, 30:38] = 1, 0
    plenty, little = (detect_residue(frames, first_mask, filmed, masks, d) for d in (Red(), Hungry(1)))
    assert torch.equal(plenty.maps, little.maps) and torch.equal(plenty.scores, little.scores)
    with pytest.raises(OutOfMemoryError, match="smaller frames"):
        detect_residue(frames, first_mask, filmed, masks, Hungry(0))
    blank = Red()
    blank.template = Mock(side_effect=MemoryError)
    with pytest.raises(OutOfMemoryError, match="smaller frames"):
        detect_residue(frames, first_mask, filmed, masks, blank)


def test_an_interrupt_passes_through() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect_residue(*clip(3), Red(), on_step=stop)


def test_one_frame_and_empty_masks_work() -> None:
    frames, first_mask, filmed, masks = clip(1)
    assert float(detect_residue(frames, first_mask[None], filmed, masks, Red()).scores) == 0
    frames, first_mask, filmed, masks = clip(4)
    masks[2] = 0
    with torch.inference_mode():
        found = detect_residue(frames, first_mask, filmed, masks, Red(), first_index=1)
    assert found.boxes[2] == found.boxes[1]


def test_what_does_not_fit_is_refused() -> None:
    frames, first_mask, filmed, masks = clip(3)
    with pytest.raises(MaskError, match="all have to agree"):
        detect_residue(frames, first_mask, filmed, masks[:2], Red())
    with pytest.raises(MaskError, match="all have to agree"):
        detect_residue(frames, first_mask, filmed[:1], masks, Red())
    with pytest.raises(MaskError, match="outside the clip"):
        detect_residue(frames, first_mask, filmed, masks, Red(), first_index=3)
    with pytest.raises(MaskError, match="empty"):
        detect_residue(frames, torch.zeros(1, H, W), filmed, masks, Red())
