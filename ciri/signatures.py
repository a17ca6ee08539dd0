"""How the weights of each model are recognised: by keys and shapes, never by file name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype name ("F32", "I64", ...) of a tensor that was not loaded."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """How a model's weights are recognised: keys that must be there, with these shapes.

    Attributes:
        model: short name, as in ``ciri.inpainting`` or ``ciri.propagation``.
        title: the name that people know it by.
        marks: key -> shape, or None where any shape fits.
        absent: keys that must not be there.
        licence: licence of the published weights, for the person who uses them.
        trained_for: as in :class:`ciri.inpainting.base.BackboneFacts`.
    """

    model: str
    title: str
    marks: Mapping[str, tuple[int, ...] | None]
    absent: tuple[str, ...] = ()
    licence: str = ""
    trained_for: str = ""

    def fits(self, state: Mapping[str, Tensor | TensorInfo]) -> bool:
        """Whether the marks are there and nothing speaks against."""
        present = all(
            key in state and (shape is None or tuple(state[key].shape) == shape) for key, shape in self.marks.items()
        )
        return present and not any(key in state for key in self.absent)


_SIGNATURES: dict[str, Signature] = {}


def register_signature(signature: Signature) -> None:
    """Make a model known to :func:`identify`; a second registration of the same name replaces the first."""
    _SIGNATURES[signature.model] = signature


def signature_of(model: str | None) -> Signature | None:
    """The registered signature of a model name."""
    return _SIGNATURES.get(model or "")


def identify(state: Mapping[str, Tensor | TensorInfo], metadata: Mapping[str, str] | None = None) -> str | None:
    """Return the model that the keys and shapes belong to, else what the file says of itself, else None."""
    for signature in _SIGNATURES.values():
        if signature.fits(state):
            return signature.model
    return (metadata or {}).get("architecture")


_NONE_GIVEN = "none given by the authors (all rights reserved)"

for _signature in (
    Signature(
        "stcn",
        "STCN",
        {"key_encoder.conv1.weight": (64, 3, 7, 7), "key_proj.key_proj.weight": (64, 1024, 3, 3)},
        licence="MIT code (the weights' licence is not stated)",
    ),
    Signature(
        "e2fgvi",
        "E2FGVI (432x240)",
        {"sc.bias": (128, 60, 108), "feat_prop_module.fusion.weight": (128, 256, 1, 1)},
        licence="CC BY-NC 4.0 (non-commercial)",
        trained_for="hard mask",
    ),
    Signature(
        "e2fgvi_hq",
        "E2FGVI-HQ",
        {"sc.bias_conv.weight": (128, 128, 3, 3), "feat_prop_module.fusion.weight": (128, 256, 1, 1)},
        licence="CC BY-NC 4.0 (non-commercial)",
        trained_for="hard mask",
    ),
    Signature(
        "fuseformer",
        "FuseFormer",
        {"add_pos_emb.pos_emb": (1, 1, 720, 512), "sc.bias": (128, 60, 108)},
        licence=_NONE_GIVEN,
        trained_for="hard mask",
    ),
    Signature(
        "dstt",
        "DSTT",
        {"hier_enc.layers.0.weight": (256, 256, 3, 3), "patch2vec.weight": (512, 128, 7, 7)},
        licence=_NONE_GIVEN,
        trained_for="hard mask",
    ),
    Signature(
        "sttn",
        "STTN",
        {"transformer.0.attention.output_linear.0.weight": (256, 256, 3, 3), "decoder.0.conv.weight": (128, 256, 3, 3)},
        licence="MIT",
        trained_for="hard mask",
    ),
    # the base variant has no refinement module
    Signature(
        "siammask",
        "SiamMask",
        {"features.features.conv1.weight": (64, 3, 7, 7), "mask_model.mask.head.3.weight": (3969, 256, 1, 1)},
        licence="MIT code; the weights carry no licence of their own",
    ),
    Signature("i3d", "I3D (RGB)", {"Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7), "logits.conv3d.weight": None}),
    # also cut after conv3_2; VGG-13 and VGG-16 have convolutions where VGG-19 pools
    Signature(
        "vgg19",
        "VGG-19",
        {"features.0.weight": (64, 3, 3, 3), "features.12.weight": (256, 256, 3, 3)},
        absent=("features.15.weight", "features.17.weight"),
        licence="BSD-3-Clause code (the weights' licence is not stated)",
    ),
):
    register_signature(_signature)
