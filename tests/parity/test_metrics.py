"""The metrics give the values that scikit-image, SciPy and the published networks give on the same arrays."""

import re

import numpy as np
import pytest
import torch

from ciri.metrics.frechet import frechet_distance
from ciri.metrics.i3d import I3D
from ciri.metrics.local import bounding_box, local_scores
from ciri.metrics.lpips import LPIPS
from ciri.metrics.segmentation import boundary_radius, contour, segmentation_score
from ciri.metrics.similarity import WINDOWS, psnr, ssim
from ciri.metrics.warping import motion_from_flows, warping_error
from tests.parity.fixtures import Fixture, find
from tests.parity.seeded_weights import seeded_state_dict


def cases(pattern: str, folder: str = "metrics") -> list[tuple[Fixture, str]]:
    """The fixtures of which a tensor's name fits, and what the pattern's group is in it."""
    found = [(f, re.fullmatch(pattern, name)) for f in find(folder) for name in sorted(f.names)]
    return [(fixture, match[1]) for fixture, match in found if match]


IMAGES = find("metrics", tensors=["image.in.gt_u8", "image.out.psnr"])
FRECHET = cases(r"frechet\.in\.(\w+)_real")
SEGMENTATION = cases(r"jf\.in\.(\w+)_gt_u8")
TRACKED = cases(r"pred_(\d+)", "stcn")
WARPING = find("metrics", tensors=["warp.in.flow_forward"])
I3D_RUNS = cases(r"i3d\.in\.clip_(\w+)_u8_tchw")
LPIPS_RUNS = find("metrics", has=["gain_lpips"], tensors=["lpips.in.a_u8"])
EXACT = 1e-6


def clip(frames_u8):
    """uint8 (T, H, W, 3) or masks (T, H, W) as a clip in [0, 1]."""
    return frames_u8.movedim(-1, 1).float() / 255 if frames_u8.ndim == 4 else (frames_u8[:, None] > 0).float()


def images(fixture):
    return [clip(fixture[f"image.in.{name}_u8"]) for name in ("pred", "gt", "mask")]


@pytest.mark.skipif(not find("metrics"), reason="no fixtures of the metrics here")
def test_there_are_fixtures():
    assert IMAGES or FRECHET or SEGMENTATION or WARPING or I3D_RUNS or LPIPS_RUNS


@pytest.mark.parametrize("fixture", IMAGES, ids=str)
def test_whole_frames(fixture):
    result, clean, _ = images(fixture)
    torch.testing.assert_close(psnr(result, clean), fixture["image.out.psnr"], rtol=0, atol=EXACT)
    for name, window in WINDOWS.items():
        torch.testing.assert_close(ssim(result, clean, window), fixture[f"image.out.{name}"], rtol=0, atol=EXACT)


@pytest.mark.parametrize("fixture", IMAGES, ids=str)
def test_local(fixture):
    result, clean, masks = images(fixture)
    boxes = [bounding_box(mask[0].numpy() > 0) for mask in masks]
    assert [[b.x, b.y, b.width, b.height] for b in boxes] == fixture["image.out.boxes_xywh"].tolist()
    scores = local_scores(result, clean, masks)
    for name in ("psnr_box", "ssim_box", "ssim7_box", "psnr_mask", "ssim7_mask", "ssim65_mask"):
        torch.testing.assert_close(getattr(scores, name), fixture[f"image.out.l{name}"], rtol=0, atol=EXACT)


@pytest.mark.parametrize(("fixture", "case"), FRECHET, ids=str)
def test_frechet(fixture, case):
    distance = frechet_distance(fixture[f"frechet.in.{case}_real"], fixture[f"frechet.in.{case}_fake"])
    assert distance == pytest.approx(float(fixture[f"frechet.out.{case}"]), rel=1e-6)


@pytest.mark.parametrize(("fixture", "size"), SEGMENTATION, ids=str)
def test_region_and_boundary(fixture, size):
    predicted, true = (fixture[f"jf.in.{size}_{name}_u8"] > 0 for name in ("pred", "gt"))
    score = segmentation_score(predicted, true)
    rows = torch.stack([score.region, score.boundary, score.precision, score.recall], 1)
    expected = fixture[f"jf.out.{size}_J_F_P_R_radius"]
    torch.testing.assert_close(rows, expected[:, :4], rtol=0, atol=EXACT)
    assert {boundary_radius(*true.shape[1:])} == set(expected[:, 4].tolist())
    means = fixture[f"jf.out.{size}_mean_J_mean_F_JandF_without_first_and_last"]
    torch.testing.assert_close(torch.tensor(score.mean(), dtype=torch.float64), means, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("fixture", "number"), TRACKED, ids=str)
