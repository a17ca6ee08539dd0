"""VGG-19's weight file: the published one, a copy cut to size, and networks that only begin alike."""

import pytest
import torch

from ciri.checkpoints import list_files, write_safetensors
from ciri.errors import CheckpointError
from ciri.refinement.vgg import VGG19Features, load_vgg19
from ciri.signatures import identify


def published(seed=0):
    """The keys of torchvision's VGG-19; deeper layers small, for they are dropped."""
    generator = torch.Generator().manual_seed(seed)
    state = {k: torch.randn(v.shape, generator=generator) for k, v in VGG19Features().state_dict().items()}
    deeper = {f"features.{i}.weight": torch.zeros(2, 2, 3, 3) for i in (14, 16, 19, 21, 23, 25, 28, 30, 32, 34)}
    return state | deeper | {f"classifier.{i}.weight": torch.zeros(2, 2) for i in (0, 3, 6)}


def test_the_published_file_loads_and_a_copy_cut_to_size_is_the_same(tmp_path):
    torch.save(published(), tmp_path / "vgg19-dcbb9e9d.pth")
    full = load_vgg19(tmp_path / "vgg19-dcbb9e9d.pth")
    write_safetensors(tmp_path / "small.safetensors", full.state_dict())
    assert (tmp_path / "small.safetensors").stat().st_size == pytest.approx(4.6e6, rel=0.01)
    small = load_vgg19(tmp_path / "small.safetensors")
    x = torch.rand(1, 3, 32, 48)
    assert full(x).shape == (1, 256, 8, 12) and torch.equal(full(x), small(x))
    assert not any(p.requires_grad for p in full.parameters()) and not full.training
    assert len(list_files([tmp_path], "vgg19")) == 2


def test_torchvision_has_these_keys_and_its_relatives_are_told_apart():
    models = pytest.importorskip("torchvision").models
    for name in ("vgg11", "vgg13", "vgg16", "vgg19", "vgg16_bn", "vgg19_bn", "alexnet"):
        with torch.device("meta"):
            state = getattr(models, name)(weights=None).state_dict()
        assert (identify(state) == "vgg19") == (name == "vgg19"), name
        if name == "vgg19":
            assert all(state[k].shape == v.shape for k, v in VGG19Features().state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"features.17.weight": torch.zeros(2, 2, 3, 3)}, "like VGG-19 up to conv3_2"),
        (lambda s: {k: v for k, v in s.items() if k != "features.7.bias"}, r"1 missing \(features\.7\.bias\)"),
        (lambda s: s | {"features.12.weight": torch.zeros(256, 256, 1, 1)}, "VGG-19"),
        (lambda s: {"weight": torch.ones(1)}, "VGG-19"),
    ],
)
def test_other_networks_are_refused(tmp_path, change, message):
    torch.save(change(published()), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_vgg19(tmp_path / "w.pth")
