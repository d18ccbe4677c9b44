"""``make bench``: prints one JSON line a figure, ``{"figure", "value", "unit", "baseline", "ratio"}``.

``monitor.*``: see :mod:`tests.bench.monitor`. ``scorer.*``: see :mod:`tests.bench.scorer`. ``--quick``: little of
everything, to see that it works.
"""

from __future__ import annotations

import argparse

from tests.bench.monitor import __main__ as monitor
from tests.bench.scorer import __main__ as scorer


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--events", type=int)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    monitor.run(options.quick, events=options.events)
    scorer.run(options.quick)


if __name__ == "__main__":
    main()
