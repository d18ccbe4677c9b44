"""What comes in at the scorer's edge: whatever the bytes, one answer, and good neighbours are not touched."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.core.ratelimit import TokenBucket
from deploy.registry import Lineage, Registry
from deploy.scoring.core import ScoringCore
from deploy.scoring.wire import CompiledContract, decode_head
from schemas.events import PredictionMade, Score
from tests.support_deploy import CONTRACT, artifact
from tests.support_examples import examples
from tests.support_scoring import Incoming, ask, deploy, dump, make_core, run


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 1 of the model."""
    made = Registry(tmp_path_factory.mktemp("registry"))
    made.register(CONTRACT, artifact(), Lineage())
    return made


@pytest.fixture(scope="module")
def core(registry: Registry) -> ScoringCore:
    """A core that serves version 1 and keeps four rows of features."""
    return make_core(registry, deploy(), cache_rows=4)


_BODY = b'{"request_id": "bad", "model": "delay", "event_time_ms": %s, "features": %s}'


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (_BODY % (b"5", b'{"hour": 1, "carrier": "\xff"}'), "not-json"),
        (b'{"request_id": "\xff"}', "not-json"),
        (_BODY % (b"5", b"[" * 100_000 + b"]" * 100_000), "not-json"),
        (_BODY % (b"9" * 30, b'{"hour": 1, "carrier": "AA"}'), "absurd-timestamp"),
        (_BODY % (b"9" * 30, b"{}") + b" ", "absurd-timestamp"),
        (_BODY % (b"5", b'{"hour": 1, "carrier": "\\ud800"}'), "not-json"),
    ],
    ids=["no-utf8-feature", "no-utf8-id", "endless-nesting", "huge-time", "huge-time-no-features", "half-a-character"],
)  # fmt: skip
def test_bytes_that_break_decoders_are_dead_lettered(core: ScoringCore, value: bytes, reason: str) -> None:
    """Each of them once ended the process, which came back, read it again, and ended again."""
    good = dump(ask(1))[0]
    _, scores, letters = run(core, value, good)
    assert [d.reason for d in letters] == [reason]
    assert [s.status for s in scores if s.request_id == "q0"] == ["ok"]


@examples(75)
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["request_id", "model", "event_time_ms", "features", "entity", "hour", "carrier"]), inner, max_size=6
    ),
).map(lambda data: json.dumps(data).encode()))  # fmt: skip
def test_no_message_stops_the_scorer(core: ScoringCore, value: bytes) -> None:
    """Any bytes, any JSON: the request beside it is answered, and all that is written can be read."""
    predictions, scores, letters = run(core, value, dump(ask(1))[0])
    assert [s.status for s in scores if s.request_id == "q0"] == ["ok"]
    assert len(letters) + len(predictions) == 2


def test_an_answer_never_repeats_a_models_name_that_is_none(core: ScoringCore) -> None:
    """What stands in the field `model` of a bad request may be anything: the answer's reader must not choke on it."""
    _, scores, _ = run(core, json.dumps({"request_id": "bad", "model": "x" * 500}).encode())
    assert [(s.request_id, s.model, s.status) for s in scores] == [("bad", "unknown", "error")]


# --- cached features


def test_a_row_seen_before_is_found_and_scores_the_same(registry: Registry) -> None:
    """Ten requests with the same features, and with other bytes for the same features: equal scores, honest log."""
    core = make_core(registry, deploy(), cache_rows=100)
    features = {"hour": 17, "wind.speed": 3.5, "carrier": "B6"}
    same = [json.dumps(r | {"features": features}).encode() for r in ask(10)]
    spaced = json.dumps(ask(1)[0] | {"request_id": "spaced", "features": features}, indent=1).encode()
    predictions, scores, _ = run(core, *same, spaced)
    assert len({s.score for s in scores}) == 1
    assert all(p.features == features for p in predictions)
    compiled = core.model("delay").compiled
    assert compiled is not None
    assert (compiled.take_found(), compiled.take_found()) == (9, 0)


def test_the_cache_is_bounded_and_gives_up_what_was_unused_longest() -> None:
    """Three rows are kept: the one used again stays, the other one is decoded anew."""
    compiled = CompiledContract(CONTRACT, cache_rows=3)

    def row(hour: int) -> Any:
        head = decode_head(json.dumps(ask(1)[0] | {"features": {"hour": hour, "carrier": "AA"}}).encode())
        return compiled.decode(head.features)

    first, second = row(1), row(2)
    row(3)
    assert row(1) is first
    row(4)
    assert row(1) is first
    assert row(2) is not second
    assert len(compiled._cache) == 3


def test_a_request_outlives_the_message_it_came_from() -> None:
    """A cached row holds its own bytes, not the message's: a big message must not stay in memory for a small row."""
    compiled = CompiledContract(CONTRACT, cache_rows=3)
    request = ask(1)[0] | {"features": {"hour": 1, "carrier": "AA", "wind.speed": 2}, "entity": "e" * 200}
    row = compiled.decode(decode_head(json.dumps(request).encode()).features)
    assert bytes(row.raw) == json.dumps(request["features"]).encode()


