"""``python -m tests.bench.maturity``: how far a partial figure is from the final one, as it stands and corrected.

The year's flights through the join stage into the warehouse, stopped when 10, 30, 50 and 80 % of a window's labels are in;
what ``live_accuracy`` says then against what the window's figure is in the end. The model is fitted on January and
February and left alone; windows are from April on. Mean absolute errors over windows, one JSON line a figure.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Threads that spin beside each other cost more than they save where the machine is shared; before OpenMP is there.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import clickhouse_connect
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from deploy.demo.flights import CATEGORICAL, DAY_MS, FEATURES, Flights, load_flights, month_start_ms
from deploy.local.warehouse import LocalWarehouse
from deploy.migrate import migrate
from schemas.contracts import ModelContract, parse_duration_ms
from schemas.settings import ClickHouseSettings
from streams.sink import ClickHouseSink
from tests.bench.figures import say, table
from tests.support_maturity import CONTRACT, FIGURES, SHARES, Partial, Replay, partials

SEGMENTS = (
    "",
    "origin=EWR",
    "origin=JFK",
    "origin=LGA",
    "carrier=UA",
    "carrier=B6",
    "carrier=9E",
    "carrier=US",
)


def fitted(flights: Flights) -> NDArray[np.float64]:
    """Scores of gradient-boosted trees on all features, fitted on the first two months."""
    columns = []
    for name in FEATURES:
        column = flights.features[name]
        if name in CATEGORICAL:
            _, column = np.unique(column.astype(str), return_inverse=True)
        columns.append(column.astype(np.float64))
    rows = np.column_stack(columns)
    known = flights.labelled & (flights.departs_ms < month_start_ms(3))
    model = HistGradientBoostingClassifier(random_state=0).fit(rows[known], flights.late[known])
    found: NDArray[np.float64] = model.predict_proba(rows)[:, 1]
    return found


def measure(sample: float, window_ms: int, every: int) -> list[Partial]:
    """Every ``every``-th window of ``window_ms`` from April on."""
    flights = load_flights(sample)
    score = fitted(flights)
    keep = flights.departs_ms >= month_start_ms(3)
    flights, score = flights.rows(keep), score[keep]
    contract: ModelContract = CONTRACT.model_copy(
        update={"monitoring": CONTRACT.monitoring.model_copy(update={"window": window_ms})}
    )
    first = month_start_ms(4) // DAY_MS * DAY_MS
    starts = list(range(first, int(flights.departs_ms[-1]) - 4 * DAY_MS, every * window_ms))
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder, LocalWarehouse() as warehouse:
        warehouse.start(Path(folder))
        warehouse.wait_ready()
        settings = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database="maturity")
        migrate(settings)
        sink = ClickHouseSink(settings)
        with clickhouse_connect.get_client(**settings.client()) as client:
            replay = Replay(flights, score, sink, contract)
            found = partials(client, replay, flights, starts, SEGMENTS, 20, window_ms)
        sink.close()
    return found


def mean_error(partial: Sequence[Partial], kind: str, figure: str) -> float:
    """Mean absolute distance from the final figure."""
    return float(np.mean([p.error(kind, figure) for p in partial])) if partial else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.maturity")
    parser.add_argument("--sample", type=float, default=0.05, help="Share of the flights.")
    parser.add_argument("--window", default="1d", help="Length of a window.")
    parser.add_argument("--every", type=int, default=30, help="Stop in every n-th window.")
    options = parser.parse_args()
    window_ms = int(parse_duration_ms(options.window))
    found = measure(options.sample, window_ms, options.every)
    rows = []
    for name, mine in (
        ("the whole", [p for p in found if not p.then["segment"]]),
        ("a segment", [p for p in found if p.then["segment"]]),
    ):
        before = [p for p in mine if p.share == SHARES[0]]
        for figure in FIGURES:
            estimated = mean_error(before, "estimated", figure)
            for share in SHARES[1:]:
                at = [p for p in mine if p.share == share and p.then["labelled"]]
                naive, corrected = (mean_error(at, kind, figure) for kind in ("naive", "corrected"))
                what = f"maturity.{'segment' if 'segment' in name else 'model'}.{figure}_error_at_{share:.0%}"
                say(
                    what, corrected, "mean absolute error", "naive", corrected / naive, naive=round(naive, 4),
                    estimated_before_any=round(estimated, 4), windows=len(at), window_ms=window_ms,
                )  # fmt: skip
                rows.append((name, figure, f"{share:.0%}", len(at), estimated, naive, corrected))
    head = ("of", "figure", "labels in", "windows", "estimated", "naive", "corrected")
    print(table(f"Mean absolute error of a figure, windows of {options.window}", head, rows))


if __name__ == "__main__":
    main()
