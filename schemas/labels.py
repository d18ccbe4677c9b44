"""Ground truths from messages, as JSON each or as Arrow batches. What is sound is taken in one pass over it; whatever else
comes is looked at one by one: a bad one never touches its neighbours."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.arrow import ArrowRows, documents, is_text, open_arrow, whole_table
from schemas.arrow_plain import Odd, PlainBatches
from schemas.compiled import compiled
from schemas.contracts import ModelContract
from schemas.errors import BadMessage
from schemas.events import ID_CHARS_MAX, REVISION_MAX, GroundTruth
from schemas.messages import (
    TIME_MAX_MS,
    TIME_MIN_MS,
    TRACE_CHARS_MAX,
    Bad,
    Id,
    Messages,
    Name,
    Trace,
    checked,
    reason_of,
)
from schemas.scan_labels import label_names, scan_labels
from schemas.spans import Spans


class Label(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One ground truth as decoded; the same document as ``schemas.events.GroundTruth``."""

    prediction_id: Id
    model: Name
    label: float
    label_time_ms: int
    revision: Annotated[int, msgspec.Meta(ge=0, le=REVISION_MAX)] = 0
    trace_id: Trace | None = None


_LABELS = msgspec.json.Decoder(Label)
#: Columns of a batch of labels; the first four must be there.
LABEL_COLUMNS = ("prediction_id", "model", "label", "label_time_ms", "revision", "trace_id")


@dataclass(slots=True)
class LabelColumns:
    """``n`` ground truths in the order of the messages; ``message (n,)`` and ``row (n,)`` say where each came from.

    ``model`` counts in ``models``; ``keys`` are the predictions' ids as bytes.
    """

    models: tuple[str, ...]
    model: NDArray[np.int64]
    keys: Spans
    label: NDArray[np.float64]
    label_time_ms: NDArray[np.int64]
    revision: NDArray[np.int64]
    message: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(
        cls, models: tuple[str, ...], labels: Sequence[Label], at: Sequence[tuple[int, int]]
    ) -> LabelColumns:
        """Labels of these models, and where each came from: its message, and the row in it."""
        message, row = np.array(at, np.int64).reshape(len(labels), 2).T
        return cls(
            models,
            np.array([models.index(label.model) for label in labels], np.int64),
            Spans.of([label.prediction_id.encode() for label in labels]),
            np.array([label.label for label in labels], np.float64),
            np.array([label.label_time_ms for label in labels], np.int64),
            np.array([label.revision for label in labels], np.int64),
            message,
            row,
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: int) -> Label:
        return Label(
            (self.keys[at] or b"").decode(),
            self.models[self.model[at]],
            float(self.label[at]),
            int(self.label_time_ms[at]),
            int(self.revision[at]),
        )

    def take(self, places: NDArray[np.int64]) -> LabelColumns:
        """Those at ``places``."""
        return LabelColumns(
            self.models, self.model[places], self.keys.take(places), self.label[places], self.label_time_ms[places],
            self.revision[places], self.message[places], self.row[places],
        )  # fmt: skip


