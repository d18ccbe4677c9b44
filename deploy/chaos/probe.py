"""How far behind the loop is, several times a second: what "caught up" is measured with."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from deploy.demo.watch import LoopWatch
from deploy.local.platform import Platform
from schemas.clock import wall_ms

_LOOK_S = 0.1
#: Behind by no more than this is what an undisturbed loop shows: ticks run a second late and pass three transactions.
LOOP_LAG_S = 3.0
ARCHIVE_LAG_S = 4.0
#: Requests on their way count as behind when they are more than the scorer gets in this time.
SCORER_LAG_S = 1.5
_PROGRESS = (
    "SELECT min(reached) FROM (SELECT topic, partition, max(event_time_ms) AS reached FROM archive_progress "
    "WHERE topic IN ('predictions', 'feedback') GROUP BY topic, partition)"
)


class Probe:
    """Follows the end of the loop, the answers and the archive; all attributes are safe to read from any thread."""

    def __init__(
        self, platform: Platform, watch: LoopWatch, requests: Callable[[], int], requests_per_s: float
    ) -> None:
        self._platform = platform
        self._watch = watch
        self._requests = requests
        self._requests_per_s = requests_per_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"probe-{work.__name__}", daemon=True)
            for work in (self._follow_scores, self._ask_archive)
        ]
        self.answered = 0
        self.archived_ms = -math.inf

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def loop_lag_s(self) -> float:
        """How far the slowest watermark at the loop's end is behind the (unstepped) clock."""
        return (wall_ms() - self._watch.watermark_ms) / 1000

    @property
    def open_requests(self) -> int:
        """Scoring requests without an answer."""
        return self._requests() - self.answered

    def caught_up(self, target: str) -> bool:
        """Whether what ``target`` serves is as current as in an undisturbed loop."""
        if not self._platform.ready(target):
            return False
        if target in ("archive", "warehouse"):
            return wall_ms() - self.archived_ms <= 1000 * ARCHIVE_LAG_S
        if target == "scorer":
            return self.open_requests <= SCORER_LAG_S * self._requests_per_s + 10
        loop = target == "kafka" or target.startswith("monitor")
        return not loop or self.loop_lag_s <= LOOP_LAG_S

    def _follow_scores(self) -> None:
        kafka = self._platform.kafka
        consumer = Consumer(kafka.consumer(None))
        consumer.assign(
            [
                TopicPartition(kafka.topic("scores"), p, OFFSET_BEGINNING)
                for p in range(kafka.input_partitions)
            ]
        )
        while not self._stop.is_set():
            self.answered += sum(m.error() is None for m in consumer.consume(5_000, _LOOK_S))
        consumer.close()

    def _ask_archive(self) -> None:
        client = None
        while not self._stop.wait(4 * _LOOK_S):
            try:
                client = client or clickhouse_connect.get_client(**self._platform.clickhouse.client())
                reached = client.query(_PROGRESS).result_rows[0][0]
                self.archived_ms = -math.inf if reached is None else float(reached)
            except (ClickHouseError, OSError):
                client = None


def wait_for(condition: Callable[[], bool], timeout_s: float, alive: Callable[[], str | None]) -> bool:
    """Until ``condition()``; false when it is not so within ``timeout_s`` or something has failed for good."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s or alive() is not None:
            return False
        time.sleep(_LOOK_S)
    return True
