"""The tools around detectors: run lengths that are measured, knobs that are fitted, files that are read, pages that are true."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
from pydantic import Field
from scipy import stats

from detectors import __main__ as tool
from detectors.base import DAY_MS, Change, Context, Detector, Rows, Spec, Stream, undecided
from detectors.registry import KINDS, spec_class
from detectors.tools import calibrate, promises
from detectors.tools.history import History, held_out, history, resampled_days, resampled_rows
from detectors.tools.plot import Picture, Point, svg, terminal
from detectors.tools.tables import feature, numbers, read_csv, times
from schemas.contracts import (
    DetectorConfig,
    FalsePages,
    Feature,
    ModelContract,
    ModelVersion,
    Monitoring,
)
from schemas.errors import ConfigurationError
from schemas.reference import reference_of
from schemas.verdicts import Family, State, Verdict

MINUTE_MS = 60_000
pytestmark = pytest.mark.filterwarnings("ignore")


class BeyondSpec(Spec):
    """Drift at every row whose value is above ``limit``; or, with ``chance``, whose rank among normal values is."""

    kind: ClassVar[str] = "beyond"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT}
    cost_ns: ClassVar[int] = 10_000
    state_size: ClassVar[str] = "nothing"
    sees: ClassVar[str] = "large values"
    blind_to: ClassVar[str] = "all else"
    knob: ClassVar[str | None] = "limit"
    pages: ClassVar[bool] = True
    limit: float = 1.0

    def at(self) -> float:
        return self.limit

    def build(self, context: Context) -> Detector:
        return Beyond(self.at())


class ChanceSpec(BeyondSpec):
    knob: ClassVar[str | None] = "chance"
    chance: float = Field(default=0.2, gt=0, lt=1)

    def at(self) -> float:
        return float(stats.norm.isf(self.chance))


class AlwaysSpec(BeyondSpec):
    def at(self) -> float:
        return -math.inf


class Beyond:
    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.verdict = undecided(limit, "")

    def update(self, rows: Rows) -> list[Change]:
        changes = []
        for at, value in enumerate(rows.values[:, 0].tolist()):
            state = State.DRIFT if value > self._limit else State.STABLE
            if state is not self.verdict.state:
                self.verdict = Verdict(state=state, score=value, threshold=self._limit)
                changes.append(Change(at, int(rows.time_ms[at]), self.verdict))
        return changes

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        return b""

    def load(self, data: bytes) -> None:
        self.reset()

    def reset(self) -> None:
        self.verdict = undecided(self._limit, "")


def context(values: np.ndarray[Any, Any], budget_rows: float, row_ms: int = MINUTE_MS) -> Context:
    """Over a reference of one numeric column, one row every ``row_ms``, with a budget of ``budget_rows``."""
    x = Feature(name="x")
    reference = reference_of(
        {"x": values},
        np.full(len(values), 0.5),
        ModelContract(model="m", features=(x,)),
        event_ms=np.arange(len(values), dtype=np.int64) * row_ms,
    )
    budget = FalsePages(max=1, per=round(budget_rows * row_ms))
    return Context(("x",), (0,), "features", reference, false_pages=budget, seed=3, features={"x": x})


NORMAL = np.random.default_rng(5).normal(size=2_000)


def source_of(given: Context) -> History:
    found = history(given)
    assert found is not None
    return found


# -- run lengths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [0, 1, 3, 40])
def test_garwood_is_the_exact_poisson_interval(events: int) -> None:
    """At its ends the observed count, or one beyond it, has a chance of 2.5 %."""
    low, high = calibrate.garwood(events)
    assert stats.poisson.cdf(events, high) == pytest.approx(0.025)
    assert low == 0 if events == 0 else stats.poisson.sf(events - 1, low) == pytest.approx(0.025)


def test_realised_run_length_of_a_detector_whose_rate_is_known() -> None:
    """The share of reference rows above the limit lies within the interval of the measured rate."""
    given = context(NORMAL, 500)
    source = source_of(given)
    limit = 2.0
    found = calibrate.realised(BeyondSpec(limit=limit), given, source, "rows", given.budget_ms)
    assert found is not None and found.run_length_ms is not None
    rate = (source.rows.values > limit).mean()
    low, high = found.interval_ms
    assert low < MINUTE_MS / rate < (high or math.inf)
    assert low < found.run_length_ms < (high or math.inf)
    assert found.holds is False and found.run_length_ms < 500 * MINUTE_MS


def test_every_alarm_is_counted_and_none_twice() -> None:
    """Restarting after an alarm reads the rest of the chunk again from the next row on; cuts do not matter."""
    values = np.zeros(1_000)
    values[[0, 1, 99, 500, 501, 502, 999]] = 5
    rows = Rows.of(values, np.arange(1_000, dtype=np.int64))
    for size in (1, 7, 1_000):
        chunks = [rows.take(slice(at, at + size)) for at in range(0, 1_000, size)]
        assert calibrate.alarms_in(BeyondSpec().build(context(NORMAL, 10)), chunks) == (1_000, 999.0, 7)


def test_shorter_than_the_promise_is_unverified() -> None:
    """No alarm in less time than was promised proves nothing, and is said so; one alarm there breaks the promise."""
    silent = calibrate.Realised("order", 100, 5 * DAY_MS, 0, 30 * DAY_MS)
    assert silent.note == "unverified beyond 5 d" and silent.holds
    assert silent.interval_ms[1] is None
    assert not calibrate.Realised("order", 100, 5 * DAY_MS, 1, 30 * DAY_MS).holds


def test_whole_days_keep_what_rows_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Days differ in level: a windowed test alarms on resampled days and not on resampled rows."""
    monkeypatch.setattr(calibrate, "RUN_NS", 10_000_000)
    rng = np.random.default_rng(2)
    values = np.repeat(rng.normal(scale=1.0, size=80), 25) + rng.normal(scale=0.5, size=2_000)
    given = context(values, 3_000, row_ms=DAY_MS // 25)
    source = source_of(given)
    kind = spec_class("cusum")()
    rows = calibrate.realised(kind, given, source, "rows", None)
    days = calibrate.realised(kind, given, source, "days", None)
    assert rows is not None and days is not None
    assert rows.alarms < days.alarms / 5


def test_resampled_days_are_whole_and_in_order() -> None:
    """Each drawn day is one of the history's, at its own times of day; time never goes back; equal seeds, equal rows."""
    given = context(np.arange(2_000.0), 100, row_ms=DAY_MS // 40)
    source = source_of(given)
    drawn = list(resampled_days(source, 3_000, seed=1))
    time = np.concatenate([rows.time_ms for rows in drawn])
    values = np.concatenate([rows.values[:, 0] for rows in drawn])
    assert (np.diff(time) > 0).all()
    for day in np.unique(time // DAY_MS):
        mine = values[time // DAY_MS == day]
        assert len(mine) == 40 and (np.diff(mine) == 1).all()
    again = np.concatenate([rows.values[:, 0] for rows in resampled_days(source, 3_000, seed=1)])
    assert np.array_equal(values, again)
    first = next(iter(resampled_rows(source, 10, seed=1))).values
    assert not np.array_equal(first, next(iter(resampled_rows(source, 10, seed=2))).values)


def test_the_held_out_half_is_judged_by_the_first() -> None:
    """The made reference knows the first half only, and rows of it are not read again."""
    given = context(np.arange(2_000.0), 100)
    later_context, later = held_out(given, source_of(given))
    assert later_context.reference is not None
    assert max(later_context.reference.columns["x"].quantiles) == pytest.approx(999, rel=1e-3)
    assert later.rows.values.min() == 1_000


# -- fitting ----------------------------------------------------------------------------------------------------------


def rate_of(limit: float) -> float:
    """Share of the reference's rows above ``limit``."""
    return float((limit < NORMAL).mean())


def test_a_threshold_is_fitted_to_the_budget() -> None:
    """With rows enough the realised rate is at most the budget's, and not below a tenth of it."""
    spec, standing = calibrate.calibrated(BeyondSpec(), context(NORMAL, 100))
    assert isinstance(spec, BeyondSpec)
    assert 1 / 1_000 < rate_of(spec.limit) < 1 / 100
    assert standing.basis == "resampled" and standing.pages, standing.note
    assert standing.promised_ms == 100 * MINUTE_MS and standing.verified_ms > 900 * MINUTE_MS


def test_a_probability_is_extrapolated_where_rows_are_too_few() -> None:
    """A budget of a million rows is out of reach of the search; the fit stays within a factor of ten of the truth."""
    spec, standing = calibrate.calibrated(ChanceSpec(), context(NORMAL, 1e6))
    assert isinstance(spec, ChanceSpec)
    assert 1e-7 < spec.chance < 1e-6
    assert "extrapolated" in standing.note and "unverified beyond" in standing.note


def test_what_cannot_be_calibrated_never_pages() -> None:
    """No value of the knob helps; no sample; no budget."""
    _, standing = calibrate.calibrated(AlwaysSpec(), context(NORMAL, 300))
    assert not standing.pages and "no value fits" in standing.note
    bare = context(NORMAL, 300)
    assert bare.reference is not None
    for lacking in (
        Context(("x",), (0,), "features", None, false_pages=bare.false_pages),
        Context(("x",), (0,), "features", bare.reference),
    ):
        spec, standing = calibrate.calibrated(BeyondSpec(), lacking)
        assert spec == BeyondSpec() and not standing.pages and standing.basis == "none"


def test_more_alarms_in_time_order_than_promised_do_not_page() -> None:
    """Rows are quiet when drawn one by one; the second half of the reference is not."""
    drifting = np.concatenate([NORMAL[:1_000], NORMAL[1_000:] + 3])
    _, standing = calibrate.calibrated(spec_class("cusum")(), context(drifting, 300))
    assert not standing.pages


def test_a_stated_option_is_measured_and_kept() -> None:
    """Who writes the knob down is not overruled; the figures say what it does."""
    spec, standing = calibrate.calibrated(BeyondSpec(limit=0.5), context(NORMAL, 300))
    assert isinstance(spec, BeyondSpec) and spec.limit == 0.5
    assert not standing.pages and standing.basis == "resampled"


def test_fits_are_repeatable_and_cached() -> None:
    """Equal content gives an equal fit; a second time it comes from the cache."""
    first, second = context(NORMAL, 300), context(NORMAL, 300)
    found = calibrate.calibrated(BeyondSpec(), first)
    assert found == calibrate.calibrated(BeyondSpec(), second)
    (key,) = first.cache
    first.cache[key] = first.cache[key].replace(b'"pages":true', b'"pages":false')
    assert not calibrate.calibrated(BeyondSpec(), first)[1].pages


# -- files ------------------------------------------------------------------------------------------------------------


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([""], "is empty"),
        (["a,b"], "no rows"),
        (["a,a", "1,2"], "line 1: every column needs a name"),
        (["a,b", "1,2", "3"], "line 3: 1 values"),
    ],
)
def test_a_broken_file_is_told_by_its_line(tmp_path: Path, lines: list[str], said: str) -> None:
    """Empty, headless, repeated names, a short row."""
    with pytest.raises(ConfigurationError, match=said):
        read_csv(write(tmp_path / "x.csv", *lines))


def test_columns_by_inspection(tmp_path: Path) -> None:
    """Numbers with nulls are numeric, texts are categories, and one word among numbers is a mistake with an address."""
    rows = [f"{at if at % 7 else ''},{'ab'[at % 2]},{at if at != 17 else 'oops'}" for at in range(100)]
    table = read_csv(write(tmp_path / "x.csv", "n,c,bad", *rows))
    assert feature(table, "n", 50) == Feature(name="n", nullable=True)
    assert feature(table, "c", 50) == Feature(name="c", kind="categorical", categories=("a", "b"))
    assert math.isnan(numbers(table, "n")[0])
    with pytest.raises(ConfigurationError, match=r"x.csv, line 19, column bad: 'oops' is not a number"):
        feature(table, "bad", 50)
    with pytest.raises(ConfigurationError, match="no column 'z'; there are: n, c, bad"):
        table.column("z")


def test_times_of_every_writing(tmp_path: Path) -> None:
    """ISO text with and without a zone, seconds, milliseconds; anything else is named."""
    lines = ("2020-01-01T00:00:00Z", "2020-01-01", "1577836800", "1577836800000", "2020-01-01T01:00:00+01:00")
    table = read_csv(write(tmp_path / "x.csv", "t", *lines))
    assert set(times(table, "t").tolist()) == {1_577_836_800_000}
    with pytest.raises(ConfigurationError, match="line 2, column t: 'noon' is no time"):
        times(read_csv(write(tmp_path / "y.csv", "t", "noon")), "t")


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    """4,000 rows an hour apart, of which the last 1,000 have their ``x`` moved by two standard deviations."""
    rng = np.random.default_rng(8)
    with (tmp_path / "shifted.csv").open("w", newline="") as target:
        out = csv.writer(target)
        out.writerow(["at", "x", "y", "place"])
        for at in range(4_000):
            moved = 2.0 if at >= 3_000 else 0.0
            x, y = rng.normal(moved), rng.normal()
            out.writerow([at * 3_600 + 1_600_000_000, f"{x:.4f}", f"{y:.4f}", rng.choice(["left", "right"])])
    return tmp_path / "shifted.csv"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = tool.main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_try_finds_the_shift_and_draws_it(
    capsys: pytest.CaptureFixture[str], shifted: Path, tmp_path: Path
) -> None:
    """The alarm comes after the shift, names the column, and is in the text and in the picture."""
    picture = tmp_path / "out.svg"
    arguments = ("try", "drift-e-blocks", str(shifted), "--time", "at", "--plot", str(picture))
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "drift" in out and "▲" in out and "threshold" in out
    code, out, _ = run(capsys, *arguments, "--json")
    found = json.loads(out)
    (alarm,) = [said for said in found["changes"] if said["state"] == "drift"]
    assert 3_002 <= alarm["line"] < 3_900 and alarm["evidence"]["column"] == "x"
    drawn = ElementTree.fromstring(picture.read_text())
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}line"))) == 1


def test_try_says_what_it_assumes(capsys: pytest.CaptureFixture[str], shifted: Path) -> None:
    """No times, categories kept from a kind of numbers, a reference longer than half of the file."""
    code, out, _ = run(
        capsys, "try", "adwin", str(shifted), "--columns", "x,place", "--reference-rows", "9999"
    )
    assert code == 0
    assert "left out: place" in out and "one row every 1 min" in out and "first half is the reference" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("try", "nothing", "FILE"), "no detector of kind 'nothing'; there are: "),
        (("try", "psi", "missing.csv"), "missing.csv: cannot be read"),
        (("try", "psi", "FILE", "--columns", "x,z"), "no column 'z'; there are: at, x, y, place"),
        (("try", "psi", "FILE", "--options", "{"), "--options {: not JSON"),
        (("try", "psi", "FILE", "--options", '{"binz": 3}'), "binz"),
        (("try", "psi", "FILE", "--stream", "loss"), "--stream loss: psi reads features, score"),
        (("try", "psi", "FILE", "--stream", "score"), "the file has no 'score'; --columns names"),
        (("try", "psi", "FILE", "--per", "soon"), "--per: 'soon' is not a duration"),
        (("try", "paired-judge", "FILE"), "comparison"),
        (("try", "psi", "FILE", "--time", "place"), "line 2, column place: "),
        (("calibrate", "FILE"), "not a contract"),
    ],
)
def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], shifted: Path, arguments: tuple[str, ...], said: str
) -> None:
    """On standard error, with exit status 1 and nothing on standard output."""
    code, out, err = run(capsys, *(str(shifted) if word == "FILE" else word for word in arguments))
    assert (code, out) == (1, "") and err.startswith("error: ") and said in err, err


