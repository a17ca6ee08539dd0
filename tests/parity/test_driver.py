"""The published window schedules and compositions, to the bit, on stub networks."""

import pytest
import torch
from torch import Tensor

from ciri.inpainting.windows import Schedule
from tests.parity.fixtures import documents, find
from tests.published_loop import dilate_cross, plain_loop

STUB_CLIPS = find("driver", tensors=["composed_u8", "frames_u8"])
FLOAT_CLIPS = find("e2fgvi", tensors=["composed_u8", "masks_raw"])


def schedule_of(meta):
    """The windows that metadata describes; E2FGVI's fixtures have a shorter word for the step."""
    step = meta["ref_step" if "ref_step" in meta else "reference_step"]
    return Schedule(meta["neighbor_stride"], step, meta.get("num_ref", -1), "test")


def index_cases():
    """Every (schedule, length, expected windows) of the index lists, in one form."""
    for document in documents("driver") + documents("e2fgvi"):
        for name, program in (("fuseformer_dstt_test", "test"), ("fuseformer_evaluate", "evaluate")):
            for case in document.get(name, ()) if isinstance(document, dict) else ():
                schedule = Schedule(case["neighbor_stride"], case["reference_step"], case["num_ref"], program)
                yield schedule, case["T"], [(w["neighbors"], w["references"]) for w in case["windows"]]
        for case in document.get("cases", ()) if isinstance(document, dict) else ():
            schedule = schedule_of(case)
            ends = [([w["local"][0], w["local"][-1]], w["reference"]) for w in case["windows"]]
            yield schedule, case["length"], ends
        if isinstance(document, dict) and "windows" in document:
            schedule = schedule_of(document)
            ends = [([w["neighbors"][0], w["neighbors"][-1]], w["references"]) for w in document["windows"]]
            yield schedule, document["T"], ends


def test_schedules_are_the_published_ones():
    cases = list(index_cases())
    if not cases:
        pytest.skip("no index list among the fixtures")
    for schedule, length, expected in cases:
        windows = [([w.local[0], w.local[-1]], list(w.reference)) for w in schedule.windows(length)]
        # the published programs ask for a frame past the end and fail; here it is left out
        assert windows == [(ends, [r for r in refs if r < length]) for ends, refs in expected], (schedule, length)


@pytest.mark.parametrize("count", [0, 3, 4])
def test_reference_count_is_never_exceeded(count):
    for window in Schedule(num_ref=count).windows(97):
        assert len(window.reference) <= count and not set(window.reference) & set(window.local)


def integer_stub(window: Tensor, _: int) -> Tensor:
    """The stub of the driver fixtures: depends on content, order and length of the window."""
    x = window[0].double()
    n = len(x)
    q = torch.floor(127.5 * (x + 1) + 0.25)
    place = torch.arange(n, dtype=torch.float64).reshape(n, 1, 1, 1)
    total = ((place + 1) * q).sum(0)
    return (torch.remainder(3 * q + total + 7 * place + 11 * n, 250) + 0.5) / 127.5 - 1


@pytest.mark.parametrize("fixture", STUB_CLIPS, ids=str)
def test_plain_loop_composes_to_the_bit(fixture):
    frames = fixture["frames_u8"].permute(0, 3, 1, 2) / 255
    masks = dilate_cross((fixture["masks_raw_u8"][:, None] > 0).float())
    assert torch.equal(masks[:, 0] > 0, fixture["masks_dilated_u8"] > 0)
    result = plain_loop(frames, masks, integer_stub, schedule_of(fixture.meta))
    assert torch.equal((result * 255).round().byte(), fixture["composed_u8"].permute(0, 3, 1, 2))


def smooth_stub(window: Tensor, local: int) -> Tensor:
    """The stub of the E2FGVI driver fixture; its frames are mirrored out to multiples of 60 x 108 first."""
    x = window[0]
    n, _, h, w = x.shape
    across, down = torch.linspace(-0.3, 0.3, w), torch.linspace(0.5, 1, h)
    place = torch.arange(n).reshape(n, 1, 1, 1) / n
    return torch.tanh(0.5 * x + 0.7 * x.mean(0) + down[:, None] * across + 0.2 * place + 0.05 * local)


def mirrored(stub):
    """Run a stub on windows whose content is mirrored at the bottom and the right, as the E2FGVI program does."""

    def run(window: Tensor, local: int) -> Tensor:
        h, w = window.shape[-2:]
        tall = torch.cat([window, window.flip(-2)], -2)[..., : h + -h % 60, :]
        wide = torch.cat([tall, tall.flip(-1)], -1)[..., : w + -w % 108]
        return stub(wide, local)[..., :h, :w]

    return run


@pytest.mark.parametrize("fixture", FLOAT_CLIPS, ids=str)
def test_plain_loop_agrees_with_the_e2fgvi_program(fixture):
    frames = fixture["frames"].permute(0, 3, 1, 2) / 255
    masks = dilate_cross((fixture["masks_raw"][:, None] > 0).float())
    assert torch.equal(masks[:, 0] > 0, fixture["masks_dilated"] > 0)
    result = (plain_loop(frames, masks, mirrored(smooth_stub), schedule_of(fixture.meta)) * 255).round()
    difference = (result - fixture["composed_u8"].permute(0, 3, 1, 2)).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.005
