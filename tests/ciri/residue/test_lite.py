"""The shipped detector: protocol, gradients, weight files; and what its trained weights can do."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ciri.checkpoints import write_safetensors
from ciri.errors import CheckpointError, CiriError, MaskError
from ciri.residue import registry
from ciri.residue.base import Box, Removal, ResidueDetector
from ciri.residue.detect import detect_residue
from ciri.residue.lite import CROP, SHIPPED, LiteDetector, ResidueNetwork, build_lite
from ciri.training.residue import export

SIZE = (72, 96)
BOX = Box(30, 20, 32, 30)


@pytest.fixture(scope="module")
def detector() -> LiteDetector:
    torch.manual_seed(0)
    return LiteDetector(ResidueNetwork(), 0.3, precision="fp32")


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    frame = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, *SIZE)
    mask[:, 20:50, 30:62] = 1
    return frame, mask


def test_it_is_a_detector_and_its_batch_does_not_matter(detector: LiteDetector) -> None:
    assert isinstance(detector, ResidueDetector)
    frame, mask = scene()
    template = detector.template(frame, mask)
    frames = torch.rand(3, 3, *SIZE)
    boxes = [BOX, Box(0, 0, 20, 40), Box(70, 50, 30, 30)]
    together = detector.detect(template, frames, boxes)
    assert together.shape == (3, 1, CROP // 4, CROP // 4)
    for n in range(3):
        alone = detector.detect(template, frames[n : n + 1], boxes[n : n + 1])
        torch.testing.assert_close(alone[0], together[n], atol=1e-4, rtol=1e-4)


def test_what_was_covered_changes_the_answer_and_an_empty_mask_does_not(detector: LiteDetector) -> None:
    frame, mask = scene()
    template, shown = detector.template(frame, mask), torch.rand(1, 3, *SIZE)
    plain = detector.detect(template, shown, [BOX])
    nowhere = detector.detect(template, shown, [BOX], Removal(frame[None], 0 * mask[None], frame[None]))
    covered = detector.detect(template, shown, [BOX], Removal(frame[None], mask[None], frame[None]))
    changed = detector.detect(template, shown, [BOX], Removal(frame[None], mask[None], shown))
    torch.testing.assert_close(plain, nowhere)
    assert not torch.allclose(plain, covered, atol=1e-3) and not torch.allclose(changed, covered, atol=1e-3)
    # and so does what was there
    other = detector.detect(template, shown, [BOX], Removal(1 - frame[None], mask[None], 1 - frame[None]))
    assert not torch.allclose(other, covered, atol=1e-3)


def test_gradients_reach_the_pixels_and_no_weight(detector: LiteDetector) -> None:
    frame, mask = scene()
    template = detector.template(frame, mask)
    frames = torch.rand(1, 3, *SIZE, requires_grad=True)
    detector.detect(template, frames, [BOX]).sum().backward()
    assert frames.grad is not None and frames.grad[..., 30:40, 40:50].abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in detector.network.parameters())
    assert not any(c.features.requires_grad for pair in template.cells for c in pair)


def test_half_precision_sees_the_same_and_gradients_are_those_of_float32() -> None:
    frame, mask = scene()
    shown = torch.rand(2, 3, *SIZE)
    removal = Removal(frame.expand_as(shown), mask.expand(2, -1, -1, -1), shown)
    answers, slopes = [], []
    for precision in ("fp32", "bf16"):
        detector = build_lite(precision=precision)
        template = detector.template(frame, mask)
        answers.append(detector.detect(template, shown, [BOX] * 2, removal).sigmoid())
        pixels = shown.clone().requires_grad_()
        # without a removal and with the same template, nothing of half precision is in it
        template = build_lite(precision="fp32").template(frame, mask)
        detector.detect(template, pixels, [BOX] * 2).sum().backward()
        slopes.append(pixels.grad)
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=0.1)
    assert (answers[1] - answers[0]).abs().mean() < 0.01 and not torch.equal(*answers)
    torch.testing.assert_close(slopes[1], slopes[0])


def test_an_empty_mask_is_refused(detector: LiteDetector) -> None:
    with pytest.raises(MaskError, match="empty"):
        detector.template(torch.rand(3, *SIZE), torch.zeros(1, *SIZE))


def test_weights_come_back_with_their_threshold(detector: LiteDetector, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    export(detector.network, file, 0.37, {"steps": "3"})
    again = build_lite(file)
    assert again.threshold == pytest.approx(0.37)
    frame, mask = scene()
    one, two = (d.detect(d.template(frame, mask), frame[None], [BOX]) for d in (detector, again))
    torch.testing.assert_close(one, two, atol=0.05, rtol=0.05)  # half precision


def test_other_files_are_refused(detector: LiteDetector, tmp_path: Path) -> None:
    state = detector.network.state_dict()
    for metadata, message in (
        ({"architecture": "propagator_lite"}, "propagator_lite; expected residue_lite"),
        ({"architecture": "residue_lite"}, "threshold is None"),
        ({"architecture": "residue_lite", "threshold": "1.5"}, "between 0 and 1"),
    ):
        file = tmp_path / "other.safetensors"
        write_safetensors(file, state, metadata)
        with pytest.raises(CheckpointError, match=message):
            build_lite(file)
    state.pop("answer.bias")
    write_safetensors(file, state, {"architecture": "residue_lite", "threshold": "0.3"})
    with pytest.raises(CheckpointError, match="answer.bias"):
        build_lite(file)


def test_the_registry_says_what_it_knows() -> None:
    assert registry.names() == ["lite", "siammask"]
    with pytest.raises(CiriError, match="choose one of: lite, siammask"):
        registry.build("vgg")
    with pytest.raises(CheckpointError, match="needs a weight file"):
        registry.build("siammask")
    with pytest.raises(CheckpointError):
        registry.build("lite", weights="nowhere.safetensors")


def test_the_shipped_weights_see_what_is_left_and_not_what_is_gone() -> None:
    assert SHIPPED.stat().st_size < 20e6
    detector = registry.build("lite")
    rng = np.random.default_rng(5)

    def surface(cell: int, low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
        noise = rng.random((240 // cell + 1, 320 // cell + 1, 3)).astype(np.float32)
        return cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC).clip(0, 1) * (np.array(high) - low) + low

    scene = surface(40, (60, 90, 60), (120, 150, 110))
    stripes = 0.5 + 0.5 * np.sin(np.arange(320) / 3)[None, :, None]
    person = surface(12, (150, 30, 30), (230, 80, 60)) * (0.5 + 0.5 * stripes)
    mask = np.zeros((240, 320), np.uint8)
    cv2.ellipse(mask, (160, 120), (40, 70), 0, 0, 360, 1, -1)
    half = mask.copy()
    half[:130] = 0
    frames = [np.where(m[..., None] > 0, person, scene) for m in (mask, 0 * mask, half)]
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    masks = torch.from_numpy(mask)[None, None].float().expand(3, -1, -1, -1)
    filmed = clip[:1].expand(3, -1, -1, -1)
    found = detect_residue(clip, masks[0], filmed, masks, detector)
    whole, gone, left = found.scores.tolist()
    assert gone < 0.02 < 0.1 < left < whole
    inside = torch.from_numpy(half).bool()
    response = found.maps[2, 0]
    assert response[inside].mean() > 0.6 and response[~inside].mean() < 0.05
