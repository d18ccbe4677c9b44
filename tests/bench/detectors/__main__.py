"""``python -m tests.bench.detectors``: one JSON line a figure; ``--out FILE`` also writes the tables as Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

PARTS = ("cost", "delay", "budget", "published")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.detectors")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--streams", type=int, default=1_000, help="streams of each setting of the budget")
    parser.add_argument("--repeats", type=int, default=100, help="streams of each cell of the delay tables")
    parser.add_argument("--quick", action="store_true", help="the shorter settings only")
    parser.add_argument("--out", type=Path, help="where to write the tables")
    options = parser.parse_args()
    sections = [section(part, options) for part in options.parts or PARTS]
    if options.out is not None:
        options.out.write_text("# Detectors, measured\n\n" + "\n".join(sections))


def section(part: str, options: argparse.Namespace) -> str:
    """Run one part; its tables. Modules are imported when asked for: some bring heavy libraries."""
    match part:
        case "cost":
            from tests.bench.detectors import cost

            return cost.run(options.quick)
        case "delay":
            from tests.bench.detectors import delay

            return delay.run(options.repeats, options.quick)
        case "budget":
            from tests.bench.detectors import budget

            return budget.run(options.streams, options.quick)
        case _:
            from tests.bench.detectors import published

            return published.run()


if __name__ == "__main__":
    main()
