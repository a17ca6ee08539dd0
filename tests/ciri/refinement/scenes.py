"""A clip with a known answer, a detector that knows it, and a backbone that does too."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from ciri.frames import grow_mask
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.remove import remove
from ciri.progress import ignore
from ciri.propagation.base import MaskTrack
from ciri.residue.crops import crop, search_window

COUNT, HEIGHT, WIDTH = 6, 64, 96
SIDE = 30


def noise(generator, channels, height, width, coarse):
    """A smooth random picture in [0, 1]."""
    small = torch.rand(1, channels, height // coarse + 2, width // coarse + 2, generator=generator)
    return F.interpolate(small, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


class Scene:
    """A reddish square that moves over a bluish background; nobody sees its colours anywhere else.

    Attributes:
        clean, frames: (T, 3, H, W); true: (T, 1, H, W).
    """

    def __init__(self, seed=0, count=COUNT, side=SIDE):
        generator = torch.Generator().manual_seed(seed)
        background = noise(generator, 3, HEIGHT, WIDTH, 6) * torch.tensor([0.3, 0.6, 1.0])[:, None, None]
        target = 0.4 + 0.6 * noise(generator, 3, side, side, 5) * torch.tensor([1.0, 0.3, 0.2])[:, None, None]
        self.clean = background.expand(count, -1, -1, -1).clone()
        self.frames, self.true = self.clean.clone(), torch.zeros(count, 1, HEIGHT, WIDTH)
        for t in range(count):
            x = 20 + 4 * t
            self.frames[t, :, 16 : 16 + side, x : x + side] = target
            self.true[t, :, 16 : 16 + side, x : x + side] = 1
            # by this pixel a detector tells which frame it is shown
            self.clean[t, :, 0, 0] = self.frames[t, :, 0, 0] = t / 16

    def cut(self, at=(2, 3), columns=9):
        """Masks that miss the last columns of the target in some frames."""
        masks = self.true.clone()
        for t in at:
            right = int(torch.nonzero(masks[t, 0].any(0)).max()) + 1
            masks[t, :, :, right - columns : right] = 0
        return masks

    def removal(self, masks):
        return remove(self.frames, masks, Knows(self), grow=2, feather=2)


class Knows:
    """A backbone that has seen the clip without its target; around an incomplete mask it lets the target bleed in."""

    name, facts = "knows", BackboneFacts()

    def __init__(self, scene):
        self.scene, self.calls = scene, 0

    def inpaint(self, frames, inactivation, *, on_step=None):
        self.calls += 1
        clean = self.scene.clean[:1, :, : frames.shape[2], : frames.shape[3]]
        for step in range(3):
            if on_step:
                on_step(step + 1, 3)
        return torch.where(inactivation > 0, clean.expand_as(frames), frames)


def numbers(frames):
    """Which frames of their scene these are."""
    return [round(float(frame[0, 0, 0].detach()) * 16) for frame in frames]


class Answers:
    """A propagator that answers with given masks of the whole clip, whatever part of it is shown.

    ``confidence`` is the same for all frames; ``asked`` holds the frames and keys it was asked for, ``parts`` the rows
    and columns that it was shown.
    """

    def __init__(self, clip, masks, name="answers"):
        self.clip, self.masks, self.name, self.asked, self.parts = clip, masks, name, [], []
        self.confidence = 1.0

    def propagate(self, frames, key_masks, key_frames, *, on_step=ignore):
        found = [self._find(frame) for frame in frames]
        at, (rows, columns) = [t for t, _ in found], found[0][1]
        assert all(place == (rows, columns) for _, place in found)
        self.asked.append((at, [at[t] for t in key_frames]))
        self.parts.append((rows, columns))
        on_step(1, 1)
        return MaskTrack(self.masks[at][..., rows, columns].clone(), torch.full((len(at),), self.confidence))

    def parameters_to_refine(self):
        return []

    def _find(self, part):
        """The number of the frame that shows this part, and its rows and columns there."""
        small, (height, width) = part.permute(1, 2, 0).numpy(), part.shape[1:]
        differences = [
            cv2.matchTemplate(frame.permute(1, 2, 0).numpy(), small, cv2.TM_SQDIFF) for frame in self.clip.frames
        ]
        t, y, x = np.unravel_index(np.argmin(differences), np.shape(differences))
        assert differences[t][y, x] < 1  # files hold 255ths
        return int(t), (slice(y, y + height), slice(x, x + width))


class Oracle:
    """Says how much of the target is left, from the clean clip: what a perfect detector would answer, blurred."""

    name, threshold, device = "oracle", 0.3, torch.device("cpu")

    def __init__(self, scene):
        self.scene, self.looks = scene, 0
        self.near = grow_mask(scene.true, 3).amax(0)

    def template(self, frame, mask):
        return None

    def detect(self, template, frames, boxes, removal=None):
        self.looks += 1
        clean, shown = self.scene.clean[0], self.scene.frames
        maps = []
        for t, frame, box in zip(numbers(frames), frames, boxes, strict=True):
            target = shown[t] - clean
            left = ((frame - clean) * target).sum(0) / (target.square().sum(0) + 1e-3)
            response = (left.clamp(0, 1) * self.scene.true[t, 0])[None, None]
            blurred = F.avg_pool2d(response, 3, 1, 1)
            maps.append(crop(blurred, [search_window(box)], 60, torch.zeros(1)).clamp(0.003, 0.997))
        return torch.logit(torch.cat(maps))


class Constant:
    """A detector that answers the same everywhere."""

    name, threshold, device = "constant", 0.3, torch.device("cpu")

    def template(self, frame, mask):
        return None

    def detect(self, template, frames, boxes, removal=None):
        return frames.new_zeros(len(frames), 1, 60, 60) + 0 * frames.mean()


class Noise(Constant):
    """A detector that answers anything, another thing at every call."""

    name = "noise"

    def __init__(self, seed, coarse):
        self.random, self.coarse = torch.Generator().manual_seed(seed), coarse

    def detect(self, template, frames, boxes, removal=None):
        blobs = torch.randn(len(frames), 1, self.coarse, self.coarse, generator=self.random)
        return 3 * F.interpolate(blobs, (60, 60), mode="bicubic") - 2 + 0 * frames.mean()
