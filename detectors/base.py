"""The one protocol of all detectors, so that configuration, running state, law tests and delivery need no special cases.

Rows come in the order (time, identity), cut into calls anywhere; a verdict depends on the rows and never on the cuts.
``advance(t)`` says that all rows up to event time ``t`` have been given, and is what closes blocks of time: a slow hour
and a fast one close the same blocks. A row that comes after its block was closed changes nothing.

Columns of ``Rows.values`` by stream:

    features     one a feature named by the configuration, in contract order; categoricals as indices, null as NaN
    score        score
    predictions  score, latency_ms, error, then all features: for detectors that need inputs and answer together
    loss         score, label, loss, then the model's segment features; one row a joined outcome; sign -1 takes back
                 what a revision replaced
    comparison   score, label              group 0: the stable version, 1: the candidate; one identity in both pairs up
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from schemas.contracts import FalsePages, Feature, Reference
from schemas.errors import SnapshotError
from schemas.verdicts import Evidence, Family, State, Verdict

Stream = Literal["features", "score", "predictions", "loss", "comparison"]
#: The first columns of each stream, the same for every contract; ``error``: 1 where the answer was a failure, else 0.
STREAM_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "score": ("score",),
    "predictions": ("score", "latency_ms", "error"),
    "loss": ("score", "label", "loss"),
    "comparison": ("score", "label"),
}
DAY_MS = 86_400_000
#: Sums that must not depend on the order of addition are kept as integers of this many parts of one.
FIXED_POINT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rows:
    """``n`` rows: ``values (n, k)``, ``time_ms``, ``identity``, ``group`` and ``sign`` ``(n,)``. Never written to."""

    values: NDArray[np.float64]
    time_ms: NDArray[np.int64]
    identity: NDArray[np.uint64]
    group: NDArray[np.int8]
    sign: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.time_ms)

    @classmethod
    def of(
        cls,
        values: NDArray[np.float64],
        time_ms: NDArray[np.int64],
        identity: NDArray[np.uint64] | None = None,
        group: NDArray[np.int8] | None = None,
        sign: NDArray[np.int8] | None = None,
    ) -> Rows:
        """Rows with what is not given filled in: identities count up, group 0, sign +1. 1-d values become a column."""
        n = len(time_ms)
        return cls(
            values[:, None] if values.ndim == 1 else values,
            time_ms,
            np.arange(n, dtype=np.uint64) if identity is None else identity,
            np.zeros(n, np.int8) if group is None else group,
            np.ones(n, np.int8) if sign is None else sign,
        )

    def take(self, index: Any) -> Rows:
        """The rows selected by a slice, mask or positions."""
        return Rows(
            self.values[index], self.time_ms[index], self.identity[index], self.group[index], self.sign[index]
        )


@dataclass(frozen=True, slots=True)
class Change:
    """The verdict at one point. ``index``: row of the call at which it was reached, -1 when a block of time closed;
    ``time_ms``: event time of that row, or the block's end."""

    index: int
    time_ms: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Context:
    """What a detector may know beside its options.

    ``categories``: 0 for a numeric column, else the number of codes including the one for unknown values.
    ``features``: the contract's declaration of each column that is a feature, by name (range, nullable, categories).
    ``false_pages`` is the model's whole budget, ``share`` this detector's part of it. ``trained_to_ms``: end of the
    version's training data. ``decision``: scores at or above it are positive decisions. ``cache`` holds calibrations by content hash: dear to compute, equal for equal content, may
    be empty at any time.
    """

    columns: tuple[str, ...]
    categories: tuple[int, ...] = ()
    stream: Stream = "score"
    reference: Reference | None = None
    version: str = ""
    false_pages: FalsePages | None = None
    share: float = 1.0
    seed: int = 0
    features: Mapping[str, Feature] = field(default_factory=dict)
    trained_to_ms: int | None = None
    decision: float = 0.5
    cache: MutableMapping[str, bytes] = field(default_factory=dict)

    @property
    def budget_ms(self) -> float | None:
        """This detector's part of the budget as event time between its false alarms; None without a budget."""
        budget = self.false_pages
        return None if budget is None else budget.per / (budget.max * self.share)

    @property
    def budget_rows(self) -> float | None:
        """The same in rows, at the traffic of the reference; None without a budget, or a reference with times."""
        reference, budget_ms = self.reference, self.budget_ms
        if budget_ms is None or reference is None or reference.from_ms is None or reference.to_ms is None:
            return None
        span_ms = reference.to_ms - reference.from_ms
        return budget_ms * reference.rows / span_ms if span_ms > 0 and reference.rows > 0 else None


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a detector's false alarms, and so whether it may wake a person.

    ``proved``: a theorem bounds them, under the null that the detector's documentation states. ``resampled``: its
    threshold was set on resampled reference. ``none``: nobody knows. ``promised_ms``: event time between false alarms;
    ``verified_ms``: how much time-ordered reference it was checked on, and ``alarms`` in it. A promise longer than
    ``verified_ms`` is unverified beyond it, and ``note`` says so in words.
    """

    basis: Literal["proved", "resampled", "none"] = "none"
    promised_ms: float | None = None
    verified_ms: float = 0.0
    alarms: int = 0
    pages: bool = False
    note: str = "no bound on false alarms is known"


class Detector(Protocol):
    """A running detector. Deterministic: equal specs, contexts and rows give equal verdicts and equal snapshots."""

    @property
    def verdict(self) -> Verdict:
        """What it says now; ``inconclusive`` until it has seen enough."""

    def update(self, rows: Rows) -> list[Change]:
        """Take rows; the changes of verdict they caused, in order. Never raises on values of any kind."""

    def advance(self, time_ms: int) -> list[Change]:
        """All rows up to ``time_ms`` were given; close what ends by then."""

    def snapshot(self) -> bytes:
        """The whole running state; equal states give equal bytes."""

    def load(self, data: bytes) -> None:
        """Become the state of ``snapshot``. Raises SnapshotError."""

    def reset(self) -> None:
        """As if just built."""


#: No number of rows, and no time, makes a difference.
NEVER_ROWS, NEVER_MS = 2**31, 2**62


@runtime_checkable
class Patient(Protocol):
    """A detector that can say how long nothing it is given could make it speak, so that rows may be fed to it later and
    more at a time."""

    def patience(self) -> tuple[int, int]:
        """(rows, time): no verdict changes before so many more rows have come, or time has passed that.

        As long as both hold neither ``update`` nor ``advance`` returns a change, whatever values the rows have and
        wherever they are cut; rows that come are younger than the last ``advance``. (0, any): it may speak at once.
        """


class Spec(BaseModel, ABC):
    """A kind's configuration: frozen, its fields are the options people write; builds running detectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    #: Streams it can read, and the family of its verdicts on each.
    streams: ClassVar[Mapping[Stream, Family]]
    #: Rough cost of a row on one core, nanoseconds, of closing a block of ``block_ms`` where there are blocks, and of its state.
    cost_ns: ClassVar[int]
    closing_ns: ClassVar[int] = 0
    state_size: ClassVar[str]
    sees: ClassVar[str]
    blind_to: ClassVar[str]
    #: ``exact``: a restored detector goes on as if never stopped; ``warm-up``: it starts learning again.
    restart: ClassVar[Literal["exact", "warm-up"]] = "exact"
    #: Whether its false-alarm rate can be bounded well enough to wake a person; ``standing`` says if it is.
    pages: ClassVar[bool] = False
    #: The option that ``detectors.tools.calibrate`` may set to fit the budget, for kinds without a proof. One that is bounded by 1
    #: is a probability and stricter the smaller it is; any other is stricter the greater it is. Such a kind may page once the
    #: fitted value has held on the reference in time order, and takes its part of the budget for it.
    knob: ClassVar[str | None] = None
    #: Whether all it sees of a block of time is how many rows each column had in each of ``schemas.bins``, or little more.
    counts_blocks: ClassVar[bool] = False
    #: Whether categorical columns are kept from it.
    numeric_only: ClassVar[bool] = False
    #: Whether every closed block is to be announced, not only changes of state (whoever waits for rows needs it).
    announces_blocks: ClassVar[bool] = False
    #: Whether values that cannot be read are what it looks for, so that a column of nulls is a finding.
    finds_unreadable: ClassVar[bool] = False
    #: Modules of optional libraries without which ``build`` raises ConfigurationError.
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, context: Context) -> Detector:
        """A new detector. Raises ConfigurationError when ``context`` lacks what it needs."""

    def standing(self, context: Context) -> Standing:
        """What its false alarms are known to be in this context. Deterministic, at most seconds; cached by the caller."""
        return Standing(basis="proved", pages=True, note="") if self.pages else Standing()

    @property
    def spends_budget(self) -> bool:
        """Whether its false pages count against the model's budget, and so whether it gets a part of it."""
        return self.pages or self.knob is not None

    def knob_value(self, context: Context) -> float:
        """Where the knob stands in this context, fitted or not. Only for kinds that have one."""
        value = getattr(self, str(self.knob))
        # A threshold that follows from the budget is where the budget puts it.
        return float(self.build(context).verdict.threshold if value is None else value)

    def restore(self, context: Context, data: bytes) -> Detector:
        """The detector whose ``snapshot`` was ``data``. Raises SnapshotError."""
        detector = self.build(context)
        detector.load(data)
        return detector

    def family(self, stream: Stream) -> Family:
        """What kind of harm its verdicts on ``stream`` are about."""
        return self.streams[stream]


