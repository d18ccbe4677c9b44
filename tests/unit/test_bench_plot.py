"""The plot of a benchmark: every number of the table stands at its point."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.bench.plot import Panel, svg

_SVG = "{http://www.w3.org/2000/svg}"


def test_every_point_is_drawn_where_powers_of_ten_put_it() -> None:
    """A document of its own, panels side by side; ten times as much is as far as ten times as much again."""
    line = [(1.0, 2.0), (10.0, 20.0), (100.0, 200.0)]
    panels = [
        Panel("cost & more", "models", "µs", {"all": line}),
        Panel("b", "x", "y", {"one": [(5.0, 5.0)]}),
    ]
    root = ElementTree.fromstring(svg(panels))
    words = [text.text for text in root.iter(f"{_SVG}text")]
    assert {"cost & more", "models", "µs", "all", "2", "20", "200", "one"} <= set(words)
    first, second = root.findall(f"{_SVG}g")
    points = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in first.iter(f"{_SVG}circle")]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert abs((x2 - x1) - (x3 - x2)) < 0.2 and x2 > x1
    assert abs((y1 - y2) - (y2 - y3)) < 0.2 and y2 < y1
    assert len(list(second.iter(f"{_SVG}circle"))) == 1
