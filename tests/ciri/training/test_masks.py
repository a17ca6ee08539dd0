import numpy as np
import pytest

from ciri.training.masks import ERRORS, random_blob, smooth_path, wrong_masks


def moving_square(frames=10):
    masks = np.zeros((frames, 48, 64), bool)
    for t in range(frames):
        masks[t, 14:34, 10 + 2 * t : 30 + 2 * t] = True
    return masks


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_changes_later_frames_and_never_the_painted_one(name):
    true = moving_square()
    changed = 0
    for seed in range(5):
        wrong = wrong_masks(true, np.random.default_rng(seed), errors=(name,))
        assert wrong.dtype == bool and wrong.shape == true.shape
        assert (wrong[0] == true[0]).all()
        changed += (wrong != true).any()
    assert changed >= 4
    assert (true == moving_square()).all()  # the input is not touched


def test_errors_go_the_way_their_names_say():
    true = moving_square()
    for seed in range(5):
        for name in ("erode", "lose part", "lose spots", "vanish"):
            wrong = wrong_masks(true, np.random.default_rng(seed), errors=(name,))
            assert not (wrong & ~true).any()
        for name in ("dilate", "leak"):
            assert not (true & ~wrong_masks(true, np.random.default_rng(seed), errors=(name,))).any()
        late = wrong_masks(true, np.random.default_rng(seed), errors=("lag",))
        for t, mask in enumerate(late):
            assert any((mask == true[s]).all() for s in range(max(t - 3, 0), t + 1))


def test_the_same_generator_gives_the_same_masks():
    true = moving_square()
    a, b = (wrong_masks(true, np.random.default_rng(3)) for _ in range(2))
    assert (a == b).all()


def test_empty_masks_pass_through():
    empty = np.zeros((4, 20, 20), bool)
    for name in ERRORS:
        assert not wrong_masks(empty, np.random.default_rng(0), errors=(name,)).any()


def test_a_blob_touches_its_box_and_is_one_piece():
    for seed in range(5):
        blob = random_blob(np.random.default_rng(seed), 30, 50) > 0
        assert blob.shape == (30, 50) and blob[0].any() and blob[-1].any() and blob[:, 0].any() and blob[:, -1].any()


def test_a_path_is_smooth_and_has_no_mean():
    path = smooth_path(np.random.default_rng(0), 50, 10.0)
    assert abs(path.mean()) < 1e-9 and np.abs(np.diff(path)).max() < 2.5
