"""The notifier process: alerts from Kafka to every configured channel.

Each channel is a consumer group of its own in a thread of its own: one that is dead holds up nobody, keeps its own
place across restarts, and an alert's offset is committed only once that channel has it or its tries are used up. On
start the alerts just before the committed place are read back, so that a repeated alert is known as one.
"""

from __future__ import annotations

import logging
import threading

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from pydantic import ValidationError

from deploy.notify.channels import RECENT_MAX, Channel, Recent, channels_of, deliver
from deploy.process import serve_metrics, stop_event, wall_ms
from schemas.control import Alert
from schemas.errors import ConfigurationError, PlatformError
from schemas.observability import Metrics, configure_logs
from schemas.presence import is_fatal
from schemas.settings import KafkaSettings, NotifierSettings

log = logging.getLogger(__name__)

GROUP = "driftline-notifier"
EXIT_UNEXPECTED = 70
#: An alert older than this (by its Kafka timestamp) when its turn comes wakes nobody: a new channel starts with the present.
AGE_MAX_MS = 86_400_000
_POLL_S = 0.2


def run(
    settings: NotifierSettings,
    stop: threading.Event | None = None,
    metrics: Metrics | None = None,
    channels: list[Channel] | None = None,
) -> int:
    """Deliver until told to stop. Returns 0, or 70 when a channel's reading broke."""
    if stop is None:
        configure_logs(settings)
        stop = stop_event()
    metrics = metrics or Metrics()
    serve_metrics(metrics, settings)
    channels = channels if channels is not None else channels_of(settings.notifier)
    if not channels:
        raise ConfigurationError(
            "the notifier has no channel: set notifier.console or one of its URLs or keys"
        )
    workers = [Worker(settings, channel, metrics, stop) for channel in channels]
    for worker in workers:
        worker.start()
    names = ", ".join(channel.name for channel in channels)
    log.info("notifying through %s", names, extra={"event": "ready"})
    for worker in workers:
        worker.join()
    return EXIT_UNEXPECTED if any(worker.broken for worker in workers) else 0


class Worker(threading.Thread):
    """One channel: read, deliver, commit, one alert after the other."""

    def __init__(
        self, settings: NotifierSettings, channel: Channel, metrics: Metrics, stop: threading.Event
    ) -> None:
        super().__init__(name=f"notify-{channel.name}")
        self._kafka = settings.kafka
        self._retries_max = settings.notifier.retries_max
        self._channel = channel
        self._metrics = metrics
        self._stopping = stop
        self._recent = Recent()
        self._primed: set[int] = set()
        self.broken = False

    def run(self) -> None:
        # A slow receiver may keep an alert longer than the default limit between two polls.
        config = self._kafka.consumer(f"{GROUP}-{self._channel.name}", **{"max.poll.interval.ms": 1_800_000})
        consumer = Consumer(config)
        try:
            consumer.subscribe([self._kafka.topic("alerts")])
            while not self._stopping.is_set():
                record = consumer.poll(_POLL_S)
                if record is not None and self._readable(record):
                    self._handle(consumer, record)
        except (KafkaException, PlatformError):
            log.exception("channel %s cannot go on", self._channel.name)
            self.broken = True
            self._stopping.set()
        finally:
            consumer.close()

    def _handle(self, consumer: Consumer, record: Message) -> None:
        partition, offset = int(record.partition() or 0), int(record.offset() or 0)
        if partition not in self._primed:
            self._prime(partition, offset)
        alert = _alert(record)
        if alert is None:
            outcome = "unreadable"
        elif not self._channel.wants(alert):
            outcome = "unwanted"
        elif wall_ms() - record.timestamp()[1] > AGE_MAX_MS:
            outcome = "stale"
        elif not self._recent.first_time(alert):
            outcome = "duplicate"
        else:
            outcome = deliver(self._channel, alert, self._retries_max, self._stopping.wait)
        if outcome == "stopped":
            return
        known = outcome in ("sent", "unwanted", "duplicate", "stale", "unreadable")
        if not known:
            log.error(
                "alert not delivered: %s", outcome, extra={"alert_id": alert.alert_id if alert else None}
            )
        self._metrics.count(
            "driftline_notifications_total",
            channel=self._channel.name,
            outcome=outcome if known else "failed",
        )
        try:
            consumer.commit(message=record, asynchronous=False)
        except KafkaException as error:
            # The partition has moved on: whoever has it now reads this alert again, and its receiver may get it twice.
            log.warning("place in alerts was not kept: %s", error)

    def _prime(self, partition: int, offset: int) -> None:
        """Remember what was handled before ``offset``."""
        self._primed.add(partition)
        for alert in _before(self._kafka, partition, offset):
            self._recent.first_time(alert)

    def _readable(self, record: Message) -> bool:
        error = record.error()
        if error is None:
            return True
        if is_fatal(error):
            raise PlatformError(f"reading alerts: {error}")
        log.warning("reading alerts: %s", error)
        return False


def _alert(record: Message) -> Alert | None:
    try:
        return Alert.model_validate_json(record.value() or b"")
    except ValidationError as error:
        log.error("alerts/%s/%s is not readable: %s", record.partition(), record.offset(), error)
        return None


def _before(kafka: KafkaSettings, partition: int, offset: int) -> list[Alert]:
    """Alerts of the last records before ``offset``, oldest first."""
    consumer = Consumer(kafka.consumer(None, **{"enable.partition.eof": True}))
    try:
        place = TopicPartition(kafka.topic("alerts"), partition, max(0, offset - RECENT_MAX))
        low, _ = consumer.get_watermark_offsets(place, timeout=10)
        place.offset = max(place.offset, low)
        if place.offset >= offset:
            return []
        consumer.assign([place])
        found: list[Alert] = []
        while (record := consumer.poll(10)) is not None:
            if record.error() is not None or int(record.offset() or 0) >= offset:
                break
            alert = _alert(record)
            if alert is not None:
                found.append(alert)
        return found
    finally:
        consumer.close()
