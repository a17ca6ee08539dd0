"""E2FGVI and E2FGVI-HQ, whole and in parts, against the published program on seeded weights."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ciri.frames import pad_to_multiple
from ciri.inpainting.deform import modulated_deform_conv
from ciri.inpainting.discriminator import Discriminator
from ciri.inpainting.e2fgvi import E2FGVI, E2FGVIHQ
from ciri.inpainting.e2fgvi_propagation import BidirectionalPropagation, SecondOrderAlignment
from ciri.inpainting.focal import FocalBlock, from_windows
from ciri.inpainting.spynet import SPyNet, resize
from tests.parity.fixtures import documents, find
from tests.parity.seeded_weights import seeded_state_dict
from tests.parity.transformer_backbones import view

VARIANTS = {"base": E2FGVI, "hq": E2FGVIHQ}
KEYS = [d for d in documents("e2fgvi") if "discriminator" in d]


def seeded(network: nn.Module, meta: dict, seed: int | None = None) -> nn.Module:
    """Fill a network as the fixtures say: constants are kept, some prefixes are scaled."""
    own = network.state_dict()
    drawn = seeded_state_dict(own, meta["seed"] if seed is None else seed, meta.get("gain", 1.0))
    for key, value in drawn.items():
        if key.rpartition(".")[2] in ("mean", "std"):
            drawn[key] = own[key]
        elif value.is_floating_point() and value.dim() >= 2:
            for prefix, factor in meta.get("multipliers", {}).items():
                if key.startswith(prefix):
                    drawn[key] = drawn[key] * factor
    network.load_state_dict(drawn)
    return network.eval()


def floats(fixture, *names):
    """Some of the fixture's tensors as networks take them, however they are stored."""
    return [fixture[name].float() for name in names]


def close(got, expected, atol, name="values", rtol=0.0):
    """Compare values, in whatever precision they are stored."""
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, check_dtype=False, msg=lambda m: f"{name}: {m}")


def images(u8):
    """(.., H, W, 3) bytes to (.., 3, H, W) in [-1, 1]."""
    return (u8.float() / 255 * 2 - 1).movedim(-1, -3)


