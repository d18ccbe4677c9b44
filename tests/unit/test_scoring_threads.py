"""The threads beside the scoring loop: a writer that fails, hangs or is fenced, and shadows that cannot keep up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from deploy.core.routing import Route
from deploy.scoring.answers import Row, Scored, ShadowJob, prediction
from deploy.scoring.background import Background
from deploy.scoring.shadow import Shadows
from deploy.scoring.wire import Features, PredictionOut, decode_head
from deploy.scoring.writer import Job, State, Writer
from schemas.observability import Metrics
from tests.support_scoring import ask, dump

TOPICS = {name: name for name in ("predictions", "scores", "dead-letters", "scoring-requests")}


class FakeLog:
    """The client's transactional producer as the writer uses it, in memory. ``plan`` says what the next calls raise."""

    def __init__(self) -> None:
        self.committed: list[tuple[str, bytes]] = []
        self.offsets: dict[int, int] = {}
        self.transactions = 0
        self.plan: dict[str, list[Exception]] = {}
        self.hang = threading.Event()
        self.hanging = threading.Event()
        self._pending: list[tuple[str, bytes]] = []
        self._positions: dict[int, int] = {}
        self.open_producers = 0

    def __call__(self) -> FakeLog:
        self.open_producers += 1
        return self

    def _raise(self, call: str) -> None:
        if planned := self.plan.get(call):
            raise planned.pop(0)

    def init_transactions(self, _timeout: float) -> None:
        self._raise("init")
        self._pending.clear()

    def begin_transaction(self) -> None:
        self._pending, self._positions = [], {}

    def produce_batch(self, topic: str, records: list[dict[str, Any]], on_delivery: Any = None) -> int:
        self._raise("produce")
        self._pending += [(topic, record["key"]) for record in records]
        return len(records)

    def send_offsets_to_transaction(self, positions: list[Any], _group: Any, _timeout: float) -> None:
        self._raise("offsets")
        if not self.hang.is_set() and self.plan.pop("hang", None):
            self.hanging.set()
            self.hang.wait()
            raise KafkaException(KafkaError(KafkaError._FENCED, "too late", True))
        self._positions = {at.partition: at.offset for at in positions}

    def commit_transaction(self, _timeout: float) -> None:
        self._raise("commit")
        self.committed += self._pending
        self.offsets |= self._positions
        self.transactions += 1

    def abort_transaction(self, _timeout: float) -> None:
        self._raise("abort")
        self._pending.clear()

    def flush(self, _timeout: float) -> None:
        """Nothing is on its way."""

    def poll(self, _timeout: float) -> None:
        """No callbacks."""

    def close(self) -> None:
        self.open_producers -= 1


def _row(identity: str) -> Row:
    head = decode_head(dump([ask(1)[0] | {"request_id": identity}])[0])
    return Row(head, Features(head.features, (), {}), Route("1", "stable", 1), 0.0, 0.5)


def _job(*identities: str, end: int = 1) -> Job:
    scored = Scored()
    scored.rows = [_row(identity) for identity in identities]
    return Job(scored, len(identities), {0: end}, None)


def _error(code: int, **flags: bool) -> KafkaException:
    return KafkaException(KafkaError(code, "planned", **flags))


@pytest.fixture
def log() -> Iterator[FakeLog]:
    """An empty log; what hangs in it is let go afterwards."""
    made = FakeLog()
    yield made
    made.hang.set()


def _writer(log: FakeLog, call_s: float = 5.0) -> tuple[Writer, list[Job]]:
    seen: list[Job] = []
    writer = Writer(log, TOPICS, 2, Metrics(), seen.extend, call_s)
    return writer, seen


def _reached(writer: Writer, *states: State) -> State:
    with writer._changed:
        assert writer._changed.wait_for(lambda: writer.state in states, 120), writer.state
    return writer.state


