"""The residue detector's crop against its fixtures (keys ``in.boxes_xywh``; f = 1 to 127 px, f = 2 to 255 px)."""

import pytest
import torch

from ciri.residue.base import Box
from ciri.residue.crops import crop, window_around
from tests.parity.fixtures import Fixture, find

FIXTURES = find("siammask", tensors=["in.boxes_xywh"])


@pytest.mark.skipif(not FIXTURES, reason="no crop fixtures here")
@pytest.mark.parametrize("fixture", FIXTURES, ids=str)
def test_windows_and_pixels_are_those_of_the_fixture(fixture: Fixture) -> None:
    image = fixture["in.image_u8_hwc"].permute(2, 0, 1)[None].double()
    for number, box in enumerate(fixture["in.boxes_xywh"].tolist()):
        for what, factor, size in (("template", 1, 127), ("search", 2, 255)):
            window = window_around(Box(*box), factor, isotropic=False)
            assert list(window) == fixture[f"out.{what}_{number}_x0y0wh"].tolist()
            got = crop(image, [window], size, fixture["in.fill"])[0]
            # the picture, or every n-th pixel of it ("s::n"); the selection in tests/data leaves out some
            for name in fixture.names:
                stored, _, step = name.partition("_s::")
                if stored == f"out.{what}_{number}":
                    every = int(step or 1)
                    torch.testing.assert_close(got[:, ::every, ::every], fixture[name].double(), atol=1e-3, rtol=0)
