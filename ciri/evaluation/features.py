"""I3D features of results and clean clips, kept on disk: VFID needs those of all cases at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from ciri.checkpoints import read_header, read_state_dict, write_safetensors
from ciri.errors import CheckpointError, ClipError
from ciri.metrics.frechet import frechet_distance
from ciri.metrics.i3d import I3D, Statistics
from ciri.metrics.local import target_crops

if TYPE_CHECKING:
    from ciri.evaluation.methods import Method
    from ciri.evaluation.run import CaseRun, Record

#: "global" looks at whole frames, "local" at the target's boxes, each scaled to 224 x 224.
REGIONS = ("global", "local")


def clip_features(network: I3D, clip: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return "REGION STATISTICS" -> (1024,) features of one clip; what is too short or too small is left out.

    Args:
        network: with its weights.
        clip: float32 (T, 3, H, W) in [0, 1].
        masks: float32 (T, 1, H, W), the true target.
    """
    found = {}
    for region, frames in zip(REGIONS, (clip, target_crops(clip, masks)), strict=True):
        for statistics in get_args(Statistics):
            try:
                found[f"{region} {statistics}"] = network.features(frames, statistics)
            except ClipError:
                continue
    return found


def stored_features(work: CaseRun, method: Method, key: str) -> dict[str, Tensor]:
    """The features of a result, and under "clean ..." those of the clean clip, from disk or computed now."""
    runner = work.runner
    network = runner.networks.i3d
    assert network is not None
    clean_file = runner.out / "features" / "clean" / f"{work.case.name}.safetensors"
    file = runner.out / "features" / method.folder / f"{work.case.name}.safetensors"
    clean = _read(clean_file, f"{work.stamp} {runner.networks.i3d_key}")
    if clean is None:
        assert work.material.clean is not None
        clean = clip_features(network, work.material.clean, work.material.masks)
        _write(clean_file, f"{work.stamp} {runner.networks.i3d_key}", clean)
    features = _read(file, f"{key} {runner.networks.i3d_key}")
    if features is None:
        features = clip_features(network, work.result(method), work.material.masks)
        _write(file, f"{key} {runner.networks.i3d_key}", features)
    return features | {f"clean {name}": value for name, value in clean.items()}


def _read(file: Path, key: str) -> dict[str, Tensor] | None:
    try:
        if read_header(file)[1].get("key") != key:
            return None
        return {name: value for name, value in read_state_dict(file)[0].items() if name != "none"}
    except (CheckpointError, OSError):
        return None


def _write(file: Path, key: str, features: dict[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # a file without any tensor would be refused when it is read
    write_safetensors(file, features or {"none": torch.zeros(1)}, {"key": key})


def vfid(records: Sequence[Record], region: str, statistics: Statistics) -> float | None:
    """VFID of one method: the Frechet distance between its features and the clean clips' over all cases.

    None where fewer than two clips have features.
    """
    name = f"{region} {statistics}"
    pairs = [(r.features[name], r.features[f"clean {name}"]) for r in records if name in r.features]
    if len(pairs) < 2:
        return None
    made, clean = zip(*pairs, strict=True)
    return frechet_distance(torch.stack(made), torch.stack(clean))
