"""Wrong masks: each error is what its name says, and grows with its strength."""

from itertools import pairwise

import numpy as np
import pytest

from ciri.errors import EvaluationError
from ciri.evaluation.degrade import KINDS, STRENGTHS, degrade


@pytest.fixture(scope="module")
def masks():
    """A square of 40 pixels that moves right by 5 pixels a frame."""
    found = np.zeros((8, 120, 160), bool)
    for t in range(8):
        found[t, 40:80, 40 + 5 * t : 80 + 5 * t] = True
    return found


def iou(a, b):
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


@pytest.mark.parametrize("kind", KINDS)
def test_agreement_falls_with_strength(masks, kind):
    agreement = [iou(degrade(masks, kind, s)[1:], masks[1:]) for s in (0, *STRENGTHS)]
    assert agreement[0] == 1 and all(a > b for a, b in pairwise(agreement)), agreement


@pytest.mark.parametrize("kind", KINDS)
def test_the_painted_mask_stays_true_and_nothing_is_random(masks, kind):
    wrong = degrade(masks, kind, 4)
    assert (wrong[0] == masks[0]).all() and (wrong == degrade(masks, kind, 4)).all()
    assert wrong.shape == masks.shape and wrong.dtype == bool


@pytest.mark.parametrize("kind", KINDS)
def test_the_painted_mask_is_the_first_that_shows_the_target(masks, kind):
    late = np.concatenate([np.zeros_like(masks[:3]), masks])
    assert (degrade(late, kind, 5)[3] == masks[0]).all()
    assert not (degrade(late, kind, 5)[4:] == late[4:]).all()


def test_each_error_is_what_it_says(masks):
    inside = {kind: not (degrade(masks, kind, 3) & ~masks).any() for kind in KINDS}
    covers = {kind: not (masks & ~degrade(masks, kind, 3)).any() for kind in KINDS}
    assert inside == {"eroded": True, "dilated": False, "missing part": True, "lagging": False, "leaking": False}
    assert covers == {"eroded": False, "dilated": True, "missing part": False, "lagging": False, "leaking": True}


def test_amounts_are_as_stated(masks):
    # 3 % of 40 pixels for each step: a radius of 4 pixels at strength 3
    assert degrade(masks, "eroded", 3)[1].sum() == 32 * 32
    for strength in STRENGTHS:
        assert degrade(masks, "missing part", strength)[1].sum() == pytest.approx(1600 * (1 - 0.1 * strength), abs=40)
        assert (degrade(masks, "lagging", strength)[7] == masks[7 - strength]).all()
        leaked = degrade(masks, "leaking", strength)[1].sum() / 1600 - 1
        assert 0.05 * strength < leaked < 0.2 * strength


def test_targets_at_the_border_and_absent_ones():
    masks = np.zeros((4, 30, 40), bool)
    masks[:3, 20:, 30:] = True
    for kind in KINDS:
        for strength in STRENGTHS:
            wrong = degrade(masks, kind, strength)
            assert wrong.shape == masks.shape
            if kind != "lagging":
                assert not wrong[3].any()
        assert not degrade(masks * False, kind, 5).any()


def test_unknown_errors_are_refused(masks):
    with pytest.raises(EvaluationError, match="eroded, dilated"):
        degrade(masks, "melted", 1)
    with pytest.raises(EvaluationError, match="strength 6"):
        degrade(masks, "eroded", 6)
