"""Part matching on SiamMask's features: with made-up weights on made-up scenes, where the mechanism has to work."""

import itertools
import math

import pytest
import torch

from ciri.errors import CheckpointError, MaskError
from ciri.residue import registry
from ciri.residue.base import Box, ResidueDetector
from ciri.residue.crops import search_window
from ciri.residue.detect import detect_residue
from ciri.residue.score import residue_loss, score
from ciri.residue.siammask import Bank, bank_of, nearest, over_the_window
from ciri.residue.siammask_network import SiamMask
from tests.parity.seeded_weights import seeded_state_dict

SIZE = (120, 160)
TARGET = Box(60, 40, 40, 32)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint of the base variant with made-up weights."""
    path = tmp_path_factory.mktemp("weights") / "SiamMask_VOT_base.pth"
    network = SiamMask(sharp=False)
    torch.save({"state_dict": seeded_state_dict(network.state_dict(), 5, 0.7)}, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def detector(published):
    return registry.build("siammask", weights=published, precision="fp32")


def stripes(seed, colour):
    """A texture: noise of one colour, drawn out along one axis."""
    noise = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(seed))
    noise = torch.nn.functional.avg_pool2d(noise, (1, 5), 1, (0, 2))[0]
    return (torch.tensor(colour)[:, None, None] * (0.5 + noise)).clamp(0, 1)


CLEAN = stripes(1, (0.25, 0.5, 0.3))
OBJECT = stripes(2, (0.8, 0.3, 0.2))


def rectangle(box):
    mask = torch.zeros(1, *SIZE)
    mask[:, box.y : box.y + box.height, box.x : box.x + box.width] = 1
    return mask


def painted(box, on=CLEAN):
    mask = rectangle(box)
    return mask * OBJECT + (1 - mask) * on


def in_window(box, part):
    """Which cells of the map belong to a part of the frame, less a seam of 4 pixels that is neither; and which not."""
    window = search_window(box)
    centres = (torch.arange(85) + 0.5) / 85
    x, y = window.x + centres * window.width, window.y + centres * window.height
    distance = torch.maximum(
        torch.maximum(part.x - x, x - part.x - part.width)[None, :],
        torch.maximum(part.y - y, y - part.y - part.height)[:, None],
    )
    return distance < -4, distance > 4


def test_it_is_a_residue_detector(detector):
    assert isinstance(detector, ResidueDetector) and detector.name in registry.names()


def test_a_left_over_part_is_seen_where_it_is_and_a_clean_removal_is_not(detector):
    template = detector.template(painted(TARGET), rectangle(TARGET))
    part = Box(60, 40, 40, 12)
    clean, left = detector.detect(template, torch.stack([CLEAN, painted(part)]), [TARGET, TARGET])
    inside, outside = in_window(TARGET, part)
    assert float(left[0][inside].median()) > 0 > float(left[0][outside].quantile(0.99))
    assert float((left[0][inside, None] > left[0][outside]).float().mean()) > 0.97
    scores = score(torch.stack([clean, left]), [TARGET, TARGET], SIZE, detector.threshold)
    assert float(scores[0]) < 0.01 and float(scores[1]) > 0.1


def test_it_looks_where_the_target_is_in_that_frame(detector):
    """The same part elsewhere, with the box there, gives the same answer: only the padding pattern may differ."""
    template = detector.template(painted(TARGET), rectangle(TARGET))
    shift = 8
    frame = painted(Box(60, 40, 40, 12))
    moved = torch.roll(frame, shift, -1)
    there = Box(TARGET.x + shift, *TARGET[1:])
    maps = detector.detect(template, torch.stack([frame, moved]), [TARGET, there])
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-3)


def test_background_that_looks_like_the_target_cancels(detector):
    twin = Box(85, 78, 15, 20)
    plain = detector.template(painted(TARGET), rectangle(TARGET))
    warned = detector.template(painted(twin, on=painted(TARGET)), rectangle(TARGET))
    inside, _ = in_window(TARGET, twin)
    frame = painted(twin)[None]
    alarmed, calm = (float(detector.detect(t, frame, [TARGET])[0, 0][inside].sigmoid().mean()) for t in (plain, warned))
    assert calm < 0.5 * alarmed


def test_gradients_reach_the_pixels_of_the_residue_and_nothing_else_is_trained(detector):
    template = detector.template(painted(TARGET), rectangle(TARGET))
    frame = painted(Box(60, 40, 40, 12))[None].requires_grad_()
    loss = residue_loss(detector.detect(template, frame, [TARGET]), [TARGET], SIZE, detector.threshold).sum()
    (gradient,) = torch.autograd.grad(loss, frame)
    window = search_window(TARGET)
    outside = 1 - rectangle(window)
    assert gradient.isfinite().all() and gradient.any() and not (gradient * outside).any()
    # towards what should be seen there, the loss falls
    towards = (CLEAN - frame[0]).detach()
    assert float((gradient[0] * towards).sum()) < 0
    with torch.no_grad():
        less = residue_loss(
            detector.detect(template, frame + 0.2 * towards, [TARGET]), [TARGET], SIZE, detector.threshold
        )
    assert float(less) < loss.item()
    assert not any(p.requires_grad or p.grad is not None for p in detector.trunk.parameters())
    assert not any(t.requires_grad for bank in template.banks for t in (bank.target, bank.background))


def test_frames_of_a_batch_do_not_mix(detector):
    template = detector.template(painted(TARGET), rectangle(TARGET))
    frames, boxes = torch.stack([painted(Box(60, 40, 20, 20)), CLEAN]), [TARGET, Box(50, 30, 30, 50)]
    together = detector.detect(template, frames, boxes)
    for index, alone in enumerate(together):
        single = detector.detect(template, frames[index : index + 1], boxes[index : index + 1])[0]
        torch.testing.assert_close(alone, single, rtol=1e-3, atol=1e-3)


def test_half_the_bits_give_nearly_the_same(published, detector):
    half = registry.build("siammask", weights=published, precision="bf16")
    frame, mask = painted(TARGET), rectangle(TARGET)
    seen = painted(Box(60, 40, 40, 12))[None]
    exact, rough = (d.detect(d.template(frame, mask), seen, [TARGET])[0].sigmoid() for d in (detector, half))
    assert rough.dtype == torch.float32 and float((exact - rough).abs().mean()) < 0.05


@pytest.mark.parametrize(
    "box", [Box(70, 50, 10, 10), Box(70, 20, 2, 80), Box(0, 0, 30, 30), Box(1, 1, 158, 118), Box(80, 60, 1, 1)], ids=str
)
def test_targets_of_any_size_and_place(detector, box):
    """Tiny, thin, in the corner, all but filling the frame: numbers, and the target itself is the stronger."""
    residue = detect_residue(
        torch.stack([painted(box), CLEAN]),
        rectangle(box),
        painted(box).expand(2, -1, -1, -1),
        rectangle(box).expand(2, 1, -1, -1),
        detector,
    )
    assert residue.maps.isfinite().all() and residue.scores.isfinite().all()
    assert residue.maps.amin() >= 0 and residue.maps.amax() <= 1
    assert residue.scores[0] >= residue.scores[1]


def test_a_mask_without_a_target_is_refused(detector):
    with pytest.raises(MaskError, match="empty|nothing|no"):
        detector.template(CLEAN, torch.zeros(1, *SIZE))


def test_without_or_with_another_file_there_is_no_detector(tmp_path):
    with pytest.raises(CheckpointError, match="published"):
        registry.build("siammask")
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="SiamMask"):
        registry.build("siammask", weights=tmp_path / "w.pth")


# ---------------------------------------------------------------------------------------------------- the parts


def test_the_map_lies_on_the_pixels_that_the_cells_are_centred_on():
    """Cells that hold their own centre's coordinate give maps that do: 8i + 7 in the crop, 3k + 1 on the map."""
    centres = 8.0 * torch.arange(31) + 7
    for axis, cells in ((3, centres.expand(31, 31)), (2, centres[:, None].expand(31, 31))):
        got = over_the_window(cells.flatten()[None])
        expected = (3.0 * torch.arange(85) + 1).clamp(7, 247)
        shape = [1, 1, 1, 1]
        shape[axis] = 85
        # at the ends the average mixes slope and rest
        torch.testing.assert_close(got, expected.view(shape).expand(1, 1, 85, 85), rtol=0, atol=0.34)
        torch.testing.assert_close(got.narrow(axis, 3, 79), expected.view(shape).expand_as(got).narrow(axis, 3, 79))


