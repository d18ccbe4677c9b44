"""Can a classifier tell the last rows from the reference's? Then they differ, and its weights say in what.

A logistic regression learns online to tell stream rows from rows of the reference (Lopez-Paz and Oquab, "Revisiting
classifier two-sample tests", ICLR 2017), on features that hold location, spread and dependence: standardised columns,
their squares, and products of pairs. Each row is judged before it is learnt from. It is paired with a reference row r
that was drawn before it came, and the classifier says which is which: ``h = tanh((s(x) - s(r)) / 2)``, in [-1, 1]. If x
and r are exchangeable, h has mean zero whatever the classifier has learnt, so for each bet L

    e = 1 + L (h - zone) / (1 + zone),    zone = effect_min + the half's own error (two standard errors)

is an e-value (Pandeva, Bakker, Naesseth and Forre, "E-valuating classifier two-sample tests", TMLR 2024), its product over
rows an e-process, and ``R <- (R + 1) prod e`` by cells an e-detector (Shin, Ramdas and Rinaldo 2022): R passes the
threshold at most once in so many cells. Two learners, one fast and one slow, times three bets are averaged.

Learning draws from one half of the reference's sample, pairing from the other: else the classifier would learn the
sample's own error by heart and win on it for ever. The pairs come from a permutation of the half, drawn anew when it is
used up: until then the bound is exact for rows that are exchangeable with the reference, afterwards it holds as far as the
zone is greater than the error of the half. (``effect_min`` 0.02 is a shift of about 0.2 standard deviations.)
It lies when rows of a time-ordered stream are taken for exchangeable with a year of reference, for every hour can be told:
on half a year of real flights in time order, against their own sample, it says drift within hours and stays there;
shuffled, it never does. It is for streams without seasons, and for naming what differs.

Encoded columns beyond ``project`` (embeddings; fewer where the sample is short) are projected to random directions.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> rng = np.random.default_rng(1)
>>> sample = tuple(map(tuple, rng.normal(size=(1_000, 2)).tolist()))
>>> columns = {name: ColumnReference(rows=1_000) for name in ("a", "b")}
>>> reference = Reference(columns=columns, sample=sample)
>>> detector = ClassifierSpec().build(Context(("a", "b"), (0, 0), stream="features", reference=reference))
>>> a = rng.normal(size=2_000)
>>> b = np.where(np.arange(2_000) < 1_000, rng.normal(size=2_000), 0.8 * a + 0.6 * rng.normal(size=2_000))
>>> rows = Rows.of(np.column_stack([a, b]), np.arange(2_000))
>>> [(c.index, str(c.verdict.state)) for c in detector.update(rows)]
[(63, 'stable'), (1343, 'drift')]
>>> detector.verdict.evidence.note
'largest weight: a with b'
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Change, Context, Detector, Rows, Spec, Standing, Stream, pack, undecided, unpack
from detectors.evidence import LOW
from detectors.joint_shift.encode import UNIT, Encoder, Projection
from detectors.joint_shift.moving import SAMPLE_ROWS_MIN
from detectors.outliers.outliers import reference_rows
from schemas.errors import SnapshotError
from schemas.verdicts import Evidence, Family, State, Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_SCHEMA = 1
#: Steps of the learners, of a cell's mean gradient; the slow one remembers about 2 / 0.05 cells.
_RATES = np.array([0.3, 0.05])
_BETS = np.array([0.1, 0.3, 0.9])
#: Evidence is held at this multiple of the threshold: less than it might be, so still valid; and it can ebb away.
_CEILING = 1e3
#: Products of all pairs are features for so many numeric columns at most, else squares of so many random directions.
_PAIRED_MAX = 12
_DIRECTIONS = 32
#: The sample has this many rows at least for each projected column.
_ROWS_PER_COLUMN = 3
#: Least variance of a direction of features, of the mean variance: what never varied would outweigh all else.
_VARIANCE_MIN = 1e-2
#: Whitened features are cut here, and weights: no row is worth more than some rows.
_CUT = 5.0
_WEIGHT_MAX = 10.0
#: Values that are worked on together: larger temporary arrays are fetched from the system each time.
_CHUNK_VALUES = 65_536
#: Standard errors of the pairing half that an advantage must exceed, and the largest advantage asked for.
_ERROR_SD = 2.0
_ZONE_MAX = 0.9
#: Gain of the moving mean of how often the classifier is right.
_RECENT = 0.1


class ClassifierSpec(Spec):
    """Options of ``classifier-two-sample``. ``threshold``: logarithm of the cells to a false alarm."""

    kind: ClassVar[str] = "classifier-two-sample"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT}
    cost_ns: ClassVar[int] = 3_500
    state_size: ClassVar[str] = (
        "the rows of one cell, two weights a feature: 4 kB for 10 columns, at most 20 kB"
    )
    sees: ClassVar[str] = (
        "location, spread and dependence between pairs of columns; names what tells them apart"
    )
    blind_to: ClassVar[str] = (
        "what squares and products do not show; a shift of one column below 0.3 standard deviations"
    )
    knob: ClassVar[str | None] = "threshold"
    needs_reference: ClassVar[bool] = True

    expected_run_rows: int = Field(
        default=100_000, ge=100,
        description="Rows between false alarms where the model's budget and the reference's traffic do not say.",
    )  # fmt: skip
    threshold: float | None = Field(
        default=None, gt=0, description="Natural logarithm; default: from the budget."
    )
    cell_rows: int = Field(default=64, ge=4, le=1_024)
    project: int = Field(default=64, ge=1, le=256, description="Columns beyond this many are projected.")
    ridge: float = Field(default=0.02, ge=0, lt=1, description="Weights forget this share of a step.")
    effect_min: float = Field(
        default=0.02,
        ge=0,
        lt=0.5,
        description="A mean advantage up to this is none; 1: always sure and right.",
    )

    def build(self, context: Context) -> Detector:
        return Classifier(self, context)

    def standing(self, context: Context) -> Standing:
        return Standing(
            promised_ms=context.budget_ms,
            note="bounded for rows exchangeable with the reference's; rows in time order are not, so it does not page",
        )


class Telling:
    """The features by which rows are told apart, whitened on the sample's first half. ``names (p,)``, ``source (p,)``:
    column that a feature comes from. ``learn (m, p)``, ``pair (n, p)``: the halves."""

    def __init__(self, spec: ClassifierSpec, context: Context, sample: Floats) -> None:
        rng = np.random.default_rng([context.seed, 2])
        learn, pair = sample[::2], sample[1::2]
        self._encoder = Encoder(learn, context.categories, ranks=True)
        self._projection: Projection | None = None
        to = min(spec.project, max(2, len(sample) // _ROWS_PER_COLUMN))
        numeric = self._encoder.numeric
        if self._encoder.width > max(to, 2):
            self._projection = Projection(self._encoder.width, to, rng)
            numeric = to
        self.width = self._encoder.width if self._projection is None else to
        self._pairs = np.array(
            list(combinations(range(numeric), 2)) if numeric <= _PAIRED_MAX else [], np.intp
        )
        self._mixed = np.zeros((numeric, 0))
        if numeric > _PAIRED_MAX:
            self._mixed = rng.normal(size=(numeric, _DIRECTIONS)) / np.sqrt(numeric)
        self._numeric = numeric
        self._describe(context.columns)
        raw = self._raw(self.encoded(learn) / UNIT)
        self._mean = raw.mean(axis=0)
        away = raw - self._mean
        self._spread = away.std(axis=0)
        variance, directions = np.linalg.eigh(away.T @ away / len(away))
        floor = max(_VARIANCE_MIN * float(variance.mean()), 1e-12)
        self._whiten = directions / np.sqrt(np.maximum(variance, floor))
        self.learn = self._whitened(raw)
        self.pair = self._whitened(self._raw(self.encoded(pair) / UNIT))

    def _describe(self, columns: tuple[str, ...]) -> None:
        names, source = [], []
        if self._projection is None:
            own = [columns[int(at)] for at in self._encoder.source]
            names += own + [f"{name} squared" for name in own[: self._numeric]]
            source += own + own[: self._numeric]
            names += [f"{own[a]} with {own[b]}" for a, b in self._pairs]
            source += [own[a] for a, b in self._pairs]
        else:
            names += [f"direction {at}" for at in range(self.width)]
            names += [f"direction {at} squared" for at in range(self.width)]
            names += [f"direction {a} with {b}" for a, b in self._pairs]
        names += [f"mix {at} squared" for at in range(self._mixed.shape[1])]
        self.names = names
        self.source: list[str | None] = [*source, *([None] * (len(names) - len(source)))]

    def encoded(self, values: Floats) -> Floats:
        """``(n, k)`` to whole numbers ``(n, width)``."""
        found = self._encoder(values)
        return found if self._projection is None else self._projection(found)

    def __call__(self, encoded: Floats) -> Floats:
        """Whitened features ``(..., p)`` of encoded rows ``(..., width)``, each matrix of the stack for itself."""
        return self._whitened(self._raw(encoded / UNIT))

    def _raw(self, z: Floats) -> Floats:
        numeric = z[..., : self._numeric]
        parts = [z, numeric**2]
        if len(self._pairs):
            parts.append(numeric[..., self._pairs[:, 0]] * numeric[..., self._pairs[:, 1]])
        if self._mixed.shape[1]:
            parts.append(np.matmul(numeric, self._mixed) ** 2)
        return np.concatenate(parts, axis=-1)

    def _whitened(self, raw: Floats) -> Floats:
        out = np.matmul(raw - self._mean, self._whiten)
        return np.asarray(np.clip(out, -_CUT, _CUT, out=out), np.float64)

    def blame(self, weights: Floats) -> int:
        """The feature with the largest weight, in its own standard deviations."""
        return int(np.abs((self._whiten @ weights) * self._spread).argmax())


class _State(msgspec.Struct):
    """``held``: encoded rows of the open cell, int32; ``weights (2, p)``, ``evidence (2, 3)``: float64."""

    rows: int = 0
    held: bytes = b""
    weights: bytes = b""
    evidence: bytes = b""
    right: float = 0.5
    state: str = State.INCONCLUSIVE.value
    since_ms: int | None = None


class Classifier:
    """The running detector; see the module."""

    _said: Verdict | None

    def __init__(self, spec: ClassifierSpec, context: Context) -> None:
        self._spec = spec
        self._seed = context.seed
        sample = reference_rows(context)
        self._telling = Telling(spec, context, sample) if len(sample) >= SAMPLE_ROWS_MIN else None
        cells = max(100.0, context.budget_rows or spec.expected_run_rows) / spec.cell_rows
        # Raised so that the rate of alarms keeps the promise, not only the first: see ``detectors.evidence``.
        default = float(np.log(max(2.0, cells) / (1 - LOW)))
        self._threshold = default if spec.threshold is None else spec.threshold
        self._orders: dict[tuple[int, int], Ints] = {}
        self.reset()

    @property
    def verdict(self) -> Verdict:
        if self._said is None:
            self._said = self._judge()
        return self._said

    def reset(self) -> None:
        self._rows = 0
        width, features = (0, 0)
        if self._telling is not None:
            width, features = self._telling.width, len(self._telling.names)
        self._held = np.zeros((0, width))
        self._weights = np.zeros((len(_RATES), features))
        self._evidence = np.zeros((len(_RATES), len(_BETS)))
        self._right = 0.5
        self._state = State.INCONCLUSIVE
        self._since_ms: int | None = None
        self._said = None

    def update(self, rows: Rows) -> list[Change]:
        if self._telling is None:
            return []
        places = np.flatnonzero(np.isfinite(rows.values).any(axis=1) & (rows.sign > 0))
        if not len(places):
            return []
        values = rows.values if len(places) == len(rows) else rows.values[places]
        step = max(self._spec.cell_rows, _CHUNK_VALUES // max(values.shape[1], len(self._telling.names)))
        changes: list[Change] = []
        for low in range(0, len(values), step):
            changes += self._take(values[low : low + step], rows.time_ms, places[low : low + step])
        return changes

    def _take(self, values: Floats, time_ms: Ints, places: Ints) -> list[Change]:
        """Add rows, and close the cells that are full; ``places``: of the rows in the call."""
        telling, before, cell = self._telling, len(self._held), self._spec.cell_rows
        assert telling is not None
        encoded = telling.encoded(values)
        encoded = np.concatenate([self._held, encoded]) if before else encoded
        count = len(encoded) // cell
        self._held = encoded[count * cell :].copy()
        if not count:
            return []
        # Products of floats: each cell for itself, in one shape, so that where calls end cannot show in the last digit.
        features = telling(encoded[: count * cell].reshape(count, cell, -1))
        changes = []
        for at in range(count):
            place = int(places[(at + 1) * cell - 1 - before])
            if self._close(features[at], int(time_ms[place])):
                changes.append(Change(place, int(time_ms[place]), self.verdict))
        return changes

    def _close(self, features: Floats, time_ms: int) -> bool:
        """Bet on a cell ``(cell_rows, p)``, then learn from it; whether the state changed."""
        telling = self._telling
        assert telling is not None
        ceiling = _CEILING * float(np.exp(min(self._threshold, 600.0)))
        sure = np.tanh((features - self._drawn(telling.pair, 1)) @ self._weights.T / 2)
        zone = self._zone()[:, None, None]
        gains = np.log1p(_BETS * (sure.T[:, :, None] - zone) / (1 + zone))
        self._evidence = np.minimum((self._evidence + 1) * np.exp(np.add.reduce(gains, axis=1)), ceiling)
        best = int(self._evidence.mean(axis=1).argmax())
        right = float(np.add.reduce(np.sign(sure[:, best]))) / len(features) / 2 + 0.5
        self._right += _RECENT * (right - self._right)
        apart = features - self._drawn(telling.learn, 2)
        wrong = 0.5 - 0.5 * np.tanh(apart @ self._weights.T / 2)
        step = wrong.T @ apart / len(features) - self._spec.ridge * self._weights
        self._weights = np.clip(self._weights + _RATES[:, None] * step, -_WEIGHT_MAX, _WEIGHT_MAX)
        self._rows += len(features)
        before = self._state
        score = self._score()
        low = self._threshold + float(np.log(LOW))
        if score >= self._threshold or (before is State.DRIFT and score >= low):
            self._state = State.DRIFT
        else:
            self._state = State.WARNING if score >= low else State.STABLE
        if self._state is State.STABLE:
            self._since_ms = None
        elif self._since_ms is None:
            self._since_ms = time_ms
        self._said = None
        return self._state is not before

    def _zone(self) -> Floats:
        """Mean advantage of each learner that is none: ``effect_min``, and what the half's own error may give it."""
        assert self._telling is not None
        # Whitened scores have the weights' length as their spread, and h is half of a small score.
        error = np.sqrt(np.add.reduce(self._weights**2, axis=1) / len(self._telling.pair)) / 2
        return np.asarray(np.minimum(self._spec.effect_min + _ERROR_SD * error, _ZONE_MAX), np.float64)

    def _drawn(self, half: Floats, purpose: int) -> Floats:
        """Reference rows for the rows of the cell at hand: a permutation of the half, and another when it is used up."""
        number = self._rows + np.arange(self._spec.cell_rows)
        turns = number // len(half)
        out = [self._order(purpose, int(turn), len(half))[number[turns == turn] % len(half)]
               for turn in range(int(turns[0]), int(turns[-1]) + 1)]  # fmt: skip
        return np.asarray(half[np.concatenate(out)], np.float64)

    def _order(self, purpose: int, turn: int, size: int) -> Ints:
        found = self._orders.get((purpose, turn))
        if found is None:
            found = np.random.default_rng([self._seed, 3, purpose, turn]).permutation(size)
            self._orders = {key: order for key, order in self._orders.items() if key[1] >= turn - 1}
            self._orders[purpose, turn] = found
        return found

    def _score(self) -> float:
        return max(0.0, float(np.log(max(1.0, float(self._evidence.mean())))))

    def _judge(self) -> Verdict:
        if self._telling is None:
            return undecided(self._threshold, "the version's reference has no sample of rows to compare with")
        if self._state is State.INCONCLUSIVE:
            return undecided(self._threshold, "warming up: no full cell of rows yet")
        best = int(self._evidence.mean(axis=1).argmax())
        at = self._telling.blame(self._weights[best])
        evidence = Evidence(
            column=self._telling.source[at],
            statistic="log e-detector of a classifier",
            effect=self._right - 0.5,
            effect_name="share of pairs told apart beyond a half",
            reference=0.5,
            current=self._right,
            rows=min(self._rows, round((2 / _RECENT - 1) * self._spec.cell_rows)),
            since_ms=self._since_ms,
            note=f"largest weight: {self._telling.names[at]}",
        )
        return Verdict(state=self._state, score=self._score(), threshold=self._threshold, evidence=evidence)

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        state = _State(
            self._rows,
            self._held.astype(np.int32).tobytes(),
            self._weights.tobytes(),
            self._evidence.tobytes(),
            self._right,
            self._state.value,
            self._since_ms,
        )
        return pack(self._spec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(self._spec.kind, _SCHEMA, _State, data)
        self.reset()
        row_bytes = max(1, 4 * self._held.shape[1])
        if (
            len(state.weights) != self._weights.nbytes
            or len(state.evidence) != self._evidence.nbytes
            or len(state.held) % row_bytes
            or len(state.held) >= row_bytes * self._spec.cell_rows
        ):
            raise SnapshotError(
                f"the snapshot of {self._spec.kind!r} was taken with other columns, options or reference: "
                "the detector starts again"
            )
        held = np.frombuffer(state.held, np.int32).astype(np.float64)
        self._held = held.reshape(-1, self._held.shape[1]) if len(held) else self._held
        self._weights = np.frombuffer(state.weights, np.float64).reshape(self._weights.shape)
        self._evidence = np.frombuffer(state.evidence, np.float64).reshape(self._evidence.shape)
        self._rows, self._right, self._since_ms = state.rows, state.right, state.since_ms
        self._state = State(state.state)
