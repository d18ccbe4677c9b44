"""The part every deploy process has in common: a clock for shells, the scrape endpoint, and one way to be told to stop.

It exists so that scorer, controller, trainer and notifier cannot differ in what they export or how they end: SIGTERM
and SIGINT set one event; the loop sees it, finishes what it holds and returns. Logs and metrics themselves are those of
every process (``schemas.observability``). A crash in native code leaves its stack in the log.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
from http.server import ThreadingHTTPServer

from schemas.clock import wall_ms
from schemas.observability import Metrics
from schemas.settings import ServiceSettings

__all__ = ["serve_metrics", "stop_event", "wall_ms"]


def serve_metrics(metrics: Metrics, settings: ServiceSettings) -> ThreadingHTTPServer | None:
    """Open the scrape endpoint, if the settings name a port. These processes are healthy as long as they answer."""
    if not settings.metrics_port:
        return None
    return metrics.serve(settings.metrics_host, settings.metrics_port, lambda: True)


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set. Outside the main thread (tests) signals are left alone."""
    if not faulthandler.is_enabled():
        faulthandler.enable()
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    return stop
