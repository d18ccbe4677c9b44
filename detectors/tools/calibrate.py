"""How often does a detector alarm when nothing has happened? Measured on the reference, and set where there is a knob.

A proof bounds false alarms under its own null; this module asks the data. Three runs over rows that stand for "no drift",
each restarting the detector after an alarm, so that the mean time between alarms is its run length:

    rows   whole rows drawn independently: what the null of most methods says
    days   whole days in runs of about three (the stationary bootstrap of Politis and Romano 1994): neighbouring rows
           keep their weather, so autocorrelation shows
    order  the second half of the rows in time order, against a reference made of the first: seasons show too

Alarms of rare events are Poisson, so the interval of the rate is Garwood's (1936), exact. Data shorter than the promise
cannot verify it, and every figure says how far it goes. No clock: the work is bounded by rows, through ``cost_ns``.

>>> low, high = garwood(3)
>>> round(low, 3), round(high, 3)
(0.619, 8.767)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec
from pydantic import ValidationError
from scipy.special import gammaincinv

from detectors.base import DAY_MS, Context, Detector, Rows, Spec, Standing
from detectors.tools.history import History, held_out, history, in_order, resampled_days, resampled_rows
from detectors.tools.whole_blocks import held_out_blocks
from schemas.ids import content_hash
from schemas.verdicts import State

How = Literal["rows", "days", "order"]
HOW: tuple[How, ...] = ("rows", "days", "order")
#: Work of one run, and of one search for a knob, by the specs' own figures of cost.
RUN_NS = 250_000_000
SEARCH_NS = 2_000_000_000
_EVALUATIONS = 12
#: A run is at least so long, however dear the detector, and never longer than the second.
_ROWS_MIN, _ROWS_MAX = 1_000, 500_000
#: A knob is set for this many times the budgeted run length: fit and check are both counts of rare events.
_MARGIN = 2
#: Alarms aimed at where the budget itself is out of reach, so that the rate extrapolated from is not one chance event.
_ALARMS_SEEN = 4
#: The second run length of an extrapolation is shorter by this factor.
_OFTEN = 8
#: A sample in time order that keeps fewer rows than one in so many says nothing of how they depend on each other.
_THINNED_MAX = 2.0
#: Beyond so many promised run lengths a longer run says little more.
_PROMISES = 8
#: Bounds of the search in factors: of ten for a probability, of two for any other knob.
_LAX, _STRICT, _STEP_MIN = -16.0, 32.0, 0.125


@dataclass(frozen=True, slots=True)
class Realised:
    """Alarms of one run. ``time_ms``: event time that was run over; ``promised_ms``: between alarms, None: no promise."""

    how: How
    rows: int
    time_ms: float
    alarms: int
    promised_ms: float | None

    @property
    def run_length_ms(self) -> float | None:
        """Event time between alarms; None when there was none."""
        return self.time_ms / self.alarms if self.alarms else None

    @property
    def interval_ms(self) -> tuple[float, float | None]:
        """Exact 95 % interval of the run length; None: no upper end."""
        low, high = garwood(self.alarms)
        return self.time_ms / high, self.time_ms / low if low else None

    @property
    def holds(self) -> bool | None:
        """Whether there were no more alarms than promised; in time shorter than the promise that is none. None: no promise."""
        return None if self.promised_ms is None else self.alarms <= self.time_ms / self.promised_ms

    @property
    def note(self) -> str:
        """What the figures cannot say, in words; empty when they say all."""
        if self.promised_ms is not None and self.time_ms < self.promised_ms and not self.alarms:
            return f"unverified beyond {duration(self.time_ms)}"
        return ""


def garwood(events: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a Poisson mean after ``events`` were counted."""
    tail = (1 - level) / 2
    low = float(gammaincinv(events, tail)) if events else 0.0
    return low, float(gammaincinv(events + 1, 1 - tail))


