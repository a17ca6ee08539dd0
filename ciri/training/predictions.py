"""Wrong masks of composites: made up, or what a real propagator makes of the clip (paper 3.2 trains on such)."""

from __future__ import annotations

import numpy as np
import torch

from ciri.errors import CheckpointError, CiriError, TrainingError
from ciri.propagation import registry
from ciri.propagation.base import Propagator
from ciri.training.composites import Composite
from ciri.training.masks import Mask, Rng, wrong_masks

#: Share of the wrong masks that are predictions, where they are asked for. They are right more often than made-up
#: ones and differ less from each other, and each costs the propagator's time for a whole clip.
SHARE = 0.5
#: A prediction that agrees with the truth to this extent (intersection over union) teaches nothing about wrong masks.
AS_GOOD_AS_TRUE = 0.98
#: A person does not paint what is hardly there: least share of the target's largest area in the frame that is painted.
PAINTABLE = 0.25


class WrongMasks:
    """Makes the wrong masks of composites; the same generator state gives the same masks.

    Args:
        propagator: one of :func:`ciri.propagation.registry.names` that needs no weight file of its own, or "" for
            made-up masks only.
        share: of predictions among the masks.

    Raises:
        CiriError: there is no such propagator, or it needs a weight file.
    """

    def __init__(self, propagator: str = "", share: float = SHARE) -> None:
        self.name = propagator
        try:
            self.propagator: Propagator | None = registry.build(propagator) if propagator else None
        except CheckpointError as error:
            raise TrainingError(
                f"--predictions {propagator}: it needs a weight file of its own; take one that needs none: flow."
            ) from error
        self.share = share

    def __call__(self, composite: Composite, rng: Rng) -> Mask:
        """Return bool (T, H, W)."""
        # no number is drawn where nothing is chosen: samples without predictions stay what they were
        if self.propagator is not None and rng.random() < self.share:
            found = predict(self.propagator, composite)
            if found is not None and overlap(found, composite.mask) < AS_GOOD_AS_TRUE:
                return found
        return wrong_masks(composite.mask, rng)


def predict(propagator: Propagator, composite: Composite) -> Mask | None:
    """Give a propagator the true mask of the first frame that shows the target well; return its masks of all frames.

    Returns:
        bool (T, H, W), true in the frame that was given; None where the propagator has nothing to begin with.
    """
    areas = composite.mask.sum((1, 2))
    if not areas.any():
        return None
    first = int(np.argmax(areas >= PAINTABLE * areas.max()))
    frames = torch.from_numpy(composite.frames).permute(0, 3, 1, 2).float() / 255
    mask = torch.from_numpy(composite.mask[first])[None, None].float()
    try:
        with torch.no_grad():
            track = propagator.propagate(frames, mask, [first])
    except CiriError:
        return None
    return (track.probs[:, 0] > 0.5).numpy()


def overlap(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of a clip; 1 if both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0
