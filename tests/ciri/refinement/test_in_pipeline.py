"""Refinement as the last stage of a removal, for scripts and from the command line."""

import pytest
import torch

from ciri.errors import CiriError
from ciri.media import write_clip
from ciri.metrics.segmentation import segmentation_score
from ciri.pipeline import remove_object
from ciri.propagation.flow import FlowPropagator
from ciri.propagation.lite import build_lite
from ciri.refinement import refine as refining
from ciri.refinement.refine import refine
from ciri.refinement.settings import RefinementSettings
from ciri.residue.lite import LiteDetector, ResidueNetwork
from tests.ciri.refinement.scenes import Answers, Knows, Oracle, Scene


def misses(scene):
    """A propagator that loses a part of the target in two frames."""
    return Answers(scene, scene.cut(), "misses")


def remove(scene, **options):
    return remove_object(
        scene.frames,
        scene.true[0, 0],
        propagator=misses(scene),
        backbone=Knows(scene),
        grow=2,
        feather=2,
        **options,
    )


def test_off_by_default():
    scene = Scene()
    removal = remove(scene, detector=Oracle(scene))
    assert removal.refinement is None and set(removal.timings) == {"propagation", "inpainting", "grain"}
    assert torch.equal(removal.masks.probs, scene.cut())


def test_refinement_corrects_what_the_propagator_missed():
    scene = Scene()
    seen = []
    removal = remove(
        scene,
        detector=Oracle(scene),
        refine=RefinementSettings(),
        on_step=lambda done, total: seen.append(done / total),
    )
    assert removal.refinement.report.accepted == [2, 3]
    assert torch.equal(removal.frames, removal.refinement.inpainted)
    assert torch.equal(removal.masks.probs, removal.refinement.masks)
    assert "refinement" in removal.timings and seen == sorted(seen) and seen[-1] == 1


def test_annotated_frames_keep_what_a_person_painted():
    scene = Scene()
    masks = scene.cut()
    removal = remove_object(
        scene.frames,
        masks[[0, 2]],
        key_frames=[0, 2],
        propagator=misses(scene),
        backbone=Knows(scene),
        grow=2,
        feather=2,
        detector=Oracle(scene),
        refine=RefinementSettings(),
    )
    assert removal.refinement.report.accepted == [3]
    assert torch.equal(removal.masks.probs[2], masks[2])


def test_masks_from_elsewhere_are_refined_too():
    scene = Scene()
    removal = remove_object(
        scene.frames,
        masks=scene.cut(),
        backbone=Knows(scene),
        grow=2,
        feather=2,
        detector=Oracle(scene),
        refine=RefinementSettings(),
    )
    assert removal.refinement.report.accepted == [2, 3]


@pytest.mark.parametrize("mode", ["mask", "paper"])
def test_appearance_is_compared_too_where_the_detector_has_features(mode, monkeypatch):
    """Eq. 8, as the node does it: in the features of the detector's own encoder."""
    scene, detector = Scene(count=4), LiteDetector(ResidueNetwork(), 0.3)
    given = []
    monkeypatch.setattr(refining, "refine", lambda *a, **k: given.append(k["features"]) or refine(*a, **k))
    removal = remove_object(
        scene.frames,
        scene.true[0, 0],
        propagator=build_lite(),
        backbone=Knows(scene),
        detector=detector,
        refine=RefinementSettings(mode=mode, epochs=1),
    )
    assert given[0].detector is detector
    assert "contextual loss (Eq. 8) was left out" not in removal.refinement.report.text()


def test_refinement_needs_a_detector():
    with pytest.raises(CiriError, match="needs a residue detector"):
        remove(Scene(), refine=RefinementSettings())


@pytest.mark.parametrize("mode", ["weights", "paper"])
def test_a_mode_that_the_propagator_does_not_allow_is_refused_before_any_work(mode):
    scene = Scene()
    for propagator in (None, Answers(scene, scene.true)):
        backbone = Knows(scene)
        with pytest.raises(CiriError, match="tunes a propagator's weights"):
            remove_object(
                scene.frames,
                masks=scene.true,
                propagator=propagator,
                backbone=backbone,
                detector=Oracle(scene),
                refine=RefinementSettings(mode=mode),
            )
        assert backbone.calls == 0


def test_masks_from_elsewhere_are_bridged_on_request():
    scene = Scene()
    masks = scene.cut(columns=30)
    options = {"backbone": Knows(scene), "grow": 2, "feather": 2}
    plain = remove_object(scene.frames, masks=masks, propagator=FlowPropagator(), **options)
    assert torch.equal(plain.masks.probs, masks) and plain.notes == []
    seen = []
    bridged = remove_object(
        scene.frames,
        masks=masks,
        propagator=FlowPropagator(),
        bridge=True,
        on_step=lambda done, total: seen.append(done / total),
        **options,
    )
    assert segmentation_score(bridged.masks.probs, scene.true).region.min() > 0.9
    assert bridged.notes == ["Masks had dropped out in frames 2-3: flow bridged them from those around."]
    assert seen == sorted(seen) and seen[-1] == 1
    error = (bridged.frames - scene.clean).abs().mean((1, 2, 3))
    assert error[2:4].max() < 0.3 * (plain.frames - scene.clean).abs().mean((1, 2, 3))[2:4].min()
    with pytest.raises(CiriError, match="needs a propagator"):
        remove_object(scene.frames, masks=masks, bridge=True, **options)


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """The scene as files, and models that know it."""
    from ciri.inpainting import registry as backbones
    from ciri.residue import registry as detectors

    scene = Scene()
    write_clip(tmp_path / "frames", scene.frames)
    write_clip(tmp_path / "masks", scene.cut())
    monkeypatch.setattr(backbones, "build", lambda name, **options: Knows(scene))
    monkeypatch.setattr(detectors, "build", lambda name, **options: Oracle(scene))
    return tmp_path


def test_the_command_prints_the_report(on_disk, capsys):
    from ciri.cli import main

    arguments = ["remove", str(on_disk / "frames"), "--masks", str(on_disk / "masks"), "-o", str(on_disk / "out")]
    arguments += ["--save-masks", str(on_disk / "refined"), "--grow", "2", "--feather", "2"]
    assert main(arguments) in (0, None)
    assert "corrected" not in "".join(capsys.readouterr())
    assert main([*arguments, "--refine", "--propagator", "flow"]) in (0, None)
    text = "".join(capsys.readouterr())
    assert "The masks of 2 frames were corrected." in text and "refinement" in text
    assert "dropped out in frames 2-3: flow bridged" in text
    assert len(list((on_disk / "refined").glob("*.png"))) == 6


def test_the_command_bridges_given_masks(on_disk, capsys):
    from ciri.cli import main

    arguments = ["remove", str(on_disk / "frames"), "-o", str(on_disk / "out"), "--bridge", "--propagator", "flow"]
    assert main([*arguments, "--masks", str(on_disk / "masks")]) in (0, None)
    assert "dropped out in frames 2-3: flow bridged" in "".join(capsys.readouterr())
    assert main([*arguments, "--mask", str(on_disk / "masks" / "00000.png")]) == 2
    assert "--bridge without --masks" in "".join(capsys.readouterr())
