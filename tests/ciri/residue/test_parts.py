"""Part matching against a brute-force twin."""

import pytest
import torch
import torch.nn.functional as F

from ciri.residue.parts import choose_cells, evidence, gather_cells, mean_of_largest, similarity


def test_similarity_is_the_mean_of_the_three_best_cosines() -> None:
    search, reference = F.normalize(torch.randn(2, 5, 3, 4), dim=1), torch.randn(2, 5, 4, 4)
    index = [torch.tensor([0, 3, 7, 9, 15]), torch.tensor([2, 4, 5])]
    got = similarity(search, gather_cells(reference, index, 6))
    for n in range(2):
        for y in range(3):
            for x in range(4):
                cosines = sorted(
                    float(F.cosine_similarity(search[n, :, y, x], reference[n].flatten(1)[:, k], dim=0))
                    for k in index[n]
                )
                assert abs(float(got[n, 0, y, x]) - sum(cosines[-3:]) / 3) < 1e-5


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_mean_of_the_largest_and_its_gradient_are_those_of_sorting(k: int, dim: int) -> None:
    values = torch.randn(4, 7, 7, requires_grad=True)
    weight = torch.randn(4, 7)
    expected = values.sort(dim, descending=True).values.narrow(dim, 0, min(k, 7)).mean(dim)
    means = mean_of_largest(values, k, dim)
    torch.testing.assert_close(means, expected)
    torch.testing.assert_close(mean_of_largest(values.detach(), k, dim), expected.detach())
    got, sorted_ = (torch.autograd.grad((x * weight).sum(), values)[0] for x in (means, expected))
    torch.testing.assert_close(got, sorted_)


def test_one_template_serves_many_frames() -> None:
    search, reference = F.normalize(torch.randn(4, 5, 3, 3), dim=1), torch.randn(1, 5, 4, 4)
    cells = gather_cells(reference, [torch.arange(8)], 8)
    several = gather_cells(reference.expand(4, -1, -1, -1), [torch.arange(8)] * 4, 8)
    torch.testing.assert_close(similarity(search, cells), similarity(search, several))


def test_what_looks_like_both_is_cancelled() -> None:
    reference = torch.randn(1, 6, 4, 4)
    cells = gather_cells(reference, [torch.arange(4)], 4)
    assert not evidence(torch.randn(2, 6, 3, 3), cells, cells)[:, 2].any()


def test_cells_are_chosen_by_their_share_of_target() -> None:
    target = torch.zeros(4, 4)
    target[0, :3] = torch.tensor([1.0, 0.8, 0.6])
    near = target.clone()
    near[1] = 0.3
    own, other = choose_cells(target, near, 100)
    assert own.tolist() == [0, 1] and other.tolist() == [3, *range(8, 16)]
    assert choose_cells(torch.ones(10, 10), torch.zeros(10, 10), 5)[0].tolist() == [0, 25, 50, 74, 99]


def test_a_thin_target_gets_its_best_cells() -> None:
    share = torch.zeros(4, 4)
    share[2] = torch.tensor([0.2, 0.3, 0.3, 0.1])
    assert choose_cells(share, share, 9)[0].tolist() == [8, 9, 10, 11]


def test_without_background_the_answer_is_the_least() -> None:
    cells = gather_cells(torch.randn(1, 3, 2, 2), [torch.zeros(0, dtype=torch.int64)], 4)
    assert similarity(torch.randn(1, 3, 2, 2), cells).eq(-1).all()
