"""Another detector, once for each segment: what moved in one airport alone is lost in the mean of all of them.

Each of the most frequent values of a categorical column (``detectors.groups.frequent``), and all others together, has a detector
of its own, which reads that segment's rows, knows the reference of that segment's rows (made by training for the
contract's segments, else from the reference's sample), and gets an equal part of the budget: expected false alarms add up
whatever depends on what, so that the sum over segments is what one detector was allowed (a union bound; Bonferroni 1936).
The verdict is the worst of the segments; its evidence names the segment. Segments without enough rows stay undecided,
and how many those are is in the note.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> spec = SegmentsSpec.model_validate({"detector": {"kind": "loss-above-promise", "options": {"threshold": 50}}})
>>> columns = ("score", "label", "loss", "origin")
>>> detector = spec.build(Context(columns, (0, 0, 0, 3), stream="loss"))
>>> rng = np.random.default_rng(1)
>>> at, origin = np.arange(6_000), rng.integers(0, 2, 6_000)
>>> label = rng.uniform(size=6_000) < np.where((origin == 1) & (at > 3_000), 0.6, 0.1)
>>> rows = Rows.of(np.column_stack([np.full(6_000, 0.1), label, np.zeros(6_000), origin]), at * 864_000)
>>> _ = detector.update(rows)
>>> [(c.time_ms // 86_400_000, str(c.verdict.state), c.verdict.evidence.column) for c in detector.advance(6 * 10**9)][-1]
(32, 'drift', 'loss (origin=1)')
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from detectors.base import Change, Context, Detector, Rows, Spec, Standing, Stream, pack, undecided, unpack
from detectors.gather import verdict_bytes, verdict_from
from detectors.groups.frequent import Watched, WatchedState
from detectors.registry import spec_class
from detectors.tools.calibrate import duration
from schemas.contracts import Reference
from schemas.errors import ConfigurationError, SnapshotError
from schemas.reference import describe, log_losses
from schemas.verdicts import Family, State, Verdict

_SCHEMA = 1
#: What is run where nothing is said.
_DEFAULT: Mapping[str, str] = {
    "features": "drift-e-blocks", "predictions": "service-level", "loss": "loss-above-promise"
}  # fmt: skip
#: A sample with fewer rows of a segment is no reference of it.
_SAMPLE_ROWS_MIN = 50
_WORST = (State.INCONCLUSIVE, State.STABLE, State.WARNING, State.DRIFT, State.ERROR)


class Inner(BaseModel):
    """The detector of each segment: a kind, and its options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)


class SegmentsSpec(Spec):
    """Options of ``segments``."""

    kind: ClassVar[str] = "segments"
    #: By default; otherwise the inner kind's.
    streams: ClassVar[Mapping[Stream, Family]] = {
        "features": Family.INPUT,
        "predictions": Family.SERVICE,
        "loss": Family.CONCEPT,
    }
    #: Of its own, beside what the inner detectors cost: four segments in blocks of 2,000.
    cost_ns: ClassVar[int] = 420
    state_size: ClassVar[str] = "the inner detector's, for each of at most segments_max + 1 segments"
    sees: ClassVar[str] = "what the inner detector sees, in one segment alone"
    blind_to: ClassVar[str] = (
        "segments too rare to be watched by themselves; combinations of segments; what is small in every segment"
    )
    pages: ClassVar[bool] = True

    by: str = Field(
        default="", description="A categorical column of the stream; default: the first there is."
    )
    detector: Inner | None = Field(
        default=None,
        description="Default: drift-e-blocks on features, service-level on predictions, else loss-above-promise.",
    )
    segments_max: int = Field(
        default=20, ge=1, le=200, description="Watched by themselves; all others are one more."
    )

    @model_validator(mode="after")
    def _inner_is_one(self) -> SegmentsSpec:
        if self.detector is not None:
            if self.detector.kind == self.kind:
                raise ValueError("segments of segments: name another kind of detector")
            try:
                spec_class(self.detector.kind).model_validate(self.detector.options)
            except (ConfigurationError, ValidationError) as error:
                raise ValueError(f"detector: {error}") from error
        return self

    def inner(self, stream: Stream) -> Spec:
        """The spec of each segment's detector. Raises ConfigurationError when it does not read ``stream``."""
        wanted = self.detector or Inner(kind=_DEFAULT[stream])
        found = spec_class(wanted.kind)
        if stream not in found.streams:
            raise ConfigurationError(
                f"segments: {wanted.kind} reads {', '.join(found.streams)}, not {stream}"
            )
        return found.model_validate(wanted.options)

    def family(self, stream: Stream) -> Family:
        return self.inner(stream).family(stream)

    @property
    def spends_budget(self) -> bool:
        """As the inner kind does; of the defaults, some do. A knob is not fitted for every segment, so it gets no part."""
        if self.detector is None:
            return True
        inner = spec_class(self.detector.kind).model_validate(self.detector.options)
        return inner.spends_budget and inner.knob is None

    def build(self, context: Context) -> Detector:
        return Segments(self, context)

    def standing(self, context: Context) -> Standing:
        return combined(Segments(self, context).standings())


