"""Performance without labels: calibration and metrics as scikit-learn has them, estimates as the labels would say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from detectors.base import DAY_MS, FIXED_POINT, Context, Detector, Rows
from detectors.expected.boosting import fit
from detectors.expected.calibration import Identity, isotonic, platt
from detectors.expected.cbpe import Cbpe, CbpeSpec
from detectors.expected.cbpe_metrics import METRICS, Metric, Scale, realised
from detectors.expected.dle import DleSpec
from schemas.bins import Binning
from schemas.contracts import ColumnReference, Reference
from schemas.verdicts import State

Floats = NDArray[np.float64]
PERCENTILES = np.linspace(0, 1, 101)
#: Half the share of pairs of unlike labels within one of a hundred cells of equal share.
AUC_ERROR = 0.005


def expit(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values)), np.float64)


def quantiles_of(values: Floats) -> ColumnReference:
    return ColumnReference(rows=len(values), quantiles=tuple(np.quantile(values, PERCENTILES).tolist()))


# -- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_isotonic_is_scikit_learns(decimals: int) -> None:
    """The same fit and the same values between and beyond its corners, with and without tied scores."""
    rng = np.random.default_rng(1)
    scores = np.round(rng.uniform(size=1_500), decimals)
    labels = (rng.uniform(size=1_500) < scores**2).astype(np.float64)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
    probe = np.linspace(-0.1, 1.1, 777)
    np.testing.assert_allclose(isotonic(scores, labels)(probe), theirs.predict(probe), atol=1e-12)


def test_platt_is_an_unpenalised_logistic_regression() -> None:
    """Slope and intercept on the logit, to five digits; classes that are apart stay finite."""
    rng = np.random.default_rng(2)
    scores = rng.uniform(0.01, 0.99, 3_000)
    logit = np.log(scores / (1 - scores))
    labels = (rng.uniform(size=3_000) < expit(0.6 * logit - 0.8)).astype(np.float64)
    theirs = LogisticRegression(C=1e12, tol=1e-10, max_iter=1_000).fit(logit[:, None], labels)
    mine = platt(scores, labels)
    assert mine.slope == pytest.approx(float(theirs.coef_[0, 0]), rel=1e-5)
    assert mine.intercept == pytest.approx(float(theirs.intercept_[0]), rel=1e-5)
    apart = platt(scores, (scores > 0.5).astype(np.float64))
    assert np.isfinite(apart(scores)).all()


# -- metrics ----------------------------------------------------------------------------------------------------------


def theirs_of(labels: Floats, scores: Floats, weights: Floats | None = None) -> dict[Metric, float]:
    """The metrics of scikit-learn at a threshold of 0.3."""
    said = (scores >= 0.3).astype(np.float64)
    known = {"sample_weight": weights}
    return {
        "accuracy": float(metrics.accuracy_score(labels, said, **known)),
        "precision": float(metrics.precision_score(labels, said, **known)),
        "recall": float(metrics.recall_score(labels, said, **known)),
        "f1": float(metrics.f1_score(labels, said, **known)),
        "roc_auc": float(metrics.roc_auc_score(labels, scores, **known)),
        "brier": float(metrics.brier_score_loss(labels, scores, **known)),
        "log_loss": float(metrics.log_loss(labels, scores, **known)),
    }


def test_realised_metrics_are_scikit_learns() -> None:
    """All seven, on scores with ties."""
    rng = np.random.default_rng(3)
    scores = np.round(rng.beta(1, 3, 2_000), 2).clip(0.01, 0.99)
    labels = (rng.uniform(size=2_000) < scores).astype(np.float64)
    mine, theirs = realised(scores, labels, 0.3), theirs_of(labels, scores)
    assert set(mine) == set(METRICS)
    for name, value in theirs.items():
        assert mine[name] == pytest.approx(value, abs=1e-9), name


def test_estimates_are_the_expected_confusion_matrix() -> None:
    """Each row as a positive with weight c and a negative with 1 - c: scikit-learn's weighted metrics, the AUC to half
    a cell. That is NannyML's definition of CBPE for all but Brier and log loss, which it does not have."""
    rng = np.random.default_rng(4)
    scores = rng.beta(1, 3, 5_000)
    scale = Scale(
        np.quantile(scores, PERCENTILES), 0.3, platt(scores, (rng.uniform(size=5_000) < scores**1.5) * 1.0)
    )
    chance = np.clip(scale.calibration(scores), 0, 1)
    mine = scale.estimates(scale.tally(scores))
    theirs = theirs_of(np.repeat([1.0, 0.0], 5_000), np.tile(scores, 2), np.concatenate([chance, 1 - chance]))
    for name, value in theirs.items():
        assert mine[name][0] == pytest.approx(value, abs=AUC_ERROR if name == "roc_auc" else 1e-6), name


