"""Detectors of many columns: each statistic is its textbook's, joint changes and embeddings are seen, chance is not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA

from detectors.base import Context, Detector, Rows
from detectors.joint_shift.classifier import ClassifierSpec
from detectors.joint_shift.encode import UNIT, Encoder, Projection, weights
from detectors.joint_shift.mmd import MmdSpec, RandomFeatures
from detectors.joint_shift.moving import group_variance, tail_point
from detectors.joint_shift.pca import PcaSpec, Reconstruction
from detectors.registry import spec_class
from schemas.contracts import ColumnReference, FalsePages, Reference
from schemas.errors import SnapshotError
from schemas.verdicts import State, Verdict

Floats = NDArray[np.float64]
KINDS = ("mmd", "pca-reconstruction", "classifier-two-sample")


def context_of(sample: Floats, **more: Any) -> Context:
    names = tuple(f"c{at}" for at in range(sample.shape[1]))
    reference = Reference(
        columns={name: ColumnReference(rows=len(sample)) for name in names},
        sample=tuple(tuple(None if np.isnan(v) else v for v in row) for row in sample.tolist()),
        **more,
    )
    return Context(names, (0,) * len(names), "features", reference, seed=3)


def built(kind: str, sample: Floats, **options: Any) -> Detector:
    return spec_class(kind).model_validate(options).build(context_of(sample))


def drifts(detector: Detector, values: Floats) -> list[tuple[int, Verdict]]:
    """(row, verdict) of each change to drift."""
    changes = detector.update(Rows.of(values, np.arange(len(values))))
    return [(c.index, c.verdict) for c in changes if c.verdict.state is State.DRIFT]


def share_in_drift(detector: Detector, values: Floats) -> float:
    """Share of rows at which it says drift."""
    changes = detector.update(Rows.of(values, np.arange(len(values))))
    ends = [c.index for c in changes[1:]] + [len(values)]
    spans = zip(changes, ends, strict=True)
    return sum(end - c.index for c, end in spans if c.verdict.state is State.DRIFT) / len(values)


def embeddings(rng: np.random.Generator, plane: Floats, rows: int) -> Floats:
    """Rows of few directions and noise in all columns, as embeddings are."""
    return np.asarray(
        rng.normal(size=(rows, len(plane))) @ plane / np.sqrt(len(plane))
        + rng.normal(size=(rows, plane.shape[1])) / 2
    )


# -- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_random_features_give_the_mmd_of_the_quadratic_formula(shift: float) -> None:
    """Within 0.01 of the exact squared MMD with the same kernel, at 2,048 frequencies (one over their root is 0.022)."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(400, 5)), rng.normal(size=(300, 5)) + shift
    features = MmdSpec(features=4_096).fit(context_of(x), x)
    assert isinstance(features, RandomFeatures)
    encoder = Encoder(x, (0,) * 5, ranks=True)
    a, b = encoder(x) / UNIT, encoder(y) / UNIT

    def kernel(p: Floats, q: Floats) -> float:
        return float(np.exp(-cdist(p, q, "sqeuclidean") / (2 * features.sigma**2)).mean())

    exact = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    mean_x, mean_y = (features(part, 0)[0].mean(axis=0) / features.unit for part in (x, y))
    assert float(((mean_x - mean_y) ** 2).sum()) == pytest.approx(exact, abs=0.01)
    assert features.sigma == pytest.approx(float(np.median(pdist(a))), rel=0.02)


def test_the_detector_holds_the_moving_mean_of_that_embedding() -> None:
    """Cells taken one by one by the definition of an exponential mean give the score the detector says, to 1e-9."""
    rng = np.random.default_rng(6)
    sample, stream = rng.normal(size=(500, 3)), rng.normal(size=(320, 3)) + 0.4
    spec = MmdSpec(memories=(4,), cell_rows=32, features=64)
    detector = spec.build(context_of(sample))
    changes = detector.update(Rows.of(stream, np.arange(320)))
    features = spec.fit(context_of(sample), sample)
    reference = features.reference().mean(axis=0) / features.unit
    moved = np.zeros(64)
    for at in range(10):
        cell = features(stream[at * 32 : at * 32 + 32], 0)[0].mean(axis=0) / features.unit - reference
        moved = 0.75 * moved + 0.25 * cell
    assert changes
    assert detector.verdict.evidence.effect == pytest.approx(float(np.sqrt((moved**2).sum())), rel=1e-9)


