"""A short chaos run: processes die and stop under load, and every figure is what it must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support_commands import driftline

from deploy.chaos.schedule import schedule

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
#: Kills one worker and then the other, stops one of them, and kills the warehouse.
MINUTES, SEED, WORKERS = 0.5, 275, 2


def test_nothing_is_lost_and_nothing_is_twice(tmp_path: Path) -> None:
    """Two workers are killed in turn while partitions move between them; aggregates, outcomes, verdicts, decisions, answers and copies are exact."""
    place = tmp_path / "report.json"
    options = {"minutes": MINUTES, "seed": SEED, "events-per-s": 250, "workers": WORKERS, "report": place}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    status, printed = driftline("chaos", *given, "--data-dir", str(tmp_path / "data"), timeout_s=840)
    assert place.exists(), printed[-4_000:]
    report = json.loads(place.read_text())
    assert status == 0, (report["failures"], report.get("examples"), printed[-4_000:])
    assert report["schedule"] == [fault.document() for fault in schedule(SEED, MINUTES, WORKERS)]
    assert report["restarted"]["monitor"] >= 1 and report["restarted"]["monitor-1"] >= 1
    assert report["differing"] == {}
    assert (
        min(report["compared"][name] for name in ("window_counts", "window_features", "window_outcomes"))
        > 100
    )
    assert report["compared"]["outcomes"] > 3_000
    assert report["sent"]["arrow-rows"] > 500
    assert report["seen"]["dead_letters"] == report["sent"]["garbage"] > 0
    assert report["seen"]["duplicates"] > 0 and report["seen"]["sent_on"] > 0
    assert report["seen"]["commands"]["retrain"] >= 1
