"""What our detectors of many columns share: moving means of a vector of features, compared with the reference's mean.

A kind turns a row into whole-number features (``detectors.joint_shift.encode``); their mean over the reference's sample is what "no
drift" means. Rows are added in cells of ``cell_rows`` by their number; each full cell moves J exponential means, so that
a large change is seen at once and a small one in time (the "no-prior-knowledge" of NEWMA: Keriven, Garreau and Poli,
IEEE Trans. Signal Processing 2020, without its blindness to slow change, for the reference stays):

    e_j <- e_j + a_j (cell mean - reference mean - e_j),   a_j = 1 / memory_j,       T_j = |e_j|^2

Under "no drift" T_j is a sum of chi-squared variables weighted by the eigenvalues of the features' covariance (Gretton,
Fukumizu, Harchaoui and Sriperumbudur, NIPS 2009), times ``a / (2 - a) / cell_rows`` for the moving mean and
``1 / sample rows`` for the reference's own error. To these comes, in each direction, how much more groups of
neighbouring sample rows differ than chance lets them: the weather that rows of one hour or day share. The bound h_j is
the point that all T_j together pass in one cell of a promised run (a saddlepoint of the sum, Daniels 1954: no bootstrap
reaches one in a million), and the score is the largest T_j / h_j.

The bound is right for rows that do not depend on each other beyond what the sample's groups show. It is no theorem.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import chdtri

from detectors.base import Change, Context, Detector, Rows, Spec, Standing, Stream, pack, undecided, unpack
from detectors.outliers.outliers import reference_rows
from schemas.errors import SnapshotError
from schemas.verdicts import Evidence, Family, State, Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: A reference sample of fewer rows says nothing about many columns.
SAMPLE_ROWS_MIN = 50
_SCHEMA = 1
#: Values that are worked on together: larger temporary arrays are fetched from the system each time.
_CHUNK_VALUES = 65_536
#: Groups of neighbours fewer than this do not show how much groups differ.
_GROUPS_MIN = 8
#: A direction in which groups differ counts only if chance does so this rarely.
_GROUPS_TAIL = 1e-3
_TINY = 1e-300


class Features(Protocol):
    """A fitted kind. ``unit``: parts of one that features are whole numbers of; ``blame_unit``: of blames."""

    unit: float
    blame_unit: float
    rows: int

    def __call__(self, values: Floats, first: int) -> tuple[Floats, Floats]:
        """Features ``(n, d)`` and blames ``(n, b)`` of ``values (n, k)``, whole numbers; ``first``: number of row 0."""

    def reference(self) -> Floats:
        """Features ``(rows, d)`` of the sample's rows that speak for the reference, in time order."""

    def explain(self, moved: Floats, blame: Floats, rows: int) -> Evidence:
        """Why: ``moved (d,)`` is the moving mean less the reference's, ``blame (b,)`` the moving mean of blames."""


class MovingSpec(Spec):
    """Options of every kind."""

    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT}
    knob: ClassVar[str | None] = "threshold"
    needs_reference: ClassVar[bool] = True

    expected_run_rows: int = Field(
        default=100_000, ge=100,
        description="Rows between false alarms where the model's budget and the reference's traffic do not say.",
    )  # fmt: skip
    cell_rows: int = Field(default=32, ge=4, le=1_024)
    memories: tuple[float, ...] = Field(default=(2, 8, 32), description="Of the moving means, in cells.")
    threshold: float = Field(default=1.0, gt=0, description="Drift at this multiple of the bound.")
    warning_share: float = Field(
        default=0.7, gt=0, le=1, description="Of the threshold; above it: warning; below it a drift ends."
    )
    effect_min: float = Field(
        default=0.0, ge=0, description="A mean this far from the reference's is no drift."
    )

    @abstractmethod
    def fit(self, context: Context, sample: Floats) -> Features:
        """Learn from ``sample (m, k)``, NaN is null."""

    def build(self, context: Context) -> Detector:
        return Moving(self, context)

    def standing(self, context: Context) -> Standing:
        return Standing(
            promised_ms=context.budget_ms,
            note="right for rows that do not depend on each other beyond what neighbours in the reference's sample do",
        )


