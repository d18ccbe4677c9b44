"""What every process tells about itself: structured log lines and a scrape endpoint of a closed list of metrics.

Both halves of the system (``streams``, ``deploy``) need the same vocabulary and neither may import the other, so it
stands here. One JSON object a log line; ``extra`` becomes keys of its own (``event``, ``trace_id``, ``task``).
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from schemas.errors import ConfigurationError
from schemas.library_logs import Repeats
from schemas.metrics import METRICS
from schemas.settings import ServiceSettings

#: Only names on the list are exported, no ``_created`` companions.
disable_created_metrics()  # type: ignore[no-untyped-call]
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_TYPES: dict[str, type[Counter] | type[Gauge] | type[Histogram]] = {
    "counter": Counter,
    "gauge": Gauge,
    "histogram": Histogram,
}


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in record.__dict__.items() if key not in _STANDARD})
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
    handler.addFilter(Repeats())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


class Metrics:
    """The closed list of ``schemas.metrics``, each made on first use. Any other name raises ConfigurationError."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Any] = {}
        #: Each with its labels: looking these up is most of what counting costs.
        self._labelled: dict[tuple[object, ...], Any] = {}
        self._lock = threading.Lock()

    def _series(self, name: str, labels: dict[str, str]) -> Any:
        key = (name, *labels.items())
        found = self._labelled.get(key)
        if found is None:
            found = self._labelled[key] = self._found(name, labels)
        return found

    def _found(self, name: str, labels: dict[str, str]) -> Any:
        made = self._made.get(name)
        if made is None:
            with self._lock:
                made = self._made.get(name) or self._make(name)
        return made.labels(**labels) if labels else made

    def _make(self, name: str) -> Any:
        metric = METRICS.get(name)
        if metric is None:
            raise ConfigurationError(
                f"metric {name!r} is not on the list in schemas/metrics.py; add it there first"
            )
        made = _TYPES[metric.kind](name, metric.help, metric.labels, registry=self.registry)
        self._made[name] = made
        return made

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._series(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._series(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one observation to a histogram."""
        self._series(name, labels).observe(value)

    def value(self, name: str, **labels: str) -> float:
        """Current value of a counter or gauge; 0 when it was never touched."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def serve(self, host: str, port: int, healthy: Callable[[], bool]) -> ThreadingHTTPServer:
        """Open ``/metrics`` and ``/healthz`` (200 when ``healthy()``, else 503). ``shutdown()`` closes it."""
        server = ThreadingHTTPServer((host, port), _handler(self.registry, healthy))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return server


def _handler(registry: CollectorRegistry, healthy: Callable[[], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                case "/healthz":
                    ready = healthy()
                    self._answer(200 if ready else 503, "text/plain", b"ready\n" if ready else b"not ready\n")
                case _:
                    self._answer(404, "text/plain", b"/metrics or /healthz\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Scrapes are not worth a log line."""

    return Handler
