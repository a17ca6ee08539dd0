"""ciri.numbering: frames are named by their number in the whole."""

import pytest

from ciri.errors import MaskError
from ciri.frames import check_key_frames
from ciri.numbering import counted_from, number, ranges
from ciri.refinement.report import FrameReport, RefinementReport


def test_ranges_of_frame_numbers():
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert ranges([]) == ""
    assert ranges([1, 3, 4, 6], 2) == "1, 3-4, ..." and ranges([1, 3], 2) == "1, 3"


def test_numbers_count_from_where_it_is_said_and_only_there():
    with counted_from(100):
        assert number(3) == 103 and ranges([0, 1, 5]) == "100-101, 105"
        with counted_from(7):
            assert number(0) == 7
        assert number(0) == 100
    with pytest.raises(RuntimeError), counted_from(5):
        raise RuntimeError
    assert number(3) == 3


def test_what_is_said_about_frames_is_said_in_their_numbers():
    report = RefinementReport(
        [FrameReport(2, 0.5, 0.1, 1.2, True), FrameReport(4, 0.5, 0.5, 1.0, False, "no gain")], "Refined."
    )
    with counted_from(30):
        assert "   32 " in report.text() and "(frames 34)" in report.text()
        with pytest.raises(MaskError, match="number 39 is outside the clip; it has frames 30 to 34"):
            check_key_frames([9], 1, 5)
        with pytest.raises(MaskError, match="number -6 is outside"):
            check_key_frames([-6], 1, 5)
