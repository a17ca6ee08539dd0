"""The score and the loss against their formulas, cell by cell."""

import math

import pytest
import torch

from ciri.errors import CiriError
from ciri.residue.base import Box
from ciri.residue.crops import search_window
from ciri.residue.score import BORDER, residue_loss, score

SIZE = (48, 64)
BOXES = [Box(-4, 10, 20, 16), Box(20, 8, 24, 30)]
GRID = 20


def by_hand(logits: torch.Tensor, box: Box, tau: float, value) -> float:
    window = search_window(box)
    cell = window.width / GRID
    total = 0.0
    for j in range(BORDER, GRID - BORDER):
        for i in range(BORDER, GRID - BORDER):
            x, y = window.x + (i + 0.5) * cell, window.y + (j + 0.5) * cell
            z = float(logits[0, j, i])
            if 0 <= x <= SIZE[1] and 0 <= y <= SIZE[0] and 1 / (1 + math.exp(-z)) > tau:
                total += value(z) * cell * cell
    return total / (box.width * box.height)


def test_both_are_their_formulas() -> None:
    logits = torch.randn(2, 1, GRID, GRID, dtype=torch.float64)
    tau = 0.3
    edge = math.log(tau / (1 - tau))
    scores, losses = score(logits, BOXES, SIZE, tau), residue_loss(logits, BOXES, SIZE, tau)
    for n, box in enumerate(BOXES):
        assert float(scores[n]) == pytest.approx(by_hand(logits[n], box, tau, lambda z: 1 / (1 + math.exp(-z)) - tau))
        expected = by_hand(logits[n], box, tau, lambda z: math.log1p(math.exp(z)) - math.log1p(math.exp(edge)))
        assert float(losses[n]) == pytest.approx(expected)


def test_a_quiet_map_scores_exactly_nothing_and_exerts_no_force() -> None:
    logits = torch.full((2, 1, GRID, GRID), -1.0, requires_grad=True)
    assert score(logits, BOXES, SIZE, 0.3).tolist() == [0, 0]
    loss = residue_loss(logits, BOXES, SIZE, 0.3)
    loss.sum().backward()
    assert loss.tolist() == [0, 0] and not logits.grad.any()


def test_sure_detection_keeps_its_slope() -> None:
    logits = torch.full((1, 1, GRID, GRID), 12.0, requires_grad=True)
    residue_loss(logits, BOXES[1:], SIZE, 0.3).sum().backward()
    assert float(logits.grad[0, 0, GRID // 2, GRID // 2]) * 30 * 24 == pytest.approx(9, rel=1e-3)  # a cell is 3 x 3 px


def test_a_target_that_is_all_there_scores_about_its_area() -> None:
    box = Box(20, 12, 20, 20)
    logits = torch.full((1, 1, GRID, GRID), -9.0)
    logits[..., 5:15, 5:15] = 9
    assert float(score(logits, [box], SIZE, 0.25)) == pytest.approx(0.75, abs=0.01)


def test_the_paper_sums_the_map() -> None:
    logits = torch.randn(2, 1, GRID, GRID)
    torch.testing.assert_close(residue_loss(logits, BOXES, SIZE, 0.3, mode="paper"), logits.sigmoid().sum((1, 2, 3)))
    with pytest.raises(CiriError, match="'hinge' or 'paper'"):
        residue_loss(logits, BOXES, SIZE, 0.3, mode="mean")