def test_similarity_is_to_the_three_nearest():
    similarities = torch.rand(4, 9, generator=torch.Generator().manual_seed(0))
    expected = [sum(sorted(row)[-3:]) / 3 for row in similarities.tolist()]
    assert nearest(similarities.T).tolist() == pytest.approx(expected)
    assert nearest(similarities[:, :1].T).tolist() == similarities[:, 0].tolist()


def test_calibration_by_hand():
    """Two kinds of cells on the grid, compared one by one."""
    generator = torch.Generator().manual_seed(4)
    cells = torch.nn.functional.normalize(torch.rand(31 * 31, 5, generator=generator), dim=-1)
    target = torch.tensor([31 * y + x for y, x in itertools.product(range(12, 16), range(10, 15))])
    background = torch.tensor([31 * y + x for y, x in itertools.product(range(1, 30, 4), (2, 20, 27))])

    def by_loops(numbers):
        found = []
        for a in numbers.tolist():
            means = []
            for bank in (target, background):
                far = [b for b in bank.tolist() if max(abs(a // 31 - b // 31), abs(a % 31 - b % 31)) > 1]
                values = sorted(float(cells[a] @ cells[b]) for b in far)[-3:]
                means.append(sum(values) / len(values))
            found.append(means[0] - means[1])
        return torch.tensor(found)

    bank = bank_of(cells, target, background)
    offset = float(by_loops(background).quantile(0.99))
    gap = max(float(by_loops(target).median()) - offset, 0.05)
    assert bank.offset == pytest.approx(offset, abs=1e-5)
    assert bank.slope == pytest.approx((math.log(9) - math.log(3 / 7)) / gap, rel=1e-3)


def test_the_two_fixed_points_of_the_calibration():
    bank = Bank(torch.eye(4)[:1], torch.eye(4)[1:2], offset=0.2, slope=(math.log(9) - math.log(3 / 7)) / 0.3)
    cells = torch.tensor([[0.2, 0, 0, 0], [0.5, 0, 0, 0], [0.5, 0.3, 0, 0]])
    torch.testing.assert_close(bank.logits(cells).sigmoid(), torch.tensor([0.3, 0.9, 0.3]))


def test_the_network_sees_what_it_was_trained_on(detector):
    """Blue before red, in 0..255, 255 pixels a side; colour outside the frame is the one given."""
    frame, window, fill = painted(TARGET), Box(-31, -40, 255, 255), torch.tensor([0.2, 0.4, 0.6])
    square = fill[:, None, None].expand(3, 255, 255).clone()
    square[:, 40:160, 31:191] = frame
    maps = detector.trunk.maps(square[[2, 1, 0]][None] * 255)
    expected = torch.nn.functional.normalize(maps.p2, dim=1)[0].flatten(1).T
    torch.testing.assert_close(detector.features(frame[None], [window], fill)[0][0], expected, rtol=1e-3, atol=1e-5)
