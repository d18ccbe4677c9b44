"""Figures over powers of ten as an SVG file, with the numbers at the points: what a table says, seen at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_COLOURS = ("#1f4e79", "#c0392b", "#27763d", "#8a6d00")
_WIDTH, _HEIGHT = 440.0, 320.0
#: Height of a line of text.
_LINE = 12.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 76.0, 40.0, 48.0

#: Points of a line: x and y, both above zero.
Line = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes and its lines by name."""

    title: str
    x_name: str
    y_name: str
    lines: Mapping[str, Line]


class _Axis:
    """Values to 0..1 by powers of ten, from a whole power to a whole power."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low = math.floor(math.log10(min(values)))
        self.high = max(self.low + 1, math.ceil(math.log10(max(values))))

    def place(self, value: float) -> float:
        return (math.log10(value) - self.low) / (self.high - self.low)

    @property
    def marks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def svg(panels: Sequence[Panel]) -> str:
    """A self-contained SVG document, the panels side by side."""
    width = _WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {_HEIGHT:g}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width:g}" height="{_HEIGHT:g}" fill="white"/>',
    ]
    for at, panel in enumerate(panels):
        parts += [f'<g transform="translate({at * _WIDTH:g} 0)">', *_drawn(panel), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _drawn(panel: Panel) -> list[str]:
    points = [point for line in panel.lines.values() for point in line]
    across, up = _Axis([x for x, _ in points]), _Axis([y for _, y in points])

    def x(value: float) -> float:
        return _LEFT + across.place(value) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - up.place(value) * (_HEIGHT - _TOP - _BOTTOM)

    right, base = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [_text(_LEFT, 20, panel.title), _text((_LEFT + right) / 2, base + 36, panel.x_name, "middle")]
    parts.append(_text(_LEFT, _TOP - 8, panel.y_name))
    for mark in across.marks:
        parts += [_rule(x(mark), x(mark), _TOP, base), _text(x(mark), base + 16, f"{mark:,g}", "middle")]
    for mark in up.marks:
        parts += [_rule(_LEFT, right, y(mark), y(mark)), _text(_LEFT - 6, y(mark) + 4, f"{mark:,g}", "end")]
    numbers, names = list[tuple[float, float]](), list[float]()
    for colour, (name, line) in zip(_COLOURS, panel.lines.items(), strict=False):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for a, b in line:
            parts.append(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{colour}"/>')
            # Where lines lie on each other the number of the first stands for them.
            if all(abs(x(a) - there) > 1 or abs(y(b) - at) > _LINE for there, at in numbers):
                numbers.append((x(a), y(b)))
                parts.append(_text(x(a) + 4, y(b) - 5, f"{b:.3g}", colour=colour))
        at = y(line[-1][1]) + 4
        while any(abs(at - other) < _LINE for other in names):
            at += _LINE
        names.append(at)
        parts.append(_text(right + 34, at, name, colour=colour))
    return parts


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _rule(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'
