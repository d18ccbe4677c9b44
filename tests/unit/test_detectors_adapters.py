"""The adapters: alarms at the same rows as the library's own loop, states that survive a restart, errors that name things."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.adapters import alibi, extras
from detectors.adapters.alibi import FetMachine, OnlineMachine, seeded
from detectors.base import Context, Detector, Rows, Stream
from detectors.outliers.outlier_rate import OutlierRate
from detectors.registry import spec_class, spec_for
from detectors.transform import mid_rank
from schemas.contracts import ColumnReference, DetectorConfig, Reference
from schemas.errors import ConfigurationError, SnapshotError
from schemas.verdicts import State

Floats = NDArray[np.float64]
pytestmark = [
    # The libraries behind the adapters warn of their own affairs while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
needs_alibi = pytest.mark.skipif(find_spec("alibi_detect") is None, reason="needs alibi-detect")
EAGER: dict[str, Any] = {"warm_up_rows": 0, "hold_rows": 1}
GRID = tuple(float(q) for q in np.linspace(-3, 3, 101))
REFERENCE = Reference(
    columns={
        "a": ColumnReference(rows=950, missing=0.05, quantiles=GRID, mean=0.0),
        "b": ColumnReference(rows=1_000, quantiles=GRID, mean=0.0),
    },
    score=ColumnReference(rows=1_000, quantiles=tuple(float(q) for q in np.linspace(0, 1, 101))),
    sample_score=(0.2, 0.8) * 200,
    sample_label=((0.0, 1.0) * 9 + (1.0, 0.0)) * 20,
)


def built(
    kind: str,
    stream: Stream = "score",
    columns: tuple[str, ...] = ("score",),
    reference: Reference | None = None,
    seed: int = 3,
    **options: Any,
) -> Detector:
    if stream == "loss":
        columns = ("score", "label", "loss")
    context = Context(columns, (0,) * len(columns), stream, reference, seed=seed)
    return spec_class(kind).model_validate(options).build(context)


def rows_of(values: Floats) -> Rows:
    return Rows.of(values, np.arange(len(values), dtype=np.int64))


def outcomes(wrong: Floats) -> Floats:
    """Rows of the loss stream whose decisions are wrong where ``wrong`` is 1: a score of 0.2, the label tells."""
    return np.column_stack([np.full(len(wrong), 0.2), wrong, wrong])


def drifts(detector: Detector, rows: Rows) -> list[int]:
    return [c.index for c in detector.update(rows) if c.verdict.state is State.DRIFT]


def river_alarms(made: Any, values: Floats) -> list[int]:
    """river's own loop."""
    found = []
    for at, value in enumerate(values.tolist()):
        made.update(value)
        if made.drift_detected:
            found.append(at)
    return found