class LabelDecoder:
    """Decodes ground truths for every model in ``contracts``; make once, use for each batch."""

    def __init__(self, contracts: Mapping[str, ModelContract]) -> None:
        self._models = tuple(contracts)
        self._known = frozenset(contracts)
        self._names = label_names(contracts)

    def decode(self, messages: Messages) -> tuple[LabelColumns, list[Bad]]:
        """Ground truths, and what could not be used."""
        parts: list[LabelColumns] = []
        left = np.flatnonzero(messages.arrow)
        if len(left) < len(messages):
            rows = scan_labels(self._names, messages.keys, messages.values, messages.arrow)
            left = rows.left
            parts.append(LabelColumns(
                self._models, rows.model, rows.keys, rows.label, rows.label_time_ms, rows.revision, rows.places,
                np.zeros(len(rows.places), np.int64),
            ))  # fmt: skip
        bad: list[Bad] = []
        if len(left):
            parts += self._checked(messages, left, bad)
        parts = [part for part in parts if len(part)] or [LabelColumns.of(self._models, [], [])]
        if len(parts) == 1:
            return parts[0], bad
        both = LabelColumns(
            self._models,
            keys=Spans.concat([part.keys for part in parts]),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS},
        )
        order = np.lexsort((both.row, both.message))
        return both if (np.diff(order) == 1).all() else both.take(order), bad

    def _checked(self, messages: Messages, places: NDArray[np.int64], bad: list[Bad]) -> list[LabelColumns]:
        """Message by message: a bad one is named, its neighbours are taken."""
        parts: list[LabelColumns] = []
        good: list[tuple[int, int, Label]] = []
        for at in places.tolist():
            try:
                if messages.arrow[at]:
                    schema, batches = open_arrow(messages.values.view(at))
                    whole = self._of_batches(batches, at)
                    if whole is None:
                        table = whole_table(schema, batches)
                        whole = self._of_table(table, at)
                    if whole is not None:
                        parts.append(whole)
                        continue
                    rows = documents(table)
                else:
                    key, value, _ = messages[at]
                    rows = [checked(_LABELS.decode, key, value)]
            except BadMessage as error:
                bad.append(Bad(at, 0, error.reason, error.detail))
                continue
            wrong = []
            for row, data in enumerate(rows):
                label, why = self._judged(data)
                if label is None:
                    wrong.append(Bad(at, row, *why, alone=True))
                else:
                    good.append((at, row, label))
            # What is wrong with all rows alike is wrong with the batch, and said once.
            alike = len(wrong) == len(rows) and len({(one.reason, one.detail) for one in wrong}) == 1
            bad += [replace(wrong[0], alone=False)] if alike else wrong
        labels, at_each = [label for _, _, label in good], [(at, row) for at, row, _ in good]
        return [*parts, LabelColumns.of(self._models, labels, at_each)]

    def _judged(self, data: Any) -> tuple[Label | None, tuple[str, str]]:
        """One label, or what is wrong with it."""
        try:
            label = msgspec.convert(data, Label)
        except msgspec.ValidationError as error:
            return None, reason_of(error)
        why = _label_fault(label, self._known)
        return (label, ("", "")) if why is None else (None, why)

    def _of_batches(self, batches: list[pa.RecordBatch], at: int) -> LabelColumns | None:
        """The rows of an ordinary message without a fault; None: it is to be looked at column by column."""
        try:
            if len(batches) != 1:
                raise Odd
            with PlainBatches(batches) as batch:
                if not set(LABEL_COLUMNS[:4]) <= batch.names <= set(LABEL_COLUMNS):
                    raise Odd
                if "trace_id" in batch:
                    batch.keys("trace_id", TRACE_CHARS_MAX)
                label = np.empty(batch.rows, np.float64)
                batch.floats("label", label)
                names, model = batch.texts("model")
                time_ms = batch.integers("label_time_ms")
                revision = (
                    batch.integers("revision") if "revision" in batch else np.zeros(batch.rows, np.int64)
                )
                if not self._known.issuperset(names) or not _sound(label, time_ms, revision):
                    raise Odd
                keys = batch.keys("prediction_id", ID_CHARS_MAX)
        except Odd:
            return None
        code = np.array([self._models.index(name) for name in names], np.int64)
        row = np.arange(len(label))
        return LabelColumns(
            self._models, code[model], keys, label, time_ms, revision, np.full(len(row), at), row
        )

    def _of_table(self, table: pa.Table, at: int) -> LabelColumns | None:
        """The rows of a batch without a fault; None: it is to be looked at row by row, for it may have one."""
        try:
            batch = ArrowRows(table, LABEL_COLUMNS, LABEL_COLUMNS[:4])
            kinds = {name: batch.kind(name) for name in LABEL_COLUMNS if name in batch}
            trace = kinds.pop("trace_id", None)
            if any(batch.nulls(name) for name in kinds) or not all(
                _expected(*kind) for kind in kinds.items()
            ):
                return None
            if trace is not None and not (is_text(trace) and _short(batch, "trace_id", TRACE_CHARS_MAX)):
                return None
            keys, named = batch.spans("prediction_id", ID_CHARS_MAX)
            names, model = batch.texts("model", None)
            label, time_ms = batch.floats("label", np.nan), batch.integers("label_time_ms")
            revision = batch.integers("revision") if "revision" in batch else np.zeros(batch.rows, np.int64)
        except BadMessage:
            return None
        sound = named.all() and self._known.issuperset(names) and _sound(label, time_ms, revision)
        if not sound:
            return None
        code = np.array([self._models.index(name) for name in names], np.int64)
        rows = np.arange(batch.rows)
        return LabelColumns(
            self._models, code[model], keys, label, time_ms, revision, np.full(batch.rows, at), rows
        )


@compiled
def _sound(label: NDArray[np.float64], time_ms: NDArray[np.int64], revision: NDArray[np.int64]) -> bool:
    """Whether labels, their times and their revisions are all possible."""
    wrong = 0
    for i in range(len(label)):
        wrong += label[i] != 0.0 and label[i] != 1.0
        wrong += time_ms[i] < TIME_MIN_MS or time_ms[i] > TIME_MAX_MS
        wrong += revision[i] < 0 or revision[i] > REVISION_MAX
    return wrong == 0


def _expected(name: str, kind: pa.DataType) -> bool:
    """Whether a column's type is one whose every value means what it says."""
    if name in ("prediction_id", "model"):
        return is_text(kind)
    if name == "label":
        return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
    return bool(pa.types.is_integer(kind))


def _short(batch: ArrowRows, name: str, chars_max: int) -> bool:
    spans, _ = batch.spans(name, chars_max)
    return int(spans.length.max(initial=0)) <= chars_max


_ARRAYS = ("model", "label", "label_time_ms", "revision", "message", "row")


def _label_fault(label: Label, models: Container[str]) -> tuple[str, str] | None:
    if label.model not in models:
        return "unknown-model", f"no contract for model {label.model!r}"
    if not math.isfinite(label.label):
        return "not-finite", "label is not finite"
    if label.label not in (0.0, 1.0):
        return "invalid-value", f"label {label.label} of a binary model is not 0 or 1"
    if not TIME_MIN_MS <= label.label_time_ms <= TIME_MAX_MS:
        return "absurd-timestamp", f"label_time_ms {label.label_time_ms} is not within the years 2000 to 2100"
    return None


def encode_label(event: GroundTruth) -> tuple[bytes, bytes]:
    """(key, value) of one ground truth."""
    return event.prediction_id.encode(), event.model_dump_json(exclude_none=True).encode()
