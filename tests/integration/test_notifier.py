"""The notifier between a real Kafka and real HTTP receivers, one of them dead."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from deploy.local.kafka import LocalKafka
from deploy.notify.channels import channels_of
from deploy.notify.service import run
from schemas.control import Alert, Severity
from schemas.observability import Metrics
from schemas.settings import KafkaSettings, NotifierSection, NotifierSettings
from tests.support_deploy import Wire

pytestmark = pytest.mark.integration


class Receiver:
    """An HTTP server that keeps what it was sent, by path; paths in ``dead`` answer 503."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        self.tries: list[str] = []
        self.dead: set[str] = set()
        self.news = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with receiver.news:
                    receiver.tries.append(self.path)
                    dead = self.path in receiver.dead
                    if not dead:
                        receiver.got.append((self.path, body))
                    receiver.news.notify_all()
                self.send_response(503 if dead else 202)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def wait(self, path: str, count: int) -> list[Any]:
        """The first ``count`` bodies sent to ``path``."""
        with self.news:
            assert self.news.wait_for(lambda: len(self.at(path)) >= count, timeout=120), self.got
        return self.at(path)

    def wait_tries(self, path: str, count: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: self.tries.count(path) >= count, timeout=120), self.tries

    def at(self, path: str) -> list[Any]:
        return [body for at, body in self.got if at == path]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join(5)


def _settings(kafka: LocalKafka, prefix: str, receiver: Receiver, retries_max: int) -> NotifierSettings:
    return NotifierSettings(
        kafka=KafkaSettings(
            bootstrap=kafka.bootstrap, topic_prefix=prefix, input_partitions=1, session_timeout=6_000
        ),
        notifier=NotifierSection(
            console=False,
            webhook_url=SecretStr(receiver.url + "/hook"),
            slack_url=SecretStr(receiver.url + "/slack"),
            pagerduty_key=SecretStr("routing"),
            pagerduty_url=receiver.url + "/pd",
            retries_max=retries_max,
        ),
    )


@contextmanager
def _running(settings: NotifierSettings, metrics: Metrics) -> Iterator[None]:
    stop = threading.Event()
    status: list[int] = []
    thread = threading.Thread(
        target=lambda: status.append(run(settings, stop, metrics, channels_of(settings.notifier)))
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(120)
    assert status == [0]


def _alert(number: int, status: str = "trigger", severity: Severity = Severity.TICKET) -> tuple[str, bytes]:
    alert = Alert.model_validate(
        {
            "alert_id": f"a{number}-{status}",
            "dedup_key": f"k{number}",
            "status": status,
            "severity": severity,
            "model": "delay",
            "title": "t",
            "summary": "s",
            "cause": "c",
            "event_time_ms": 0,
            "incident": "i",
        }
    )
    return alert.dedup_key, alert.model_dump_json().encode()


def test_alerts_reach_every_channel_once(kafka: LocalKafka, topic_prefix: str, receiver: Receiver) -> None:
    """Trigger and resolve arrive in order in each format; a repeat, an unreadable record and an info do not; after a
    restart nothing is sent again, not even a repeat of what was sent before it."""
    settings = _settings(kafka, topic_prefix, receiver, 2)
    wire = Wire(settings.kafka)
    metrics = Metrics()
    wire.send(
        "alerts", [_alert(1), _alert(1), ("x", b"{"), _alert(2, severity=Severity.INFO), _alert(1, "resolve")]
    )
    with _running(settings, metrics):
        hooks = receiver.wait("/hook", 2)
        receiver.wait("/slack", 2)
        pages = receiver.wait("/pd", 2)
    assert [h["alert_id"] for h in hooks] == ["a1-trigger", "a1-resolve"]
    assert [(p["event_action"], p["dedup_key"], p["routing_key"]) for p in pages] == [
        ("trigger", "k1", "routing"),
        ("resolve", "k1", "routing"),
    ]
    counted = {
        outcome: metrics.value("driftline_notifications_total", channel="slack", outcome=outcome)
        for outcome in ("sent", "duplicate", "unreadable", "unwanted")
    }
    assert counted == {"sent": 2, "duplicate": 1, "unreadable": 1, "unwanted": 1}
    wire.send("alerts", [_alert(1), _alert(3)])
    with _running(settings, metrics):
        hooks = receiver.wait("/hook", 3)
        receiver.wait("/slack", 3)
        receiver.wait("/pd", 3)
    assert [h["alert_id"] for h in hooks] == ["a1-trigger", "a1-resolve", "a3-trigger"]
    assert len(receiver.at("/slack")) == len(receiver.at("/pd")) == 3
    wire.close()


def test_a_dead_channel_holds_up_nobody_and_loses_nothing(
    kafka: LocalKafka, topic_prefix: str, receiver: Receiver
) -> None:
    """While Slack is down the others get everything; the notifier ends at once when told, and Slack gets the alert it
    was being tried with after the restart."""
    settings = _settings(kafka, topic_prefix, receiver, 50)
    receiver.dead.add("/slack")
    wire = Wire(settings.kafka)
    wire.send("alerts", [_alert(number) for number in range(5)])
    with _running(settings, Metrics()):
        receiver.wait("/hook", 5)
        receiver.wait("/pd", 5)
        receiver.wait_tries("/slack", 2)
    assert receiver.at("/slack") == []
    receiver.dead.clear()
    with _running(settings, Metrics()):
        receiver.wait("/slack", 5)
    assert len(receiver.at("/hook")) == 5
    wire.close()


def test_an_alert_is_given_up_after_its_tries(
    kafka: LocalKafka, topic_prefix: str, receiver: Receiver
) -> None:
    """The tries are bounded, the failure is counted, and the next alert is tried."""
    settings = _settings(kafka, topic_prefix, receiver, 1)
    receiver.dead.add("/slack")
    wire = Wire(settings.kafka)
    metrics = Metrics()
    wire.send("alerts", [_alert(1), _alert(2)])
    with _running(settings, metrics):
        receiver.wait_tries("/slack", 4)
        receiver.wait("/hook", 2)
    assert receiver.tries.count("/slack") == 4
    assert metrics.value("driftline_notifications_total", channel="slack", outcome="failed") >= 1
    wire.close()