def tail_point(shares: Floats, log_tail: float) -> float:
    """t with ``ln P(sum of shares_i X_i > t) = log_tail``, X_i chi-squared of one degree; ``log_tail`` at most -3.

    Saddlepoint: ``P ~ exp(K(s) - s t) / (s sqrt(2 pi K''(s)))`` at ``K'(s) = t``.

    >>> round(tail_point(np.array([1.0]), np.log(1e-6)), 1)  # exact: 23.9
    24.4
    """
    largest = float(shares.max(initial=0.0))
    if largest <= 0:
        return 0.0
    parts = shares[shares > 1e-9 * largest] / largest

    def at(s: float) -> tuple[float, float]:
        room = 1 - 2 * s * parts
        t = float((parts / room).sum())
        spread = float((2 * parts**2 / room**2).sum())
        total = -0.5 * float(np.log(room).sum())
        return total - s * t - float(np.log(s * np.sqrt(2 * np.pi * spread))), t

    low, high = 1e-9, 0.5 * (1 - 1e-12)
    for _ in range(80):
        middle = (low + high) / 2
        if at(middle)[0] > log_tail:
            low = middle
        else:
            high = middle
    return at(high)[1] * largest


def group_variance(scores: Floats, variance: Floats, group: int) -> Floats:
    """By how much groups of ``group`` neighbours of ``scores (m, d)`` differ beyond chance, ``(d,)``; 0 if they do not."""
    groups = len(scores) // group
    if group < 2 or groups < _GROUPS_MIN:
        return np.zeros(scores.shape[1])
    means = scores[: groups * group].reshape(groups, group, -1).mean(axis=1)
    found = means.var(axis=0, ddof=1)
    chance = variance / group
    bound = chance * float(chdtri(groups - 1, _GROUPS_TAIL)) / (groups - 1)
    return np.where(found > bound, found - chance, 0.0)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A fitted kind, its reference mean ``(d,)`` and the bound ``(j,)`` of each moving mean."""

    features: Features
    mean: Floats
    blames: int
    bounds: Floats


class _State(msgspec.Struct):
    """``sums``, ``blames``: of the open cell, in units; ``moved (j, d)``, ``blamed (j, b)``: moving means, float64."""

    rows: int = 0
    sums: bytes = b""
    blames: bytes = b""
    moved: bytes = b""
    blamed: bytes = b""
    state: str = State.INCONCLUSIVE.value
    since_ms: int | None = None


class Moving:
    """The running detector of any kind."""

    _said: Verdict | None

    def __init__(self, spec: MovingSpec, context: Context) -> None:
        self._spec = spec
        self._gains = 1.0 / np.maximum(1.0, np.array(spec.memories))
        sample = reference_rows(context)
        self._columns = context.columns
        self._fit = _fitted(spec, context, sample) if len(sample) >= SAMPLE_ROWS_MIN else None
        self.reset()

    @property
    def verdict(self) -> Verdict:
        if self._said is None:
            self._said = self._judge()
        return self._said

    def reset(self) -> None:
        width, blames = (0, 0) if self._fit is None else (len(self._fit.mean), self._fit.blames)
        self._rows = 0
        self._sums, self._blames = np.zeros(width), np.zeros(blames)
        self._moved = np.zeros((len(self._gains), width))
        self._blamed = np.zeros((len(self._gains), blames))
        self._state = State.INCONCLUSIVE
        self._since_ms: int | None = None
        self._said = None

    def update(self, rows: Rows) -> list[Change]:
        if self._fit is None:
            return []
        places = np.flatnonzero(np.isfinite(rows.values).any(axis=1) & (rows.sign > 0))
        whole = len(places) == len(rows)
        values = rows.values if whole else rows.values[places]
        changes: list[Change] = []
        step = max(1, _CHUNK_VALUES // max(1, values.shape[1], len(self._fit.mean)))
        for low in range(0, len(values), step):
            part = values[low : low + step]
            for at, verdict in self._take(part, rows.time_ms, places[low : low + step]):
                place = int(places[low + at])
                changes.append(Change(place, int(rows.time_ms[place]), verdict))
        return changes

    def _take(self, values: Floats, time_ms: Ints, places: Ints) -> list[tuple[int, Verdict]]:
        """Add rows; (row, verdict) wherever the state changed."""
        assert self._fit is not None
        features, blames = self._fit.features(values, self._rows)
        cell = self._spec.cell_rows
        changes, low = [], 0
        while low < len(values):
            high = min(len(values), low + cell - self._rows % cell)
            self._sums += np.add.reduce(features[low:high], axis=0)
            self._blames += np.add.reduce(blames[low:high], axis=0)
            self._rows += high - low
            if self._rows % cell == 0 and self._close(int(time_ms[places[high - 1]])):
                changes.append((high - 1, self.verdict))
            low = high
        return changes

    def _close(self, time_ms: int) -> bool:
        """A cell is full; whether the state changed."""
        fit = self._fit
        assert fit is not None
        cell = self._spec.cell_rows
        self._moved += self._gains[:, None] * (
            self._sums / (cell * fit.features.unit) - fit.mean - self._moved
        )
        self._blamed += self._gains[:, None] * (
            self._blames / (cell * fit.features.blame_unit) - self._blamed
        )
        self._sums[:] = 0.0
        self._blames[:] = 0.0
        before = self._state
        score = float(self._scores().max())
        if score >= self._spec.threshold or (before is State.DRIFT and score >= self._low):
            self._state = State.DRIFT
        else:
            self._state = State.WARNING if score >= self._low else State.STABLE
        if self._state is State.STABLE:
            self._since_ms = None
        elif self._since_ms is None:
            self._since_ms = time_ms
        self._said = None
        return self._state is not before

    @property
    def _low(self) -> float:
        return self._spec.threshold * self._spec.warning_share

    def _scores(self) -> Floats:
        assert self._fit is not None
        return np.asarray(np.add.reduce(self._moved**2, axis=1) / self._fit.bounds, np.float64)

    def _judge(self) -> Verdict:
        fit = self._fit
        if fit is None:
            return undecided(
                self._spec.threshold, "the version's reference has no sample of rows to compare with"
            )
        if self._state is State.INCONCLUSIVE:
            return undecided(self._spec.threshold, "warming up: no full cell of rows yet")
        scores = self._scores()
        at = int(scores.argmax())
        cell = self._spec.cell_rows
        rows = int(min(self._rows // cell * cell, round((2 / float(self._gains[at]) - 1) * cell)))
        # Blames are averaged from nothing on, so the first cells weigh too little.
        weight = 1.0 - (1.0 - float(self._gains[at])) ** (self._rows // cell)
        evidence = fit.features.explain(self._moved[at], self._blamed[at] / weight, rows)
        found = evidence.model_copy(update={"rows": rows, "since_ms": self._since_ms})
        return Verdict(
            state=self._state, score=float(scores[at]), threshold=self._spec.threshold, evidence=found
        )

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        state = _State(
            self._rows,
            self._sums.tobytes(),
            self._blames.tobytes(),
            self._moved.tobytes(),
            self._blamed.tobytes(),
            self._state.value,
            self._since_ms,
        )
        return pack(self._spec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(self._spec.kind, _SCHEMA, _State, data)
        self.reset()
        held = (state.sums, state.blames, state.moved, state.blamed)
        arrays = (self._sums, self._blames, self._moved, self._blamed)
        if [len(part) for part in held] != [array.nbytes for array in arrays]:
            raise SnapshotError(
                f"the snapshot of {self._spec.kind!r} was taken with other columns, options or reference: "
                "the detector starts again"
            )
        for array, part in zip(arrays, held, strict=True):
            array[:] = np.frombuffer(part, np.float64).reshape(array.shape)
        self._rows, self._state, self._since_ms = state.rows, State(state.state), state.since_ms


def _fitted(spec: MovingSpec, context: Context, sample: Floats) -> _Fit:
    features = spec.fit(context, sample)
    known = features.reference() / features.unit
    mean = known.mean(axis=0)
    away = known - mean
    variance, directions = np.linalg.eigh(away.T @ away / len(known))
    variance = np.maximum(variance, 0.0)
    scores = away @ directions
    rows = len(known)
    reference = context.reference
    apart = max(1.0, reference.rows / rows) if reference is not None else 1.0
    run_rows = max(100.0, context.budget_rows or spec.expected_run_rows)
    tail = spec.cell_rows / run_rows / len(spec.memories)
    bounds = []
    for memory in spec.memories:
        gain = 1.0 / max(1.0, memory)
        mean_rows = spec.cell_rows * (2 - gain) / gain
        # Neighbours in the sample lie ``apart`` rows from each other: a group of them spans as much as the mean does.
        group = max(2, min(round(mean_rows / apart), rows // _GROUPS_MIN))
        spread = variance * (1 / mean_rows + 1 / rows) + group_variance(scores, variance, group)
        chance = np.sqrt(max(tail_point(spread, min(-3.0, float(np.log(tail)))), _TINY))
        # By the triangle inequality nothing within the zone passes it more often than "no drift" passes the bound.
        bounds.append((spec.effect_min + chance) ** 2)
    blames = features(sample[:1], 0)[1].shape[1]
    return _Fit(features, mean, blames, np.array(bounds))
