"""``python -m tests.bench.scorer [--quick]``: the scorer's figures, one JSON line each."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from deploy.scoring.provider import look
from tests.bench.scorer import changes, latency, rates
from tests.bench.scorer.harness import broker

PARTS = {"rates": rates.run, "latency": latency.run, "changes": changes.run}


def run(quick: bool, only: str | None = None) -> None:
    """Every part, or the one named, on a broker of its own."""
    if (obstacle := look().obstacle) is not None:
        print(f"no figures on CUDA: {obstacle}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder, broker(Path(folder)) as kafka:
        for name, part in PARTS.items():
            if only in (None, name):
                part(kafka.bootstrap, Path(folder), quick)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scorer")
    parser.add_argument("--quick", action="store_true", help="Few requests: whether it works, not how fast.")
    parser.add_argument("--only", choices=[*PARTS])
    options = parser.parse_args()
    run(options.quick, options.only)


if __name__ == "__main__":
    main()
