"""Charts and the HTML report: well formed, complete, and in need of nothing from elsewhere."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciri.evaluation.charts import Chart, Series, number, ticks
from ciri.evaluation.page import build_page, summary
from ciri.evaluation.pictures import CasePictures, Strip, moments
from ciri.evaluation.plots import case_chart, combined, masks_chart, time_chart, wrong_mask_charts
from tests.ciri.evaluation.test_tables import BAD, BOUND, GOOD, RECORDS, report

SVG = "{http://www.w3.org/2000/svg}"


@given(st.floats(-1e4, 1e4), st.floats(0, 1e4), st.integers(2, 8))
def test_ticks_cover_the_range_in_round_steps(low, span, about):
    found = ticks(low, low + span, about)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step and found[-1] >= low + span - 1e-6 * step
    assert 2 <= len(found) <= about + 2
    assert len({number(tick, found) for tick in found}) == len(found)


def test_points_stand_where_the_ticks_say():
    chart = Chart([Series("a", [(0, 10), (5, 20), (10, 30)])], "x", "y", size=(400, 300))
    circles = ET.fromstring(chart.svg()).findall(f".//{SVG}circle")
    xs, ys = ([float(c.get(name)) for c in circles] for name in ("cx", "cy"))
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.1) and xs[0] < xs[2]
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2, abs=0.1) and ys[0] > ys[2]


def test_charts_are_well_formed_and_escape_names():
    chart = Chart([Series("<b>&", [(1, 2)], ["<i>"])], "x", "y", title="<t>")
    root = ET.fromstring(chart.svg(standalone=True))
    assert any(text.text == "<b>&" for text in root.iter(f"{SVG}text"))
    assert Chart([Series("a", [])], "x", "y").svg() == ""


def test_which_charts_there_are():
    made = report()
    assert len(time_chart(made).series) == 3 and [s.name for s in masks_chart(made).series] == [GOOD.title]
    charts = wrong_mask_charts(made.curves)
    assert [c.title for c in charts] == ["eroded"] and charts[0].series[0].points[5] == (5, 25.5)
    assert wrong_mask_charts({}) == [] and combined([]) == ""
    ET.fromstring(combined(charts))
    lines = case_chart(RECORDS[:3], [BOUND, GOOD, BAD])
    assert [s.colour for s in lines.series] == [1, 2, 0] and lines.series[0].points == [(0.0, 30.0)]


def test_moments_are_spread_over_the_clip():
    assert moments(3) == [0, 1, 2] and moments(36) == [7, 14, 21, 28, 35] and moments(1) == [0]


class Structure(HTMLParser):
    """Counts tags and checks that they are closed."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.stack, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset") and v]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


@pytest.fixture
def page():
    uri = "data:image/webp;base64,AAAA"
    strips = [Strip(name, [uri, uri]) for name in ("input", GOOD.title, "clean")]
    pictures = [CasePictures(name, [0, 1], 1.5, 0.25, strips) for name in ("b", "<a>")]
    made = report()
    for row in made.rows:
        row.by_case["<a>"] = row.by_case["a"]
    return build_page(made, pictures, {"b": case_chart(RECORDS[3:], [GOOD])}, [("eroded", uri)])


def test_page_is_well_formed_and_needs_nothing_else(page):
    structure = Structure()
    structure.feed(page)
    assert not structure.stack
    assert all(link.startswith("data:") for link in structure.links)
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page) and "@import" not in page and "url(" not in page
    cards = [attrs for _, attrs in structure.seen if "data-case" in attrs]
    assert [attrs["data-case"] for attrs in cards] == ["b", "<a>"]


def test_page_says_what_is_missing_and_how_it_was_made(page):
    assert "VFID is not available." in page and "python -m ciri evaluate cases" in page
    assert "--at:25%" in page


def test_summary_names_the_best_method():
    assert summary(report()) == (
        "3 methods on 2 clips (4 frames). Best near the target: flow + good, 25.00 dB (35.00 dB with perfect masks)."
    )
