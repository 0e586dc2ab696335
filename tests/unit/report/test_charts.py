"""Pictures without a browser: places, axes, and text that is escaped."""

import re
import xml.etree.ElementTree as Xml

import pytest

from specpipe.report.charts import (
    HEIGHT,
    WIDTH,
    Axis,
    Curve,
    curves,
    empty,
    groups,
    margins,
    number,
    ratios,
    round_ticks,
)

PICTURES = {
    "ratios": ratios({"0": 1.4, "1": 0.8}, 1.1, (0.8, 1.4), "<speed>"),
    "curves": curves(
        {"plain": Curve([(1, 20), (8, 50)], "var(--blue)"),
         "spec.": Curve([(1, 12), (8, 60)], "var(--amber)", True)},
        "clients", "ms", "<latency>",
    ),
    "groups": groups({"all": [(1, 0.7), (2, 0.3)]}, "depth", "share", "<depth>"),
    "margins": margins({"defect": ([2.5, 1e-9], "var(--red)"), "none": ([], "")}, 0.01, "<margin>"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_one_well_formed_element_with_all_shapes_in_it(name: str) -> None:
    root = Xml.fromstring(PICTURES[name])
    assert root.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}" and root.get("aria-label", "")[0] == "<"
    for shape in root.iter():
        for key, most in (("x", WIDTH), ("cx", WIDTH), ("y", HEIGHT), ("cy", HEIGHT)):
            if value := shape.get(key):
                assert 0 <= float(value) <= most, (shape.tag, key, value)


def test_a_slower_prompt_is_below_the_line_and_has_another_colour() -> None:
    circles = re.findall(r'cy="([\d.]+)" r="4" style="fill:var\(--(\w+)\)', PICTURES["ratios"])
    (fast, blue), (slow, red) = circles
    rule = re.search(r'y1="([\d.]+)" y2="[\d.]+" class="rule"', PICTURES["ratios"])
    assert rule and float(fast) < float(rule[1]) < float(slow) and (blue, red) == ("blue", "red")


def test_bars_are_as_high_as_their_shares() -> None:
    heights = [float(h) for h in re.findall(r'<rect .*?height="([\d.]+)"', PICTURES["groups"])]
    assert heights[0] / heights[1] == pytest.approx(7 / 3, rel=0.01)


def test_logarithmic_axes_place_equal_ratios_at_equal_distances() -> None:
    axis = Axis(0.001, 10, 0, 400, logarithmic=True)
    assert [axis.at(v) for v in (0.001, 0.1, 10)] == pytest.approx([0, 200, 400])
    assert axis.ticks() == pytest.approx([0.001, 0.01, 0.1, 1, 10])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 0.9, [0, 0.2, 0.4, 0.6, 0.8]),
        (0.8, 1.6, [0.8, 1, 1.2, 1.4, 1.6]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low, high, ticks) -> None:
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_numbers_on_axes_are_short() -> None:
    assert [number(v) for v in (0, 0.5, 1e-5, 250.0)] == ["0", "0.5", "1e-5", "250"]


def test_a_sentence_stands_where_nothing_was_measured() -> None:
    assert "&lt;b&gt;" in empty("<b>")