def test_jobs_become_visible_with_their_offsets(log: FakeLog) -> None:
    """Answer and prediction of each request, the offset behind the last, and word of it to whoever owes shadows."""
    writer, seen = _writer(log)
    _reached(writer, State.READY)
    writer.submit(_job("a", "b", end=2))
    writer.submit(_job("c", end=3))
    assert writer.drain(120)
    assert sorted(log.committed) == sorted(
        (t, k) for t in ("scores", "predictions") for k in (b"a", b"b", b"c")
    )
    assert log.offsets == {0: 3}
    assert sum(job.rows for job in seen) == 3
    assert writer.close()
    assert log.open_producers == 0


@pytest.mark.parametrize("call", ["produce", "offsets", "commit"])
def test_after_a_failure_nothing_is_written_until_it_is_read_again(log: FakeLog, call: str) -> None:
    """Aborted: what was behind it is dropped too, for it must not be committed before what failed."""
    writer, seen = _writer(log)
    _reached(writer, State.READY)
    log.plan[call] = [_error(KafkaError._TIMED_OUT)]
    writer.submit(_job("a", end=1))
    assert _reached(writer, State.FAILED) is State.FAILED
    writer.submit(_job("b", end=2))
    assert (writer.rows, log.committed, seen) == (0, [], [])
    writer.reset()
    writer.submit(_job("a", "b", end=2))
    assert writer.drain(120)
    assert [key for topic, key in log.committed if topic == "scores"] == [b"a", b"b"]
    assert writer.close()


def test_a_commit_that_may_be_tried_again_is(log: FakeLog) -> None:
    """A retriable error leaves the transaction as it is."""
    writer, _ = _writer(log)
    _reached(writer, State.READY)
    log.plan["commit"] = [_error(KafkaError._TIMED_OUT, retriable=True)] * 2
    writer.submit(_job("a"))
    assert writer.drain(120)
    assert (writer.state, log.transactions) == (State.READY, 1)
    assert writer.close()


def test_an_abort_that_fails_leaves_a_writer_to_be_replaced(log: FakeLog) -> None:
    """Nobody knows what its producer would do next."""
    writer, _ = _writer(log)
    _reached(writer, State.READY)
    log.plan |= {"commit": [_error(KafkaError._TIMED_OUT)], "abort": [_error(KafkaError._TIMED_OUT)]}
    writer.submit(_job("a"))
    assert _reached(writer, State.BROKEN) is State.BROKEN
    assert writer.close()
    assert log.open_producers == 0


@pytest.mark.parametrize("call", ["init", "commit"])
def test_a_fenced_writer_says_so(log: FakeLog, call: str) -> None:
    """Another process owns the name: there is nothing to try again."""
    log.plan[call] = [_error(KafkaError._FENCED, fatal=True)]
    writer, _ = _writer(log)
    if call == "commit":
        _reached(writer, State.READY)
        writer.submit(_job("a"))
    assert _reached(writer, State.FENCED) is State.FENCED
    assert writer.error is not None
    assert writer.close()


def test_a_broker_that_is_away_at_the_start_is_waited_for(log: FakeLog) -> None:
    """Opening goes on until it works; nothing handed in meanwhile is taken."""
    log.plan["init"] = [_error(KafkaError._TIMED_OUT, retriable=True)] * 3
    writer, _ = _writer(log)
    assert _reached(writer, State.READY) is State.READY
    assert writer.close()


def test_a_call_that_never_returns_is_left_behind(log: FakeLog) -> None:
    """Its thread sleeps in the client for ever; a new writer does the work, and what the old one tries later is void."""
    writer, seen = _writer(log, call_s=0.01)
    _reached(writer, State.READY)
    log.plan["hang"] = [Exception()]
    writer.submit(_job("a", end=1))
    assert log.hanging.wait(120)
    deadline = threading.Event()
    while not writer.stuck():
        deadline.wait(0.001)
    writer.abandon()
    writer.submit(_job("b", end=2))
    following, seen_after = _writer(log)
    _reached(following, State.READY)
    following.submit(_job("a", "b", end=2))
    assert following.drain(120)
    log.hang.set()
    writer._thread.join(120)
    assert [key for topic, key in log.committed if topic == "scores"] == [b"a", b"b"]
    assert (seen, len(seen_after), writer.state) == ([], 1, State.BROKEN)
    assert following.close()


