"""Test-time refinement of a removal (paper 3.3): find what is left, correct the masks, paint again, then judge.

Less residue in the loop is no proof of a better picture, so nothing is taken on trust: only frames in which something
was found are touched, masks are bounded, every frame is judged after it was painted again, and whatever does not stand
the test is handed back as it was given. Loaded models are never written to.

Dimensions: T frames, n suspicious ones, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ciri.inactivation.fusion import spared
from ciri.inpainting.base import Backbone
from ciri.out_of_memory import shortage_told
from ciri.progress import OnStep, ignore, part
from ciri.propagation.base import Propagator
from ciri.propagation.engine import MemoryPropagator
from ciri.refinement import growth
from ciri.refinement.bridging import bridged_in, mend
from ciri.refinement.clock import Clock, TimeUpError
from ciri.refinement.company import Company
from ciri.refinement.decoder_inputs import Annotated, refinable
from ciri.refinement.inputs import check, check_shape, outside_inference
from ciri.refinement.judging import Judge, Pictures
from ciri.refinement.looks import Looks
from ciri.refinement.mask_space import refine_masks
from ciri.refinement.objective import Scene, comparisons
from ciri.refinement.paper import as_printed
from ciri.refinement.product import repaint, shown_under
from ciri.refinement.regions import FeatureExtractor
from ciri.refinement.report import FrameReport, RefinementReport, area_ratios, peak_memory
from ciri.refinement.settings import TUNING, RefinementSettings
from ciri.refinement.watch import LEAST_TARGET, SUSPICIOUS_PAIR, Watch, least_threshold, suspects, threshold_of
from ciri.refinement.weight_space import tune
from ciri.residue.base import Removal, ResidueDetector
from ciri.residue.crops import boxes_of_clip, share_of_box
from ciri.residue.detect import Residue

#: Frames whose masks are descended, those with most residue left: a step costs three looks at each.
MOST_DESCENDED = 8


@dataclass(frozen=True)
class Refinement:
    """What came of it; where nothing was improved, the very tensors that were given.

    Attributes:
        masks: float32 (T, 1, H, W) in [0, 1].
        inpainted: float32 (T, 3, H, W) in [0, 1].
        propagator: a copy with refined weights if such were accepted, else the given one itself.
        before, after: the residue of the given and of the returned clip, in the same boxes.
        report: what was done to which frame, and why not to others.
    """

    masks: Tensor
    inpainted: Tensor
    propagator: Propagator | None
    before: Residue
    after: Residue
    report: RefinementReport


def refine(
    frames: Tensor,
    first_mask: Tensor,
    masks: Tensor,
    inpainted: Tensor,
    *,
    backbone: Backbone,
    detector: ResidueDetector | None,
    propagator: Propagator | None = None,
    settings: RefinementSettings | None = None,
    first_index: int = 0,
    fixed: Sequence[int] = (),
    kept: Tensor | None = None,
    features: FeatureExtractor | None = None,
    on_step: OnStep = ignore,
) -> Refinement:
    """Find what a removal left of its target, and remove that too.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], as filmed.
        first_mask: float32 (1, H, W) or (1, 1, H, W), the annotated mask of frame ``first_index``.
        masks: float32 (T, 1, H, W) in [0, 1], the masks that the clip was inpainted with.
        inpainted: float32 (T, 3, H, W) in [0, 1], the clip as it came out.
        backbone: what filled it, and fills it again.
        detector: what finds residue; None: nothing is looked for, and everything comes back as it is.
        propagator: what made the masks. Modes "weights" and "paper" need one with weights (lite, stcn).
        settings: see :class:`RefinementSettings`.
        first_index: number of the annotated frame; its mask is a person's and stays.
        fixed: further frames whose masks are a person's.
        kept: float32 (T, 1, H, W) in [0, 1], what is to stay; no mask grows over it (mode "paper" knows no guard).
        features: where appearance is compared (Eq. 8); None leaves that term out.
        on_step: progress callback; may raise to stop, and then nothing was changed.

    Raises:
        MaskError: masks of another length or size than the clip, an empty first mask, no such frame.
        CiriError: a mode that this propagator does not allow.
        OutOfMemoryError: even one frame at a time is too much.
    """
    settings = settings or RefinementSettings()
    # ComfyUI runs nodes under inference mode, whose tensors can enter no graph
    with torch.inference_mode(False), torch.no_grad():
        job = _Job(frames, first_mask, masks, inpainted, backbone, detector, propagator, settings, first_index)
        job.features, job.fixed = features, {first_index, *fixed}
        if kept is not None:
            job.kept = outside_inference(kept).cpu()
            check_shape("masks of what is to stay", job.kept, job.masks)
        return job.run(on_step)


class _Job:
    """One refinement: what was given, in a form that can enter a graph, and the stages."""

    def __init__(
        self,
        frames: Tensor,
        first_mask: Tensor,
        masks: Tensor,
        inpainted: Tensor,
        backbone: Backbone,
        detector: ResidueDetector | None,
        propagator: Propagator | None,
        settings: RefinementSettings,
        first_index: int,
    ) -> None:
        self.given = (masks, inpainted)
        self.first_mask = outside_inference(first_mask).reshape(-1, *first_mask.shape[-2:])[:1].cpu()
        self.frames, self.masks, self.inpainted = (outside_inference(x).cpu() for x in (frames, masks, inpainted))
        check(self.frames, self.first_mask, self.masks, self.inpainted, first_index)
        self.backbone, self.detector, self.propagator = backbone, detector, propagator
        self.settings, self.first_index = settings, first_index
        self.clip = Annotated(self.frames, self.first_mask, first_index)
        self.features: FeatureExtractor | None = None
        self.kept: Tensor | None = None
        self.fixed = {first_index}
        # by frame: pixels that its mask may cover; map and score of its painted picture, where that was looked at; the
        # mask that was carried there from frames around
        self.most: dict[int, float] = {}
        self.known: dict[int, tuple[Tensor, Tensor]] = {}
        self.bridged: dict[int, Tensor] = {}
        self.tuned: Propagator | None = None
        self.clock = Clock(settings.time_budget)
        self.report = RefinementReport()
        self.nothing = Residue(torch.zeros_like(self.masks), torch.zeros(len(masks)), [None] * len(masks))

    def run(self, on_step: OnStep) -> Refinement:
        """All stages."""
        tuning = self.settings.mode in TUNING
        if tuning:
            self._refinable()  # before any work is done
        if self.detector is None:
            return self._unchanged("Nothing was looked for: there is no residue detector.", self.nothing)
        paper = self.settings.mode == "paper"
        before = self.nothing
        try:
            with shortage_told(self.settings.shortage()):
                watch, before = self._look(part(on_step, 0, 0.1 if paper else 0.15))
                return (self._as_printed if paper else self._improve)(watch, before, on_step)
        except TimeUpError:
            missed = "the propagator was tuned" if paper else "anything could be judged"
            budget = f"The time budget of {self.settings.time_budget:g} s"
            return self._unchanged(f"{budget} ended before {missed}.", before)

    def _look(self, on_step: OnStep) -> tuple[Watch, Residue]:
        """Look at the whole clip once."""
        assert self.detector is not None
        self.clock.check()
        with self.clock.stage("detection"):
            # all frames have one: the annotated mask is not empty
            boxes = [box for box in boxes_of_clip(self.masks, self.first_mask, self.first_index) if box is not None]
            device = self.detector.device
            template = self.detector.template(self.frames[self.first_index].to(device), self.first_mask.to(device))
            removal = Removal(self.frames, self.masks, self.inpainted)
            watch = Watch(self.detector, template, boxes, removal, least_threshold(self.detector), self.settings.seed)
            every = range(len(self.frames))
            answers = watch.answers(self.inpainted, every, self.clock.watched(on_step))
            residue = watch.residue(answers, every)
            known = self.first_index
            hidden = growth.shown_by(self.first_mask[None], self.settings.grow)[0]
            threshold = threshold_of(self.detector, residue, known, hidden)
            if threshold > watch.threshold:
                watch = replace(watch, threshold=threshold)
                residue = replace(residue, scores=watch.scores(answers, every))
            return watch, residue

    def _improve(self, watch: Watch, before: Residue, on_step: OnStep) -> Refinement:
        """Grow, paint, descend, judge."""
        share = share_of_box(self.first_mask)
        found = [t for t in suspects(before, watch.threshold, share) if t not in self.fixed]
        with self.clock.stage("masks"):
            progress = self.clock.watched(part(on_step, 0.15, 0.25))
            self.bridged, notes = mend(self.frames, self.masks, found, self.fixed, self.propagator, progress)
        if self.propagator is None:
            self.report.notes += notes
        found = sorted({*found, *self.bridged})
        if not found:
            return self._unchanged("Nothing of the target was found in the finished clip.", before)
        self.report.mode = "mask" if self.settings.mode == "auto" else self.settings.mode
        reasons = dict.fromkeys(found, "")
        grown = self._propose(watch, before, reasons, part(on_step, 0.25, 0.3))
        changed = [t for t in found if not reasons[t]]
        if not changed:
            self._describe(before, before, self.masks, reasons)
            return self._unchanged("Something is left, but no mask could be corrected.", before)
        with self.clock.stage("inpainting"):
            progress = self.clock.watched(part(on_step, 0.3, 0.7))
            painted = repaint(self.frames, grown, self.inpainted, changed, self.backbone, self.settings, progress)
        with self.clock.stage("descent"):
            refined = self._descend(watch, painted, grown, changed, before, part(on_step, 0.7, 0.85))
        pictures = Pictures(self.frames, self.masks, self.inpainted, grown, painted)
        with self.clock.stage("judging"):
            judge = Judge(watch, before, pictures, self.settings, self.clock, self.known, self.bridged, share)
            masks, inpainted, after = judge.decide(refined, self.most, reasons, part(on_step, 0.85, 1))
        return self._result(before, after, masks, inpainted, reasons)

    # ------------------------------------------------------------------------------------------ stages

    def _propose(self, watch: Watch, before: Residue, reasons: dict[int, str], on_step: OnStep) -> Tensor:
        """Masks (T, 1, H, W) that cover the residue of the suspicious frames too; reasons where they do not."""
        grown = self.masks.clone()
        usual = growth.usual_area(self.masks, self.first_mask)
        with self.clock.stage("masks"):
            looks = Looks(self.frames[self.first_index], self.first_mask)
            company = Company(self.frames, self.masks)
            step = self.clock.watched(on_step)
            for done, t in enumerate(reasons):
                step(done, len(reasons))
                box = watch.boxes[t]
                area = int((self.masks[t] > 0.5).sum())
                if t in self.bridged:
                    # bounded by what the masks around it cover
                    grown[t], self.most[t] = self.bridged[t], float("inf")
                    continue
                if min(box.width, box.height) < LEAST_TARGET or area == 0:
                    reasons[t] = "the mask is empty" if area == 0 else "the target is too small to be judged"
                    continue
                self.most[t] = growth.most_area(area, usual, box, self.settings.strength)
                proposal = growth.grow_over_residue(
                    self.frames[t],
                    self.masks[t],
                    before.maps[t],
                    growth.shown_by(self.masks[t : t + 1], self.settings.grow)[0],
                    looks.score(self.frames[t], self.masks[t], growth.worth_asking(before.maps[t], watch.threshold)),
                    box,
                    threshold=watch.threshold,
                    most_area=self.most[t],
                )
                grown[t], reasons[t] = proposal.mask, proposal.reason
                if not reasons[t]:
                    grown[t], reasons[t] = growth.without_scene(proposal.mask, self.masks[t], t, company)
        return self._beside_what_stays(grown, reasons)

    def _beside_what_stays(self, grown: Tensor, reasons: dict[int, str]) -> Tensor:
        """The proposed masks without what they take of what is to stay; reasons where nothing else was proposed."""
        if self.kept is None:
            return grown
        grown = spared(grown, self.masks, self.kept)
        for t in [t for t, reason in reasons.items() if not reason]:
            if torch.equal(grown[t], self.masks[t]):
                reasons[t] = "what is left belongs to what is to stay"
                self.bridged.pop(t, None)
        return grown

    def _descend(
        self, watch: Watch, painted: Tensor, grown: Tensor, changed: list[int], before: Residue, on_step: OnStep
    ) -> Tensor:
        """Masks (T, 1, H, W) after gradient descent; where the proposal left nothing, there is nothing to descend."""
        weights = self.report.mode == "weights"
        before_steps, steps = self.clock.watched(part(on_step, 0, 0.3)), part(on_step, 0.3, 1)
        if self.settings.mode == "auto":
            return grown
        if weights:
            # tuning begins at the given masks, and would take back what those around vouch for
            changed = [t for t in changed if t not in self.bridged]
        else:
            least = SUSPICIOUS_PAIR * (1 - watch.threshold) * share_of_box(self.first_mask)
            seen = watch.look(painted[changed], changed, before_steps)
            self.known = dict(zip(changed, zip(seen.maps, seen.scores, strict=True), strict=True))
            worst = sorted(changed, key=lambda t: -float(self.known[t][1]))[:MOST_DESCENDED]
            changed = sorted(t for t in worst if self.known[t][1] > least)
        if not (self.settings.epochs and changed):
            return grown
        shown = shown_under(self.frames, painted, grown, self.masks, changed, self.settings)
        looks = None
        if self.features is not None:
            looks = comparisons(self.features, self.clip, self.masks, watch, changed)
        quiet = before.maps[changed] <= watch.threshold
        scene = Scene(changed, shown, painted[changed], self.masks[changed], grown[changed], quiet, looks)
        # judging takes about twice the first look; it has to fit in as well
        reserve = 2 * self.clock.seconds["detection"]
        total = self.settings.epochs * len(changed) if weights else self.settings.epochs
        refined = grown.clone()

        def after_step(done: int) -> bool:
            steps(done, total)
            return self.clock.left() > reserve

        if weights:
            given = self._refinable(), watch, scene, self.clip, self.settings, after_step, before_steps
            tuned = tune(*given, doubtful=self.bridged)
            refined[changed], self.report.steps, self.tuned = tuned.masks, tuned.steps, tuned.propagator
            self.report.notes += tuned.notes
        else:
            refined[changed], self.report.steps = refine_masks(
                watch, scene, steps=self.settings.epochs, grow=self.settings.grow, after_step=after_step
            )
        return refined

    def _refinable(self) -> MemoryPropagator:
        """The propagator, if its weights can be tuned; CiriError if not."""
        return refinable(self.propagator, self.settings.mode)

    def _as_printed(self, watch: Watch, before: Residue, on_step: OnStep) -> Refinement:
        """Eq. 8-10, two epochs over all frames, no guard: what comes of it is what is returned."""
        with self.clock.stage("descent"):
            outcome = as_printed(
                self._refinable(),
                watch,
                self.clip,
                self.inpainted,
                self.backbone,
                self.settings,
                self.features,
                self.clock.watched(part(on_step, 0.1, 0.9)),
            )
        every = range(len(self.frames))
        with self.clock.stage("judging"):
            after = watch.look(outcome.inpainted, every, self.clock.watched(part(on_step, 0.9, 1)))
        self.report.mode, self.report.steps, self.tuned = "paper", outcome.steps, outcome.propagator
        self.report.notes += outcome.notes
        if self.fixed != {self.clip.index} or (self.kept is not None and self.kept.any()):
            self.report.notes.append(
                "Mode paper follows the first mask alone: frames painted again, and what is to stay, do not count."
            )
        changed = [t for t in every if not torch.equal(outcome.masks[t], self.masks[t])]
        self._describe(before, after, outcome.masks, dict.fromkeys(changed, ""))
        self.report.outcome = "The propagator was tuned as the paper prints it; nothing guards this mode."
        self.report.repainted = self._repainted(outcome.inpainted)
        self._measure()
        return Refinement(*self._where_given(outcome.masks, outcome.inpainted), self.tuned, before, after, self.report)

    # ------------------------------------------------------------------------------------------ results

    def _result(
        self, before: Residue, after: Residue, masks: Tensor, inpainted: Tensor, reasons: dict[int, str]
    ) -> Refinement:
        self._describe(before, after, masks, reasons)
        if not self.report.accepted:
            return self._unchanged("Something is left, but no correction made the picture better.", before)
        self.report.outcome = f"The masks of {len(self.report.accepted)} frames were corrected."
        bridged = [t for t in self.report.accepted if t in self.bridged]
        if self.propagator is not None:
            self.report.notes += bridged_in(bridged, self.propagator)
        if bridged == self.report.accepted:
            self.tuned = None
        self.report.repainted = self._repainted(inpainted)
        self._measure()
        results = self._where_given(masks, inpainted)
        return Refinement(*results, self.tuned or self.propagator, before, after, self.report)

    def _repainted(self, inpainted: Tensor) -> list[int]:
        """Frames whose picture is another than the given one."""
        return [
            t for t, (old, new) in enumerate(zip(self.inpainted, inpainted, strict=True)) if not torch.equal(old, new)
        ]

    def _where_given(self, masks: Tensor, inpainted: Tensor) -> tuple[Tensor, Tensor]:
        """Masks and pictures on the devices of those that were given."""
        return masks.to(self.given[0].device), inpainted.to(self.given[1].device)

    def _describe(self, before: Residue, after: Residue, masks: Tensor, reasons: dict[int, str]) -> None:
        areas = area_ratios(masks, self.masks)
        self.report.frames = [
            FrameReport(t, float(before.scores[t]), float(after.scores[t]), areas[t], not reason, reason)
            for t, reason in sorted(reasons.items())
        ]

    def _unchanged(self, outcome: str, before: Residue) -> Refinement:
        """What was given, itself."""
        self.report.outcome = outcome
        self._measure()
        return Refinement(*self.given, self.propagator, before, before, self.report)

    def _measure(self) -> None:
        self.report.seconds = dict(self.clock.seconds)
        device = torch.device("cpu") if self.detector is None else self.detector.device
        self.report.peak_bytes = peak_memory(device)
