"""Evidence around a mask: what copies show is the background, and likeness is counted as a loop would count it."""

import numpy as np
import torch

from ciri.inactivation.evidence import LEVELS, Witness, colour_share, neighbourhood
from tests.ciri.inactivation.moving import moving_disc


def test_copies_show_the_background_and_come_from_beyond_the_region():
    frames, masks, background = moving_disc()
    half = masks.clone()
    half[3:, :, 40:] = 0  # the lower part of the target is missed from frame 3 on
    witness = Witness(frames, half, masks[0], frames[0], neighbourhood(half, 14))
    seen = 0
    for t in range(4, 12):
        evidence = witness.at(t)
        missed = (masks[t] > 0) & (half[t] == 0)
        for copy, trust in ((evidence.before, evidence.cues[:, :1]), (evidence.after, evidence.cues[:, 1:2])):
            found = missed & (trust[0] > 0)
            seen += int(found.sum())
            wrong = (copy[0] - background).abs().mean(0, keepdim=True)[found]
            assert not len(wrong) or wrong.mean() < 0.04
    assert seen > 500


def test_nothing_is_known_beyond_the_region():
    frames, masks, _ = moving_disc()
    witness = Witness(frames, masks, masks[0], frames[0], neighbourhood(masks, 8))
    evidence = witness.at(5)
    outside = (evidence.region == 0).expand(-1, 3, -1, -1)
    assert not evidence.before[outside].any() and not evidence.after[outside].any()
    assert (evidence.looks[(evidence.region == 0).expand(-1, 2, -1, -1)] == 0.5).all()
    assert torch.equal(evidence.frame[0], frames[5]) and torch.equal(evidence.predicted[0], masks[5])
    inside = masks[5, 0] > 0
    assert evidence.looks[0, :, inside].mean() > 0.9
    ring = (evidence.region[0, 0] > 0) & ~inside
    assert evidence.looks[0, :, ring].mean() < 0.35


def test_the_share_of_a_colour_is_what_a_loop_counts():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8) // 64 * 64
    mask, background = rng.random((2, 12, 15)).astype(np.float32)
    got = colour_share(image, mask, background)
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / 0.8) ** 2)
    kernel /= kernel.sum()
    step = 256 // LEVELS

    def density(at, weight):
        total = 0.0
        for y in range(12):
            for x in range(15):
                apart = image[y, x].astype(int) // step - at
                if (np.abs(apart) <= 2).all():
                    total += weight[y, x] * np.prod(kernel[apart + 2])
        return total / weight.sum()

    for y, x in ((0, 0), (5, 9), (11, 14)):
        at = image[y, x].astype(int) // step
        inside, outside = density(at, mask), density(at, background)
        assert abs(got[y, x] - (inside + 1e-5) / (inside + outside + 2e-5)) < 1e-5
