"""VGG-19 up to conv3_2: the features that the paper's contextual loss is taken on, for a user's weight file.

Simonyan and Zisserman, ICLR 2015, in torchvision's layout. 1.1 M parameters here; the published file holds a hundred
times as many, and those are dropped. A feature sees 32 pixels across. Dimensions: b crops, h w pixels.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ciri.checkpoints import load_strictly, read_state_dict
from ciri.errors import CheckpointError
from ciri.signatures import identify

#: ImageNet's channel statistics, for RGB in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Layers by their number in the published file: convolutions with (inputs, outputs), and pooling.
_CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
_POOLS = (4, 9)


class VGG19Features(nn.Module):
    """A :class:`ciri.refinement.regions.FeatureExtractor`.

    Args:
        after_relu: take conv3_2 after its activation. CIRI does not say; the contextual loss's authors do.
    """

    name = "vgg19"
    stride = 4
    #: Painted over what is outside the target: zero after normalisation.
    fill: tuple[float, float, float] = MEAN
    mean: Tensor
    std: Tensor

    def __init__(self, *, after_relu: bool = True) -> None:
        super().__init__()
        self.after_relu = after_relu
        layers: list[nn.Module] = []
        for index in range(max(_CONVOLUTIONS) + 1):
            if index in _CONVOLUTIONS:
                layers.append(nn.Conv2d(*_CONVOLUTIONS[index], 3, padding=1))
            else:
                layers.append(nn.MaxPool2d(2) if index in _POOLS else nn.ReLU(inplace=True))
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        """RGB (b, 3, h, w) in [0, 1] -> (b, 256, h/4, w/4)."""
        features: Tensor = self.features((crops.to(self.mean) - self.mean) / self.std)
        return features.relu() if self.after_relu else features


def load_vgg19(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> VGG19Features:
    """Return the frozen network with the weights of torchvision's VGG-19 file, or of a copy cut after conv3_2.

    Raises:
        CheckpointError: unreadable, or another network's weights (VGG-16 has the same shapes up to here).
    """
    state, metadata = read_state_dict(path)
    network = VGG19Features()
    wanted = network.state_dict()
    if identify(state, metadata) == "vgg19":
        # deeper layers and the classifier
        state = {key: value for key, value in state.items() if key in wanted}
    elif wanted.keys() <= state.keys():
        raise CheckpointError(
            f"{os.fspath(path)} holds a network that is like VGG-19 up to conv3_2 and another one after it. Expected "
            "VGG-19 as torchvision publishes it (vgg19-*.pth), without batch normalisation."
        )
    load_strictly(network, state, model="vgg19", path=path)
    return network.to(device).eval().requires_grad_(False)
