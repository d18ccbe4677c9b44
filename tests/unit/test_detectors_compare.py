"""The paired judge: what pairs up, what it decides, and that neither depends on how often time is told."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from detectors.base import DAY_MS, Change, Context, Detector, Rows
from detectors.harm import compare_e
from detectors.harm.compare_e import PairedJudgeSpec
from schemas.verdicts import State

HOUR = 3_600_000


def judge(**options: object) -> Detector:
    """A judge with these options."""
    return PairedJudgeSpec.model_validate(options).build(Context(("score", "label"), stream="comparison"))


def pairs(days: int, per_day: int, harm: float, seed: int, start_ms: int = 0) -> Rows:
    """Both versions on the same requests; the candidate's score is off by more, such that its Brier is about ``harm`` worse."""
    rng = np.random.default_rng(seed)
    n = days * per_day
    p = rng.uniform(0.1, 0.5, n)
    label = (rng.random(n) < p).astype(np.float64)
    off = np.sqrt(max(harm, 0.0)) * rng.choice([-1, 1], n)
    ours = np.clip(p + off, 0, 1)
    time_ms = np.repeat(start_ms + np.arange(n) * DAY_MS // per_day, 2)
    identity = np.repeat(np.arange(n, dtype=np.uint64) + np.uint64(start_ms), 2)
    score = np.column_stack([p, ours]).ravel()
    values = np.column_stack([score, np.repeat(label, 2)])
    return Rows.of(values, time_ms, identity, np.tile(np.array([0, 1], np.int8), n))


def verdicts(rows: Rows, **options: object) -> list[Change]:
    """All of it at once, and a day more."""
    detector = judge(**options)
    detector.update(rows)
    return detector.advance(int(rows.time_ms[-1]) + DAY_MS)


def test_a_much_worse_candidate_is_found_within_days() -> None:
    """Brier 0.06 worse on 100 requests a day: harm by the fifth day in half of ten streams, by the tenth in all."""
    days = []
    for seed in range(10):
        found = [c.verdict.state for c in verdicts(pairs(10, 100, 0.06, seed))]
        days.append(found.index(State.DRIFT) + 1 if State.DRIFT in found else 99)
    assert sorted(days)[5] <= 5 and max(days) <= 10, days


def test_an_equal_candidate_is_never_condemned_and_shown_to_be_no_worse() -> None:
    """The same scores from both: no harm in fifty streams of three weeks, and 'no worse' in the end."""
    for seed in range(50):
        states = [c.verdict.state for c in verdicts(pairs(21, 60, 0.0, seed))]
        assert State.DRIFT not in states, seed
        assert states[-1] is State.STABLE, seed


def test_immaterial_harm_is_no_harm_at_any_traffic() -> None:
    """Harm of half the margin stays unproven with ten times the rows: traffic does not make it matter."""
    for per_day in (50, 500):
        states = {c.verdict.state for seed in range(10) for c in verdicts(pairs(14, per_day, 0.0025, seed))}
        assert State.DRIFT not in states


def test_one_day_cannot_decide_alone() -> None:
    """However many rows one terrible day has: two are needed."""
    assert [c.verdict.state for c in verdicts(pairs(1, 5_000, 0.3, 1))] == [State.INCONCLUSIVE]


def test_every_block_reports_its_pairs() -> None:
    """Whoever waits for rows hears of every closed block, with the pairs so far and an interval around the effect."""
    found = verdicts(pairs(4, 50, 0.0, 2))
    assert [c.verdict.evidence.rows for c in found] == [50, 100, 150, 200]
    for change in found:
        low, high = change.verdict.evidence.interval or (1.0, 0.0)
        assert low <= (change.verdict.evidence.effect or 0.0) <= high


def test_only_both_on_the_same_request_count() -> None:
    """Lone scores, repeated scores of one version, and revised outcomes make no pair."""
    rows = pairs(1, 10, 0.0, 3)
    lone = rows.take(rows.group == 0)
    detector = judge()
    detector.update(lone)
    detector.update(lone)
    assert detector.advance(2 * DAY_MS) == []
    revised = judge()
    signs = rows.sign.copy()
    signs[:2] = -1
    revised.update(Rows(rows.values, rows.time_ms, rows.identity, rows.group, signs))
    revised.update(rows.take(slice(0, 2)))
    assert revised.advance(2 * DAY_MS)[0].verdict.evidence.rows == 9


@pytest.mark.parametrize("told_ms", [HOUR, 5 * HOUR, 7 * DAY_MS, 100 * DAY_MS])
def test_a_pair_apart_for_too_long_is_none_however_often_time_is_told(told_ms: int) -> None:
    """Halves an hour less apart than the timeout pair up, an hour more apart do not; also where nothing cleared them away."""
    timeout = 2 * DAY_MS
    values = np.array([[0.1, 0.0]] * 4)
    time_ms = np.array([0, 0, timeout - HOUR, timeout + HOUR])
    rows = Rows.of(values, time_ms, np.array([1, 2, 1, 2], np.uint64), np.array([0, 0, 1, 1], np.int8))
    detector, found = judge(pair_timeout_ms=timeout), []
    at = 0
    for now in range(told_ms, 200 * DAY_MS + told_ms, told_ms):
        upto = int(np.searchsorted(time_ms, now, "right"))
        detector.update(rows.take(slice(at, upto)))
        found += detector.advance(now)
        at = upto
        if at == len(rows) and now > 10 * DAY_MS:
            break
    assert [c.verdict.evidence.rows for c in found] == [1]


def test_what_waits_for_its_pair_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the oldest halves go first, wherever the stream is cut."""
    monkeypatch.setattr(compare_e, "PENDING_MAX", 5)
    n = 8
    first = Rows.of(np.full((n, 2), 0.0), np.arange(n), np.arange(n, dtype=np.uint64), np.zeros(n, np.int8))
    second = Rows.of(np.full((n, 2), 0.0), np.arange(n, 2 * n), first.identity[::-1], np.ones(n, np.int8))
    for cuts in ([0, n], range(n + 1)):
        detector = judge()
        edges = list(cuts)
        for low, high in pairwise(edges):
            detector.update(first.take(slice(low, high)))
        detector.update(second)
        assert detector.advance(2 * DAY_MS)[0].verdict.evidence.rows == 5
