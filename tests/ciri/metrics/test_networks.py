"""I3D and LPIPS from users' files: what is accepted, what is refused, and properties of the distances."""

import pytest
import torch

from ciri.checkpoints import write_safetensors
from ciri.errors import CheckpointError, ClipError
from ciri.metrics.i3d import I3D, load_i3d
from ciri.metrics.local import Box
from ciri.metrics.lpips import LPIPS, load_lpips
from tests.parity.seeded_weights import seeded_state_dict


@pytest.fixture(scope="module")
def i3d_file(tmp_path_factory):
    """As published: with a classifier, without batch norm's step counters."""
    state = seeded_state_dict(I3D().state_dict(), 3, 1.4)
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    state |= {"logits.conv3d.weight": torch.zeros(4, 1024, 1, 1, 1), "logits.conv3d.bias": torch.zeros(4)}
    path = tmp_path_factory.mktemp("i3d") / "rgb_imagenet.safetensors"
    write_safetensors(path, state)
    return path


def test_i3d_reads_the_published_keys(i3d_file):
    network = load_i3d(i3d_file)
    clip = torch.rand(16, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    once, again = network.features(clip), network.features(clip)
    assert once.shape == (1024,) and torch.equal(once, again) and once.isfinite().all()
    assert not torch.allclose(once, network.features(clip, "evaluation"))


@pytest.mark.parametrize("shape", [(15, 3, 112, 112), (16, 3, 111, 200)])
def test_i3d_refuses_clips_that_are_too_small(i3d_file, shape):
    with pytest.raises(ClipError, match="at least 16 frames of 112"):
        load_i3d(i3d_file).features(torch.zeros(shape))


def test_i3d_refuses_other_weights(tmp_path, i3d_file):
    other = tmp_path / "i3d.safetensors"
    write_safetensors(other, {"a": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="expected I3D"):
        load_i3d(other)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_i3d(tmp_path / "missing.pt")


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    """The trunk with its classifier, and the linear layers, as they are published."""
    folder = tmp_path_factory.mktemp("lpips")
    state = {k: v.abs() if k.startswith("lin") else v for k, v in seeded_state_dict(LPIPS().state_dict(), 5).items()}
    trunk = {key: value for key, value in state.items() if key.startswith("features.")}
    write_safetensors(folder / "alexnet.safetensors", trunk | {"classifier.1.weight": torch.zeros(2, 2)})
    write_safetensors(folder / "alex.safetensors", {k: v for k, v in state.items() if k.startswith("lin")})
    write_safetensors(folder / "both.safetensors", state)
    return folder


def test_lpips_from_one_file_or_two(lpips_files):
    a, b = torch.rand(2, 2, 3, 70, 90, generator=torch.Generator().manual_seed(2))
    together = load_lpips(lpips_files / "both.safetensors")
    apart = load_lpips(lpips_files / "alex.safetensors", lpips_files / "alexnet.safetensors")
    assert torch.equal(together.distance(a, b), apart.distance(a, b))


def test_lpips_is_zero_for_equal_pictures_and_symmetric(lpips_files):
    network = load_lpips(lpips_files / "both.safetensors")
    a, b = torch.rand(2, 1, 3, 70, 90, generator=torch.Generator().manual_seed(3))
    assert float(network.distance(a, a)) == 0 and float(network.distance(a, b)) > 0
    assert float(network.distance(a, b)) == pytest.approx(float(network.distance(b, a)))


def test_local_lpips_sees_where_the_error_is(lpips_files):
    network = load_lpips(lpips_files / "both.safetensors")
    a = torch.rand(2, 3, 96, 200, generator=torch.Generator().manual_seed(4))
    b = a.clone()
    b[0, :, 20:60, 10:50] = 0
    here, there = Box(10, 20, 40, 40), Box(150, 20, 40, 40)
    near = network.distance(a, b, [here, None])
    assert near[0] > 10 * network.distance(a, b, [there, there])[0] and near[1].isnan()


@pytest.mark.parametrize(("height", "width"), [(31, 31), (30, 90), (90, 30), (1, 1)])
def test_pictures_too_small_for_the_network_have_no_lpips(lpips_files, height, width):
    network = load_lpips(lpips_files / "both.safetensors")
    a, b = torch.rand(2, 2, 3, height, width, generator=torch.Generator().manual_seed(6))
    for boxes in (None, [Box(0, 0, 1, 1), None]):
        distances = network.distance(a, b, boxes)
        assert distances.shape == (2,) and distances[0].isnan() == (min(height, width) < 31)


def test_lpips_refuses_half_of_its_weights(lpips_files):
    with pytest.raises(CheckpointError, match="missing"):
        load_lpips(lpips_files / "alex.safetensors")
    with pytest.raises(CheckpointError, match="alexnet-owt"):
        load_lpips()
