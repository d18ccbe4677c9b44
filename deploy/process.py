"""The part every deploy process has in common: logs, metrics, and one way to be told to stop.

It exists so that scorer, controller, trainer and notifier cannot differ in how they log, what they export or how they
end: SIGTERM and SIGINT set one event; the loop sees it, finishes what it holds and returns.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from schemas.metrics import METRICS
from schemas.settings import ServiceSettings

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def wall_ms() -> int:
    """Milliseconds since the epoch; for shells only."""
    return time.time_ns() // 1_000_000


class JsonLines(logging.Formatter):
    """One JSON object a line; what is passed as ``extra`` becomes keys of its own (``trace_id``, ``model``...)."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({k: v for k, v in record.__dict__.items() if k not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(settings: ServiceSettings) -> None:
    """Log to standard error as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_json:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


class Metrics:
    """The closed list of metrics, each made on first use; any other name is a KeyError in the first test that runs."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Any] = {}

    def _get(self, name: str, kind: type[Any]) -> Any:
        if name not in self._made:
            metric = METRICS[name]
            self._made[name] = kind(
                name.removesuffix("_total"), metric.help, metric.labels, registry=self.registry
            )
        return self._made[name]

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        counter = self._get(name, Counter)
        (counter.labels(**labels) if labels else counter).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        gauge = self._get(name, Gauge)
        (gauge.labels(**labels) if labels else gauge).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        histogram = self._get(name, Histogram)
        (histogram.labels(**labels) if labels else histogram).observe(value)

    def value(self, name: str, **labels: str) -> float:
        """Current value of a counter or gauge; 0 when it was never touched."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def serve(self, settings: ServiceSettings) -> None:
        """Open the scrape endpoint, if the settings name a port."""
        if settings.metrics_port:
            start_http_server(settings.metrics_port, settings.metrics_host, registry=self.registry)


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set. Outside the main thread (tests) signals are left alone."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    return stop
