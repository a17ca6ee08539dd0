"""remove(): what is outside the pasted region stays, whatever the backbone, its size rules and the clip's size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ciri.errors import MaskError, OutOfMemoryError
from ciri.frames import feather_alpha, grow_mask, paste_back
from ciri.inpainting import remove as remove_module
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.remove import remove
from tests.unheard import Unheard


class Painter:
    """Paints everything it is given, and checks that it is given what its facts ask for."""

    name = "painter"

    def __init__(self, colour=0.25, **facts):
        self.colour, self.facts, self.seen = colour, BackboneFacts(**facts), []

    def inpaint(self, frames, inactivation, *, on_step=lambda done, total: None):
        h, w = frames.shape[2:]
        if self.facts.fixed_size:
            assert (h, w) == self.facts.fixed_size
        rows, columns = (
            self.facts.needs_divisible_by
            if isinstance(self.facts.needs_divisible_by, tuple)
            else (self.facts.needs_divisible_by,) * 2
        )
        assert h % rows == 0 and w % columns == 0 and inactivation.shape == (len(frames), 1, h, w)
        self.seen.append((h, w))
        on_step(1, 1)
        return torch.full_like(frames, self.colour)


@st.composite
def cases(draw):
    t, h, w = draw(st.integers(1, 4)), draw(st.integers(9, 150)), draw(st.integers(9, 150))
    frames = torch.rand(t, 3, h, w, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    masks = torch.zeros(t, 1, h, w)
    for mask in masks:
        if draw(st.booleans()):
            y, x = draw(st.integers(0, h - 3)), draw(st.integers(0, w - 3))
            mask[:, y : y + draw(st.integers(1, h)), x : x + draw(st.integers(1, w))] = draw(
                st.sampled_from([0.2, 0.6, 1.0])
            )
    return frames, masks


@given(
    case=cases(),
    facts=st.sampled_from(
        [
            {},
            {"needs_divisible_by": 24},
            {"needs_divisible_by": (60, 108)},
            {"fixed_size": (24, 43)},
            {"least_window": (100, 120)},
        ]
    ),
    grow=st.integers(-2, 6),
    feather=st.integers(0, 4),
    crop=st.booleans(),
)
def test_outside_is_bit_identical_and_inside_is_the_backbones(case, facts, grow, feather, crop):
    frames, masks = case
    before = frames.clone()
    result = remove(frames, masks, Painter(**facts), grow=grow, feather=feather, crop=crop)
    alpha = feather_alpha((2 * grow_mask(masks, grow)).clamp(max=1), feather).expand_as(frames)
    assert torch.equal(frames, before)  # the input is not written to
    assert result[alpha == 0].numpy().tobytes() == frames[alpha == 0].numpy().tobytes()
    assert torch.allclose(result[alpha == 1], torch.tensor(0.25), atol=1e-5)
    expected = torch.lerp(frames, torch.tensor(0.25), alpha)
    assert torch.allclose(result, expected, atol=1e-5)


def test_a_fixed_size_network_gets_a_window_of_its_shape_at_source_resolution():
    frames, masks = torch.rand(3, 3, 400, 700), torch.zeros(3, 1, 400, 700)
    masks[:, :, 100:180, 300:380] = 1
    painter = Painter(fixed_size=(24, 43))
    remove(frames, masks, painter)
    assert painter.seen == [(24, 43)]


def test_an_empty_map_returns_the_clip_and_runs_nothing():
    frames, painter = torch.rand(2, 3, 20, 30), Painter()
    assert torch.equal(remove(frames, torch.zeros(2, 1, 20, 30), painter), frames) and painter.seen == []


def test_a_map_of_another_length_is_refused():
    with pytest.raises(MaskError, match="one mask of the frames' size for every frame"):
        remove(torch.rand(3, 3, 20, 30), torch.ones(2, 1, 20, 30), Painter())


@pytest.mark.parametrize(
    ("side", "grow", "words"), [(20, 0, ""), (20, -2, ", shrunk by 2 pixels,"), (14, 4, ", grown by 4 pixels,")]
)
def test_masks_that_leave_nothing_to_fill_from_are_refused(side, grow, words):
    """The classical backbone would answer with a black clip."""
    frames, masks = torch.rand(1, 3, 20, 20).repeat(3, 1, 1, 1), torch.zeros(3, 1, 20, 20)
    painter = Painter(needs_background=True)
    margin = (20 - side) // 2
    masks[:, :, margin : margin + side, margin : margin + side] = 1
    with pytest.raises(MaskError, match=f"The masks{words} cover every pixel of the clip, so there is nothing"):
        remove(frames, masks, painter, grow=grow)
    assert not painter.seen
    # others make something up
    remove(frames, masks, Painter(), grow=grow)
    # one frame that shows a pixel is enough
    masks[1, :, :6, :6] = 0
    remove(frames, masks, painter, grow=grow)


def test_a_shot_that_is_covered_whole_is_named():
    shown = torch.zeros(1, 3, 48, 64), torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    frames, masks = torch.cat([shot.repeat(4, 1, 1, 1) for shot in shown]), torch.zeros(8, 1, 48, 64)
    masks[:4, :, 10:20, 10:20] = 1
    masks[4:] = 1
    with pytest.raises(MaskError, match="every pixel of frames 4-7, a shot of its own"):
        remove(frames, masks, Painter(needs_background=True))


def test_the_callback_may_stop_it():
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remove(torch.rand(1, 3, 20, 30), torch.ones(1, 1, 20, 30), Painter(), on_step=stop)


def test_a_shortage_of_memory_is_worded_and_another_error_is_not():
    class Large(Painter):
        def inpaint(self, frames, inactivation, *, on_step):
            raise self.failure

    backbone, mask = Large(), torch.zeros(1, 1, 20, 30)
    mask[..., 5:9, 5:9] = 1
    for backbone.failure, expected in ((MemoryError(), OutOfMemoryError), (RuntimeError("a bug"), RuntimeError)):
        with pytest.raises(expected, match="part of the clip|a bug"):
            remove(torch.rand(1, 3, 20, 30), mask, backbone)


def test_an_interrupt_is_heard_between_any_two_frames(monkeypatch):
    unheard, frames, masks = Unheard(), torch.rand(1, 3, 20, 30).expand(9, -1, -1, -1), torch.zeros(9, 1, 20, 30)
    masks[..., 5:9, 5:9] = 1
    for module, name in ((remove_module, "soft_edges"), (F, "adaptive_avg_pool2d"), (remove_module, "paste_back")):
        monkeypatch.setattr(module, name, unheard.counted(getattr(module, name)))
    remove(frames, masks, Painter(), on_step=unheard.on_step)
    assert unheard.most == 1


@pytest.mark.parametrize(("grow", "feather"), [(4, 3), (0, 0), (-2, 1), (7, 0)])
def test_frame_by_frame_is_what_the_whole_clip_at_once_gives(grow, feather):
    """The twin: dilate, feather and paste the clip as one tensor, which is what long clips have no memory for."""
    random = torch.Generator().manual_seed(0)
    frames = torch.rand(6, 3, 60, 90, generator=random)
    masks = torch.zeros(6, 1, 60, 90)
    for t in (0, 1, 2, 4):  # frame 3 and 5 show no target
        masks[t, 0, 20:40, 10 + 8 * t : 30 + 8 * t] = 0.3 + 0.2 * (t % 3)

    class Grey:
        name, facts = "grey", BackboneFacts()

        def inpaint(self, frames, inactivation, *, on_step=None):
            self.hole = inactivation
            return torch.full_like(frames, 0.5)

    backbone = Grey()
    result = remove(frames, masks, backbone, grow=grow, feather=feather, crop=False)
    grown = grow_mask(masks, grow)
    alpha = feather_alpha((grown / 0.5).clamp(max=1), feather)
    assert torch.equal(backbone.hole, grown)
    assert torch.equal(result, paste_back(frames, torch.full_like(frames, 0.5), alpha))
