import itertools

import pytest
import torch

from ciri.inactivation.curriculum import Curriculum, DualCurriculum


@pytest.mark.parametrize(("epoch", "alpha"), [(0, 1), (5, 1), (7.5, 0.75), (10, 0.5), (15, 0), (15.1, 0), (30, 0)])
def test_alpha_follows_equation_2(epoch, alpha):
    assert Curriculum(5, 15).alpha(epoch) == pytest.approx(alpha)


def test_alpha_never_rises():
    values = [Curriculum(2, 9).alpha(e / 10) for e in range(120)]
    assert all(a >= b for a, b in itertools.pairwise(values)) and values[0] == 1 and values[-1] == 0


def test_a_curriculum_without_a_ramp_is_a_switch():
    assert [Curriculum(5, 5).alpha(e) for e in (5, 5.001)] == [1, 0]


def test_blend_is_the_interpolation():
    true, wrong = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    curriculum = Curriculum(0, 10)
    assert curriculum.blend(true, wrong, 0) is true
    assert curriculum.blend(true, wrong, 11) is wrong
    assert torch.allclose(curriculum.blend(true, wrong, 3), 0.7 * true + 0.3 * wrong, atol=1e-6)


def test_the_branches_have_their_own_pace():
    true, predicted, attention = torch.ones(1), torch.zeros(1), torch.zeros(1)
    a, b = DualCurriculum().candidates(true, predicted, attention, 10 / 30)
    assert a.item() == pytest.approx(0.5) and b.item() == pytest.approx(10 / 15)
    a, b = DualCurriculum().candidates(true, predicted, attention, 1.0)
    assert a is predicted and b is attention