def test_region_and_boundary_of_tracked_masks(fixture, number):
    predicted, true = (fixture[f"{name}_{number}"] > 0 for name in ("pred", "gt"))
    score = segmentation_score(predicted, true)
    torch.testing.assert_close(score.region, fixture[f"J_{number}"], rtol=0, atol=0)
    torch.testing.assert_close(score.boundary, fixture[f"F_{number}"], rtol=0, atol=1e-12)
    edges = np.stack([contour(mask) for mask in true.numpy()])
    assert np.array_equal(edges, fixture[f"boundary_gt_{number}"].numpy() > 0)
    assert boundary_radius(*true.shape[1:]) == fixture.meta[f"tolerance_px_{number}"]
    for label, part in (("", (0, len(true))), ("_without_first_and_last", (1, -1))):
        expected = [fixture.meta[f"{name}mean{label}_{number}"] for name in "JF"]
        assert score.mean(*part)[:2] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fixture", WARPING, ids=str)
def test_warping_error(fixture):
    forward, backward = (fixture[f"warp.in.flow_{way}"].movedim(-1, 1) for way in ("forward", "backward"))
    motion = motion_from_flows(forward, backward)
    assert torch.equal(motion.occluded[:, 0], fixture["warp.out.occluded_u8"] > 0)
    # float64 from the start: the fixture's frames never were float32
    frames = fixture["warp.in.frames_u8"].movedim(-1, 1).double() / 255
    masks = clip(fixture["warp.in.mask_u8"])
    everywhere, inside = warping_error(frames, motion), warping_error(frames, motion, masks)
    torch.testing.assert_close(everywhere, fixture["warp.out.e_warp_per_pair"], rtol=0, atol=EXACT, equal_nan=True)
    expected = fixture["warp.out.e_warp_masked_per_pair"]
    torch.testing.assert_close(inside, expected, rtol=0, atol=EXACT, equal_nan=True)


def close(got, fixture, name, share):
    """Within a share of the largest magnitude of the expected tensor."""
    expected = fixture[name]
    assert got.shape == expected.shape
    assert float((got - expected).abs().max() / expected.abs().max()) < share


@pytest.mark.parametrize(("fixture", "letter"), I3D_RUNS, ids=str)
def test_i3d(fixture, letter):
    network = I3D()
    network.load_state_dict(seeded_state_dict(network.state_dict(), fixture.meta["seed"], fixture.meta["gain_i3d"]))
    seen = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    frames = fixture[f"i3d.in.clip_{letter}_u8_tchw"].float() / 255
    close(network.pooled(frames, "literature")[None], fixture, f"i3d.out.{letter}_train_pooled1024", 1e-3)
    close(network.pooled(frames, "evaluation")[None], fixture, f"i3d.out.{letter}_eval_pooled1024", 1e-4)
    for name in sorted(fixture.names):
        if name.startswith(f"i3d.out.{letter}_eval_") and "_c::" in name:
            layer, step = name.removeprefix(f"i3d.out.{letter}_eval_").split("_c::")
            close(seen[layer][:, :: int(step)], fixture, name, 1e-4)
    # a measurement must not change the running averages
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("fixture", LPIPS_RUNS, ids=str)
def test_lpips(fixture):
    network = LPIPS()
    state = seeded_state_dict(network.state_dict(), fixture.meta["seed"], fixture.meta["gain_lpips"])
    network.load_state_dict({k: v.abs() if k.startswith("lin") else v for k, v in state.items()})
    first, second = (fixture[f"lpips.in.{name}_u8"].float() / 255 for name in "ab")
    with torch.no_grad():
        layers = torch.stack([layer.mean() for layer in network.layers(first, second)])
    close(layers, fixture, "lpips.out.per_layer", 1e-4)
    close(network.distance(first, second).float(), fixture, "lpips.out.value", 1e-4)
    assert np.isclose(float(network.distance(first, first)), 0)
