"""Sources before and after that are astray by known amounts: where they end is the weighted mean of the two."""

import cv2
import numpy as np
import pytest
import torch

from ciri.flow.addresses import SMALLEST_SHARE, Addresses, Candidates, weight_of
from ciri.flow.agreement import FEWEST, agree
from ciri.flow.sampling import PixelTable

H, W, FRAMES = 96, 128, 5
HOLE = (slice(36, 60), slice(50, 78))


def texture():
    noise = np.random.default_rng(3).random((H, W, 3)).astype(np.float32)
    image = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return torch.from_numpy((image - image.min()) / (image.max() - image.min())).permute(2, 0, 1)


def still_scene(before=(0.0, 0.0), after=(0.0, 0.0), *, sides=("before", "after"), frames=(1, 3)):
    """A still picture with a hole in frame 2, whose sources in frames 1 and 3 are astray by so many pixels (x, y)."""
    clip = texture().expand(FRAMES, 3, H, W).clone()
    visible = torch.ones(FRAMES, H, W, dtype=torch.bool)
    visible[2][HOLE] = False
    covered = [torch.nonzero(~v.flatten()).flatten() for v in visible]
    found = {side: [Addresses.nowhere(len(index)) for index in covered] for side in ("before", "after")}
    index = covered[2]
    true = torch.stack([index % W, index // W], -1).float()
    for side, astray, frame in zip(("before", "after"), (before, after), frames, strict=True):
        if side in sides:
            n = len(index)
            found[side][2] = Addresses(torch.full((n,), frame), true + torch.tensor(astray), torch.full((n,), 0.1))
    flow = torch.zeros(FRAMES - 1, 2, H, W)
    table = PixelTable(clip, visible)
    return Candidates(clip, visible, table, covered, found["before"], found["after"], flow, flow), true


@pytest.mark.parametrize(
    ("frames", "share"),
    [
        pytest.param((1, 3), 0.5, id="as near"),
        pytest.param((0, 3), 2 / 3, id="the later one is nearer"),
    ],
)
def test_both_sides_end_where_their_weighted_mean_is(frames, share):
    astray = torch.tensor([[1.5, -0.75], [-0.5, 0.5]])
    candidates, true = still_scene(tuple(astray[0].tolist()), tuple(astray[1].tolist()), frames=frames)
    before, after = candidates.before[2], candidates.after[2]
    weights = [float(weight_of(source, 2)[0]) for source in (before, after)]
    assert weights[1] / sum(weights) == pytest.approx(share)
    agree(candidates)
    expected = torch.lerp(astray[0], astray[1], share)
    # at its edge the hole holds the flow back
    inside = ((true - true.mean(0)).abs() < torch.tensor([9.0, 7.0])).all(-1)
    for source in (before, after):
        assert ((source.position - true)[inside].mean(0) - expected).abs().max() < 0.15
    assert (before.position - after.position)[inside].norm(dim=1).mean() < 0.2 * (astray[0] - astray[1]).norm()


def test_what_agrees_already_hardly_moves():
    candidates, true = still_scene((0.25, 0.25), (0.25, 0.25))
    agree(candidates)
    for source in (candidates.before[2], candidates.after[2]):
        assert (source.position - true - 0.25).abs().max() < 0.05


def test_one_side_alone_is_left_as_it_is():
    candidates, true = still_scene((1.5, 0.0), sides=("before",))
    agree(candidates)
    torch.testing.assert_close(candidates.before[2].position, true + torch.tensor([1.5, 0.0]), rtol=0, atol=0)
    assert (candidates.after[2].frame == -1).all()


def test_pixels_that_one_side_knows_are_not_moved_along():
    candidates, true = still_scene((1.5, 0.0), (-1.5, 0.0))
    lonely = true[:, 0] < 64
    candidates.after[2].frame[lonely] = -1
    agree(candidates)
    torch.testing.assert_close(
        (candidates.before[2].position - true)[lonely], torch.tensor([[1.5, 0.0]]).expand(int(lonely.sum()), 2)
    )
    assert (candidates.before[2].position - true)[~lonely, 0].mean() < 1.0


def test_nothing_is_moved_among_hidden_pixels():
    candidates, _ = still_scene((3.0, 0.0), (-3.0, 0.0))
    # only between columns 60 and 66 both sides show what they are asked for
    visible = candidates.visible.clone()
    visible[1, :, 66:] = visible[3, :, :60] = False
    candidates.table = PixelTable(candidates.frames, visible)
    valid = [
        candidates.table.sample(s[2].frame, s[2].position)[1] > SMALLEST_SHARE
        for s in (candidates.before, candidates.after)
    ]
    agree(candidates)
    for sources, before in zip((candidates.before, candidates.after), valid, strict=True):
        _, share = candidates.table.sample(sources[2].frame, sources[2].position)
        assert (share[before] > SMALLEST_SHARE).all()


def test_a_few_pixels_say_nothing():
    candidates, true = still_scene((1.5, 0.0), (-1.5, 0.0))
    candidates.after[2].frame[FEWEST - 1 :] = -1
    agree(candidates)
    torch.testing.assert_close(candidates.before[2].position, true + torch.tensor([1.5, 0.0]), rtol=0, atol=0)


def test_progress_counts_up_and_stops():
    candidates, _ = still_scene()
    seen = []
    agree(candidates, on_step=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        agree(candidates, on_step=stop)