def test_what_different_versions_encode_is_kept_apart(registry: Registry) -> None:
    """Two versions with encoders of their own read the same cached row, each as it should."""
    registry.register(CONTRACT, artifact(flip=True), Lineage())
    cached = make_core(registry, deploy(shadow=("2",)), cache_rows=100)
    plain = make_core(registry, deploy(shadow=("2",)))
    values = dump(ask(40))
    run(cached, *values)
    for of in ("stable", "shadow"):
        found = [[p.score for p in run(core, *values)[0] if p.role == of] for core in (cached, plain)]
        np.testing.assert_array_equal(*found)


# --- a model that fails on some rows


class _Moody:
    """A version that raises whenever a row of its batch has hour 13, and says NaN for hour 14."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, rows: Any, _contract: Any) -> Any:
        self.calls += 1
        hours = [row.values[0] for row in rows]
        if 13.0 in hours:
            raise ArithmeticError("thirteen")
        return np.array([np.nan if hour == 14.0 else hour / 24 for hour in hours])


def _moody(registry: Registry) -> tuple[ScoringCore, _Moody]:
    core, version = make_core(registry, deploy(), on_break=lambda *_: None), _Moody()
    core._engine._loaded["delay", "1"] = version  # type: ignore[assignment]
    return core, version


def _hours(*hours: int) -> list[bytes]:
    return dump(
        [r | {"features": {"hour": h, "carrier": "AA"}} for r, h in zip(ask(len(hours)), hours, strict=True)]
    )


def test_a_row_that_a_model_fails_on_takes_no_other_with_it(registry: Registry) -> None:
    """Three bad rows of a hundred: they get errors, the others their scores, and the breaker stays shut."""
    core, version = _moody(registry)
    hours = [1] * 100
    hours[7] = hours[8] = hours[93] = 13
    for _ in range(4):
        _, scores, _letters = run(core, *_hours(*hours))
        assert [at for at, s in enumerate(scores) if s.status == "error"] == [7, 8, 93]
    assert core.model("delay").breaker.open == frozenset()
    assert version.calls < 4 * 50


def test_a_model_that_fails_on_every_row_is_not_tried_row_by_row(registry: Registry) -> None:
    """The calls spent on looking for good rows are bounded; three such batches open the breaker."""
    core, version = _moody(registry)
    for calls in (64, 128, 192):
        _, scores, _ = run(core, *_hours(*[13] * 300))
        assert {s.status for s in scores} == {"error"}
        assert version.calls <= calls + 64
    assert core.model("delay").breaker.open == {"1"}


def test_an_output_that_is_no_number_is_an_error_and_a_batch_of_them_a_failure(registry: Registry) -> None:
    """NaN for one caller is that caller's error; NaN for everybody is a sick version."""
    core, _ = _moody(registry)
    _, scores, _letters = run(core, *_hours(1, 14))
    assert [s.status for s in scores] == ["ok", "error"]
    for _ in range(3):
        run(core, *_hours(14, 14))
    assert core.model("delay").breaker.open == {"1"}


# --- rate limits


def test_a_bucket_lets_through_its_burst_and_then_its_rate() -> None:
    """Ten at once, then one every 100 ms; the wait that is told is the wait that helps; it never fills beyond."""
    bucket = TokenBucket(rate_per_s=10, burst=10)
    assert [bucket.take(1_000) for _ in range(12)] == [0] * 10 + [100, 100]
    assert (bucket.take(1_099), bucket.take(1_100), bucket.take(1_100)) == (1, 0, 100)
    assert [bucket.take(60_000) for _ in range(11)] == [0] * 10 + [100]
    assert bucket.take(59_000) == 100, "an earlier arrival is judged at the later time"
    with pytest.raises(ValueError, match="positive"):
        TokenBucket(0, 1)


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=200), st.integers(1, 50), st.integers(1, 20))
def test_no_second_takes_more_than_burst_and_rate(arrivals: list[int], rate: int, burst: int) -> None:
    """Whatever the pattern of arrivals, any one second passes at most the burst and a second's worth."""
    bucket = TokenBucket(rate, burst)
    passed = [at for at in sorted(arrivals) if bucket.take(at) == 0]
    for start in passed:
        assert sum(start <= at < start + 1_000 for at in passed) <= burst + rate


def test_callers_beyond_the_limit_are_told_when_to_come_back(registry: Registry) -> None:
    """An error with the limit and the wait; no prediction, no dead letter, and other models are not touched."""
    core = make_core(registry, deploy(), limits={"delay": (2.0, 3)})
    records = [Incoming(value, arrived_ms=7_000) for value in dump(ask(5))]
    scored = core.score(records, [0.0] * 5, 0)
    out = scored.records(4)
    answers = [Score.model_validate_json(one["value"]) for one in out["scores"]]
    refused = [s for s in answers if s.status == "error"]
    assert [s.request_id for s in refused] == ["q3", "q4"]
    assert refused[0].error == "rate-limited: model delay takes 2 requests a second here; ask again in 500 ms"
    assert len([PredictionMade.model_validate_json(one["value"]) for one in out["predictions"]]) == 3
    assert out["dead-letters"] == []
    assert core._metrics.value("driftline_rate_limited_total", model="delay") == 2
    assert core.model("other").limit is None
    assert make_core(registry, limits={"*": (1.0, 1)}).model("other").limit is not None