def test_variances_are_those_of_drawn_labels() -> None:
    """Mean and standard deviation over 3,000 draws of the labels of 500 rows, for every metric."""
    rng = np.random.default_rng(5)
    scores = rng.beta(1, 2, 500)
    scale = Scale(np.quantile(scores, PERCENTILES), 0.3, Identity())
    estimates = scale.estimates(scale.tally(scores))
    drawn: dict[Metric, list[float]] = {name: [] for name in METRICS}
    for _ in range(3_000):
        for name, value in realised(scores, (rng.uniform(size=500) < scores).astype(np.float64), 0.3).items():
            drawn[name].append(value)
    for name, (estimate, variance) in estimates.items():
        sd = float(np.std(drawn[name]))
        # Ratios are expected at their linear part: a tenth of a standard deviation is what the curvature may cost.
        assert estimate == pytest.approx(np.mean(drawn[name]), abs=0.1 * sd), name
        assert np.sqrt(variance) == pytest.approx(sd, rel=0.06), name


# -- cbpe -------------------------------------------------------------------------------------------------------------


def overconfident(rng: np.random.Generator, n: int, noise: float = 1.0) -> tuple[Floats, Floats]:
    """Scores whose logits are twice too large, and labels; ``noise`` below 1: harder cases, nearer to a half."""
    logit = rng.normal(-1, 1.5, n) * noise
    return expit(2 * logit), (rng.uniform(size=n) < expit(logit)).astype(np.float64)


def cbpe(reference: Reference | None = None, **options: Any) -> Detector:
    if reference is None:
        scores, labels = overconfident(np.random.default_rng(6), 2_000)
        reference = Reference(
            score=quantiles_of(scores),
            sample_score=tuple(scores.tolist()),
            sample_label=tuple(labels.tolist()),
        )
    return CbpeSpec(**options).build(Context(("score",), reference=reference))


@pytest.mark.parametrize("calibration", ["isotonic", "platt"])
def test_calibrated_estimates_follow_the_truth_where_the_scores_do_not(calibration: str) -> None:
    """On harder cases and an over-confident model: within three hundredths, and at most half as far off as scores taken
    at their word."""
    scores, labels = overconfident(np.random.default_rng(7), 20_000, noise=0.4)
    truth = realised(scores, labels, 0.5)
    errors: dict[str, dict[str, float]] = {}
    for how in (calibration, "none"):
        detector = cbpe(calibration=how)
        detector.update(Rows.of(scores, np.zeros(20_000, np.int64)))
        detector.advance(DAY_MS)
        assert isinstance(detector, Cbpe)
        errors[how] = {name: abs(detector.estimates[name][0] - truth[name]) for name in METRICS}
    for name in ("accuracy", "brier", "log_loss", "roc_auc"):
        assert errors[calibration][name] < 0.03, name
        assert errors[calibration][name] < 0.5 * errors["none"][name], name


def test_drift_is_an_interval_wholly_beyond_the_tolerance() -> None:
    """The same distribution is stable; harder cases are drift with 5,000 rows and a warning with a hundred."""
    rng = np.random.default_rng(8)
    for noise, rows, state in (
        (1.0, 1_000, State.STABLE),
        (0.3, 5_000, State.DRIFT),
        (0.3, 100, State.WARNING),
    ):
        detector = cbpe(metric="roc_auc")
        detector.update(Rows.of(overconfident(rng, rows, noise)[0], np.zeros(rows, np.int64)))
        detector.advance(DAY_MS)
        verdict = detector.verdict
        assert verdict.state is state
        interval = verdict.evidence.interval
        assert interval is not None
        beyond = interval[1] < -verdict.threshold or interval[0] > verdict.threshold
        assert beyond == (state is State.DRIFT) == (verdict.score >= verdict.threshold)


