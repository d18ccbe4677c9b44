"""The three stories of the demo, on a fixed sample of the flights: what happens is the data's doing, not the script's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support_commands import driftline

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
SAMPLE = 0.1


def play(tmp_path: Path, *options: str) -> dict[str, Any]:
    """One run; its report."""
    report = tmp_path / "report.json"
    places = ("--report", str(report), "--data-dir", str(tmp_path / "data"), "--api-port", "0")
    status, printed = driftline(
        "demo", "--sample", str(SAMPLE), "--partitions", "2", *places, *options, timeout_s=840
    )
    assert report.exists(), printed[-4_000:]
    document: dict[str, Any] = json.loads(report.read_text())
    assert status == 0, document["failures"]
    return document


def nothing_lost(report: dict[str, Any]) -> None:
    """Every flight is accounted for, every label joined, and ClickHouse equals the offline computation."""
    assert report["flights_sent"] == report["scored"] + report["rejected"] == report["flights"]
    assert report["labels_joined"] == report["labels_sent"]
    assert report["answered_twice"] == 0
    assert report["verify_compared"] > 10_000
    assert report["verify_mismatches"] == 0


def test_a_year_that_drifts_is_retrained_and_a_defect_is_rolled_back(tmp_path: Path) -> None:
    """The whole story, with the monitor and the scorer killed on the way: the figures still hold."""
    report = play(tmp_path, "--kill", "monitor@05-20", "--kill", "scorer@06-03")
    nothing_lost(report)
    assert report["restarted"] == {"monitor": 1, "scorer": 1}
    assert [r for r in report["retrains"] if r["promoted_s"] is not None]
    last = report["rollbacks"][-1]
    assert last["outcome"] == "done"
    assert last["outputs_unchanged"] is True
    assert last["seconds"] < 1.0


def test_without_drift_no_retrain_is_asked_for(tmp_path: Path) -> None:
    """The same flights in a random order: the model never loses more than it promises."""
    report = play(tmp_path, "--no-drift")
    nothing_lost(report)
    assert report["retrains"] == []


def test_a_healthy_version_is_not_rolled_back(tmp_path: Path) -> None:
    """The operator's version without its defect passes its canary."""
    report = play(tmp_path, "--healthy-v3")
    nothing_lost(report)
    assert report["rollbacks"] == []
