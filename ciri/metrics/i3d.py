"""I3D: the video network whose features VFID compares.

Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017: Inception-v1 with three-dimensional kernels. The
weights are the published ``rgb_imagenet.pt`` (also ``i3d_rgb_imagenet.pt``), which a user puts beside the others.

Dimensions: b clips, c channels, t frames, h w pixels.
"""

from __future__ import annotations

import os
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.checkpoints import load_strictly, read_state_dict
from ciri.errors import CheckpointError, ClipError
from ciri.signatures import identify, signature_of

FEATURES = 1024
#: Below this, one clip's own statistics are too poor to normalise with.
LEAST_FRAMES, LEAST_SIDE = 16, 112

#: "literature": batch norm takes the clip's own statistics, since the published evaluation programs (FuseFormer,
#: E2FGVI, ProPainter) never put the network into evaluation mode; the magnitudes in papers are reproduced only so.
#: "evaluation": the statistics stored in the weights. The two must never be compared with each other.
Statistics = Literal["literature", "evaluation"]

Size = tuple[int, int, int]

_MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def same_padding(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Zero-pad (b, c, t, h, w) so that every stride-th position gets a full kernel; the odd one goes behind."""
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - (size % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


class Pool(nn.Module):
    """Max pooling with the convolutions' padding rule."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(same_padding(x, self.kernel, self.stride), self.kernel, self.stride)


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3)
        self.kernel: Size = (kernel, kernel, kernel)
        self.stride: Size = (stride, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(same_padding(x, self.kernel, self.stride))
        bn = self.bn
        # the running averages are no business of a measurement: without them the layer cannot write them back
        stored = (None, None) if self.training else (bn.running_mean, bn.running_var)
        return F.relu(F.batch_norm(x, *stored, bn.weight, bn.bias, training=self.training, eps=bn.eps))


class Mixed(nn.Module):
    """An Inception block: four branches side by side."""

    def __init__(self, inputs: int, *widths: int) -> None:
        super().__init__()
        self.b0 = Unit(inputs, widths[0])
        self.b1a, self.b1b = Unit(inputs, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(inputs, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(inputs, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1
        )  # fmt: skip


class I3D(nn.Sequential):
    """The network up to its last Inception block: (b, 3, t, h, w) in [0, 1] to (b, 1024, t/8, h/32, w/32)."""

    def __init__(self) -> None:
        super().__init__()
        flat: tuple[Size, Size] = ((1, 3, 3), (1, 2, 2))
        self.add_module("Conv3d_1a_7x7", Unit(3, 64, 7, 2))
        self.add_module("MaxPool3d_2a_3x3", Pool(*flat))
        self.add_module("Conv3d_2b_1x1", Unit(64, 64))
        self.add_module("Conv3d_2c_3x3", Unit(64, 192, 3))
        self.add_module("MaxPool3d_3a_3x3", Pool(*flat))
        for name, widths in _MIXED.items():
            if name == "Mixed_4b":
                self.add_module("MaxPool3d_4a_3x3", Pool((3, 3, 3), (2, 2, 2)))
            if name == "Mixed_5b":
                self.add_module("MaxPool3d_5a_2x2", Pool((2, 2, 2), (2, 2, 2)))
            self.add_module(name, Mixed(*widths))

    def features(self, clip: Tensor, statistics: Statistics = "literature") -> Tensor:
        """Return the 1024 numbers of one clip, float32 (1024,), the last block's mean over time and space.

        Args:
            clip: floating (T, 3, H, W) in [0, 1], RGB at its own size, as the literature feeds it.
            statistics: see :data:`Statistics`.

        Raises:
            ClipError: fewer than 16 frames, or a side below 112 pixels.
        """
        if len(clip) < LEAST_FRAMES or min(clip.shape[2:]) < LEAST_SIDE:
            raise ClipError(
                f"VFID needs at least {LEAST_FRAMES} frames of {LEAST_SIDE} pixels a side; "
                f"this clip has {len(clip)} of {clip.shape[3]}x{clip.shape[2]}."
            )
        return self.pooled(clip, statistics)

    def pooled(self, clip: Tensor, statistics: Statistics = "literature") -> Tensor:
        """As :meth:`features`, for a clip of any size."""
        self.train(statistics == "literature")
        weight = next(self.parameters())
        with torch.inference_mode():
            x = clip.to(weight.device, weight.dtype).transpose(0, 1)[None]
            return self(x).mean((0, 2, 3, 4)).float().cpu()


def load_i3d(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> I3D:
    """Load the published weights; their classifier is not needed.

    Raises:
        CheckpointError: unreadable, or not I3D's weights.
    """
    state, metadata = read_state_dict(path)
    found = identify(state, metadata)
    if found != "i3d":
        signature = signature_of(found)
        looks = f"{signature.title if signature else found} weights" if found else "weights of no model that is known"
        raise CheckpointError(f"{os.fspath(path)} holds {looks}; expected I3D's, published as rgb_imagenet.pt.")
    network = I3D()
    load_strictly(network, state, model="i3d", path=path, drop="logits.")
    return network.to(device).requires_grad_(False)
