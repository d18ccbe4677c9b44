"""A run of a detector as a picture: score over rows, its threshold, its alarms; in the terminal and as an SVG file.

Scores run over many powers of ten, so the axis is logarithmic where they do. Many rows share a column of the picture:
it shows the highest score among them, for a score that crossed its threshold must be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_LEVELS = "▁▂▃▄▅▆▇█"
#: A span of scores beyond this factor is shown by powers of ten.
_LOG_BEYOND = 50.0


@dataclass(frozen=True, slots=True)
class Point:
    """The detector after row ``row``: what it said, its score and its threshold."""

    row: int
    state: str
    score: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Picture:
    """Points in order, and the rows at which drift was entered. ``start``: first row that is not reference."""

    title: str
    points: Sequence[Point]
    alarms: Sequence[int]
    start: int
    end: int


class _Axis:
    """Scores to 0..1, linear or by powers of ten."""

    def __init__(self, points: Sequence[Point]) -> None:
        values = [v for p in points for v in (p.score, p.threshold) if math.isfinite(v)]
        positive = [v for v in values if v > 0]
        top = max(positive, default=1.0)
        least = min(positive, default=1.0)
        self.log = min(values, default=0.0) >= 0 and top / least > _LOG_BEYOND
        # Evidence far below its threshold is no evidence; six powers of ten are enough to see it grow.
        self.low = max(least, top * 1e-6) if self.log else min([0.0, *values])
        self.high = top if top > self.low else self.low + 1.0

    def place(self, value: float) -> float:
        if math.isnan(value):
            return 0.0
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def terminal(picture: Picture, width: int = 80, height: int = 8) -> str:
    """A few lines of text: bars of the score, a line at the threshold, a mark below each column with an alarm."""
    if not picture.points:
        return "nothing to draw: no rows were read"
    axis = _Axis(picture.points)
    columns = _columns(picture, width)
    limit = round(axis.place(picture.points[-1].threshold) * height * 8)
    lines = []
    for level in range(height - 1, -1, -1):
        line = ""
        for score in columns:
            filled = 0 if score is None else round(axis.place(score) * height * 8) - level * 8
            if filled > 0:
                line += _LEVELS[min(filled, 8) - 1]
            else:
                line += "─" if (limit - 1) // 8 == level else " "
        label = "threshold" if (limit - 1) // 8 == level else _figure(axis, level, height)
        lines.append(f"{label:>10} ┤{line}")
    marks = [" "] * width
    for row in picture.alarms:
        marks[_at(picture, row, width)] = "▲"
    lines.append(f"{'alarms':>10} │{''.join(marks)}")
    ends = f"row {picture.start:,}", f"row {picture.end:,}"
    lines.append(" " * 12 + ends[0] + " " * max(1, width - len(ends[0]) - len(ends[1])) + ends[1])
    return "\n".join(lines)


def _figure(axis: _Axis, level: int, height: int) -> str:
    if level not in (0, height - 1):
        return ""
    return f"{axis.low if level == 0 else axis.high:.3g}"


def _at(picture: Picture, row: int, width: int) -> int:
    return min(width - 1, (row - picture.start) * width // max(1, picture.end - picture.start + 1))


def _columns(picture: Picture, width: int) -> list[float | None]:
    """The highest score of each column; one without a point keeps the last."""
    found: list[float | None] = [None] * width
    for point in picture.points:
        at = _at(picture, point.row, width)
        found[at] = point.score if found[at] is None else max(found[at] or 0.0, point.score)
    for at in range(1, width):
        if found[at] is None:
            found[at] = found[at - 1]
    return found


def svg(picture: Picture, width: int = 960, height: int = 320) -> str:
    """A self-contained SVG document."""
    axis = _Axis(picture.points)
    left, right, top, bottom = 70.0, 20.0, 40.0, 40.0
    span = max(1, picture.end - picture.start)

    def x(row: int) -> float:
        return left + (row - picture.start) / span * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - axis.place(value) * (height - top - bottom)

    def line(points: Sequence[tuple[float, float]], style: str) -> str:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        return f'<polyline points="{path}" fill="none" {style}/>'

    def text(a: float, b: float, words: str, anchor: str = "start") -> str:
        return f'<text x="{a:.1f}" y="{b:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

    base = height - bottom
    limits = [(x(p.row), y(p.threshold)) for p in picture.points]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(picture.title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(left, 20, picture.title),
        line([(left, top), (left, base), (width - right, base)], 'stroke="#888"'),
        text(left - 6, top + 4, f"{axis.high:.3g}", "end"),
        text(left - 6, base, f"{axis.low:.3g}", "end"),
        text(left, base + 18, f"row {picture.start:,}"),
        text(width - right, base + 18, f"row {picture.end:,}", "end"),
        text(
            (left + width - right) / 2, base + 32, "score by powers of ten" if axis.log else "score", "middle"
        ),
        *(
            f'<line x1="{x(row):.1f}" x2="{x(row):.1f}" y1="{top}" y2="{base}" stroke="#c0392b" stroke-opacity="0.5"/>'
            for row in picture.alarms
        ),
        line(limits, 'stroke="#c0392b" stroke-dasharray="6 4"'),
        line([(x(p.row), y(p.score)) for p in picture.points], 'stroke="#1f4e79" stroke-width="1.5"'),
    ]
    if limits:
        parts.append(text(width - right, limits[-1][1] - 5, "threshold", "end"))
    return "\n".join([*parts, "</svg>\n"])
