"""Scores shadows when nobody waits any more: after the answers are committed, on a thread and a producer of their own.

A shadow can therefore neither delay nor fail an answer. Its queue is bounded: one that cannot keep up loses requests, and
they are counted. A shadow's prediction is written once or not at all: what was in the queue of a scorer that is killed is
lost, for its requests were answered and are not read again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaException

from deploy.scoring.answers import ShadowJob, shadow_records
from deploy.scoring.wire import PredictionOut
from deploy.scoring.writer import produce
from schemas.failpoints import failpoint
from schemas.observability import Metrics

log = logging.getLogger(__name__)

#: Requests scored at once: small, so that the answers' threads get their turn in between.
_CHUNK_ROWS = 256


class Shadows:
    """A bounded queue and the thread that works it off. ``score(job)`` returns predictions and must not raise."""

    def __init__(
        self,
        score: Callable[[ShadowJob], list[PredictionOut]],
        producer: Any,
        topic: str,
        partitions: int,
        rows_max: int,
        metrics: Metrics,
    ) -> None:
        self._score = score
        self._producer = producer
        self._topic = topic
        self._partitions = partitions
        self._rows_max = rows_max
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queue: deque[ShadowJob] = deque()
        self._rows = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, jobs: Sequence[ShadowJob]) -> None:
        """Take what there is room for; never waits."""
        for job in jobs:
            with self._changed:
                room = self._rows_max - self._rows if not self._stopping else 0
                taken = min(room, len(job.rows))
                for start in range(0, taken, _CHUNK_ROWS):
                    rows = job.rows[start : min(start + _CHUNK_ROWS, taken)]
                    self._queue.append(ShadowJob(job.model, job.version, rows))
                self._rows += taken
                self._changed.notify_all()
            self._count(job.model, "dropped", len(job.rows) - taken)

    def close(self, timeout_s: float = 5.0) -> None:
        """Work off what is queued, for so long at most."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        self._producer.flush(timeout_s)
        self._producer.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping)
                if not self._queue:
                    return
                job = self._queue.popleft()
            try:
                predictions = self._score(job)
                failpoint("scorer.shadow-scored")
                records = shadow_records(predictions, self._partitions)
                produce(self._producer, self._topic, records, partial(self._not_delivered, job.model))
                self._producer.poll(0)
                outcome = "scored"
            except KafkaException as error:
                log.warning("shadow of %d requests dropped: %s", len(job.rows), error.args[0])
                outcome = "dropped"
            except Exception:  # a shadow may break, its thread may not
                log.exception("shadow of %d requests dropped", len(job.rows))
                outcome = "dropped"
            self._count(job.model, outcome, len(job.rows))
            with self._changed:
                self._rows -= len(job.rows)

    def _not_delivered(self, model: str, error: object, _message: object) -> None:
        """Called for what the broker did not take in the time a client gives it."""
        if error is not None:
            self._count(model, "lost", 1)

    def _count(self, model: str, outcome: str, rows: int) -> None:
        if rows:
            self._metrics.count("driftline_shadow_rows_total", rows, model=model, outcome=outcome)