def test_usage_errors_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """A call without its arguments shows how to call."""
    code, _, err = run(capsys, "try")
    assert code == 2 and "Usage: driftline detectors try" in err


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_of_nothing_and_of_extremes() -> None:
    """No points, one point, zeros, infinities: always a picture, always well-formed."""
    for scores in ([], [0.0], [0.0, 0.0], [math.inf, -math.inf, math.nan, 1e-300, 1e300], [-5.0, 3.0]):
        points = [Point(at, "stable", score, 1.0) for at, score in enumerate(scores)]
        picture = Picture("a < b", points, [0] if scores else [], 0, max(0, len(scores) - 1))
        assert ElementTree.fromstring(svg(picture)).tag.endswith("svg")
        lines = terminal(picture, width=40).splitlines()
        assert lines and all(len(line) <= 52 for line in lines)


def test_a_crossing_is_not_averaged_away() -> None:
    """One row above the threshold among a thousand fills its column of the picture to the top."""
    points = [Point(at, "stable", 9.0 if at == 500 else 1.0, 8.0) for at in range(1_000)]
    top = terminal(Picture("", points, [500], 0, 999), width=50).splitlines()[0]
    assert top.count("█") == 1


# -- the contract's promises ------------------------------------------------------------------------------------------


def contract_of(*detectors: DetectorConfig) -> ModelContract:
    return ModelContract(
        model="m",
        features=(Feature(name="x"), Feature(name="place", kind="categorical", categories=("left", "right"))),
        monitoring=Monitoring(false_pages=FalsePages(max=1, per=30 * DAY_MS), detectors=detectors),
    )