def combined(parts: Iterable[tuple[str, Standing]]) -> Standing:
    """What is known of all segments together: rates of false alarms add up; it pages only if each of them may."""
    named = list(parts)
    standings = [standing for _, standing in named]
    promised = [standing.promised_ms for standing in standings]
    rates = [1 / run for run in promised if run]
    weakest = min(standings, key=lambda s: ("none", "resampled", "proved").index(s.basis))
    silent = [(name, standing) for name, standing in named if not standing.pages]
    note = f"{len(named)} segments; {standings[0].note}"
    if silent:
        name, why = silent[0]
        found = (
            f"false alarms in {duration(why.verified_ms)} of reference: {why.alarms}, " if why.alarms else ""
        )
        note = f"{len(silent)} of {len(named)} segments may not page, {name}: {found}{why.note}"
    return Standing(
        weakest.basis,
        1 / sum(rates) if len(rates) == len(named) else None,
        min(standing.verified_ms for standing in standings),
        sum(standing.alarms for standing in standings),
        not silent,
        note,
    )


class _State(msgspec.Struct):
    watched: WatchedState
    inner: list[bytes]
    said: list[bytes]


class Segments:
    """The running detectors; see the module. ``said``: what each of them last announced."""

    def __init__(self, spec: SegmentsSpec, context: Context) -> None:
        self._spec = spec
        self._context = context
        self._inner = spec.inner(context.stream)
        self._watched = Watched(context, spec.by, spec.segments_max)
        self._columns = [
            at
            for at, name in enumerate(context.columns)
            if name != self._watched.name and not (self._inner.numeric_only and _codes(context, at))
        ]
        if not self._columns:
            raise ConfigurationError(f"segments: no column is left beside {self._watched.name}")
        self.reset()

    def reset(self) -> None:
        self._watched.reset()
        self._detectors: list[Detector] = []
        self._said: list[Verdict] = []
        self._begin()

    def _begin(self) -> None:
        """Detectors for all segments, once it is known which those are."""
        if self._watched.codes is not None and not self._detectors:
            self._detectors = [self._inner.build(self._of(at)) for at in range(self._size)]
            self._said = [detector.verdict for detector in self._detectors]

    @property
    def _size(self) -> int:
        return len(self._watched.codes or ()) + self._watched.others

    def _of(self, place: int) -> Context:
        """What the detector of one segment may know."""
        context = self._context
        names = tuple(context.columns[at] for at in self._columns)
        return replace(
            context,
            columns=names,
            categories=tuple(_codes(context, at) for at in self._columns),
            reference=self._reference(place),
            share=context.share / self._size,
            features={name: found for name, found in context.features.items() if name in names},
        )

    def _reference(self, place: int) -> Reference | None:
        whole, codes = self._context.reference, self._watched.codes or ()
        if whole is None or self._watched.name not in whole.columns:
            return None
        return reference_of_segment(whole, self._watched.name, codes, place)

    def standings(self) -> list[tuple[str, Standing]]:
        """Each segment by its name, with what is known of its detector."""
        if self._watched.codes is None:
            return [(self._watched.name, Standing(note="its segments are not known before its first rows"))]
        return [(self._watched.label(at), self._inner.standing(self._of(at))) for at in range(self._size)]

    @property
    def verdict(self) -> Verdict:
        return self._worst([detector.verdict for detector in self._detectors])

    def _worst(self, verdicts: list[Verdict]) -> Verdict:
        if not verdicts:
            return undecided(1.0, f"learning which segments of {self._watched.name} are frequent")
        at = max(range(len(verdicts)), key=lambda at: (*_badness(verdicts[at]), -at))
        worst = verdicts[at]
        label, evidence = self._watched.label(at), worst.evidence
        silent = sum(verdict.state is State.INCONCLUSIVE for verdict in verdicts)
        note = f"{label}: {evidence.note}" if evidence.note else label
        if silent:
            note += f"; {silent} of {len(verdicts)} segments are undecided"
        column = f"{evidence.column} ({label})" if evidence.column else label
        return worst.model_copy(
            update={"evidence": evidence.model_copy(update={"column": column, "note": note})}
        )

    def update(self, rows: Rows) -> list[Change]:
        taken = self._watched.learn(rows.values)
        self._begin()
        if not self._detectors:
            return []
        offset, rows = taken, rows.take(slice(taken, None)) if taken else rows
        places = self._watched.places(rows.values)
        heard: list[tuple[int, int, Change]] = []
        for place in np.unique(places[places < self._size]).tolist():
            mine = np.flatnonzero(places == place)
            part = rows.take(mine)
            values = np.ascontiguousarray(part.values[:, self._columns])
            changes = self._detectors[place].update(replace(part, values=values))
            heard += [(int(mine[change.index]), place, change) for change in changes]
        changes = []
        for index, place, change in sorted(heard, key=lambda item: item[:2]):
            changes += self._announced([(place, change)], index + offset, change.time_ms)
        return changes

    def advance(self, time_ms: int) -> list[Change]:
        heard: dict[int, list[tuple[int, Change]]] = {}
        for place, detector in enumerate(self._detectors):
            for change in detector.advance(time_ms):
                heard.setdefault(change.time_ms, []).append((place, change))
        return [change for at in sorted(heard) for change in self._announced(heard[at], -1, at)]

    def _announced(self, heard: list[tuple[int, Change]], index: int, time_ms: int) -> list[Change]:
        """The change that those of some segments, all at one moment, make to the whole."""
        before = self._worst(self._said).state
        for place, change in heard:
            self._said[place] = change.verdict
        after = self._worst(self._said)
        return [] if after.state is before else [Change(index, time_ms, after)]

    def snapshot(self) -> bytes:
        inner = [detector.snapshot() for detector in self._detectors]
        said = [verdict_bytes(verdict) for verdict in self._said]
        return pack(SegmentsSpec.kind, _SCHEMA, _State(self._watched.state, inner, said))

    def load(self, data: bytes) -> None:
        state = unpack(SegmentsSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._watched.load(state.watched)
        self._detectors = []
        self._begin()
        if not len(state.inner) == len(state.said) == len(self._detectors):
            raise SnapshotError(
                f"snapshot of {len(state.inner)} segments, there are {len(self._detectors)}: the detector starts again"
            )
        for at, held in enumerate(state.inner):
            self._detectors[at].load(held)
            said = verdict_from(state.said[at])
            # Whoever learns again after a restart has nothing to stand by.
            self._said[at] = (
                said if said is not None and self._inner.restart == "exact" else self._detectors[at].verdict
            )


def reference_of_segment(whole: Reference, by: str, codes: tuple[int, ...], place: int) -> Reference | None:
    """The reference of one segment's rows: the one training made, else of the sample's rows; None when they are few.

    ``place``: in ``codes``; the one after the last stands for all other values.
    """
    matrix = np.array([[np.nan if v is None else v for v in row] for row in whole.sample], np.float64)
    matrix = matrix.reshape(len(whole.sample), len(whole.columns))
    column = matrix[:, list(whole.columns).index(by)]
    mine = ~np.isin(column, codes) if place == len(codes) else column == codes[place]
    sample: dict[str, Any] = {
        name: tuple(value for value, kept in zip(getattr(whole, name), mine.tolist(), strict=False) if kept)
        for name in ("sample", "sample_time_ms", "sample_score", "sample_label")
    }
    found = whole.segments.get(by, {}).get(codes[place]) if place < len(codes) else None
    if found is None:
        if int(mine.sum()) < _SAMPLE_ROWS_MIN:
            return None
        scores, labels = np.array(sample["sample_score"]), np.array(sample["sample_label"])
        times = np.array(sample["sample_time_ms"], np.int64)
        rows = int(mine.sum())
        found = describe(
            {name: matrix[mine, at] for at, name in enumerate(whole.columns)},
            {name: len(of.shares) for name, of in whole.columns.items()},
            scores if len(scores) == rows else np.full(rows, np.nan),
            loss=log_losses(scores, labels) if len(labels) == len(scores) == rows else None,
            event_ms=times if len(times) == rows else None,
            block_ms=whole.block_ms,
        )
    return found.model_copy(update=sample)


def _codes(context: Context, at: int) -> int:
    return context.categories[at] if at < len(context.categories) else 0


def _badness(verdict: Verdict) -> tuple[int, float]:
    """Worse states are larger; of equal ones, what is further towards its threshold."""
    return _WORST.index(verdict.state), verdict.score / verdict.threshold if verdict.threshold > 0 else 0.0
