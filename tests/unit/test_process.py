"""What every deploy process shares: the closed list of metrics, logs as JSON lines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from deploy.process import JsonLines, Metrics
from schemas.metrics import METRICS


def test_every_listed_metric_can_be_exported_and_no_other() -> None:
    """Counters, gauges and histograms with their labels; a name or label that is not listed fails at once."""
    metrics = Metrics()
    use: dict[str, Any] = {"counter": metrics.count, "gauge": metrics.set, "histogram": metrics.observe}
    for metric in METRICS.values():
        use[metric.kind](metric.name, 2, **dict.fromkeys(metric.labels, "x"))
        if metric.kind != "histogram":
            assert metrics.value(metric.name, **dict.fromkeys(metric.labels, "x")) == 2
    with pytest.raises(KeyError):
        metrics.count("driftline_made_up_total")
    with pytest.raises(ValueError, match="label"):
        metrics.count("driftline_decisions_total", color="red")


def test_a_log_line_is_one_json_object() -> None:
    """Message, level and whatever was passed as extra; an exception's text is inside the line."""
    logger = logging.getLogger("x")
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        record = logger.makeRecord(
            "x",
            logging.ERROR,
            "f",
            1,
            "said %s",
            ("so",),
            sys.exc_info(),
            extra={"model": "delay", "trace_id": "ab"},
        )
    line = JsonLines().format(record)
    assert "\n" not in line
    shown = json.loads(line)
    assert (shown["message"], shown["level"], shown["model"], shown["trace_id"]) == (
        "said so",
        "error",
        "delay",
        "ab",
    )
    assert "broken" in shown["exception"]