PSI = DetectorConfig(name="inputs", kind="psi", stream="features")
HARM = DetectorConfig(name="harm", kind="loss-above-promise", stream="loss", options={"rows_min": 5})


def test_promises_of_a_contract_on_its_history(shifted: Path) -> None:
    """Each run is there; the shift in the held-out half shows in time order only; a missing column is that detector's."""
    cusum = PSI.model_copy(update={"kind": "cusum"})
    found = promises.measure(contract_of(cusum, HARM), None, read_csv(shifted), "at")
    inputs, harm = found
    assert [run.how for run in inputs.runs] == ["rows", "days", "order"]
    rows, _, order = inputs.runs
    assert order.alarms / order.time_ms > 10 * rows.alarms / rows.time_ms and not inputs.pages
    assert not harm.runs and "no 'score'" in harm.note
    assert json.loads(json.dumps(promises.as_json(found)))[0]["runs"][2]["alarms"] > 0


def test_promises_of_a_version_need_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The version's reference carries rows enough to measure on, and the table says how far they reach."""
    rng = np.random.default_rng(4)
    rows = 3_000
    contract = contract_of(PSI, HARM)
    scores = rng.uniform(0.1, 0.9, rows)
    reference = reference_of(
        {"x": rng.normal(size=rows), "place": rng.choice(["left", "right"], rows).astype(object)},
        scores,
        contract,
        labels=(rng.uniform(size=rows) < scores).astype(float),
        event_ms=np.arange(rows, dtype=np.int64) * 3_600_000,
    )
    version = ModelVersion(model="m", version="v1", uri="m/v1", sha256="0" * 64, reference=reference)
    handed = {"contract": contract.model_dump(mode="json"), "version": version.model_dump(mode="json")}
    file = write(tmp_path / "model.json", json.dumps(handed))
    code, out, err = run(capsys, "calibrate", str(file))
    assert (code, err) == (0, "")
    assert "m, reference: version v1" in out and "time order" in out
    code, out, _ = run(capsys, "calibrate", str(file), "--json")
    inputs, harm = json.loads(out)
    assert [run["holds"] for run in harm["runs"]][:2] == [True, True]
    assert inputs["name"] == "inputs" and len(inputs["runs"]) == 3
    with pytest.raises(ConfigurationError, match="--file names a CSV"):
        promises.measure(contract, None, None, None)