def test_the_intervals_cover() -> None:
    """Where labels do follow the scores, the realised accuracy of 400 blocks lies within three standard errors of its
    estimate in all but a few."""
    rng = np.random.default_rng(9)
    reference = Reference(score=quantiles_of(rng.uniform(size=5_000)))
    detector = cbpe(reference, metric="accuracy")
    assert isinstance(detector, Cbpe)
    missed = 0
    for day in range(400):
        scores = rng.uniform(size=200)
        truth = realised(scores, (rng.uniform(size=200) < scores).astype(np.float64), 0.5)
        detector.update(Rows.of(scores, np.full(200, day * DAY_MS)))
        detector.advance((day + 1) * DAY_MS)
        estimate, variance = detector.estimates["accuracy"]
        missed += abs(estimate - truth["accuracy"]) > 3 * np.sqrt(variance)
    assert missed <= 6  # 1.1 expected


def test_the_reference_s_own_blocks_widen_the_tolerance() -> None:
    """A reference whose days differ in their scores by themselves allows as much later on."""
    rng = np.random.default_rng(10)
    scores = np.concatenate([rng.beta(1, 1 + day % 5, 400) for day in range(30)])
    column = quantiles_of(scores)
    bins = tuple(tuple(Binning(column).counts(day).tolist()) for day in np.split(scores, 30))
    quiet = cbpe(Reference(score=column), metric="brier").verdict.threshold
    lively = cbpe(Reference(score=column, bins={"score": bins}), metric="brier").verdict.threshold
    by_day = [float((day * (1 - day)).mean()) for day in np.split(scores, 30)]
    assert quiet == 0.02
    assert lively == pytest.approx(2 * float(np.std(by_day, ddof=1)), rel=0.1)


# -- dle --------------------------------------------------------------------------------------------------------------


def test_boosted_tables_learn_as_well_as_scikit_learns_trees() -> None:
    """Depth two, the same rate and number of trees, on the same bins: R^2 within two hundredths; look-ups are exact."""
    rng = np.random.default_rng(11)
    codes = rng.integers(0, 11, (4_000, 8))
    truth = np.sin(codes[:, 0] / 3) + (codes[:, 1] > 5) * (codes[:, 2] > 3)
    target = truth + rng.normal(size=4_000)
    held_out = np.arange(4_000) % 2 == 1
    mine = fit(codes, target, (11,) * 8, held_out)
    theirs = GradientBoostingRegressor(
        max_depth=2, n_estimators=mine.trees, learning_rate=0.1, min_samples_leaf=15
    )
    theirs.fit(codes[~held_out], target[~held_out])
    fresh = rng.integers(0, 11, (4_000, 8))
    wanted = np.sin(fresh[:, 0] / 3) + (fresh[:, 1] > 5) * (fresh[:, 2] > 3)
    r2 = [metrics.r2_score(wanted, guess) for guess in (mine(fresh), theirs.predict(fresh))]
    assert r2[0] > r2[1] - 0.02
    one_by_one = np.concatenate([mine.fixed(row[None, :]) for row in fresh[:50]])
    assert np.array_equal(one_by_one, mine.fixed(fresh[:50]))
    assert np.allclose(mine(fresh) * FIXED_POINT, mine.fixed(fresh))


def world(rng: np.random.Generator, n: int, shift: float) -> tuple[Floats, Floats, Floats]:
    """Inputs ``(n, 3)``, answers and labels of a model that does not know that ``a`` counts for half the rows only."""
    x = rng.normal(size=(n, 3))
    x[:, 0] += shift
    truth = np.where(x[:, 1] > 0, expit(2 * x[:, 0] - 1), 0.1)
    return x, expit(1.5 * x[:, 0] - 1), (rng.uniform(size=n) < truth).astype(np.float64)


def dle(loss: str, task: str, seed: int = 12) -> Detector:
    rng = np.random.default_rng(seed)
    x, answers, labels = made(task, rng, 2_000, 0.0)
    reference = Reference(
        columns={name: quantiles_of(x[:, at]) for at, name in enumerate("abc")},
        score=quantiles_of(answers),
        sample=tuple(tuple(row) for row in x.tolist()),
        sample_score=tuple(answers.tolist()),
        sample_label=tuple(labels.tolist()),
    )
    columns = ("score", "latency_ms", "error", "a", "b", "c")
    return DleSpec.model_validate({"loss": loss}).build(
        Context(columns, (0,) * 6, "predictions", reference, seed=3)
    )