def undecided(threshold: float, note: str) -> Verdict:
    """The verdict of a detector that has not seen enough."""
    return Verdict(state=State.INCONCLUSIVE, score=0.0, threshold=threshold, evidence=Evidence(note=note))


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """Envelope of all native snapshots."""

    kind: str
    schema: int
    state: msgspec.Raw


def _sorted(value: Any) -> Any:
    """Maps in the order of their keys, at every depth; keys may be numbers, which msgspec's own order refuses."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


S = TypeVar("S")


def pack(kind: str, schema: int, state: Any) -> bytes:
    """A snapshot of a msgspec-encodable ``state``; maps are written in sorted order, so equal states are equal bytes."""
    inner = msgspec.msgpack.encode(_sorted(msgspec.to_builtins(state, builtin_types=(bytes,))))
    return msgspec.msgpack.encode(Snapshot(kind, schema, msgspec.Raw(inner)))


def unpack(kind: str, schema: int, type_: type[S], data: bytes) -> S:
    """Inverse of :func:`pack`. Raises SnapshotError for other kinds, schemas, and anything that is not a snapshot."""
    try:
        envelope = msgspec.msgpack.decode(data, type=Snapshot)
        if (envelope.kind, envelope.schema) != (kind, schema):
            raise SnapshotError(
                f"snapshot is of {envelope.kind!r} schema {envelope.schema}, expected {kind!r} schema {schema}: "
                "the detector starts again, or run the version that wrote it"
            )
        return msgspec.msgpack.decode(envelope.state, type=type_)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SnapshotError(f"not a snapshot of {kind!r}: {error}") from error
