"""The sequential risk test: its bound, its promise under the null, harm that it sees and shifts that do none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from detectors.base import DAY_MS, Context, Detector, Rows
from detectors.evidence import LOW
from detectors.harm.block_evidence import BlocksAbove
from detectors.harm.loss import log_loss, score_and_label
from detectors.harm.risk_e import RiskSpec, risk_bound
from detectors.registry import spec_class
from schemas.contracts import FalsePages, Reference
from schemas.errors import ConfigurationError, SnapshotError
from schemas.verdicts import State

Floats = NDArray[np.float64]
COLUMNS = ("score", "label", "loss")
ROWS_A_DAY = 100


def days(rng: np.random.Generator, count: int, odds: float = 0.0, weather: float = 0.0) -> Rows:
    """Outcomes of a calibrated model, whose labels' log odds move by ``odds`` and by a draw of each day's weather."""
    n = count * ROWS_A_DAY
    score = rng.beta(2, 8, n)
    moved = np.log(score / (1 - score)) + odds + np.repeat(rng.normal(0, weather, count), ROWS_A_DAY)
    label = (rng.uniform(size=n) < 1 / (1 + np.exp(-moved))).astype(np.float64)
    values = np.column_stack([score, label, log_loss(score, label)])
    return Rows.of(values, np.repeat(np.arange(count), ROWS_A_DAY) * DAY_MS)


def block_means(rows: Rows) -> Floats:
    return np.asarray(rows.values[:, 2].reshape(-1, ROWS_A_DAY).mean(axis=1))


def reference_of(rows: Rows) -> Reference:
    return Reference(loss_blocks=tuple(block_means(rows).tolist()), loss_block_ms=DAY_MS)


def built(reference: Reference | None, columns: tuple[str, ...] = COLUMNS, **options: Any) -> Detector:
    context = Context(columns, (0,) * len(columns), "loss", reference, false_pages=FalsePages())
    return RiskSpec(**options).build(context)


def drift_day(detector: Detector, rows: Rows) -> int | None:
    """The day whose end brought the first drift."""
    detector.update(rows)
    found = [c for c in detector.advance(int(rows.time_ms[-1]) + DAY_MS) if c.verdict.state is State.DRIFT]
    return found[0].time_ms // DAY_MS - 1 if found else None


def test_the_bound_is_mean_zone_and_error() -> None:
    """Independent blocks: scipy's one-sided t bound of the mean plus the zone; alike blocks: a larger error."""
    rng = np.random.default_rng(1)
    blocks = rng.normal(0.4, 0.05, 40)
    alternating = np.sort(blocks)[np.argsort(np.arange(40) % 2, kind="stable").argsort()]
    upper = stats.t.interval(0.9, 39, alternating.mean(), stats.sem(alternating))[1]
    spec = RiskSpec(tolerance=0.01, zone_sd=1.0, delta=0.05)
    found = risk_bound(spec, alternating)
    assert found is not None
    plain = upper + alternating.std(ddof=1)
    moves = alternating - alternating.mean()
    if (moves[1:] * moves[:-1]).sum() <= 0:
        assert found == pytest.approx(plain)
    alike = risk_bound(spec, np.sort(blocks))
    assert alike is not None and alike > found
    assert risk_bound(RiskSpec(tolerance=0.3), alternating) == pytest.approx(found + 0.3 - moves.std(ddof=1))
    assert risk_bound(spec, blocks[:9]) is None


def test_evidence_is_the_sum_over_restarts() -> None:
    """Shiryaev and Roberts's recursion is the sum, over every block as a start, of the product of the bets since."""
    rng = np.random.default_rng(2)
    means, bound, fractions = rng.uniform(0, 1, 12), 0.45, (0.2, 0.9)
    above = BlocksAbove(bound, 0.0, fractions, 1e9, 1)
    for mean in means.tolist():
        above.add(mean)
    sums = [sum(np.prod(1 + f * (means[start:] / bound - 1)) for start in range(12)) for f in fractions]
    assert above.score == pytest.approx(np.mean(sums))