def made(task: str, rng: np.random.Generator, n: int, shift: float) -> tuple[Floats, Floats, Floats]:
    """``world``, or a regression whose errors grow with ``a``, in thousands."""
    if task == "binary":
        return world(rng, n, shift)
    x = rng.normal(size=(n, 3))
    x[:, 0] += shift
    answers = 1_000 * x[:, 1]
    return x, answers, answers + 100 * np.exp(x[:, 0] / 2) * rng.normal(size=n)


@pytest.mark.parametrize(
    ("loss", "task"), [("brier", "binary"), ("squared", "regression"), ("absolute", "regression")]
)
def test_the_estimated_loss_follows_the_true_one_under_covariate_shift(loss: str, task: str) -> None:
    """Over shifts of one input from -1 to 1 standard deviations: less than 0.4 of the error of assuming the reference's loss,
    nearly perfect order; and the far ends are drift while no shift is stable."""
    rng = np.random.default_rng(13)
    detector = dle(loss, task)
    rows: list[tuple[float, float, float]] = []
    states = []
    shifts = np.linspace(-1, 1, 9)
    for day, shift in enumerate(shifts.tolist()):
        x, answers, labels = made(task, rng, 3_000, shift)
        values = np.column_stack([answers, np.ones(3_000), np.zeros(3_000), x])
        detector.update(Rows.of(values, np.full(3_000, day * DAY_MS)))
        detector.advance((day + 1) * DAY_MS)
        losses = np.abs(answers - labels) if loss == "absolute" else (answers - labels) ** 2
        evidence = detector.verdict.evidence
        assert evidence.current is not None
        assert evidence.reference is not None
        rows.append((evidence.current, evidence.reference, float(losses.mean())))
        states.append(detector.verdict.state)
    estimated, assumed, true = np.array(rows).T
    assert np.abs(estimated - true).mean() < 0.4 * np.abs(assumed - true).mean()
    assert np.corrcoef(estimated, true)[0, 1] > 0.95
    assert states[4] is State.STABLE
    assert State.DRIFT in (states[0], states[-1])


def test_estimates_of_blocks_like_the_reference_stay_within_their_interval() -> None:
    """Over 200 days without shift, with ten references, no drift; the true loss is in the interval nearly
    always, and the estimate is right on average."""
    drifts = missed = 0
    ratios = []
    for seed in range(10):
        rng = np.random.default_rng(100 + seed)
        detector = dle("brier", "binary", seed)
        for day in range(20):
            x, answers, labels = world(rng, 3_000, 0.0)
            values = np.column_stack([answers, np.ones(3_000), np.zeros(3_000), x])
            detector.update(Rows.of(values, np.full(3_000, day * DAY_MS)))
            detector.advance((day + 1) * DAY_MS)
            evidence = detector.verdict.evidence
            assert evidence.interval is not None
            assert evidence.reference is not None
            assert evidence.current is not None
            true = float(((answers - labels) ** 2).mean())
            drifts += detector.verdict.state is State.DRIFT
            missed += not evidence.interval[0] <= true - evidence.reference <= evidence.interval[1]
            ratios.append(evidence.current / true)
    assert drifts == 0
    assert missed <= 4
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)


def test_failed_answers_and_a_sample_without_labels() -> None:
    """Errors are not counted as answers; without labels nothing is learned, and it says so."""
    detector = dle("brier", "binary")
    x, answers, _ = world(np.random.default_rng(14), 300, 0.0)
    failed = (np.arange(300) < 250).astype(np.float64)
    detector.update(Rows.of(np.column_stack([answers, np.ones(300), failed, x]), np.zeros(300, np.int64)))
    assert detector.advance(DAY_MS) == []
    unlabelled = Reference(score=quantiles_of(answers), sample_score=tuple(answers.tolist()))
    context = Context(("score", "latency_ms", "error", "a"), (0,) * 4, "predictions", unlabelled)
    assert "labelled" in DleSpec().build(context).verdict.evidence.note
