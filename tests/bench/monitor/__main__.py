"""``python -m tests.bench.monitor [--quick] [--only PART] [--events N]``: the monitor's figures, one JSON line each.

``rates``: one worker with everything on, in events per CPU-second of the worker, beside peers that read the same topic in
the same run. ``costs``: the core alone against features, models, segments and windows. ``delays``: from an event in Kafka
to its aggregate in ClickHouse. ``restarts``: from kill -9 to caught up, against the size of the state. ``scaling``: the rate
of 1, 2, ... workers, as many as there are cores for.
"""

from __future__ import annotations

import argparse

from tests.bench.monitor import costs, delays, rates, restarts, scaling
from tests.bench.monitor.worker import Size

PARTS = {
    "costs": costs.run,
    "rates": rates.run,
    "delays": delays.run,
    "restarts": restarts.run,
    "scaling": scaling.run,
}


def run(quick: bool, only: str | None = None, events: int | None = None) -> None:
    """Every part, or the one named."""
    for name, part in PARTS.items():
        if only in (None, name):
            part(Size(quick, events or (50_000 if quick else 500_000)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.monitor")
    parser.add_argument("--quick", action="store_true", help="Few events: whether it works, not how fast.")
    parser.add_argument("--events", type=int)
    parser.add_argument("--only", choices=[*PARTS])
    options = parser.parse_args()
    run(options.quick, options.only, options.events)


if __name__ == "__main__":
    main()