def test_room_is_waited_for_and_bounded(log: FakeLog) -> None:
    """As long as the bound is reached there is none; a failure ends the wait, for then something must be done."""
    writer, _ = _writer(log)
    _reached(writer, State.READY)
    log.plan["hang"] = [Exception()]
    writer.submit(_job("a", "b"))
    assert log.hanging.wait(120)
    assert writer.wait_room(3, 0.01)
    assert not writer.wait_room(2, 0.01)
    log.hang.set()
    assert writer.wait_room(2, 120)
    assert _reached(writer, State.FENCED) is State.FENCED


def test_what_no_transaction_has_begun_with_is_given_back(log: FakeLog) -> None:
    """In its order; what is being written stays, and the writer goes on with what is handed in again."""
    writer, _ = _writer(log)
    _reached(writer, State.READY)
    log.plan["hang"] = [Exception()]
    writer.submit(_job("a"))
    assert log.hanging.wait(120)
    jobs = [_job("b"), _job("c", "d")]
    for job in jobs:
        writer.submit(job)
    assert writer.recall() == jobs
    assert (writer.recall(), writer.rows) == ([], 1)
    log.hang.set()
    assert writer.close()


# --- shadows


def _shadow_job(*identities: str) -> ShadowJob:
    return ShadowJob("delay", "2", [_row(identity) for identity in identities])


def test_shadows_are_written_and_what_finds_no_room_is_counted(log: FakeLog) -> None:
    """The queue is bounded in requests; offering never waits, also while a shadow does not come to an end."""
    metrics, go, began = Metrics(), threading.Event(), threading.Event()

    def slow(job: ShadowJob) -> list[PredictionOut]:
        began.set()
        go.wait()
        return [prediction(row, job.version, "shadow", 0.5, "ok", 1.0) for row in job.rows]

    shadows = Shadows(slow, log, "predictions", 2, 10, metrics)
    shadows.offer([_shadow_job("a", "b")])
    assert began.wait(120)
    shadows.offer([_shadow_job(*"cdefgh"), _shadow_job(*"ijkl")])
    assert metrics.value("driftline_shadow_rows_total", model="delay", outcome="dropped") == 2
    go.set()
    shadows.close(120)
    assert [key for _, key in log._pending] == [bytes([c]) for c in b"abcdefghij"]
    assert metrics.value("driftline_shadow_rows_total", model="delay", outcome="scored") == 10


def test_a_shadow_that_breaks_stops_no_other(log: FakeLog) -> None:
    """Whatever its scoring or writing raises: counted, and the next one is scored."""
    metrics = Metrics()

    def moody(job: ShadowJob) -> list[PredictionOut]:
        if len(job.rows) == 1:
            raise ArithmeticError("one")
        return [prediction(row, job.version, "shadow", 0.5, "ok", 1.0) for row in job.rows]

    log.plan["produce"] = [BufferError("full")]
    shadows = Shadows(moody, log, "predictions", 2, 100, metrics)
    shadows.offer([_shadow_job("a"), _shadow_job("b", "c"), _shadow_job("d", "e")])
    shadows.close(120)
    assert [key for _, key in log._pending] == [b"d", b"e"]
    assert metrics.value("driftline_shadow_rows_total", model="delay", outcome="dropped") == 3


def test_background_work_is_done_in_order_and_handed_back() -> None:
    """What is to happen with a result happens where it is taken in, not on the thread that made it."""
    done: list[Any] = []
    arrived = threading.Semaphore(0)
    background = Background(lambda then: (done.append(then), arrived.release())[0])  # type: ignore[func-returns-value]
    order: list[int] = []
    for number in range(3):
        background.submit(lambda number=number: lambda: order.append(number))  # type: ignore[misc]
    assert all(arrived.acquire(timeout=120) for _ in range(3))
    assert order == []
    for then in done:
        then()
    background.close(120)
    assert order == [0, 1, 2]
