"""What every deploy process shares: the closed list of metrics, a scrape endpoint if asked for, one way to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.process import serve_metrics
from schemas.errors import ConfigurationError
from schemas.metrics import METRICS
from schemas.observability import Metrics
from schemas.settings import ServiceSettings


def test_every_listed_metric_can_be_exported_and_no_other() -> None:
    """Counters, gauges and histograms with their labels; a name or label that is not listed fails at once."""
    metrics = Metrics()
    use: dict[str, Any] = {"counter": metrics.count, "gauge": metrics.set, "histogram": metrics.observe}
    for metric in METRICS.values():
        use[metric.kind](metric.name, 2, **dict.fromkeys(metric.labels, "x"))
        if metric.kind != "histogram":
            assert metrics.value(metric.name, **dict.fromkeys(metric.labels, "x")) == 2
    with pytest.raises(ConfigurationError, match="driftline_made_up_total"):
        metrics.count("driftline_made_up_total")
    with pytest.raises(ValueError, match="label"):
        metrics.count("driftline_decisions_total", color="red")


def test_without_a_port_nothing_is_served() -> None:
    """Several services of one machine start without configuration and do not collide."""
    assert serve_metrics(Metrics(), ServiceSettings()) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_in_order(number: signal.Signals) -> None:
    """The process that waits for the event goes on to its last line and ends with 0."""
    code = (
        "from deploy.process import stop_event; stop = stop_event(); print('ready', flush=True); "
        "stop.wait(120); print('done', stop.is_set(), flush=True)"
    )
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root, env=dict(os.environ)
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        rest, _ = child.communicate(timeout=120)
    finally:
        child.kill()
        child.wait()
    assert (rest, child.returncode) == ("done True\n", 0)
