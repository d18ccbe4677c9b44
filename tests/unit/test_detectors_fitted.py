"""Kinds without a theorem: a knob fitted to the budget, and pages only where the reference in time order stays within it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.base import DAY_MS, Context
from detectors.columns import share_of_budget
from detectors.registry import spec_class
from detectors.tools.calibrate import calibrated
from detectors.tools.whole_blocks import held_out_blocks
from schemas.bins import Binning
from schemas.contracts import DetectorConfig, FalsePages, Feature, ModelContract, Monitoring
from schemas.reference import reference_of

Floats = NDArray[np.float64]
PLACES = ("a", "b", "c")
FEATURES = (Feature(name="x"), Feature(name="place", kind="categorical", categories=PLACES))
DAYS = 40
BUDGET = FalsePages(max=1, per=30 * DAY_MS)


def context(rows_a_day: int, moved: float = 0.0, budget: FalsePages = BUDGET) -> Context:
    """Forty days of normals and a category; ``moved``: how much ``x`` rises in the last ten."""
    rng = np.random.default_rng(6)
    day = np.repeat(np.arange(DAYS), rows_a_day)
    table = {
        "x": rng.normal(size=len(day)) + moved * (day >= 30),
        "place": rng.choice(PLACES, len(day), p=(0.6, 0.3, 0.1)).astype(object),
    }
    times = day * DAY_MS + np.tile(np.arange(rows_a_day) * (DAY_MS // rows_a_day), DAYS)
    made = reference_of(
        table, np.full(len(day), 0.5), ModelContract(model="m", features=FEATURES), event_ms=times
    )
    return Context(("x", "place"), (0, 4), "features", made, false_pages=budget, seed=3)


@pytest.mark.parametrize("kind", ["psi", "chi-squared", "cusum"])
def test_a_fitted_kind_pages_where_time_order_allows_it(kind: str) -> None:
    """Every row of a quiet reference was there to see; the standing says what was promised, on how much, and the knob."""
    _, standing = calibrated(spec_class(kind)(), context(45))
    assert standing.pages, standing.note
    assert (standing.basis, standing.promised_ms, standing.alarms) == ("resampled", 30 * DAY_MS, 0)
    assert standing.verified_ms == pytest.approx(20 * DAY_MS, rel=0.05)
    assert standing.note.startswith(f"{spec_class(kind).knob} ")
    assert "unverified beyond" not in standing.note  # resampled rows reach further than the budget


@pytest.mark.parametrize("kind", ["psi", "chi-squared", "cusum"])
def test_a_reference_that_moves_by_itself_forbids_it(kind: str) -> None:
    """The same, and its last ten days are higher: an alarm on the reference is false, and one is too many."""
    _, standing = calibrated(spec_class(kind)(), context(45, moved=1.5))
    assert not standing.pages and standing.alarms > 0


def test_counts_of_days_are_of_all_rows_where_the_sample_is_thin() -> None:
    """4,000 rows a day of which one in eighty is kept: windows read the days' bins and may page, and see a move in them;
    what reads row by row cannot be checked."""
    thin = context(4_000)
    _, windows = calibrated(spec_class("psi")(), thin)
    assert windows.pages and windows.verified_ms == 20 * DAY_MS
    _, rows = calibrated(spec_class("cusum")(), thin)
    assert not rows.pages and "one row in 80" in rows.note and rows.verified_ms < DAY_MS
    assert not calibrated(spec_class("psi")(), context(4_000, moved=1.5))[1].pages


def test_a_test_that_alarms_too_often_gets_a_smaller_alpha() -> None:
    """A block a day and no least effect: one alarm in twenty blocks by chance alone, where a year may have one."""
    year = FalsePages(max=1, per=365 * DAY_MS)
    asked = spec_class("ks").model_validate({"block_ms": DAY_MS, "effect_min": 0.0, "rows_min": 10})
    kept = asked.knob_value(context(45, budget=FalsePages(max=1, per=DAY_MS)))
    assert kept == pytest.approx(0.05)
    made, standing = calibrated(asked, context(45, budget=year))
    assert made.knob_value(context(45, budget=year)) <= 1 / 365
    assert standing.basis == "resampled"


def test_made_rows_have_the_bins_they_were_made_from() -> None:
    """Each held-out day again, bin by bin; the earlier half is the reference; a block that days do not make up has none."""
    given = context(200)
    found = held_out_blocks(given, 7 * DAY_MS)
    assert found is not None and given.reference is not None and found.context.reference is not None
    rows = list(found.rows)
    values = np.concatenate([part.values for part in rows])
    days = np.concatenate([part.time_ms for part in rows]) // DAY_MS
    for at, name in enumerate(given.columns):
        binning = Binning(given.reference.columns[name])
        for day in range(20, 40):
            assert binning.counts(values[days == day, at]).tolist() == list(given.reference.bins[name][day])
    assert found.context.reference.columns["x"].rows == 20 * 200
    assert sum(found.context.reference.columns["place"].shares) == pytest.approx(1)
    assert held_out_blocks(given, DAY_MS // 2) is None
    assert held_out_blocks(Context(("z",), (0,), "features", given.reference), DAY_MS) is None


def test_a_kind_with_a_knob_takes_its_part_of_the_budget() -> None:
    """Two that may page share it; within segments no knob is fitted, so there is nothing to share for."""
    psi = DetectorConfig(name="psi", kind="psi", stream="features")
    harm = DetectorConfig(name="harm", kind="loss-above-promise", stream="loss")
    inner = {"detector": {"kind": "psi"}, "by": "place"}
    parts = DetectorConfig(name="parts", kind="segments", stream="features", options=inner)
    contract = ModelContract(
        model="m", features=FEATURES, monitoring=Monitoring(detectors=(psi, harm, parts))
    )
    assert share_of_budget(contract) == 1 / 2
