"""How much worse a removal becomes when its masks are wrong: local PSNR against the strength of each error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ciri.errors import CiriError
from ciri.evaluation.cases import Case
from ciri.evaluation.degrade import KINDS, STRENGTHS, degrade
from ciri.evaluation.methods import TRUE_MASKS, Method
from ciri.evaluation.run import CaseRun, Runner
from ciri.evaluation.store import key_of, read_json, write_json
from ciri.inpainting.remove import remove
from ciri.metrics.local import bounding_box, to_targets
from ciri.metrics.similarity import psnr_of, to_pictures
from ciri.progress import OnStep, ignore, part

#: backbone and mode -> error -> local PSNR (box, dB) at strengths 0 to 5, the mean over all frames with a target.
Curves = dict[str, dict[str, list[float]]]

#: Strength 0 is the same for every kind of error and is run once.
_JOBS = [("", 0), *((kind, strength) for kind in KINDS for strength in STRENGTHS)]


def tolerance_curves(
    runner: Runner, cases: Sequence[Case], methods: Sequence[Method], on_step: OnStep = ignore
) -> tuple[Curves, list[str]]:
    """Inpaint every case with every wrong mask, with the backbones and modes of some methods.

    Values are stored under ``degraded/METHOD/CASE.json`` after each run, so that an interruption costs one run.

    Returns:
        The curves, and a sentence for every case that could not be used.
    """
    # other weights of a backbone are for Table 2: this takes a quarter of an hour for each backbone and four cases
    usual = [m for m in methods if m.masks and "@" not in m.backbone]
    fillers = list(dict.fromkeys(Method(TRUE_MASKS, m.backbone, m.mode) for m in usual))
    frames: dict[str, dict[str, list[float]]] = {m.filler: defaultdict(list) for m in fillers}
    failures = []
    for number, case in enumerate(cases):
        work = CaseRun(runner, case)
        for index, method in enumerate(fillers):
            start = number * len(fillers) + index
            step = part(on_step, start / len(cases) / len(fillers), (start + 1) / len(cases) / len(fillers))
            try:
                stored = _case_values(work, method, step)
            except CiriError as error:
                failures.append(f"{case.name} was left out of the wrong-mask benchmark: {error}")
                continue
            for job, values in stored.items():
                frames[method.filler][job] += values
    return {name: _curves(values) for name, values in frames.items() if values}, list(dict.fromkeys(failures))


def _curves(values: dict[str, list[float]]) -> dict[str, list[float]]:
    """Means over frames, strength by strength."""

    def mean(kind: str, strength: int) -> float:
        chosen = values[_name(kind, strength)]
        return sum(chosen) / len(chosen)

    return {kind: [mean("", 0), *(mean(kind, strength) for strength in STRENGTHS)] for kind in KINDS}


def _name(kind: str, strength: int) -> str:
    return f"{kind} {strength}" if strength else "true"


def _case_values(work: CaseRun, method: Method, on_step: OnStep) -> dict[str, list[float]]:
    """Error and strength -> local PSNR of every frame that shows the target."""
    runner = work.runner
    file = runner.out / "degraded" / method.folder / f"{work.case.name}.json"
    settings = runner.settings
    key = key_of(
        work.stamp, method.folder, settings.grow, settings.feather, runner.models.stamp("backbone", method.backbone)
    )
    stored = {} if runner.fresh else read_json(file)
    values: dict[str, list[float]] = stored["values"] if stored.get("key") == key else {}
    for done, (kind, strength) in enumerate(_JOBS):
        if _name(kind, strength) not in values:
            if work.material.clean is None:
                raise CiriError("its clean clip is not known.")
            masks = _wrong(work.material.masks, kind, strength)
            backbone = runner.models.backbone(method.backbone, method.mode)
            result = remove(work.material.frames, masks, backbone, grow=settings.grow, feather=settings.feather)
            values[_name(kind, strength)] = box_psnr(result, work.material.clean, work.material.masks)
            write_json(file, {"key": key, "values": values})
        on_step(done + 1, len(_JOBS))
    return values


def _wrong(masks: Tensor, kind: str, strength: int) -> Tensor:
    """True masks (T, 1, H, W) with an error."""
    if not strength:
        return masks
    return torch.from_numpy(degrade(masks[:, 0].numpy() > 0.5, kind, strength)).float()[:, None]


def box_psnr(result: Tensor, clean: Tensor, masks: Tensor) -> list[float]:
    """Local PSNR (box) of the frames that show the target: what the tables call local, and nothing else."""
    values = []
    for a, b, target in zip(to_pictures(result), to_pictures(clean), to_targets(masks, result), strict=True):
        box = bounding_box(target)
        if box is not None:
            values.append(psnr_of(a[box.slices], b[box.slices]))
    return values