@pytest.mark.parametrize(("variance", "columns"), [(0.5, 4), (0.9, 12)])
def test_reconstruction_errors_are_those_of_sklearn(variance: float, columns: int) -> None:
    """The same components and, to 0.1 %, the same squared error of every row."""
    rng = np.random.default_rng(7)
    sample = rng.normal(size=(600, columns)) @ rng.normal(size=(columns, columns))
    rows = rng.normal(size=(200, columns)) @ rng.normal(size=(columns, columns))
    found = PcaSpec(variance=variance).fit(context_of(sample), sample)
    assert isinstance(found, Reconstruction)
    fitted = sample[::2]
    mean, sd = fitted.mean(axis=0), fitted.std(axis=0)
    pca = PCA(n_components=variance, svd_solver="full").fit((fitted - mean) / sd)
    z = (rows - mean) / sd
    assert np.abs(z).max() < 16
    expected = ((z - pca.inverse_transform(pca.transform(z))) ** 2).sum(axis=1)
    assert found.components.shape[1] == pca.n_components_
    errors, _ = found.errors(rows)
    assert errors / UNIT**2 == pytest.approx(expected, rel=1e-3, abs=1e-3)
    explained = found(rows, 0)[1]
    assert explained[:, 2:].sum(axis=1) / UNIT**2 == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("tail", [1e-2, 1e-4, 1e-7])
@pytest.mark.parametrize("freedom", [1, 5, 60])
def test_the_tail_of_equal_shares_is_chi_squared(freedom: int, tail: float) -> None:
    """On the side of fewer alarms of scipy's quantile, by 4 % at most (one direction, where it matters least: 12 %)."""
    exact = float(stats.chi2.isf(tail, freedom))
    assert 0.999 * exact < tail_point(np.ones(freedom), float(np.log(tail)))
    assert tail_point(np.ones(freedom), float(np.log(tail))) < (1.12 if freedom == 1 else 1.04) * exact


def test_the_tail_of_unequal_shares_is_that_of_draws() -> None:
    """Of 100,000 draws no more than one in a thousand lies beyond it, and not many fewer."""
    shares = 0.7 ** np.arange(20)
    draws = (np.random.default_rng(8).chisquare(1, (100_000, 20)) * shares).sum(axis=1)
    beyond = float((draws > tail_point(shares, float(np.log(1e-3)))).mean())
    assert 0.6e-3 < beyond < 1.1e-3
    assert tail_point(np.zeros(3), -5.0) == 0.0


def test_an_e_detector_of_the_classifier_grows_no_faster_than_cells() -> None:
    """The mean evidence of 60 streams from the reference's own law, without a zone, is at most one a cell."""
    rng = np.random.default_rng(9)
    grown = []
    for _ in range(60):
        sample = rng.normal(size=(400, 3))
        detector = built("classifier-two-sample", sample, cell_rows=20, effect_min=0.0)
        detector.update(Rows.of(rng.normal(size=(200, 3)), np.arange(200)))
        grown.append(float(np.exp(detector.verdict.score)))
    # A score is the logarithm of at least 1; the standard error is that of these streams.
    assert np.mean(grown) <= 10 + 3 * np.std(grown) / np.sqrt(len(grown))


# -- chance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rows_like_the_reference_raise_as_few_alarms_as_promised(kind: str) -> None:
    """Over 12 references and 6,000 new rows each, at one alarm in 2,000 rows: 36 are promised; the Poisson mean's 99.9 %."""
    rng = np.random.default_rng(10)
    mix = rng.normal(size=(6, 6))
    alarms = 0
    for _ in range(12):
        detector = built(kind, rng.standard_t(5, size=(1_000, 6)) @ mix, expected_run_rows=2_000)
        alarms += len(drifts(detector, rng.standard_t(5, size=(6_000, 6)) @ mix))
    assert alarms <= stats.poisson.ppf(0.999, 36)


def test_a_bound_that_is_too_low_is_noticed() -> None:
    """The same streams at half of the bound alarm more often than promised, so the test above can fail."""
    rng = np.random.default_rng(10)
    alarms = 0
    for _ in range(12):
        detector = built("mmd", rng.normal(size=(1_000, 6)), expected_run_rows=2_000, threshold=0.5)
        alarms += len(drifts(detector, rng.normal(size=(6_000, 6))))
    assert alarms > stats.poisson.ppf(0.999, 36)


