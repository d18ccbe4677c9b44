"""Logs and metrics: one vocabulary for every process."""

from __future__ import annotations

import json
import logging
import sys

import httpx
import pytest
from confluent_kafka import Consumer, Producer

from schemas.errors import ConfigurationError
from schemas.library_logs import LIBRDKAFKA, Repeats
from schemas.observability import JsonLines, Metrics
from schemas.presence import answers
from schemas.settings import KafkaSettings


def test_a_name_that_is_not_on_the_list_cannot_be_exported() -> None:
    """The list in ``schemas.metrics`` is closed."""
    with pytest.raises(ConfigurationError, match="driftline_surprises_total"):
        Metrics().count("driftline_surprises_total")


def test_values_are_scraped_under_their_names_and_readiness_is_told() -> None:
    """What Prometheus and a supervisor see over HTTP."""
    metrics = Metrics()
    metrics.count("driftline_commits_total", 2, stage="join", partition="0")
    metrics.set("driftline_pending_predictions", 7, partition="0")
    metrics.observe("driftline_commit_seconds", 0.01, stage="join")
    ready = [False]
    server = metrics.serve("127.0.0.1", 0, lambda: ready[0])
    base = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        text = httpx.get(f"{base}/metrics", timeout=60).text
        assert 'driftline_commits_total{partition="0",stage="join"} 2.0' in text
        assert 'driftline_commit_seconds_count{stage="join"} 1.0' in text
        assert httpx.get(f"{base}/healthz", timeout=60).status_code == 503
        ready[0] = True
        assert httpx.get(f"{base}/healthz", timeout=60).status_code == 200
        assert httpx.get(f"{base}/else", timeout=60).status_code == 404
    finally:
        server.shutdown()
        server.server_close()
    assert metrics.value("driftline_commits_total", stage="join", partition="0") == 2


def test_a_log_line_is_one_json_object_with_its_extras_as_keys() -> None:
    """A supervisor reads events, a person searches trace ids."""
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": "hi %s", "args": ("you",)})
    record.trace_id = "abc"
    line = json.loads(JsonLines().format(record))
    assert (line["message"], line["level"], line["trace_id"]) == ("hi you", "info", "abc")


def test_an_exception_is_inside_the_line() -> None:
    """A traceback of many lines stays one JSON object on one line."""
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    text = JsonLines().format(record)
    assert "\n" not in text
    assert "broken\nin two" in json.loads(text)["exception"]


def test_a_librarys_repeated_line_is_kept_once_an_interval_and_our_own_always() -> None:
    """A broker that is away must not bury the lines that matter."""
    repeats = Repeats(interval_s=5.0)

    def passes(name: str, text: str, created: float) -> bool:
        record = logging.makeLogRecord({"name": name, "msg": text, "created": created})
        return repeats.filter(record)

    said = [passes("aiokafka.cluster", "away", at) for at in (0.0, 1.0, 4.9, 5.0, 6.0)]
    assert said == [True, False, False, True, False]
    assert passes("aiokafka.cluster", "something else", 6.0)
    assert all(passes("streams.task", "loaded", at) for at in (0.0, 0.1))


def test_what_librdkafka_says_goes_into_our_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is only asked, too, when the answer is that nobody is there."""
    kafka = KafkaSettings(bootstrap="127.0.0.1:1")
    for client in (Consumer(kafka.consumer()), Producer(kafka.producer())):
        caplog.clear()
        monkeypatch.setattr(LIBRDKAFKA, "filters", [Repeats((LIBRDKAFKA.name,), interval_s=3_600.0)])
        assert not answers(client, "models")
        (said,) = [record.getMessage() for record in caplog.records if record.name == "librdkafka"]
        assert "Connection refused" in said


def test_what_librdkafka_says_of_a_broker_that_is_away_is_logged_once() -> None:
    """By whichever of its clients and threads, after however many tries; what is said of something else is said, too."""
    repeats = Repeats((LIBRDKAFKA.name,), interval_s=5.0)

    def passes(client: str, text: str, created: float) -> bool:
        record = logging.makeLogRecord({"name": LIBRDKAFKA.name, "msg": "%s [%s] %s", "created": created})
        record.args = ("FAIL", client, text)
        return repeats.filter(record)

    refused = "10.0.0.1:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after {}ms in state CONNECT{})"
    assert passes("c-1", "[thrd:10.0.0.1:9092/bootstrap]: " + refused.format(0, ""), 0.0)
    assert not passes("c-2", "[thrd:main]: " + refused.format(12, ", 1 identical error(s) suppressed"), 1.0)
    assert passes("c-2", "[thrd:main]: 10.0.0.1:9092/1: SSL handshake failed: certificate verify failed", 1.0)
    assert passes("c-1", "[thrd:main]: " + refused.format(1, ""), 5.0)