def test_check_names_each_faulty_detector(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All of them at once, by name; a contract without a fault says nothing."""
    wrong = contract_of(
        PSI,
        HARM.model_copy(update={"options": {"zzz": 1}}),
        PSI.model_copy(update={"name": "p", "kind": "no"}),
    )
    code, _, err = run(capsys, "check", str(write(tmp_path / "c.json", wrong.model_dump_json())))
    assert code == 1 and "harm" in err and "zzz" in err and "'no'" in err
    assert run(capsys, "check", str(write(tmp_path / "d.json", contract_of(PSI).model_dump_json()))) == (
        0,
        "",
        "",
    )


# -- what there is ----------------------------------------------------------------------------------------------------


def test_one_kind_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Docstring, figures, every option; as JSON with the schema of its options."""
    code, out, _ = run(capsys, "show", "drift-e-blocks")
    assert code == 0
    spec = spec_class("drift-e-blocks")
    assert spec.sees.split(",")[0] in out and all(name in out for name in spec.model_fields)
    shown = json.loads(run(capsys, "show", "drift-e-blocks", "--json")[1])
    assert set(shown["options"]["properties"]) == set(spec.model_fields)
    assert [entry["kind"] for entry in json.loads(run(capsys, "list", "--json")[1])] == list(KINDS)
    assert all(kind in run(capsys, "list")[1] for kind in ("psi", "drift-e"))