def test_weather_that_the_reference_shows_is_no_drift() -> None:
    """Neighbours of the sample are alike: the bounds grow by as much, and the same stream alarms without that."""
    rng = np.random.default_rng(11)

    def weather(rows: int, step: int) -> Floats:
        days = np.repeat(rng.normal(size=(rows * step // 400 + 1, 3)), 400, axis=0)[: rows * step]
        return np.asarray(days[::step] + rng.normal(size=(rows, 3)))

    sample = weather(2_000, 20)
    stream = weather(12_000, 1)
    spec = MmdSpec(expected_run_rows=10_000)
    in_order = spec.build(context_of(sample, rows=40_000))
    mixed = spec.build(context_of(rng.permutation(sample), rows=40_000))
    assert share_in_drift(in_order, stream) < 0.02
    assert share_in_drift(mixed, stream) > 0.9
    assert (group_variance(rng.normal(size=(2_000, 5)), np.ones(5), 8) == 0).all()


@pytest.mark.parametrize("kind", ["pca-reconstruction", "classifier-two-sample"])
def test_what_lies_within_the_zone_never_drifts(kind: str) -> None:
    """A shift of a tenth of a standard deviation, for thirty thousand rows."""
    rng = np.random.default_rng(12)
    detector = built(kind, rng.normal(size=(2_000, 4)))
    assert not drifts(detector, rng.normal(size=(30_000, 4)) + [0.1, 0, 0, 0])


def test_the_budget_is_turned_into_rows_by_the_references_traffic() -> None:
    """Thirty days at 1,000 rows a day; without a budget, and without times, it is not known."""
    sample = np.random.default_rng(0).normal(size=(100, 2))
    timed = context_of(sample, rows=10_000, from_ms=0, to_ms=10 * 86_400_000)
    budget = FalsePages(max=1, per=30 * 86_400_000)
    with_budget = Context(timed.columns, timed.categories, "features", timed.reference, false_pages=budget)
    assert with_budget.budget_rows == pytest.approx(30_000)
    assert timed.budget_rows is None
    timeless = context_of(sample, rows=10_000).reference
    assert (
        Context(timed.columns, timed.categories, "features", timeless, false_pages=budget).budget_rows is None
    )


# -- change -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most"), [("mmd", 700), ("classifier-two-sample", 500)])
def test_a_change_of_dependence_alone_is_seen(kind: str, most: int) -> None:
    """Two of four columns become correlated by 0.8; no column changes by itself, as Kolmogorov and Smirnov agree."""
    rng = np.random.default_rng(13)
    sample, stream = rng.normal(size=(2_000, 4)), rng.normal(size=(4_000, 4))
    stream[2_000:, 1] = 0.8 * stream[2_000:, 2] + 0.6 * stream[2_000:, 1]
    for at in range(4):
        assert stats.ks_2samp(sample[:, at], stream[2_000:, at]).pvalue > 0.01
    found = drifts(built(kind, sample), stream)
    assert found
    assert 2_000 < found[0][0] < 2_000 + most
    if kind == "classifier-two-sample":
        assert found[0][1].evidence.note == "largest weight: c1 with c2"


def test_a_broken_dependence_is_seen_by_reconstruction() -> None:
    """Three columns follow one cause; then one of them does not, and is named."""
    rng = np.random.default_rng(14)

    def rows(n: int) -> Floats:
        return np.asarray(rng.normal(size=(n, 1)) + rng.normal(size=(n, 3)) / 3)

    stream = rows(3_000)
    stream[1_500:, 2] = rng.permutation(stream[1_500:, 2])
    row, verdict = drifts(built("pca-reconstruction", rows(1_500)), stream)[0]
    assert 1_500 < row < 1_700
    assert verdict.evidence.column == "c2"
    assert verdict.evidence.current is not None and verdict.evidence.current > 0.55


@pytest.mark.parametrize("kind", ["mmd", "classifier-two-sample"])
def test_the_column_that_moved_is_named(kind: str) -> None:
    """One of ten columns moves by a standard deviation, and comes back: the drift ends."""
    rng = np.random.default_rng(15)
    stream = rng.normal(size=(8_000, 10))
    stream[2_000:3_000, 7] += 1.0
    detector = built(kind, rng.normal(size=(1_000, 10)))
    [(row, verdict)] = drifts(detector, stream)
    assert 2_000 < row < 2_500
    assert verdict.evidence.column == "c7"
    assert detector.verdict.state is State.STABLE


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_of_embeddings_is_found(kind: str) -> None:
    """768 columns, a reference of 130 rows, every column moved by up to half of its spread: within 500 rows."""
    rng = np.random.default_rng(16)
    plane = rng.normal(size=(20, 768))
    stream = embeddings(rng, plane, 3_000)
    stream[2_000:] += 0.4 * rng.normal(size=768)
    [(row, verdict)] = drifts(built(kind, embeddings(rng, plane, 130)), stream)
    assert 2_000 < row < 2_500
    assert verdict.evidence.note


# -- whole numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [15, 300])
def test_wide_rows_may_be_cut_anywhere(kind: str, columns: int) -> None:
    """More columns than are ranked, paired or left unprojected: the same changes and bytes for any cuts and a restart."""
    rng = np.random.default_rng(17)
    sample, stream = rng.normal(size=(200, columns)), rng.normal(size=(400, columns))
    stream[200:] *= 1.5
    stream[rng.uniform(size=stream.shape) < 0.01] = np.nan
    rows = Rows.of(stream, np.arange(400))
    whole = built(kind, sample, cell_rows=16, expected_run_rows=1_000)
    expected = [(c.index, c.verdict) for c in whole.update(rows)]
    cut = built(kind, sample, cell_rows=16, expected_run_rows=1_000)
    heard = []
    for low, high in pairwise([0, 1, 50, 199, 400]):
        spec = spec_class(kind).model_validate({"cell_rows": 16, "expected_run_rows": 1_000})
        cut = spec.restore(context_of(sample), cut.snapshot())
        heard += [(c.index + low, c.verdict) for c in cut.update(rows.take(slice(low, high)))]
    assert heard == expected
    assert len(expected) > 1
    assert cut.snapshot() == whole.snapshot()


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_of_other_columns_is_refused(kind: str) -> None:
    """Three columns are not two."""
    rng = np.random.default_rng(18)
    snapshot = built(kind, rng.normal(size=(100, 3))).snapshot()
    with pytest.raises(SnapshotError):
        spec_class(kind)().restore(context_of(rng.normal(size=(100, 2))), snapshot)


def test_products_of_encoded_rows_are_exact() -> None:
    """1,536 columns at their limits times rounded weights: BLAS gives what Python's integers give."""
    rng = np.random.default_rng(19)
    sample = rng.normal(size=(60, 1_536))
    encoded = Encoder(sample, (0,) * 1_536, ranks=True)(1e6 * rng.normal(size=(3, 1_536)))
    rounded = weights(3.0 * rng.normal(size=(1_536, 2)))
    exact = [
        [sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) for column in rounded.T]
        for row in encoded
    ]
    assert (encoded @ rounded).astype(np.int64).tolist() == exact
    projected = Projection(1_536, 8, np.random.default_rng(1))(encoded)
    assert (projected == np.rint(projected)).all()


def test_encoded_columns_stand_for_what_they_were() -> None:
    """Ranks are normal scores; a constant is 0 until it changes; a category is one column; unknown values are 0."""
    rng = np.random.default_rng(20)
    sample = np.column_stack(
        [rng.lognormal(size=500), np.full(500, 3.0), rng.integers(0, 3, 500), np.full(500, np.nan)]
    )
    encoder = Encoder(sample, (0, 0, 4, 0), ranks=True)
    found = encoder(np.array([[1.0, 3.0, 1, 7.0], [np.inf, 4.0, 9e99, np.nan], [1e308, -1e308, -1, 0.0]]))
    assert encoder.source.tolist() == [0, 1, 3, 2, 2, 2, 2]
    assert found[0, 0] / UNIT == pytest.approx(0.0, abs=0.1)
    assert found[1, 0] == 0.0
    assert found[2, 0] / UNIT == pytest.approx(2.58, abs=0.01)
    assert found[0, 1] == 0.0
    assert found[1, 1] > 2 * UNIT
    assert found[2, 1] < -2 * UNIT
    assert found[:, 2].tolist() == [0.0, 0.0, 0.0]
    assert (found[:, 3:] / UNIT).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_nulls_are_the_mean_and_are_counted() -> None:
    """Every second value of one of two columns is null: a quarter of all values, and the verdict's note says it."""
    rng = np.random.default_rng(21)
    stream = rng.normal(size=(640, 2))
    stream[::2, 1] = np.nan
    detector = built("pca-reconstruction", rng.normal(size=(400, 2)))
    detector.update(Rows.of(stream, np.arange(640)))
    assert "25.0 % of the values null" in detector.verdict.evidence.note


def test_what_was_taken_back_was_never_read() -> None:
    """Rows of sign -1 change nothing, whatever is in them."""
    rng = np.random.default_rng(22)
    sample, stream = rng.normal(size=(300, 3)), rng.normal(size=(600, 3))
    sign = np.where(np.arange(600) % 3 == 0, -1, 1).astype(np.int8)
    for kind in KINDS:
        signed, kept = built(kind, sample), built(kind, sample)
        signed.update(Rows.of(stream, np.arange(600), sign=sign))
        kept.update(Rows.of(stream[sign > 0], np.arange(600)[sign > 0]))
        assert signed.snapshot() == kept.snapshot()


def test_no_sample_is_no_verdict() -> None:
    """A reference without whole rows, or too few of them: inconclusive, and the note names what is missing."""
    rng = np.random.default_rng(23)
    for kind in KINDS:
        detector = built(kind, rng.normal(size=(20, 3)))
        assert drifts(detector, rng.normal(size=(500, 3)) + 5) == []
        assert detector.verdict.state is State.INCONCLUSIVE
        assert "sample of rows" in detector.verdict.evidence.note


def test_defaults_are_the_documented_ones() -> None:
    """None of them pages unless fitted and checked, and each can be fitted by its threshold."""
    for spec in (MmdSpec(), PcaSpec(), ClassifierSpec()):
        standing = spec.standing(context_of(np.zeros((60, 2))))
        assert not standing.pages
        assert standing.note
        assert spec.knob == "threshold"
