from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from bench.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Panel, render, scales_of, ticks

SVG = "{http://www.w3.org/2000/svg}"


def panel(*points: tuple[float, float], title: str = "Speed") -> Panel:
    return Panel(title, "minutes", "seconds", {"one": points})


def test_equal_ratios_are_equal_distances() -> None:
    scales = scales_of(panel((1, 1), (10, 1), (100, 1)))
    first, second, third = (scales.x(value) for value in (1, 10, 100))
    assert second - first == pytest.approx(third - second)
    assert first < second


def test_height_is_in_proportion_and_from_zero() -> None:
    scales = scales_of(panel((1, 4), (2, 8)))
    assert scales.y(0) == HEIGHT - BOTTOM
    assert scales.y(0) - scales.y(8) == pytest.approx(2 * (scales.y(0) - scales.y(4)))


def test_all_points_are_inside_of_their_frame() -> None:
    points = [(0.5, 0.0), (3, 17.2), (180, 99.9), (60, 3)]
    root = ElementTree.fromstring(render([panel(*points)]))
    circles = root.findall(f".//{SVG}circle")
    assert len(circles) == len(points)
    for circle in circles:
        assert LEFT <= float(circle.attrib["cx"]) <= WIDTH - RIGHT
        assert TOP <= float(circle.attrib["cy"]) <= HEIGHT - BOTTOM


def test_a_line_goes_from_left_to_right_whatever_the_order_of_its_points() -> None:
    root = ElementTree.fromstring(render([panel((60, 1), (1, 3), (10, 2))]))
    line = root.find(f".//{SVG}polyline")
    assert line is not None
    xs = [float(x) for x, _ in re.findall(r"([\d.]+),([\d.]+)", line.attrib["points"])]
    assert len(xs) == 3
    assert xs == sorted(xs)


def test_each_measured_x_is_marked_with_its_value() -> None:
    texts = texts_of(render([panel((1, 5), (10, 5), (180, 5))]))
    assert {"1", "10", "180"} <= set(texts)


def test_a_single_point_is_in_the_middle() -> None:
    scales = scales_of(panel((7, 1)))
    assert scales.x(7) == pytest.approx((LEFT + WIDTH - RIGHT) / 2)


def test_several_lines_are_named_and_of_different_colours() -> None:
    lines = {"p50": [(1.0, 1.0)], "p95": [(1.0, 2.0)]}
    svg = render([Panel("Latency", "clients", "s", lines)])
    assert {"p50", "p95"} <= set(texts_of(svg))
    colours = {line.attrib["stroke"] for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline")}
    assert len(colours) == 2


def test_text_cannot_break_the_document() -> None:
    assert "a <b> & c" in texts_of(render([panel((1, 1), title="a <b> & c")]))


def test_panels_stand_beside_and_below_each_other() -> None:
    root = ElementTree.fromstring(render([panel((1, 1))] * 3))
    places = [group.attrib["transform"] for group in root.findall(f"{SVG}g")]
    assert places == ["translate(0,0)", f"translate({WIDTH},0)", f"translate(0,{HEIGHT})"]
    assert (root.attrib["width"], root.attrib["height"]) == (str(2 * WIDTH), str(2 * HEIGHT))


def test_a_panel_without_points_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Speed"):
        render([panel()])


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (10, [0, 2, 4, 6, 8, 10]),
        (17.3, [0, 5, 10, 15, 20]),
        (0.118, [0, 0.05, 0.1, 0.15]),
        (100, [0, 20, 40, 60, 80, 100]),
        (0, [0, 1]),
    ],
)
def test_ticks_are_round(highest: float, expected: list[float]) -> None:
    assert ticks(highest) == pytest.approx(expected)


@pytest.mark.parametrize("highest", [0.0031, 0.7, 1, 1.01, 5.99, 6, 42, 999, 1_001, 65_536])
def test_ticks_reach_the_highest_value_and_are_few(highest: float) -> None:
    found = ticks(highest)
    assert found[-1] >= highest > found[-2]
    assert 3 <= len(found) <= 6


def texts_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
