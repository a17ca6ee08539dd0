"""SiamMask against outputs of the published program, on weights that anybody can make again."""

import contextlib
import functools

import numpy as np
import pytest
import torch

from ciri.residue.siammask_network import SEARCH, TEMPLATE, SiamMask
from ciri.residue.siammask_tracking import anchors, cut, search_side, template_side
from tests.parity.fixtures import documents, find
from tests.parity.seeded_weights import seeded_state_dict

#: Stated with the fixtures: of each tensor's largest magnitude.
TOLERANCE = 1e-4
#: Units about 0 may move parts of the gradient: so many pixels stay within ten times the tolerance, and all
#: differences together (as a vector) are at most this share of the gradient.
MOST_PIXELS, KINKS = 0.95, 0.05
#: OpenCV's versions round differently: by one grey level.
GREY_LEVEL = 1

KEYS = [d for d in documents("siammask") if "keys" in d]
NETWORKS = find("siammask", tensors=["in.template_u8", "out.search_feature_c::16"])
CROPS = find("siammask", tensors=["out.anchors_cxcywh"])


@functools.lru_cache(maxsize=1)
def network_of(seed: int, gain: float) -> SiamMask:
    """The published architecture, filled with the fixture's numbers."""
    network = SiamMask()
    network.load_state_dict(seeded_state_dict(network.state_dict(), seed, gain))
    return network.requires_grad_(False)


@contextlib.contextmanager
def one_thread():
    """Sum in the order in which the fixtures were summed.

    The gradient passes thousands of ReLUs and a max pool; some of them are so near to their kink that any other order
    of summation (two threads, another library, even double precision) flips a few, which moves single pixels of the
    gradient by far more than rounding. With one thread it is the fixtures' to the bit, on a processor like theirs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.lru_cache(maxsize=1)
@one_thread()
def run(index: int) -> dict[str, torch.Tensor]:
    """Everything that a network fixture stores a view of, in full."""
    fixture = NETWORKS[index]
    network = network_of(fixture.meta["seed"], fixture.meta["gain"])
    search = fixture["in.search_u8"].float().requires_grad_()
    _, template = network.encode(fixture["in.template_u8"].float())
    maps, adjusted = network.encode(search)
    response = network.respond(template, adjusted)
    loss = response.correlation.mean() + response.classes[:, 5:].mean()
    (gradient,) = torch.autograd.grad(loss, search)
    with torch.no_grad():
        cells = fixture["in.refine_positions_yx"]
        coarse = network.coarse_masks(response.correlation)[0].unflatten(0, (63, 63))
        seen = {
            "template_feature": template,
            **{f"search_{name}": value for name, value in maps._asdict().items()},
            "search_feature": adjusted,
            "cls": response.classes,
            "loc": response.boxes,
            "mask_corr": response.correlation,
            "score": response.scores().flatten(),
            "mask_head_at_positions": torch.stack([coarse[..., y, x] for y, x in cells]),
            "refine_logits_at_positions": network.refine_model(response.correlation, maps, cells),
            "loss": loss[None],
            "dloss_dsearch": gradient,
        }
    return {name: value.detach() for name, value in seen.items()}


def view(full: torch.Tensor, suffixes: list[str]) -> torch.Tensor:
    """Every k-th channel (``c::k``) or pixel (``s::k``), as the fixtures' names say."""
    for suffix in suffixes:
        axis, step = suffix.split("::")
        full = full[:, :: int(step)] if axis == "c" else full[..., :: int(step), :: int(step)]
    return full


def stored() -> list[tuple[int, str]]:
    return [(i, name) for i, f in enumerate(NETWORKS) for name in sorted(f.names) if name.startswith("out.")]


def label(value: object) -> str:
    return str(NETWORKS[value]) if isinstance(value, int) else str(value)


@pytest.mark.parametrize("keys", KEYS, ids=["siammask"] * len(KEYS))
def test_the_state_dict_is_the_published_one(keys):
    sharp = {key: (list(v.shape), str(v.dtype)) for key, v in SiamMask().state_dict().items()}
    assert sharp == {key: (entry["shape"], f"torch.{entry['dtype']}") for key, entry in keys["keys"].items()}
    assert sum(p.numel() for p in SiamMask().parameters()) == keys["parameters"]
    base = SiamMask(sharp=False).state_dict()
    assert set(base) == {key for key in sharp if not key.startswith("refine_model.")}


@pytest.mark.parametrize(("index", "name"), stored(), ids=label)
def test_network(index, name):
    """Maps, heads, refined patches, and the gradient with respect to the pixels of the search crop."""
    # a name may hold underscores of its own: only what ends in "c::k" or "s::k" is a view
    parts = name.removeprefix("out.").split("_")
    full = run(index)["_".join(p for p in parts if "::" not in p)]
    got, expected = view(full, [p for p in parts if "::" in p]), NETWORKS[index][name]
    assert got.shape == expected.shape
    apart, limit = (got - expected).abs(), TOLERANCE * float(expected.abs().max())
    if "dloss" in name:
        # processors sum in different orders, and a unit that is about 0 is then on in one and off in the other: what is
        # behind it gets another gradient. Most pixels have to agree, and the others must not add up
        assert float((apart <= 10 * limit).float().mean()) >= MOST_PIXELS
        assert float(apart.norm()) <= KINKS * float(expected.norm())
    else:
        assert float(apart.max()) <= limit


@pytest.mark.parametrize("fixture", CROPS, ids=str)
def test_anchors(fixture):
    assert torch.equal(anchors(), fixture["out.anchors_cxcywh"])


@pytest.mark.parametrize("fixture", CROPS, ids=str)
def test_crops_of_the_tracker(fixture):
    image = fixture["in.image_u8_hwc"].numpy()
    fill = image.mean((0, 1))
    np.testing.assert_allclose(fill, fixture["out.mean_bgr"], rtol=1e-12)
    checked = 0
    for index, (x, y, w, h, template, search, search_pixels) in enumerate(
        fixture["in.boxes_xywh_then_out.sz_sx_roundsx"].tolist()
    ):
        assert round(template_side(w, h)) == template
        assert search_side(w, h) == pytest.approx(search, rel=1e-12) and round(search_side(w, h)) == search_pixels
        centre = (x + w / 2, y + h / 2)
        for name, side, size in (("template", template, TEMPLATE), ("search", search_pixels, SEARCH)):
            if f"out.{name}_{index}_u8_hwc" in fixture:
                got = cut(image, centre, int(side), size, fill).astype(int)
                expected = fixture[f"out.{name}_{index}_u8_hwc"].numpy().astype(int)
                assert np.abs(got - expected).max() <= GREY_LEVEL, (name, index)
                checked += 1
    assert checked == sum(name.endswith("_u8_hwc") and name.startswith("out.") for name in fixture.names)