def moving(seed: int, n: int = 4_000) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n) + np.repeat(rng.normal(0, 2, 8), n // 8)


def errors(seed: int, n: int = 4_000) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.uniform(size=n) < np.repeat(rng.uniform(0, 1, 8) ** 2, n // 8)).astype(np.float64)


# -- river ------------------------------------------------------------------------------------------------------------

NUMERIC = [
    ("adwin", "ADWIN", {"delta": 0.002}),
    ("adwin", "ADWIN", {"delta": 0.2, "clock": 3, "max_buckets": 3, "min_window_length": 2}),
    ("page-hinkley", "PageHinkley", {"threshold": 50.0}),
    ("page-hinkley", "PageHinkley", {"threshold": 20.0, "mode": "up", "alpha": 0.99}),
    ("page-hinkley", "PageHinkley", {"threshold": 20.0, "mode": "down"}),
    ("kswin", "KSWIN", {"alpha": 0.001, "window_size": 100, "stat_size": 30}),
]
ERRORS = [
    ("ddm", "DDM", {}),
    ("ddm", "DDM", {"warm_start": 100, "drift_threshold": 2.5}),
    ("eddm", "EDDM", {}),
    ("hddm-a", "HDDM_A", {}),
    ("hddm-a", "HDDM_A", {"two_sided_test": True, "drift_confidence": 0.01, "warning_confidence": 0.02}),
    ("hddm-w", "HDDM_W", {}),
    ("hddm-w", "HDDM_W", {"two_sided_test": True, "lambda_val": 0.01}),
]


@pytest.mark.parametrize(("kind", "name", "params"), NUMERIC)
def test_columns_alarm_where_river_does(kind: str, name: str, params: dict[str, Any]) -> None:
    """Our machines and river's classes alarm at the same values, also where values tie or lie far apart."""
    kinds = vars(importlib.import_module("river.drift"))
    seeded_too: dict[str, Any] = {"seed": 3} if kind == "kswin" else {}
    total = 0
    for seed in range(1 if kind == "kswin" else 3):
        x = moving(seed)[: 1_500 if kind == "kswin" else None]
        scaled = x * 10 ** np.random.default_rng(seed).uniform(-4, 4, len(x))
        for values in (x, np.round(x), scaled)[: 2 if kind == "kswin" else 3]:
            expected = river_alarms(kinds[name](**params, **seeded_too), values)
            plain: dict[str, Any] = {} if kind == "kswin" else {"ranks": False}
            assert drifts(built(kind, **EAGER, **plain, **params), rows_of(values)) == expected
            total += len(expected)
    assert total > 2


@pytest.mark.parametrize(("kind", "name", "params"), ERRORS)
def test_errors_alarm_where_river_does(kind: str, name: str, params: dict[str, Any]) -> None:
    """The detectors of errors alarm and warn at the same rows of the loss stream as river's loop over the errors."""
    kinds = vars(importlib.import_module("river.drift.binary"))
    total = 0
    for seed in range(3):
        wrong = errors(seed)
        expected = river_alarms(kinds[name](**params), wrong)
        rows = rows_of(outcomes(wrong))
        assert drifts(built(kind, "loss", **EAGER, **params), rows) == expected
        generic = built("river-drift", "loss", name=name, params=params, **EAGER)
        assert drifts(generic, rows) == expected
        total += len(expected)
    assert total > 3


def test_warnings_are_river_s() -> None:
    """A detector of errors warns at the rows where river's does."""
    made = vars(importlib.import_module("river.drift.binary"))["DDM"]()
    wrong = errors(11, 2_000)
    warned = []
    for value in wrong.tolist():
        made.update(value)
        warned.append(made.warning_detected and not made.drift_detected)
        if made.drift_detected:
            break
    changes = built("ddm", "loss", **EAGER).update(rows_of(outcomes(wrong[: len(warned)])))
    states = {change.index: change.verdict.state for change in changes}
    state, seen = State.INCONCLUSIVE, []
    for at in range(len(warned)):
        state = states.get(at, state)
        seen.append(state is State.WARNING)
    assert any(warned)
    assert seen == warned


@pytest.mark.parametrize("name", ["ADWIN", "KSWIN", "PageHinkley"])
def test_any_of_river_by_name(name: str) -> None:
    """``river-drift`` with a class's name and parameters gives that class's alarms; what draws numbers is seeded."""
    values = moving(5, 1_600)[: 700 if name == "KSWIN" else None]
    params: dict[str, Any] = {"KSWIN": {"alpha": 0.001}, "PageHinkley": {"threshold": 20.0}}.get(name, {})
    seed: dict[str, Any] = {"seed": 3} if name == "KSWIN" else {}
    expected = river_alarms(vars(importlib.import_module("river.drift"))[name](**params, **seed), values)
    assert expected
    assert drifts(built("river-drift", name=name, params=params, **EAGER), rows_of(values)) == expected


@pytest.mark.parametrize(
    ("kind", "options"), [(kind, params) for kind, _, params in [*NUMERIC, *ERRORS]], ids=str
)
def test_a_restart_does_not_show(kind: str, options: dict[str, Any]) -> None:
    """Restored every few hundred rows, in the middle of a window: the same changes and the same bytes at the end."""
    stream: Stream = "score" if "score" in spec_class(kind).streams else "loss"
    values = moving(7)[:1_200] if stream == "score" else outcomes(errors(8))
    rows = rows_of(values)
    options = options | {"warm_up_rows": 50, "hold_rows": 30}
    whole = built(kind, stream, **options)
    expected = [(c.index, c.verdict) for c in whole.update(rows)]
    assert {verdict.state for _, verdict in expected} >= {State.DRIFT, State.STABLE}
    part, heard, low = built(kind, stream, **options), [], 0
    for high in [*range(137, len(rows), 241), len(rows)]:
        heard += [(c.index + low, c.verdict) for c in part.update(rows.take(slice(low, high)))]
        data = part.snapshot()
        part, low = built(kind, stream, **options), high
        part.load(data)
        assert part.snapshot() == data
    assert heard == expected
    assert part.snapshot() == whole.snapshot()


def test_a_snapshot_of_other_columns_is_refused() -> None:
    """Two columns' state is not one's, and a generator of another size is none."""
    two = built("adwin", "features", ("a", "b"))
    two.update(rows_of(np.zeros((10, 2))))
    with pytest.raises(SnapshotError, match="other columns"):
        built("adwin", "features", ("a",)).load(two.snapshot())
    small = built("kswin", window_size=40, stat_size=20)
    large = built("kswin", window_size=60, stat_size=20)
    large.update(rows_of(np.arange(50.0)))
    with pytest.raises(SnapshotError, match="another size"):
        small.load(large.snapshot())


def test_a_wrong_name_or_parameter_is_named() -> None:
    """The configuration's error names what is wrong and lists what there is."""

    def refused(kind: str, stream: Stream = "score", **options: Any) -> str:
        with pytest.raises(ConfigurationError) as caught:
            spec_for(DetectorConfig(name="x", kind=kind, stream=stream, options=options))
        return str(caught.value)

    assert "'ADWINN'" in (text := refused("river-drift", name="ADWINN"))
    assert "ADWIN, DDM" in text
    text = refused("river-drift", name="HDDM_A", params={"confidence": 0.1})
    assert "no parameter confidence" in text and "drift_confidence, warning_confidence" in text
    assert "Invalid 'mode'" in refused("river-drift", name="PageHinkley", params={"mode": "sideways"})
    text = refused("river-anomaly", "features", name="LocalOutlierFactor")
    assert "keeps every row" in text and "HalfSpaceTrees" in text
    assert "GaussianScorer" in refused("river-anomaly", "features", name="GaussianScorer")
    assert "no parameter trees" in refused(
        "river-anomaly", "features", name="HalfSpaceTrees", params={"trees": 1}
    )
    assert "half of window_size" in refused("kswin", window_size=100, stat_size=60)
    assert "at least beta" in refused("eddm", "loss", alpha=0.5)
    with pytest.raises(ConfigurationError, match="needs `stream: loss`"):
        built("river-drift", name="DDM")
    with pytest.raises(ConfigurationError, match="leave `columns` out"):
        spec_class("ddm")().build(Context(("loss",), (0,), "loss"))


def test_ranks_put_a_column_into_the_unit_interval() -> None:
    """With a reference ADWIN reads ranks: the same alarms for a column in any unit; without, the values."""
    values = moving(1)
    context = Context(("a",), (0,), "features", REFERENCE)
    spec = spec_class("adwin").model_validate(EAGER)
    column = REFERENCE.columns["a"]
    river = vars(importlib.import_module("river.drift"))["ADWIN"](delta=1e-6)
    expected = river_alarms(river, mid_rank(values, column))
    assert expected
    assert drifts(spec.build(context), rows_of(values)) == expected


def test_of_the_loss_stream_the_loss_is_read() -> None:
    """Scores and labels have streams of their own: beside the loss they are not read, alone they are."""
    n = 1_000
    rows = np.column_stack([np.repeat([0.1, 0.9], n // 2), np.zeros(n), np.full(n, 0.3)])
    assert drifts(built("adwin", "loss"), rows_of(rows)) == []
    alone = spec_class("adwin")().build(Context(("score",), (0,), "loss"))
    assert drifts(alone, rows_of(rows[:, :1])) != []


def test_an_alarm_is_held_and_named() -> None:
    """Drift for ``hold_rows`` readable rows, then stable; the evidence names the column and its recent mean."""
    x = np.zeros((3_000, 2))
    x[1_000:, 1] = 1.0
    x[1_100:1_400] = np.nan
    detector = built("adwin", "features", ("a", "b"), hold_rows=500)
    changes = detector.update(rows_of(x))
    assert [str(c.verdict.state) for c in changes] == ["stable", "drift", "stable"]
    drift, over = changes[1:]
    assert drift.verdict.evidence.column == "b"
    assert drift.verdict.evidence.current == pytest.approx(np.mean(x[drift.index - 99 : drift.index + 1, 1]))
    assert over.index == drift.index + 500 + 300  # three hundred rows had nothing to read


def test_what_is_taken_back_is_not_read() -> None:
    """Rows of sign -1 change nothing: sequential tests cannot forget."""
    rows = rows_of(outcomes(errors(2)))
    doubled = rows.take(np.repeat(np.arange(len(rows)), 2))
    sign = np.tile(np.array([1, -1], np.int8), len(rows))
    twice = Rows(doubled.values, doubled.time_ms, doubled.identity, doubled.group, sign)
    plain, revised = built("hddm-a", "loss"), built("hddm-a", "loss")
    assert [c.verdict for c in plain.update(rows)] == [c.verdict for c in revised.update(twice)]
    assert plain.snapshot() == revised.snapshot()


@pytest.mark.parametrize(
    ("kind", "options", "name", "params"),
    [
        ("half-space-trees", {"trees": 5, "height": 4, "tree_window": 100}, "HalfSpaceTrees", None),
        ("river-anomaly", {"name": "OneClassSVM", "params": {"nu": 0.2}}, "OneClassSVM", {"nu": 0.2}),
    ],
)
def test_outlier_scores_are_river_s(
    kind: str, options: dict[str, Any], name: str, params: dict[str, Any] | None
) -> None:
    """The verdicts are those of river's own loop over the columns' ranks, rows with a null left out."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(1_600, 2))
    x[1_200:] *= 3
    x[50, 0] = np.nan
    if params is None:
        limits = {"a": (0.0, 1.0), "b": (0.0, 1.0)}
        params = {"n_trees": 5, "height": 4, "window_size": 100, "limits": limits, "seed": 3}
    made = vars(importlib.import_module("river.anomaly"))[name](**params)
    ranks = np.column_stack([mid_rank(x[:, at], REFERENCE.columns["ab"[at]]) for at in range(2)])
    scores = []
    for row in ranks[np.isfinite(ranks).all(axis=1)].tolist():
        row = dict(zip("ab", row, strict=True))
        scores.append(made.score_one(row))
        made.learn_one(row)
    unscored = 200 if kind == "half-space-trees" else 500
    rate = OutlierRate(300, 100, 0.05)
    expected = [rate.add(score) for score in scores[unscored:]]
    rates: dict[str, Any] = {"warm_up_rows": 300, "window_rows": 100, "share": 0.05}
    detector = built(kind, "features", ("a", "b"), REFERENCE, **options, **rates)
    verdicts = [change.verdict for change in detector.update(rows_of(x))]
    assert [(v.state, v.score) for v in verdicts] == [(v.state, v.score) for v in expected if v is not None]
    assert len({v.score for v in verdicts}) > 2
    assert all(v.evidence.worst for v in verdicts)


# -- alibi-detect -----------------------------------------------------------------------------------------------------


def alibi_alarms(made: Any, values: Any) -> list[int]:
    """alibi-detect's own loop, which starts the detector again after an alarm."""
    found = []
    for at, value in enumerate(values):
        if made.predict(np.atleast_1d(value))["data"]["is_drift"]:
            found.append(at)
            made.reset_state()
    return found


@needs_alibi
def test_cvm_alarms_where_alibi_detect_does() -> None:
    """The same alarms as the library's loop over the same column, and no more state after more rows."""
    kind = vars(importlib.import_module("alibi_detect.cd"))["CVMDriftOnline"]
    options: dict[str, Any] = {"expected_run_rows": 60, "window_rows": 10}
    values = np.concatenate([moving(3, 200), np.full(20, 2.0)])
    with seeded(3):
        made = kind(np.array(GRID, np.float32), 60, [10], n_bootstraps=180, verbose=False)
    expected = alibi_alarms(made, values.astype(np.float32))
    assert len(expected) > 3
    detector = built("cvm-online", "features", ("a",), REFERENCE, **options, **EAGER)
    assert drifts(detector, rows_of(values)) == expected


@needs_alibi
@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_fet_alarms_where_alibi_detect_does(alternative: str) -> None:
    """Missing values: a table of p-values gives the alarms of the library's loop, ties decided by the same lots."""
    kind = vars(importlib.import_module("alibi_detect.cd"))["FETDriftOnline"]
    rng = np.random.default_rng(9)
    missing = rng.uniform(size=600) < np.repeat([0.05, 0.3, 0.0, 0.1], 150)
    sample = np.arange(500) < 25
    with seeded(3):
        made = kind(sample, 60, [10], n_bootstraps=180, alternative=alternative, verbose=False)
    kept = np.random.get_state()  # noqa: NPY002
    np.random.set_state(np.random.RandomState(4).get_state())  # noqa: NPY002
    expected = alibi_alarms(made, missing.astype(float))
    np.random.set_state(kept)  # noqa: NPY002
    assert len(expected) > 3
    options: dict[str, Any] = {"expected_run_rows": 60, "window_rows": 10, "alternative": alternative}
    detector = built("fet-online", "features", ("a",), REFERENCE, **options, **EAGER)
    assert drifts(detector, rows_of(np.where(missing, np.nan, 1.0))) == expected


@needs_alibi
def test_fet_reads_wrong_decisions() -> None:
    """On the loss stream it compares errors with the reference's rate of them, and says both."""
    wrong = np.concatenate([np.zeros(100), np.ones(40)])
    options: dict[str, Any] = {"expected_run_rows": 200, "window_rows": 20}
    detector = built("fet-online", "loss", reference=REFERENCE, **options)
    changes = detector.update(rows_of(outcomes(wrong)))
    assert [str(c.verdict.state) for c in changes] == ["stable", "drift"]
    assert changes[1].index < 115
    assert changes[1].verdict.evidence.reference == pytest.approx(0.1)


@needs_alibi
def test_alibi_leaves_no_trace() -> None:
    """Its detectors keep no more than a window, and numpy's global generator is as it was."""
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    detector = built("cvm-online", "score", reference=REFERENCE, expected_run_rows=60, window_rows=10)
    detector.update(rows_of(np.random.default_rng(1).uniform(size=120)))
    machine: OnlineMachine = detector._machines[0]  # type: ignore[attr-defined]
    assert len(machine._made.xs) <= 10
    assert len(machine._made.test_stats) <= 1
    assert np.array_equal(before, np.random.get_state(legacy=False)["state"]["key"])  # noqa: NPY002


@needs_alibi
def test_a_rate_of_nothing_is_taken_to_be_something() -> None:
    """A column that never missed a value does not alarm by lot while it goes on so, and does when values go missing."""
    options: dict[str, Any] = {"expected_run_rows": 60, "window_rows": 10}
    detector = built("fet-online", "features", ("b",), REFERENCE, **options)
    assert drifts(detector, rows_of(np.zeros(1_000))) == []
    assert drifts(detector, rows_of(np.full(20, np.nan))) != []
    machine = detector._machines[0]  # type: ignore[attr-defined]
    assert isinstance(machine, FetMachine)


@needs_alibi
def test_isolation_scores_are_alibi_s() -> None:
    """The forest is the library's on the same half of the reference's sample, so scores and bound are its own."""
    rng = np.random.default_rng(2)
    sample = rng.normal(size=(200, 2))
    reference = REFERENCE.model_copy(update={"sample": tuple(map(tuple, sample.tolist()))})
    options: dict[str, Any] = {"trees": 10, "tree_rows": 64, "window_rows": 50, "share": 0.1}
    detector = built("alibi-isolation-forest", "features", ("a", "b"), reference, **options)
    kind = vars(importlib.import_module("alibi_detect.od"))["IForest"]
    with seeded(3):
        forest = kind(threshold=0.0, n_estimators=10, max_samples=64)
        forest.fit(sample[::2])
    x = rng.normal(size=(100, 2)) * 2
    rate = OutlierRate(1_000, 50, 0.1)
    rate.calibrate(np.asarray(forest.score(sample[1::2])))
    expected = [rate.add(float(score)) for score in forest.score(x)]
    found = [(c.index, c.verdict.score) for c in detector.update(rows_of(x))]
    assert found == [(at, v.score) for at, v in enumerate(expected) if v is not None]


@pytest.mark.parametrize("kind", ["cvm-online", "fet-online", "alibi-isolation-forest", "alibi-mahalanobis"])
def test_a_missing_extra_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without alibi-detect these kinds raise when they are built, and say what to install and under which licence."""
    _hide("alibi_detect", monkeypatch)
    with pytest.raises(ConfigurationError, match=r"driftline\[alibi\].*Business Source License"):
        built(kind, "features", ("a",), REFERENCE)


@needs_alibi
@pytest.mark.parametrize("kind", ["mmd-online", "lsdd-online"])
def test_missing_torch_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With alibi-detect but without torch, torch is what is asked for."""
    _hide("torch", monkeypatch)
    with pytest.raises(ConfigurationError, match=r"torch cannot be imported.*pip install torch"):
        built(kind, "features", ("a", "b"), REFERENCE)


@needs_alibi
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize(
    ("kind", "name"), [("mmd-online", "MMDDriftOnline"), ("lsdd-online", "LSDDDriftOnline")]
)
def test_whole_rows_alarm_where_alibi_detect_does(kind: str, name: str) -> None:
    """The same alarms as the library's loop over the same rows, from the same draws of torch's generator."""
    torch = importlib.import_module("torch")
    rng = np.random.default_rng(6)
    sample = rng.normal(size=(200, 2)).astype(np.float32)
    reference = REFERENCE.model_copy(update={"sample": tuple(map(tuple, sample.astype(float).tolist()))})
    x = rng.normal(size=(300, 2)) + np.repeat([0.0, 1.0, 0.0], 100)[:, None]
    torch.manual_seed(3)
    made = vars(importlib.import_module("alibi_detect.cd"))[name](
        sample, 60, 10, backend="pytorch", device="cpu", n_bootstraps=180, verbose=False
    )
    expected = alibi_alarms(made, x.astype(np.float32))
    options: dict[str, Any] = {"expected_run_rows": 60, "window_rows": 10}
    detector = built(kind, "features", ("a", "b"), reference, **options, **EAGER)
    # An alarm at the row after another one is the same drift.
    assert drifts(detector, rows_of(x)) == [at for at in expected if at - 1 not in expected]
    assert any(100 <= at < 130 for at in expected)


@needs_alibi
def test_without_a_reference_nothing_is_said() -> None:
    """What compares with a reference stays inconclusive without one, and says what is missing."""
    for kind in ("cvm-online", "fet-online"):
        detector = built(kind, "features", ("a",))
        assert detector.update(rows_of(np.full(300, np.nan))) == []
        assert detector.verdict.state is State.INCONCLUSIVE
        assert "reference" in detector.verdict.evidence.note


def _hide(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[str], Any] = importlib.import_module

    def hiding(name: str) -> Any:
        if name.partition(".")[0] == hidden:
            raise ModuleNotFoundError(f"No module named {hidden!r}")
        return real(name)

    monkeypatch.setattr(extras, "import_module", hiding)
    assert alibi.NEEDS
