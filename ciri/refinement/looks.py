"""What the target looks like, pixel by pixel: a second opinion on what the detector says (its maps are blurred).

The classifier of the classical propagator, trained on the annotated frame: colours, gradients and the place within the
target. A blurred response spills over the target's edge onto the background; colours do not.

Dimensions: H W pixels of the clip; it works on at most :data:`WORKING_SIZE`.
"""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from ciri.propagation.appearance import AppearanceModel, pixel_features, placement

#: Longer side in pixels at which pixels are classified.
WORKING_SIZE = 480


class Looks:
    """Knows the annotated target.

    Args:
        frame: float32 (3, H, W) in [0, 1], the annotated frame.
        mask: float32 (1, H, W) in [0, 1], the target in it.
    """

    def __init__(self, frame: Tensor, mask: Tensor) -> None:
        self._scale = min(1.0, WORKING_SIZE / max(frame.shape[1:]))
        self._model = AppearanceModel(pixel_features(self._image(frame)), self._shrink(mask[0].numpy()))

    def score(self, frame: Tensor, mask: Tensor, region: Tensor) -> np.ndarray:
        """Return float32 (H, W): about +1 where a pixel looks like the target, -1 where it does not.

        Args:
            frame: float32 (3, H, W) in [0, 1].
            mask: float32 (1, H, W) in [0, 1], roughly where the target is; not empty.
            region: bool (1, H, W), the pixels that are asked for; elsewhere -1.
        """
        small = self._shrink(mask[0].numpy())
        asked = self._shrink(region[0].numpy().astype(np.float32)) > 0
        features = pixel_features(self._image(frame))
        scores = self._model.score(features, placement(small), asked)
        height, width = int(frame.shape[1]), int(frame.shape[2])
        return scores if self._scale >= 1 else cv2.resize(scores, (width, height), interpolation=cv2.INTER_LINEAR)

    def _image(self, frame: Tensor) -> np.ndarray:
        image = frame.permute(1, 2, 0).contiguous().numpy()
        return np.rint(self._shrink(image) * 255).astype(np.uint8)

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        if self._scale >= 1:
            return image
        height, width = image.shape[:2]
        size = (max(round(width * self._scale), 1), max(round(height * self._scale), 1))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
