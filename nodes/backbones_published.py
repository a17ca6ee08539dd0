"""One node per published inpainting network; the weights are the user's own files in ``models/ciri``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, get_args

from comfy_api.latest import io

from ciri.inpainting.driver import Mode

from ._adapt import BackboneSocket, building_network, choose, device, plain_errors
from ._precision import chosen, precision_input
from ._room import make_room
from ._weights import options, path_of, state_of
from .backbones import CATEGORY_BACKBONES

MODES = list(get_args(Mode))
COMPOSITION = ["smooth", "published"]


class PublishedBackbone(io.ComfyNode):
    """What the nodes of the published networks share."""

    MODELS: ClassVar[Sequence[str]]
    NODE: ClassVar[str]
    TITLE: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    LICENCE: ClassVar[str]

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=cls.NODE,
            display_name=f"Backbone: {cls.TITLE}",
            category=CATEGORY_BACKBONES,
            description=f"{cls.DESCRIPTION} Licence of the published weights: {cls.LICENCE}.",
            inputs=[
                io.Combo.Input(
                    "weights",
                    options=options(cls.MODELS),
                    tooltip=f"A file in models/ciri whose content is {cls.TITLE}, as published or converted. "
                    f"Licence of the published weights: {cls.LICENCE}.",
                ),
                io.Combo.Input(
                    "mode",
                    options=MODES,
                    default="auto",
                    tooltip="How the masks reach the network. auto: as the weights were trained. hard: grey pixels, as "
                    "published. blend: features of the masked frame inside, of the full frame outside. gate: paper "
                    "Eq. 1, for weights trained with inactivation (an experiment on others).",
                ),
                io.Int.Input(
                    "references",
                    default=6,
                    min=-1,
                    max=100,
                    tooltip="Distant frames that every window may look at. -1 takes every 10th frame of the whole "
                    "clip, as published: work and memory then grow with the clip's length.",
                ),
                precision_input(),
                io.Int.Input(
                    "window",
                    default=5,
                    min=1,
                    max=50,
                    tooltip="Windows reach this many frames to both sides and are this far apart.",
                ),
                io.Int.Input(
                    "reference_step", default=10, min=1, max=200, tooltip="Distance in frames between references."
                ),
                io.Combo.Input(
                    "composition",
                    options=COMPOSITION,
                    default="smooth",
                    tooltip="How overlapping windows are put together. published: as the authors' test program does, "
                    "with its 8-bit rounding, in full precision (for comparisons).",
                ),
                # optional: API workflows of before these inputs leave them out
                io.Int.Input(
                    "windows_at_once",
                    default=1,
                    min=1,
                    max=16,
                    optional=True,
                    tooltip="Windows that pass through the network together. More may be faster on a large GPU, and "
                    "takes more memory; the result is the same.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    optional=True,
                    tooltip="Have torch.compile work on the network: the first run takes minutes longer, later ones "
                    "may be faster. Needs Triton on a GPU, a C++ compiler on a CPU.",
                ),
            ],
            outputs=[
                BackboneSocket.Output("backbone", display_name="backbone", tooltip="Connect to Inactivation inpaint.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str | None, **_others: object) -> str:
        """Run again when the file changed under the same name."""
        return state_of(weights)

    @classmethod
    @plain_errors
    def execute(
        cls,
        weights: str,
        mode: str,
        references: int,
        precision: str,
        window: int,
        reference_step: int,
        composition: str,
        windows_at_once: int = 1,
        compile: bool = False,
    ) -> io.NodeOutput:
        from ciri.inpainting.load import load_backbone
        from ciri.inpainting.windows import Schedule

        with building_network():
            backbone = load_backbone(
                path_of(weights, cls.MODELS),
                expected=cls.MODELS,
                device=device(),
                precision=chosen(precision),
                schedule=Schedule(window, reference_step, references),
                mode=choose(mode, MODES, "mode"),
                published=choose(composition, COMPOSITION, "composition") == "published",
                windows_at_once=windows_at_once,
                compiled=compile,
            )
        backbone.before_run = make_room
        return io.NodeOutput(backbone)


class BackboneE2FGVI(PublishedBackbone):
    """E2FGVI and E2FGVI-HQ."""

    MODELS = ("e2fgvi", "e2fgvi_hq")
    NODE = "CIRI_BackboneE2FGVI"
    TITLE = "E2FGVI"
    LICENCE = "CC BY-NC 4.0, non-commercial"
    DESCRIPTION = (
        "Flow-guided network (CVPR 2022), the strongest of the backbones in the CIRI paper. Takes E2FGVI-HQ-CVPR22.pth "
        "(any size) and E2FGVI-CVPR22.pth (works on a window scaled to 432x240). Trained with hard masks."
    )


class BackboneFuseFormer(PublishedBackbone):
    """FuseFormer."""

    MODELS = ("fuseformer",)
    NODE = "CIRI_BackboneFuseFormer"
    TITLE = "FuseFormer"
    LICENCE = "none given by its authors, all rights reserved"
    DESCRIPTION = (
        "Transformer on overlapping patches (ICCV 2021). Takes fuseformer.pth; works on a window scaled to 432x240. "
        "Trained with hard masks."
    )


class BackboneDSTT(PublishedBackbone):
    """DSTT."""

    MODELS = ("dstt",)
    NODE = "CIRI_BackboneDSTT"
    TITLE = "DSTT"
    LICENCE = "none given by its authors, all rights reserved"
    DESCRIPTION = "The fastest of the transformers (2021). Takes dstt.pth; any size. Trained with hard masks."


class BackboneSTTN(PublishedBackbone):
    """STTN."""

    MODELS = ("sttn",)
    NODE = "CIRI_BackboneSTTN"
    TITLE = "STTN"
    LICENCE = "MIT"
    DESCRIPTION = (
        "Attention between patches of four sizes (ECCV 2020). Takes sttn.pth; any size. Trained with hard masks."
    )
