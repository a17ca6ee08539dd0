"""The ComfyUI nodes: thin adapters from ComfyUI's tensors and devices to the library ``ciri`` and back.

How to add a node
    1. Write one class in the file of its stage (``propagators.py``, ``backbones.py``, ``propagate.py``, ...), on the
       pattern of the classes there: ``CIRI_`` ids, a tooltip on every input and output, ``@plain_errors`` on
       ``execute``, imports of ``ciri`` models inside ``execute`` (a missing weight must not keep the pack from
       loading). A new propagator, backbone or detector only has to return its object on the common socket.
    2. Add the class to ``NODES`` below. An input called ``weights`` offers files (``_weights.py``); its choices are not
       part of the snapshot.
    3. Write its help: ``web/docs/<id>.md`` and ``web/docs/<id>/zh.md``, with a picture (``scripts/make_pictures.py``),
       and its Chinese texts in ``locales/zh/nodeDefs.json``.
    4. Run ``CIRI_UPDATE=1 python -m pytest tests/nodes/test_schema.py``: it writes the schema snapshot and the
       English texts, and then tells what is still missing. Look at the diff: saved workflows store widget values by
       position, so inputs are only ever appended, and ids never change.
"""

from comfy_api.latest import ComfyExtension, io

from .attention import ComplementaryAttention, FuseInactivation
from .backbone_lite import BackboneLite
from .backbones import BackboneFlow
from .backbones_published import BackboneDSTT, BackboneE2FGVI, BackboneFuseFormer, BackboneSTTN
from .bridge import BridgeMasks
from .compare import CompareVideo, MaskOverlay
from .detectors import ResidueDetectorLite, ResidueDetectorSiamMask
from .evaluate import EvaluateRemoval
from .grain import MatchGrain
from .inpaint import InactivationInpaint
from .propagate import PropagateMask
from .propagator_lite import PropagatorLite
from .propagator_stcn import PropagatorSTCN
from .propagators import PropagatorFlow
from .refine import RefinePropagator
from .residue import DetectResidue
from .snap import SnapMask

NODES: list[type[io.ComfyNode]] = [
    PropagatorLite,
    PropagatorFlow,
    PropagatorSTCN,
    SnapMask,
    PropagateMask,
    BridgeMasks,
    BackboneLite,
    BackboneFlow,
    BackboneE2FGVI,
    BackboneFuseFormer,
    BackboneDSTT,
    BackboneSTTN,
    ComplementaryAttention,
    FuseInactivation,
    InactivationInpaint,
    ResidueDetectorLite,
    ResidueDetectorSiamMask,
    DetectResidue,
    RefinePropagator,
    MatchGrain,
    MaskOverlay,
    CompareVideo,
    EvaluateRemoval,
]


class CiriExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
