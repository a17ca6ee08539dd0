"""The node of the backbone that ships: its weights, and a removal under ComfyUI's inference mode."""

import pytest
import torch

from ciri.errors import CheckpointError
from ciri.inpainting.lite_network import LiteConfig, LiteNetwork

OPTIONS = {"weights": "shipped", "precision": "fp32"}


def _listed(nodes):
    inputs = nodes["CIRI_BackboneLite"].GET_SCHEMA().inputs
    return next(i for i in inputs if i.id == "weights").options


def pan(frames=6, height=96, width=144):
    """A texture that moves by 4 pixels a frame behind a square that stands still: images and masks of ComfyUI."""
    noise = torch.rand(1, 3, height // 4, width // 2, generator=torch.Generator().manual_seed(4))
    wide = torch.nn.functional.interpolate(noise, (height, 2 * width), mode="bicubic")[0].clamp(0, 1)
    clean = torch.stack([wide[:, :, 4 * t : 4 * t + width] for t in range(frames)]).movedim(1, -1).contiguous()
    masks = torch.zeros(frames, height, width)
    masks[:, 40:56, 64:76] = 1
    images = torch.where(masks[..., None] > 0, torch.tensor([0.9, 0.1, 0.8]), clean)
    return clean, images, masks


def test_the_shipped_weights_fill_a_hole(run):
    clean, images, masks = pan()
    with torch.inference_mode():
        (backbone,) = run("CIRI_BackboneLite", **OPTIONS).args
        assert backbone.name == "lite" and backbone.facts.trained_for == "inactivation"
        filled = run(
            "CIRI_InactivationInpaint",
            images=images,
            inactivation=masks,
            backbone=backbone,
            grow=2,
            feather=2,
            crop=True,
        ).args[0]
    hidden = masks[..., None].expand_as(clean) > 0
    assert (filled - clean)[hidden].abs().mean() < 0.25 * (images - clean)[hidden].abs().mean()
    assert torch.equal(filled[:, :24], images[:, :24])


def test_attention_is_computed_beside_it(run):
    _, images, masks = pan()
    (backbone,) = run("CIRI_BackboneLite", **OPTIONS).args
    attention = run(
        "CIRI_ComplementaryAttention", images=images, first_mask=masks[:1], masks=masks, backbone=backbone
    ).args[0]
    assert attention.shape == masks.shape and float(attention.max()) <= 1
    # nothing far from the prediction
    assert attention[:, :, :40].max() == 0 and attention.max() > 0


def test_other_weights_are_listed_by_content_and_used(nodes, run, folder):
    import folder_paths

    from ciri.training.backbone import save_network

    assert _listed(nodes) == ["shipped"]
    save_network(LiteNetwork(LiteConfig(8, 8, 8, 8, 1)), folder / "renamed.safetensors", {"variant": "ciri"})
    folder_paths.filename_list_cache.pop("ciri", None)
    assert _listed(nodes) == ["shipped", "renamed.safetensors"]
    (backbone,) = run("CIRI_BackboneLite", **{**OPTIONS, "weights": "renamed.safetensors"}).args
    assert backbone.network.config.half == 8


def test_a_missing_file_is_named_and_what_to_do(run, folder):
    words = "'gone.safetensors' is not there. Choose 'shipped', .*'python -m ciri train backbone' made into "
    with pytest.raises(CheckpointError, match=words + str(folder)):
        run("CIRI_BackboneLite", **{**OPTIONS, "weights": "gone.safetensors"})