def shapes(network):
    return {key: list(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize("keys", KEYS, ids=["e2fgvi"] * len(KEYS))
def test_keys_shapes_and_kinds_are_those_of_the_published_files(keys):
    networks = {**{name: make() for name, make in VARIANTS.items()}, "discriminator": Discriminator()}
    for name, network in networks.items():
        assert shapes(network) == {key: entry["shape"] for key, entry in keys[name]["keys"].items()}
        own = {key: str(value.dtype).removeprefix("torch.") for key, value in network.state_dict().items()}
        assert own == {key: entry["dtype"] for key, entry in keys[name]["keys"].items()}
        assert sum(p.numel() for p in network.parameters()) == keys[name]["n_parameters"]
        if name in VARIANTS:
            assert network.transformer[0].attn.valid_ind_rolled.tolist() == keys[name]["valid_ind_rolled"]


# ------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("fixture", find("e2fgvi", tensors=["grad_offset"]), ids=str)
def test_deformable_convolution_and_its_gradients(fixture):
    t, meta = fixture.tensors(), fixture.meta
    inputs = {name: t[name].requires_grad_() for name in ("x", "offset", "mask", "weight", "bias")}
    geometry = {name: meta[name] for name in ("stride", "padding", "dilation")}
    out = modulated_deform_conv(**inputs, **geometry)
    close(out, t["out"], meta["atol"]["out"])
    (out * t["grad_out"]).sum().backward()
    for name, value in inputs.items():
        # on a pixel centre the derivative by the offset has two sides
        valid = t["offset_grad_valid"].bool() if name == "offset" else slice(None)
        close(value.grad[valid], t[f"grad_{name}"][valid], meta["atol"]["grads"])


def stored_images(u8):
    """(n, 3, h, w) bytes to [0, 1], and how many of them can be trusted.

    Some files were written from permuted, strided arrays without regard to their strides: the bytes are (n, h, w, 3),
    and from the second image on they belong to other frames. Neighbouring bytes tell: colours jump, rows do not.
    """
    n, c, h, w = u8.shape
    repaired = u8.reshape(n, h, w, c).permute(0, 3, 1, 2)
    rough, smooth = ((x.float().diff(dim=-1)).abs().mean() for x in (u8, repaired))
    return (u8.float() / 255, n) if rough <= smooth else (repaired.float() / 255, 1)


@torch.no_grad()
@pytest.mark.parametrize("fixture", find("e2fgvi", tensors=["flow_at_multiple_of_32"]), ids=str)
def test_flow(fixture):
    network = seeded(SPyNet(), fixture.meta)
    (reference, usable), (other, _) = stored_images(fixture["ref_u8"]), stored_images(fixture["supp_u8"])
    flow = network(reference, other)
    close(flow[:usable], fixture["flow"][:usable], fixture.meta["atol"])
    large = fixture["flow_at_multiple_of_32"]
    aligned = network.aligned(resize(reference, large.shape[2:]), resize(other, large.shape[2:]))
    close(aligned[:usable], large[:usable], fixture.meta["atol"])


@torch.no_grad()
@pytest.mark.parametrize("fixture", find("e2fgvi", tensors=["extra_feat"]), ids=str)
def test_alignment(fixture):
    module = seeded(SecondOrderAlignment(fixture["out"].shape[1]), fixture.meta)
    assert shapes(module) == fixture.meta["keys"]
    out = module(*floats(fixture, "x", "extra_feat", "flow_1", "flow_2"))
    close(out, fixture["out"], fixture.meta["atol"])


@torch.no_grad()
@pytest.mark.parametrize("fixture", find("e2fgvi", tensors=["flows_to_next"]), ids=str)
def test_propagation(fixture):
    features, *flows = floats(fixture, "x", "flows_to_next", "flows_to_prev")
    module = seeded(BidirectionalPropagation(features.shape[2]), fixture.meta)
    assert shapes(module) == fixture.meta["keys"]
    close(module(features, *flows), fixture["out"], fixture.meta["atol"])
    # the geometrically right order agrees with the released one for up to two frames, and only then
    module.released_flow_order = False
    off = (module(features, *flows) - fixture["out"]).abs().max()
    assert (off <= fixture.meta["atol"]) == (features.shape[1] <= 2)


@torch.no_grad()
@pytest.mark.parametrize("fixture", find("e2fgvi", tensors=["attn_windows"]), ids=str)
def test_focal_block(fixture):
    (tokens,), size, atol = floats(fixture, "x"), tuple(fixture.meta["feature_size"]), fixture.meta["atol"]
    block = seeded(FocalBlock(tokens.shape[-1], 4), fixture.meta)
    assert shapes(block) == fixture.meta["keys"]
    normed = block.norm1(tokens)
    attended = block.attn(normed, block.pool(normed), tokens.shape[1])
    close(attended.flatten(0, 1), fixture["attn_windows"], atol)
    y = block(tokens, size)
    close(y, fixture["y"], atol)
    before = tokens + from_windows(attended, tokens.shape[2:4])
    close((y - before).reshape(fixture["ffn"].shape), fixture["ffn"], atol)


@pytest.mark.parametrize("fixture", find("e2fgvi", tensors=["logits", "sigma.0"]), ids=str)
def test_discriminator_and_its_power_iteration(fixture):
    network, atol = seeded(Discriminator(), fixture.meta).train(), fixture.meta["atol"]
    clip = images(fixture["frames"]).requires_grad_()
    logits = network(clip)
    close(logits, fixture["logits"], atol)
    for layer in (0, 2, 4, 6, 8):
        close(network.conv[layer].weight_u, fixture[f"u_after.{layer}"], atol)
        sigma = network.conv[layer].weight_orig.flatten()[0] / network.conv[layer].weight.flatten()[0]
        close(sigma[None], fixture[f"sigma.{layer}"], atol, rtol=1e-4)
    (-logits).mean().backward()
    expected = {"grad_x_sub": clip.grad, "grad_w10_sub": network.conv[10].weight.grad}
    for name, gradient in expected.items():
        stored = fixture[name]
        steps = [-(-full // kept) for full, kept in zip(gradient.shape, stored.shape, strict=True)]
        strided = 1e4 * gradient[tuple(slice(None, None, step) for step in steps)]
        close(strided, stored, 1e-4 * float(stored.abs().max()), name, rtol=1e-3)


# ------------------------------------------------------------------------------------------ whole networks


def masked_clip(fixture):
    """The network's input: grey holes, then mirrored at the bottom and at the right up to the padded size."""
    meta = fixture.meta
    holes = np.unpackbits(fixture["masks_packed"].numpy(), axis=-1, count=meta["W"])
    x = images(fixture["frames"]) * (1 - torch.from_numpy(holes).float())[:, :, None]
    x = torch.cat([x, x.flip(3)], 3)[..., : meta["padded_H"], :]
    return torch.cat([x, x.flip(4)], 4)[..., : meta["padded_W"]]


@pytest.mark.parametrize("fixture", find("e2fgvi", has=["padded_H"], tensors=["masks_packed"], variant="hq"), ids=str)
def test_sizes_that_do_not_fit_are_padded_as_published(fixture):
    frames = (images(fixture["frames"])[0] + 1) / 2
    holes = np.unpackbits(fixture["masks_packed"].numpy(), axis=-1, count=fixture.meta["W"])
    maps = torch.from_numpy(holes).float()[0, :, None]
    multiple = E2FGVIHQ.facts.needs_divisible_by
    padded, padded_maps = (pad_to_multiple(x, multiple)[0] for x in (frames, maps))
    close((2 * padded - 1) * (1 - padded_maps), masked_clip(fixture)[0], 1e-6)


def observe(network, module, kept):
    """Collect what a module returns; it may be called for a few frames at a time."""
    return module.register_forward_hook(lambda module, inputs, output: kept.append(output))


def trace(network, clip, local):
    """Every tensor that the fixtures name."""
    found, watched = {}, {name: [] for name in ("tok_in", "attn_0", "ffn_0", "tok_0", "tok_7", "softcomp")}
    blocks = network.transformer
    modules = (network.ss, blocks[0].attn, blocks[0].mlp, blocks[0], blocks[7], network.sc)
    hooks = [observe(network, module, watched[name]) for module, name in zip(modules, watched, strict=True)]
    taps = []
    found["enc_s2_l2"] = network.encoder.to_half(clip.flatten(0, 1))
    found["enc_s4_l6"] = network.encoder.to_quarter(found["enc_s2_l2"])
    found["enc"] = network.encoder.merge(found["enc_s4_l6"], taps)
    found["enc_s4_l8"], found["enc_s4_l14"] = taps[0], taps[3]
    found["out"], flows = network(clip, local)
    found["flow_fw"], found["flow_bw"] = flows.unbind(2)
    features = network.encode(clip.flatten(0, 1))["out"].unflatten(0, clip.shape[:2])
    found["prop"] = network.propagate(features, local, flows)[:, :local]
    for hook in hooks:
        hook.remove()
    return found | {name: torch.cat(parts) for name, parts in watched.items()}


@torch.no_grad()
@pytest.mark.parametrize("fixture", find("e2fgvi", has=["variant"], tensors=["softcomp", "tok_in"]), ids=str)
def test_network(fixture):
    network = seeded(VARIANTS[fixture.meta["variant"]](), fixture.meta)
    found = trace(network, masked_clip(fixture), fixture.meta["num_local_frames"])
    out_shape = fixture.meta["tensors"]["out"]["full_shape"]
    for name, entry in fixture.meta["tensors"].items():
        if "rule" in entry:
            bounds = re.findall(r"(\d+):(\d+)", entry["rule"])
            index = (..., *(slice(int(a), int(b)) for a, b in bounds))
            stored = found["out"].reshape(out_shape)[index]
        else:
            full = found[name].reshape(entry["full_shape"])
            stored = full[tuple(slice(None, None, step) for step in entry["strides"])]
        close(stored, fixture[name], entry["atol"], name)


@torch.no_grad()
@pytest.mark.parametrize("fixture", find("e2fgvi", tensors=["enc_inactivated", "M_quarter"]), ids=str)
def test_inactivation_of_the_encoder_output_with_softly_masked_flow(fixture):
    meta, local = fixture.meta, fixture.meta["num_local_frames"]
    # "1e-4 (tok_7 2e-4)", "prop [:, :, ::8, ::2, ::2]; tok_7 [..., ::16]; ..."
    atol = [float(number) for number in re.findall(r"[\d.]+e-\d+", meta["atol"])]
    views = dict(re.findall(r"(\w+) (\[[^]]+\])", meta["strides"]))
    network = seeded(VARIANTS[meta["variant"]](), meta)
    clip, tokens = images(fixture["frames"]), []
    inactive, hidden = floats(fixture, "M_quarter", "M_flow")
    gated = network.gate(network.encode(clip), inactive)
    visible = clip * (1 - hidden)
    flows = network.flows(visible[: local - 1], visible[1:local])[None]
    hook = observe(network, network.transformer[7], tokens)
    out = network.decode_window(gated[None], local, flows, wanted=len(clip))[0]
    hook.remove()
    propagated = network.propagate(gated[None], local, flows)[:, :local]
    for name, value in {
        "enc_inactivated": gated,
        "flow_next": flows[:, :, 0],
        "flow_prev": flows[:, :, 1],
        "prop": propagated,
        "tok_7": tokens[0],
        "out": out,
    }.items():
        stored = view(value, views.get(name, "[...]"))
        close(stored, fixture[name], atol[-1] if name == "tok_7" else atol[0], name)


@pytest.mark.parametrize("fixture", find("e2fgvi", has=["grad_norms", "losses"]), ids=str)
def test_training_step(fixture):
    meta, local = fixture.meta, fixture.meta["num_local_frames"]
    generator = seeded(VARIANTS[meta["variant"]](), meta).train()
    discriminator = seeded(Discriminator(), {"gain": meta["gain"]}, meta["seed"] + 1).train()
    frozen = seeded(SPyNet(), {"gain": meta["gain"]}, meta["seed"] + 2)
    clip, holes = images(fixture["frames"])[None], fixture["masks"].float()[None, :, None]

    filled, flows = generator(clip * (1 - holes), local)
    composed = clip * (1 - holes) + filled * holes
    size = (clip.shape[3] // 4, clip.shape[4] // 4)
    seen = F.interpolate((clip[0, :local] + 1) / 2, size, mode="bilinear", align_corners=True)
    with torch.no_grad():
        complete = torch.stack([frozen(seen[:-1], seen[1:]), frozen(seen[1:], seen[:-1])], 1)[None]
    flow_error = (flows - complete).abs()
    real, fake = discriminator(clip), discriminator(composed.detach())
    losses = {
        "hole": ((filled - clip) * holes).abs().mean() / holes.mean(),
        "valid": ((filled - clip) * (1 - holes)).abs().mean() / (1 - holes).mean(),
        "flow": flow_error[:, :, 0].mean() + flow_error[:, :, 1].mean(),
        "discriminator": (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2,
    }
    losses["discriminator"].backward()
    judged = {name: p.grad.norm().item() for name, p in discriminator.named_parameters()}
    losses["gan_weighted_0.01"] = -0.01 * discriminator(composed).mean()
    total = losses["generator_total"] = sum(losses[name] for name in ("hole", "valid", "flow", "gan_weighted_0.01"))
    total.backward()
    norms = {name: p.grad.norm().item() for name, p in generator.named_parameters() if p.grad is not None}

    assert {name: value.item() for name, value in losses.items()} == pytest.approx(meta["losses"], rel=meta["rtol"])
    # a bias of the pooling moves all keys nearly alike, which nearly cancels out: what is left of it is half rounding
    rounding = 1e-8 * max(meta["grad_norms"].values())
    assert norms == pytest.approx(meta["grad_norms"], rel=meta["rtol"], abs=rounding)
    # while both hinges are active the last bias cancels out exactly
    assert judged == pytest.approx(meta["grad_norms_discriminator"], rel=meta["rtol"], abs=1e-9)