def test_mean_run_length_keeps_the_promise_at_the_edge_of_the_null() -> None:
    """Losses whose mean is exactly the bound, skewed as losses are: the mean time to an alarm is at least the threshold."""
    rng = np.random.default_rng(3)
    threshold, lengths = 20.0, []
    for _ in range(400):
        above, run = BlocksAbove(0.3, 0.0, RiskSpec().fractions, threshold, 1), 0
        while above.score < threshold and run < 2_000:
            above.add(float(rng.exponential(0.3)))
            run += 1
        lengths.append(run)
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert np.mean(lengths) >= threshold - 2 * error
    # The same runs must fail against a threshold divided by four: the test can see a broken promise.
    short = []
    for _ in range(400):
        above, run = BlocksAbove(0.3, 0.0, RiskSpec().fractions, threshold / 4, 1), 0
        while above.score < threshold / 4 and run < 2_000:
            above.add(float(rng.exponential(0.3)))
            run += 1
        short.append(run)
    assert np.mean(short) < threshold - 2 * error


def test_harm_is_seen_and_weather_is_not() -> None:
    """Twenty references of days with weather: a year of the same raises an alarm at most once; harm is seen within weeks."""
    alarms, delays = 0, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        reference = reference_of(days(rng, 90, weather=0.3))
        alarms += drift_day(built(reference), days(rng, 365, weather=0.3)) is not None
        delay = drift_day(built(reference), days(rng, 120, odds=1.2, weather=0.3))
        delays.append(120 if delay is None else delay)
    assert alarms <= 1
    assert np.median(delays) <= 30


def test_a_shift_that_does_no_harm_is_no_alarm() -> None:
    """All requests become easy: inputs and scores have moved, the loss has fallen, nothing is said."""
    rng = np.random.default_rng(5)
    detector = built(reference_of(days(rng, 60)))
    rows = days(rng, 200)
    score = np.full(len(rows), 0.02)
    label = (rng.uniform(size=len(rows)) < score).astype(np.float64)
    easy = Rows.of(np.column_stack([score, label, log_loss(score, label)]), rows.time_ms)
    assert drift_day(detector, easy) is None
    assert detector.verdict.state is State.STABLE


def test_the_evidence_says_how_much_and_since_when() -> None:
    """The verdict names the reference's loss, the loss since the evidence began, and when that was."""
    rng = np.random.default_rng(6)
    good, bad = days(rng, 30), days(rng, 60, odds=2.5)
    reference = reference_of(days(rng, 60))
    detector = built(reference)
    detector.update(good)
    later = Rows.of(bad.values, bad.time_ms + 30 * DAY_MS)
    assert drift_day(detector, later) is not None
    evidence = detector.verdict.evidence
    assert evidence.reference == pytest.approx(np.mean(reference.loss_blocks))
    assert evidence.effect is not None and evidence.current is not None
    assert evidence.effect == pytest.approx(evidence.current - np.mean(reference.loss_blocks))
    assert evidence.effect > 0.2


def test_late_and_revised_labels() -> None:
    """Labels of many days that come in one block are one block; a revised outcome counts as if it had come right."""
    rng = np.random.default_rng(7)
    reference = reference_of(days(rng, 60))
    rows = days(rng, 40, odds=2.5)
    flood = Rows.of(rows.values, np.full(len(rows), 5 * DAY_MS))
    detector = built(reference)
    assert drift_day(detector, flood) is None
    wrong = rows.values.copy()
    wrong[:, 1] = 1 - wrong[:, 1]
    revised, plain = built(reference), built(reference)
    taken_back = Rows.of(wrong, rows.time_ms, sign=np.full(len(rows), -1, np.int8))
    for part in (Rows.of(wrong, rows.time_ms), taken_back, rows):
        revised.update(part)
    plain.update(rows)
    assert [c.verdict for c in revised.advance(50 * DAY_MS)] == [
        c.verdict for c in plain.advance(50 * DAY_MS)
    ]


def test_segments_and_missing_columns() -> None:
    """Segment columns beside the loss are ignored; without score and label the configuration is refused."""
    rng = np.random.default_rng(8)
    reference, rows = reference_of(days(rng, 60)), days(rng, 50, odds=2.5)
    detector = built(reference, (*COLUMNS, "origin"))
    wider = Rows.of(np.column_stack([rows.values, np.full(len(rows), np.nan)]), rows.time_ms)
    assert drift_day(detector, wider) == drift_day(built(reference), rows) is not None
    with pytest.raises(ConfigurationError, match="leave `columns` out"):
        built(reference, ("loss",))
    assert score_and_label(Context(("a", "label", "score"), stream="loss")) == (2, 1)


