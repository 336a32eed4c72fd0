"""Line charts over a logarithmic axis, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 420, 300  # of one panel
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 40, 48
COLOURS = ("#1f5fa8", "#c2571a", "#3f7f3f", "#7a4f9a")


@dataclass(frozen=True)
class Panel:
    """Lines by name over one logarithmic axis, from zero up. Every x must be over 0."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class Scales:
    """Values to pixels within one panel; ``xs`` are the values that are marked."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def x(self, value: float) -> float:
        low, high = math.log(self.xs[0]), math.log(self.xs[-1])
        share = (math.log(value) - low) / (high - low) if high > low else 0.5
        return LEFT + 16 + share * (WIDTH - LEFT - RIGHT - 32)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.ys[-1] * (HEIGHT - TOP - BOTTOM)


def render(panels: Sequence[Panel], columns: int = 2) -> str:
    """One SVG document with the panels in rows. Raises ``ValueError`` where one has no points."""
    columns = min(columns, len(panels))
    n_rows = math.ceil(len(panels) / columns) if panels else 0
    width, height = WIDTH * columns, HEIGHT * n_rows
    parts = [
        f'<g transform="translate({index % columns * WIDTH},{index // columns * HEIGHT})">'
        f"{_panel(panel)}</g>"
        for index, panel in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def scales_of(panel: Panel) -> Scales:
    points = [point for line in panel.lines.values() for point in line]
    if not points:
        raise ValueError(f"{panel.title}: no points")
    return Scales(tuple(sorted({x for x, _ in points})), tuple(ticks(max(y for _, y in points))))


def ticks(highest: float, most: int = 6) -> list[float]:
    """Round values from 0 to ``highest`` or just above, 1, 2 or 5 times a power of ten apart."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / most))
    steps = (factor * power for factor in (1, 2, 5, 10, 20))
    step = next(step for step in steps if math.ceil(highest / step) < most)
    return [step * count for count in range(math.ceil(highest / step) + 1)]


def _panel(panel: Panel) -> str:
    scales = scales_of(panel)
    parts = [
        _text(LEFT, 22, panel.title, 'font-size="14" font-weight="bold"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, panel.x_label, 'text-anchor="middle"'),
        f'<g transform="translate(14,{(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)">',
        _text(0, 0, panel.y_label, 'text-anchor="middle"') + "</g>",
        *_axes(scales),
    ]
    for index, (name, line) in enumerate(panel.lines.items()):
        parts += _line(scales, line, COLOURS[index % len(COLOURS)])
        if len(panel.lines) > 1:
            colour = f'fill="{COLOURS[index % len(COLOURS)]}"'
            parts.append(_text(LEFT + 12, TOP + 14 + 15 * index, name, colour))
    return "".join(parts)


def _axes(scales: Scales) -> list[str]:
    floor = HEIGHT - BOTTOM
    parts = []
    for value in scales.ys:
        y = scales.y(value)
        colour = "#ddd" if value else "#222"
        parts.append(_stroke(LEFT, y, WIDTH - RIGHT, y, colour))
        parts.append(_text(LEFT - 6, y + 4, f"{value:g}", 'text-anchor="end"'))
    for value in scales.xs:
        x = scales.x(value)
        parts.append(_stroke(x, floor, x, floor + 5, "#222"))
        parts.append(_text(x, floor + 18, f"{value:g}", 'text-anchor="middle"'))
    return parts


def _line(scales: Scales, points: Sequence[Point], colour: str) -> list[str]:
    at = [(scales.x(x), scales.y(y)) for x, y in sorted(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in at),
    ]


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
