"""``python -m tests.simulation --schedules N --seed S``: many schedules, each from its own number; prints the rate."""

from __future__ import annotations

import argparse
import sys
import time
from random import Random

from tests.simulation.scheduler import schedule, simulate


def main() -> int:
    """Run them; the first that fails is named and raised."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first schedule")
    parser.add_argument(
        "--turns", type=int, default=60, help="scheduler turns of each, before everything drains"
    )
    options = parser.parse_args()
    started_s, cpu_s = time.monotonic(), time.process_time()
    kills = 0
    for seed in range(options.seed, options.seed + options.schedules):
        try:
            kills += simulate(schedule(Random(seed), options.turns), seed).kills
        except BaseException:
            again = f"--schedules 1 --seed {seed} --turns {options.turns}"
            print(f"schedule {seed} fails: python -m tests.simulation {again}", file=sys.stderr)
            raise
    seconds, cpu_s = time.monotonic() - started_s, time.process_time() - cpu_s
    print(
        f"{options.schedules} schedules, {kills} kills, {seconds:.1f} s: {options.schedules / seconds * 60:.0f} "
        f"schedules a minute, {options.schedules / cpu_s * 60:.0f} a CPU-minute"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
