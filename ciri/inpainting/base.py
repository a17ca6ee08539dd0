"""What a backbone is: it fills what the inactivation map covers, in a whole clip.

Two kinds implement it: classical ones (``flow``) work on the clip directly; networks expose their encoder,
so that inactivation (Eq. 1) can act on its features, and are run over long clips by the window driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from ciri.frames import Multiple
from ciri.progress import OnStep, ignore


@dataclass(frozen=True)
class BackboneFacts:
    """What the pipeline has to know of a backbone before it runs it.

    Attributes:
        needs_divisible_by: height and width are padded to a multiple of this before the call; a pair where the two
            differ, a :class:`ciri.frames.Multiple` where the padding has to be mirrored.
        fixed_size: (height, width) where the network works at one size only, else None.
        least_window: (height, width) of the smallest crop that shows the backbone enough of the scene.
        trained_for: "hard mask", "inactivation" or "" (nothing was trained).
        licence: licence of the weights, for the person who uses them.
        needs_background: whether it makes up nothing where a shot shows no pixel besides the target: there its fill
            would be black.
    """

    needs_divisible_by: int | tuple[int, int] | Multiple = 1
    fixed_size: tuple[int, int] | None = None
    least_window: tuple[int, int] = (128, 128)
    trained_for: str = ""
    licence: str = "Apache-2.0"
    needs_background: bool = False


@runtime_checkable
class Backbone(Protocol):
    """Fills the inactivated region of a clip."""

    facts: BackboneFacts

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def inpaint(self, frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Tensor:
        """Return the clip with the inactivated region filled.

        Args:
            frames: float32 (T, 3, H, W) in [0, 1]; H and W satisfy ``facts``.
            inactivation: float32 (T, 1, H, W) in [0, 1], M_iac; 1 = remove. Soft values are allowed.
            on_step: progress callback; may raise to stop.

        Returns:
            float32 (T, 3, H, W) in [0, 1] on the device of ``frames``. Pixels where the map is 0 need not equal the
            input: :func:`ciri.inpainting.remove.remove` pastes only the inactivated region back.
        """
        ...