def duration(ms: float) -> str:
    """Event time for people: ``45 s``, ``12 min``, ``7.5 h``, ``30 d``, ``4.1 y``."""
    for size, unit in ((365 * DAY_MS, "y"), (DAY_MS, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")):
        if ms >= size * (2 if unit == "y" else 1):
            return f"{ms / size:.3g} {unit}"
    return f"{ms:.3g} ms"


# -- runs -------------------------------------------------------------------------------------------------------------


def alarms_in(
    detector: Detector, chunks: Iterable[Rows], alarms_max: float = math.inf
) -> tuple[int, float, int]:
    """(rows, event time in ms, alarms) of a run that restarts the detector after each alarm, up to ``alarms_max``."""
    rows = alarms = 0
    first: int | None = None
    last = 0
    for chunk in chunks:
        if not len(chunk):
            continue
        first = int(chunk.time_ms[0]) if first is None else first
        last = int(chunk.time_ms[-1])
        rows += len(chunk)
        rest = chunk
        while len(rest):
            entered = _entry(detector, rest)
            if entered is None:
                break
            alarms += 1
            detector.reset()
            rest = rest.take(slice(entered + 1, None))
        if alarms > alarms_max:
            break
    return rows, float(last - (first or 0)), alarms


def _entry(detector: Detector, rows: Rows) -> int | None:
    """The row of ``rows`` at which drift was first said, the last for the end of a block of time; None: it was not."""
    for change in detector.update(rows):
        if change.verdict.state is State.DRIFT:
            return change.index if change.index >= 0 else len(rows) - 1
    # Rows of the same instant may follow in the next chunk.
    closed = detector.advance(int(rows.time_ms[-1]) - 1)
    return len(rows) - 1 if any(change.verdict.state is State.DRIFT for change in closed) else None


def rows_within(spec: Spec, context: Context, work_ns: float, spacing_ms: float) -> int:
    """Rows, ``spacing_ms`` apart, that ``spec`` reads in about ``work_ns``. Kinds that read features state their cost for
    ten columns."""
    part = max(len(context.columns), 3) / 10 if "features" in spec.streams else 1.0
    closing = spec.closing_ns * spacing_ms / float(getattr(spec, "block_ms", math.inf))
    return int(min(_ROWS_MAX, max(_ROWS_MIN, work_ns / max(1.0, (spec.cost_ns + closing) * part))))


def realised(
    spec: Spec, context: Context, source: History, how: How, promised_ms: float | None, own: bool = False
) -> Realised | None:
    """One run; None when the history has no times that ``how`` needs. ``own``: the history is not of the reference, so
    time order needs no held-out half."""
    if how != "rows" and not source.timed:
        return None
    span = max(1, int(source.rows.time_ms[-1] - source.rows.time_ms[0]))
    spacing = source.spacing_ms if how == "rows" else span / len(source.rows)
    n = rows_within(spec, context, RUN_NS, spacing)
    if promised_ms is not None:
        n = min(n, max(_ROWS_MIN, math.ceil(_PROMISES * promised_ms / spacing)))
    if how == "order" and own:
        counted = alarms_in(spec.build(context), in_order(source))
    elif how == "order":
        counted, _ = _in_time_order(spec, context, source)
    elif how == "days":
        counted = alarms_in(spec.build(context), resampled_days(source, n, context.seed))
    else:
        counted = alarms_in(spec.build(context), resampled_rows(source, n, context.seed))
    return Realised(how, *counted, promised_ms)


# -- fitting ----------------------------------------------------------------------------------------------------------


class _Fit(msgspec.Struct):
    """What the cache holds."""

    value: float | None
    standing: Standing


def calibrated(spec: Spec, context: Context) -> tuple[Spec, Standing]:
    """The spec to build from and what is known of its false alarms: the one door for whoever runs detectors.

    A kind with a knob gets it set so that it fits the context's budget, unless its options name a value. Deterministic;
    about two seconds by the spec's figure of cost, or nothing when ``context.cache`` holds it.
    """
    knob = spec.knob
    if knob is None:
        return spec, spec.standing(context)
    reference = "" if context.reference is None else context.reference.model_dump_json()
    parts = (
        spec.kind,
        spec.model_dump_json(),
        context.columns,
        context.stream,
        context.budget_ms,
        context.seed,
    )
    key = f"calibrate/{content_hash(f'{parts!r}{reference}'.encode())}"
    if key in context.cache:
        fit = msgspec.json.decode(context.cache[key], type=_Fit)
    else:
        try:
            fit = _fit(spec, knob, context)
        except Exception as error:  # noqa: BLE001 - a library's detector may raise anything
            fit = _Fit(None, Standing(note=f"could not be calibrated: {type(error).__name__}: {error}"[:500]))
        context.cache[key] = msgspec.json.encode(fit)
    return (spec if fit.value is None else with_knob(spec, knob, fit.value) or spec), fit.standing


def with_knob(spec: Spec, knob: str, value: float) -> Spec | None:
    """The spec with the option set; None when its own checks refuse the value."""
    try:
        return type(spec).model_validate(spec.model_dump(exclude_unset=True) | {knob: value})
    except ValidationError:
        return None


def is_probability(spec: Spec, knob: str) -> bool:
    """Whether the option is bounded by 1."""
    bounds = (getattr(m, "lt", getattr(m, "le", None)) for m in type(spec).model_fields[knob].metadata)
    return any(bound is not None and bound <= 1 for bound in bounds)


def _fit(spec: Spec, knob: str, context: Context) -> _Fit:
    budget, source = context.budget_ms, history(context)
    if budget is None:
        return _Fit(None, Standing(note="the model has no budget of false pages to fit"))
    if source is None:
        return _Fit(
            None, Standing(promised_ms=budget, note="the reference has no sample of rows to calibrate on")
        )
    if knob in spec.model_fields_set:
        value, how = None, "as its options say"
    else:
        value, how = _Search(spec, knob, context, source, budget).value()
    fitted = spec if value is None else with_knob(spec, knob, value) or spec
    # Counted on other rows than it was found on.
    n = rows_within(spec, context, SEARCH_NS / 4, source.spacing_ms)
    check = resampled_rows(
        source, min(n, math.ceil(_PROMISES * budget / source.spacing_ms)), context.seed + 1
    )
    _, time_ms, alarms = alarms_in(fitted.build(context), check)
    met = alarms <= time_ms / budget and (time_ms >= budget or value is not None)
    told = f"{knob} {fitted.knob_value(context):.3g}, {how}; {alarms} alarms in {duration(time_ms)} of resampled rows"
    if not source.timed:
        return _Fit(
            value,
            Standing("resampled", budget, 0.0, 0, False, f"{told}; no times to check the order of rows"),
        )
    (_, later_ms, later_alarms), thinned = _in_time_order(fitted, context, source)
    told += f", {later_alarms} in {duration(later_ms)} in time order"
    if thinned > _THINNED_MAX:
        told += (
            f" with one row in {thinned:.0f}: how rows depend on neighbours cannot show, so it does not page"
        )
        later_ms /= thinned
    elif max(time_ms, later_ms) < budget:
        told += f"; unverified beyond {duration(max(time_ms, later_ms))}"
    # A kind whose pages are not counted against the budget may not send any, however well it was fitted.
    pages = met and thinned <= _THINNED_MAX and later_alarms <= later_ms / budget and spec.spends_budget
    return _Fit(value, Standing("resampled", budget, later_ms, later_alarms, pages, told))


def _in_time_order(spec: Spec, context: Context, source: History) -> tuple[tuple[int, float, int], float]:
    """``alarms_in`` of the reference's later half against the earlier one, and how many rows of traffic there were for
    each that was read."""
    whole = held_out_blocks(context, int(getattr(spec, "block_ms", 0))) if spec.counts_blocks else None
    if whole is not None:
        rows, _, alarms = alarms_in(spec.build(whole.context), whole.rows)
        return (rows, whole.span_ms, alarms), 1.0
    later_context, later = held_out(context, source)
    rows, later_ms, alarms = alarms_in(spec.build(later_context), in_order(later))
    return (rows, later_ms, alarms), later_ms / max(1, rows - 1) / source.spacing_ms


@dataclass(frozen=True, slots=True)
class _Count:
    """A run that was ended after more than ``cap`` alarms."""

    alarms: int
    rows: int
    cap: int


@dataclass(frozen=True, slots=True)
class _Edge:
    """``rate``: alarms a row at ``lax``, where there were enough to count."""

    strict: float
    lax: float | None
    rate: float


class _Search:
    """The knob at which resampled rows give the budgeted run length, with a margin of ``_MARGIN``.

    All runs read the same rows. Where the work allows too few rows for the budget, the knob is found for shorter run
    lengths and extrapolated: false alarms go with a probability, and fall exponentially with any other threshold.
    ``strictness``: powers of ten off a probability, of two onto any other knob; 0 is the spec's own value.
    """

    def __init__(self, spec: Spec, knob: str, context: Context, source: History, budget_ms: float) -> None:
        self._spec, self._knob, self._context, self._source = spec, knob, context, source
        self._budget_rows = budget_ms / source.spacing_ms
        self._rows = min(
            rows_within(spec, context, SEARCH_NS / _EVALUATIONS, source.spacing_ms),
            math.ceil(_PROMISES * self._budget_rows),
        )
        self._own = spec.knob_value(context)
        self._probability = is_probability(spec, knob)
        self._known: dict[float, _Count] = {}

    def value(self) -> tuple[float | None, str]:
        """The knob's value and how it was found; None when no value of it is known to give the run length."""
        promises = self._rows / self._budget_rows
        if promises >= _ALARMS_SEEN:
            most = math.floor(promises / _MARGIN)
            # Never laxer than the kind's own default: real rows depend on each other, and alarm more than drawn ones.
            if self._quiet(0.0, most):
                return None, "kept, it is quiet enough"
            fitting = self._edge(most)
            return (None, "kept, no value fits") if fitting is None else (self._at(fitting.strict), "fitted")
        near = self._edge(_ALARMS_SEEN)
        if near is None or near.lax is None:
            return None, "kept, its rate cannot be measured on so few rows"
        times = self._budget_rows * _MARGIN * near.rate
        if self._probability:
            found = near.lax + math.log10(times)
        else:
            often = self._edge(_OFTEN * _ALARMS_SEEN)
            if often is None or often.lax is None or often.rate <= near.rate:
                return None, "kept, its rate does not fall with it"
            slope = (self._at(near.lax) - self._at(often.lax)) / math.log(often.rate / near.rate)
            found = math.log2((self._at(near.lax) + slope * math.log(times)) / self._own)
        return self._at(max(found, 0.0)), f"extrapolated from {self._rows:,} rows"

    def _at(self, strictness: float) -> float:
        if self._probability:
            return min(max(self._own * math.pow(10.0, -strictness), 1e-300), 0.5)
        return self._own * math.pow(2.0, strictness)

    def _quiet(self, strictness: float, most: int) -> bool:
        """Whether a run has at most ``most`` alarms; a value that the spec refuses is too lax or strict enough."""
        known = self._known.get(strictness)
        if known is None or known.cap < known.alarms <= most:
            spec = with_knob(self._spec, self._knob, self._at(strictness))
            if spec is None:
                return strictness > 0
            rows = resampled_rows(self._source, self._rows, self._context.seed)
            read, _, alarms = alarms_in(spec.build(self._context), rows, most)
            known = self._known[strictness] = _Count(alarms, read, most)
        return known.alarms <= most

    def _edge(self, most: int) -> _Edge | None:
        """Between which strictnesses, a step apart, a run goes from more than ``most`` alarms to at most so many.

        None when no strictness has so few; its ``lax`` is None when all have.
        """
        lax = strict = 0.0
        step = 1.0
        if self._quiet(0.0, most):
            while self._quiet(lax, most):
                if lax <= _LAX:
                    return _Edge(lax, None, 0.0)
                strict, lax, step = lax, max(_LAX, lax - step), step * 2
        else:
            while not self._quiet(strict, most):
                if strict >= _STRICT:
                    return None
                lax, strict, step = strict, min(_STRICT, strict + step), step * 2
        while strict - lax > _STEP_MIN:
            middle = (strict + lax) / 2
            if self._quiet(middle, most):
                strict = middle
            else:
                lax = middle
        known = self._known.get(lax)  # none: the spec refuses what is laxer
        return _Edge(strict, None, 0.0) if known is None else _Edge(strict, lax, known.alarms / known.rows)
