"""Every stage on a graphics card that is pretended: no tensors of two devices meet, in full and in half precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.inpainting import NETWORKS, network_of
from benchmarks.propagation import seeded_stcn
from ciri.grain import match_grain
from ciri.inactivation.fusion import fuse, spared
from ciri.inactivation.learned import shipped
from ciri.inpainting import registry as backbones
from ciri.inpainting.driver import WindowBackbone
from ciri.inpainting.remove import remove
from ciri.metrics.similarity import psnr, ssim
from ciri.metrics.warping import Motion, motion_of, warping_error
from ciri.pipeline import propagate, remove_object
from ciri.propagation import registry as propagators
from ciri.propagation.engine import MemoryPropagator
from ciri.refinement.settings import MODES, RefinementSettings
from ciri.residue import registry as detectors
from tests.pretended_gpu import pretended_gpu

PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "auto"])
APART = pytest.mark.parametrize("frames_there", [True, False], ids=["frames on the card", "masks on the card"])


def scene(length=5, height=96, width=128):
    """A texture that pans behind a magenta target; frames, clean frames and masks."""
    noise = torch.rand(1, 3, height // 8, (width + 3 * length) // 8 + 1, generator=torch.Generator().manual_seed(1))
    wide = F.interpolate(noise, scale_factor=8, mode="bicubic")[0].clamp(0, 1)
    frames = torch.stack([wide[:, :height, 3 * t : 3 * t + width] for t in range(length)])
    masks = torch.zeros(length, 1, height, width)
    for t in range(length):
        masks[t, :, height // 3 : 2 * height // 3, width // 3 + 2 * t : width // 3 + 2 * t + height // 4] = 1
    return torch.where(masks > 0, torch.tensor([1.0, 0.0, 1.0])[:, None, None], frames), masks


def apart(gpu, frames_there):
    """Frames of a scene, its masks on the other device, and the device of the frames."""
    frames, masks = scene(3)
    frames, masks = (frames.to(gpu), masks) if frames_there else (frames, masks.to(gpu))
    return frames, masks, frames.device


@pytest.fixture
def gpu():
    with pretended_gpu() as device:
        yield device


def test_what_is_pretended_refuses_what_a_card_refuses(gpu):
    here, there = torch.rand(3, 4), torch.rand(3, 4, device=gpu)
    assert here.device.type == "cpu" and there.device.type == "cuda"
    assert {x.device for x in (there[0], there * 2, there.half(), there.view(2, 6), here.to(gpu))} == {gpu}
    layer = torch.nn.Linear(4, 2).to(gpu)
    assert layer.weight.device == layer(there).device == gpu and there.cpu().numpy().shape == (3, 4)
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    with pytest.raises(RuntimeError, match="same device"):
        layer(here)
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(there)
    with torch.autocast(gpu.type, torch.bfloat16):
        assert layer(there).dtype == torch.bfloat16
    weight = torch.rand(4, requires_grad=True)
    (weight.to(gpu) * there).sum().backward()
    assert weight.grad.device.type == "cpu"


@PRECISIONS
@pytest.mark.parametrize("name", ["lite", "stcn"])
def test_propagators(gpu, name, precision):
    frames, masks = scene()
    options = {"precision": precision, "device": gpu}
    if name == "stcn":
        propagator = MemoryPropagator(seeded_stcn(None), store_above=None, **options)
    else:
        propagator = propagators.build(name, **options)
    elsewhere = propagator.propagate(frames, masks[:1], [0])
    there = propagator.propagate(frames.to(gpu), masks[:1].to(gpu), [0])
    assert elsewhere.probs.device == elsewhere.confidence.device == frames.device
    assert there.probs.device == there.confidence.device == gpu
    torch.testing.assert_close(there.probs.cpu(), elsewhere.probs)


def test_the_classical_propagator_answers_where_it_was_asked(gpu):
    frames, masks = (x.to(gpu) for x in scene(3))
    track = propagators.build("flow").propagate(frames, masks[:1], [0])
    assert track.probs.device == track.confidence.device == gpu


@APART
@pytest.mark.parametrize("name", ["lite", "flow"])
def test_masks_elsewhere_than_the_frames_are_followed(gpu, name, frames_there):
    """What is to stay and several objects included: their masks are compared with each other and with the answers."""
    frames, masks, result_on = apart(gpu, frames_there)
    keep = torch.zeros_like(masks[0])
    keep[:, 4:20, 4:20] = 1
    propagator = propagators.build(name, device=gpu) if name == "lite" else propagators.build(name)
    track = propagate(frames, masks[0], propagator, keep=keep)
    two = propagate(frames, masks[[0, 2]], propagator, key_frames=[0, 0])
    assert {x.device for x in (track.probs, track.confidence, track.kept, two.probs, two.confidence)} == {result_on}
    together = propagate(frames.to(gpu), masks[0].to(gpu), propagator, keep=keep.to(gpu))
    torch.testing.assert_close(track.probs.cpu(), together.probs.cpu())


@APART
@pytest.mark.parametrize("name", ["lite", "flow"])
def test_a_map_elsewhere_than_the_frames_is_filled(gpu, name, frames_there):
    frames, masks, result_on = apart(gpu, frames_there)
    backbone = backbones.build(name, device=gpu) if name == "lite" else backbones.build(name)
    filled, together = remove(frames, masks, backbone), remove(frames.to(gpu), masks.to(gpu), backbone)
    assert filled.device == result_on
    torch.testing.assert_close(filled.cpu(), together.cpu())


@APART
def test_all_stages_from_given_masks_elsewhere_than_the_frames(gpu, frames_there):
    frames, masks, result_on = apart(gpu, frames_there)
    removal = remove_object(frames, masks=masks, attention=shipped(), **stages(gpu, detector=False))
    assert {x.device for x in (removal.frames, removal.masks.probs, removal.masks.confidence)} == {result_on}


def test_grain_is_the_same_on_the_card(gpu):
    frames = torch.linspace(0.4, 0.6, 128).expand(5, 3, 96, 128)
    noisy = frames + 0.03 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    filled = noisy.clone()
    filled[..., 20:70, 30:100] = frames[..., 20:70, 30:100]
    (here, _), (there, noise) = match_grain(noisy, filled), match_grain(noisy.to(gpu), filled.to(gpu))
    assert noise is not None and there.device == gpu
    torch.testing.assert_close(there.cpu(), here)


@APART
def test_maps_of_different_devices_are_fused(gpu, frames_there):
    first, second = torch.rand(2, 1, 4, 5), torch.rand(2, 1, 4, 5)
    here, there = (first.to(gpu), second) if frames_there else (first, second.to(gpu))
    fused, left = fuse(here, there, 0.3), spared(here, there, there)
    assert fused.device == left.device == here.device
    assert torch.equal(fused.cpu(), fuse(first, second, 0.3))
    assert torch.equal(left.cpu(), spared(first, second, second))


def test_scores_of_clips_on_the_card(gpu):
    frames, masks = scene(3)
    masks[:2] = 0  # of the first pair no pixel counts
    motion = motion_of(frames)
    there = Motion(motion.forward.to(gpu), motion.occluded.to(gpu))
    found = warping_error(frames.to(gpu), there, masks.to(gpu))
    torch.testing.assert_close(found, warping_error(frames, motion, masks), equal_nan=True)
    assert found[0].isnan() and not found[1].isnan()
    for score in (psnr, ssim):
        assert torch.equal(score(frames.to(gpu), frames.flip(3).to(gpu)), score(frames, frames.flip(3)))


@PRECISIONS
def test_the_shipped_backbone(gpu, precision):
    frames, masks = scene()
    backbone = backbones.build("lite", device=gpu, precision=precision)
    elsewhere, there = remove(frames, masks, backbone), remove(frames.to(gpu), masks.to(gpu), backbone)
    assert elsewhere.device == frames.device and there.device == gpu
    torch.testing.assert_close(there.cpu(), elsewhere)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_backbones(gpu, name):
    frames, masks = scene(3, 240, 432) if name != "e2fgvi_hq" else scene(3, 120, 216)
    network = network_of({"backbone": name, "weights": None})
    network.precision = torch.bfloat16
    backbone = WindowBackbone(network.to(gpu, memory_format=torch.channels_last))
    filled = remove(frames, masks, backbone, crop=False)
    hole = masks.expand_as(frames) > 0
    assert filled.device == frames.device and not torch.equal(filled[hole], frames[hole])


def test_a_published_backbone_beside_the_card(gpu):
    frames, masks = scene(3, 48, 96)
    backbone = WindowBackbone(network_of({"backbone": "sttn", "weights": None}))
    there, here = remove(frames.to(gpu), masks, backbone, crop=False), remove(frames, masks, backbone, crop=False)
    assert there.device == gpu
    torch.testing.assert_close(there.cpu(), here)


def stages(device, detector=True):
    return {
        "propagator": propagators.build("lite", device=device),
        "backbone": backbones.build("lite", device=device),
        "detector": detectors.build("lite", device=device) if detector else None,
    }


def test_all_stages_from_one_mask(gpu):
    frames, masks = (x.to(gpu) for x in scene(3))
    removal = remove_object(frames, masks[0], attention=shipped(), **stages(gpu, detector=False))
    assert removal.frames.device == removal.masks.probs.device == removal.masks.confidence.device == gpu
    hole = masks.expand_as(frames) > 0
    assert float((removal.frames - frames).abs()[hole].mean()) > 0.1


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "auto"])
def test_refinement(gpu, mode):
    frames, masks = (x.to(gpu) for x in scene(4, 128, 192))
    cut = masks.clone()
    cut[2:, :, 64:] = 0
    removal = remove_object(frames, masks=cut, refine=RefinementSettings(mode=mode, epochs=1), **stages(gpu))
    assert removal.frames.device == removal.masks.probs.device == gpu
    report = removal.refinement.report
    assert report.mode == mode and any(frame.accepted for frame in report.frames)
