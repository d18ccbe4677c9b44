"""Takes the measurements that are due, on a thread of its own: deciding and rolling back never wait for ClickHouse.

What was measured goes onto `control` as a signed fact and is decided on when it is read back. A span that the archive has
not reached yet is waited for; after ``archive_timeout_ms`` it is an error, and errors never pass.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from deploy.controller.queries import measure
from deploy.core.schedule import Due, due
from deploy.process import wall_ms
from deploy.training.extract import archived_ms
from schemas.contracts import ModelContract
from schemas.control import Command, Deployment, Measured
from schemas.errors import DriftlineError
from schemas.ids import content_hash
from schemas.measures import Measurement
from schemas.observability import Metrics
from schemas.rollout import Metric
from schemas.settings import ClickHouseSettings
from schemas.verdicts import SignalChanged, State

log = logging.getLogger(__name__)
_TASKS_MAX = 256
_SIGNALS_MAX = 10_000
_ASKED_MAX = 10_000
_PATIENCE_S = 0.25
_EXPIRES_MS = 7 * 86_400_000


class Measurer:
    """``submit`` puts a fact on `control`; called on the measuring thread. ``look`` and ``heard`` are the controller's."""

    def __init__(
        self,
        clickhouse: ClickHouseSettings,
        partitions: int,
        submit: Callable[[Command], None],
        metrics: Metrics,
        archive_timeout_ms: int = 60_000,
    ) -> None:
        self._clickhouse = clickhouse
        self._partitions = partitions
        self._submit = submit
        self._metrics = metrics
        self._timeout_ms = archive_timeout_ms
        self._tasks: queue.Queue[Due | None] = queue.Queue(_TASKS_MAX)
        self._asked: dict[tuple[str, str, str, str, int], None] = {}
        self._signals: dict[tuple[str, str, str], SignalChanged] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def heard(self, signal: SignalChanged) -> None:
        """A detector's newest word."""
        with self._lock:
            key = (signal.model, signal.version, signal.detector)
            self._signals.pop(key, None)
            self._signals[key] = signal
            if len(self._signals) > _SIGNALS_MAX:
                del self._signals[next(iter(self._signals))]

    def look(
        self, states: Iterable[Deployment], contract: Callable[[str], ModelContract | None], time_ms: int
    ) -> None:
        """Queue what is due and was not asked for yet. What does not fit is asked for again at the next look."""
        for state in states:
            found = contract(state.model)
            if found is None or not found.rollout.metrics:
                continue
            for task in due(state, found.rollout, time_ms):
                self._queue(task)

    def _queue(self, task: Due) -> None:
        keys = {
            (task.model, task.version, task.region, metric.name, task.at_ms): (metric, start)
            for metric, start in task.metrics
        }
        new = {key: what for key, what in keys.items() if key not in self._asked}
        if not new:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="measurer", daemon=True)
            self._thread.start()
        try:
            self._tasks.put_nowait(replace(task, metrics=tuple(new.values())))
        except queue.Full:
            self._metrics.count("driftline_errors_total", where="controller: measurements fall behind")
            return
        self._asked.update(dict.fromkeys(new))
        while len(self._asked) > _ASKED_MAX:
            del self._asked[next(iter(self._asked))]

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(5)

    # -- the measuring thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                task = self._tasks.get(timeout=_PATIENCE_S)
            except queue.Empty:
                continue
            if task is not None:
                self._take(task)

    def _take(self, task: Due) -> None:
        found = [
            self._from_signal(task, metric, start)
            for metric, start in task.metrics
            if metric.source == "drift"
        ]
        rest = [(metric, start) for metric, start in task.metrics if metric.source != "drift"]
        if rest:
            found += self._from_warehouse(task, rest)
        for measurement in found:
            if measurement.error:
                self._metrics.count("driftline_errors_total", where="controller: measurement")
                log.warning(
                    "metric %s of %s/%s: %s", measurement.metric, task.model, task.version, measurement.error
                )
        try:
            self._submit(fact_of(task, found))
        except DriftlineError as error:
            log.error("a measurement of %s could not be written, it is taken again: %s", task.model, error)
            for metric, _ in task.metrics:
                self._asked.pop((task.model, task.version, task.region, metric.name, task.at_ms), None)

    def _from_warehouse(self, task: Due, metrics: list[tuple[Metric, int]]) -> list[Measurement]:
        try:
            with clickhouse_connect.get_client(**self._clickhouse.client()) as client:
                if not self._archived(client, task.at_ms):
                    return _errors(task, metrics, f"the archive has not reached {task.at_ms}")
                return [self._one(client, task, metric, start) for metric, start in metrics]
        except Exception as error:  # noqa: BLE001 - whatever the warehouse does, it is an error of the measurement
            return _errors(task, metrics, f"{type(error).__name__}: {error}")

    def _archived(self, client: Client, to_ms: int) -> bool:
        until = wall_ms() + self._timeout_ms
        while not self._stopping.is_set():
            reached = archived_ms(client, self._partitions)
            if reached is not None and reached >= to_ms:
                return True
            if wall_ms() >= until:
                return False
            self._stopping.wait(_PATIENCE_S)
        return False

    def _one(self, client: Client, task: Due, metric: Metric, start: int) -> Measurement:
        try:
            return measure(client, task, metric, start)
        except Exception as error:  # noqa: BLE001 - one wrong query does not hide the others
            return _errors(task, [(metric, start)], f"{type(error).__name__}: {error}")[0]

    def _from_signal(self, task: Due, metric: Metric, start: int) -> Measurement:
        with self._lock:
            signal = self._signals.get((task.model, task.version, metric.detector))
        span = {"metric": metric.name, "from_ms": start, "to_ms": task.at_ms}
        if signal is None:
            return Measurement(**span)
        verdict = signal.verdict
        if verdict.state is State.ERROR or verdict.threshold <= 0:
            return Measurement(error=f"{metric.detector}: {verdict.evidence.note or verdict.state}", **span)
        # A verdict stands until it is changed, however long ago it was reached.
        rows = max(verdict.evidence.rows, metric.rows_min) if verdict.state is not State.INCONCLUSIVE else 0
        return Measurement(value=verdict.score / verdict.threshold, rows=rows, **span)


def _errors(task: Due, metrics: list[tuple[Metric, int]], why: str) -> list[Measurement]:
    return [
        Measurement(metric=metric.name, from_ms=start, to_ms=task.at_ms, error=why[:500])
        for metric, start in metrics
    ]


def fact_of(task: Due, measurements: list[Measurement]) -> Measured:
    """The fact on `control`. Its id names what was measured and when, so the same measurement has the same id."""
    names = ",".join(sorted(m.metric for m in measurements))
    identity = f"{task.model}/{task.version}/{task.at_ms}/{names}" + (
        f"/{task.region}" if task.region else ""
    )
    return Measured(
        request_id=f"measured-{content_hash(identity.encode())[:24]}",
        model=task.model,
        deployment_revision=task.revision,
        cause="schedule",
        event_time_ms=task.at_ms,
        expires_ms=task.at_ms + _EXPIRES_MS,
        issued_by="controller/measurer",
        version=task.version,
        measurements=tuple(measurements),
        region=task.region,
    )