def test_without_reference_blocks_it_says_so() -> None:
    """No reference, or one of a few days: inconclusive, whatever comes, and it may not page."""
    rng = np.random.default_rng(9)
    for reference in (None, Reference(loss_mean=0.3), reference_of(days(rng, 5))):
        detector = built(reference)
        assert drift_day(detector, days(rng, 40, odds=3.0)) is None
        assert detector.verdict.state is State.INCONCLUSIVE
        assert "reference has" in detector.verdict.evidence.note
        standing = RiskSpec().standing(Context(COLUMNS, (0,) * 3, "loss", reference))
        assert not standing.pages


def test_it_pages_only_where_its_own_reference_is_quiet() -> None:
    """A steady reference: it may page, unverified beyond half its length. One that worsens: an alarm in it forbids."""
    rng = np.random.default_rng(10)
    budget = FalsePages()
    steady = reference_of(days(rng, 80, weather=0.2))
    standing = RiskSpec().standing(Context(COLUMNS, (0,) * 3, "loss", steady, false_pages=budget))
    assert standing.pages and standing.alarms == 0
    assert standing.promised_ms == pytest.approx(30 * DAY_MS)
    assert standing.verified_ms == 40 * DAY_MS
    long = RiskSpec(threshold=1_000).standing(Context(COLUMNS, (0,) * 3, "loss", steady))
    assert "unverified beyond" in long.note
    worse = Reference(loss_blocks=(*block_means(days(rng, 40)), *block_means(days(rng, 40, odds=2.5))))
    standing = RiskSpec().standing(Context(COLUMNS, (0,) * 3, "loss", worse, false_pages=budget))
    assert not standing.pages and standing.alarms == 1
    assert "does not page" in standing.note


def quarters(worse: list[bool]) -> Rows:
    """One block each: a model that says one in four, of which three in four come true when it is ``worse``, else one."""
    label = np.concatenate([np.arange(ROWS_A_DAY) % 4 < (3 if bad else 1) for bad in worse]).astype(
        np.float64
    )
    score = np.full(len(label), 0.25)
    times = np.repeat(np.arange(len(worse)), ROWS_A_DAY) * DAY_MS
    return Rows.of(np.column_stack([score, label, log_loss(score, label)]), times)


@pytest.mark.parametrize("kind", ["loss-above-promise", "risk-e"])
def test_evidence_around_the_threshold_is_one_alarm(kind: str) -> None:
    """Harm until the first alarm, then good weeks and bad days in turn: evidence falls below the threshold and passes it again,
    and it stays one drift, over a restart too, until good days alone have taken the evidence to a tenth."""
    reference = Reference(
        loss_blocks=tuple((0.56 + 0.02 * np.sin(np.arange(60))).tolist()), loss_block_ms=DAY_MS
    )
    spec, context = (
        spec_class(kind).model_validate({"threshold": 200}),
        Context(COLUMNS, (0, 0, 0), "loss", reference),
    )
    worse = [False] * 5 + [True] * 10 + ([False] * 26 + [True] * 2) * 3 + [False] * 150
    detector, rows = spec.build(context), quarters(worse)
    said, scores = [], []
    for day in range(len(worse)):
        detector.update(rows.take(slice(day * ROWS_A_DAY, (day + 1) * ROWS_A_DAY)))
        said += [(day, change.verdict.state) for change in detector.advance((day + 1) * DAY_MS - 1)]
        scores.append(detector.verdict.score / detector.verdict.threshold)
        detector = spec.restore(context, detector.snapshot())
    drifts = [at for at, (_, state) in enumerate(said) if state is State.DRIFT]
    assert len(drifts) == 1, said
    begun, ended = said[drifts[0]][0], said[drifts[0] + 1][0]
    assert said[drifts[0] + 1][1] in (State.STABLE, State.WARNING) and scores[ended] < LOW
    above = np.array(scores[begun:ended]) >= 1
    # Without hysteresis each time it passes the threshold again would have been an alarm.
    assert np.count_nonzero(np.diff(above.astype(int)) == 1) >= 2
    assert np.mean(scores[-20:]) < 1


def test_a_snapshot_of_other_bets_is_refused() -> None:
    """Evidence of two bets is not that of three."""
    reference = reference_of(days(np.random.default_rng(11), 60))
    with pytest.raises(SnapshotError, match="other bets"):
        built(reference, fractions=(0.1, 0.5, 0.9)).load(built(reference).snapshot())
