"""Ground truths from messages: validated one by one, a bad one never touches its neighbours."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.arrow import read_arrow
from schemas.contracts import ModelContract
from schemas.errors import BadMessage
from schemas.events import REVISION_MAX, GroundTruth
from schemas.messages import TIME_MAX_MS, TIME_MIN_MS, Bad, Id, Messages, Name, Trace, checked, reason_of
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
        rows = scan_labels(self._names, messages.keys, messages.values, messages.arrow)
        plain = LabelColumns(
            self._models, rows.model, rows.keys, rows.label, rows.label_time_ms, rows.revision, rows.places,
            np.zeros(len(rows.places), np.int64),
        )  # fmt: skip
        if not len(rows.left):
            return plain, []
        others, bad = self._checked(messages, rows.left)
        if not len(others):
            return plain, bad
        both = LabelColumns(
            self._models,
            keys=Spans.concat([plain.keys, others.keys]),
            **{name: np.concatenate([getattr(plain, name), getattr(others, name)]) for name in _ARRAYS},
        )
        return both.take(np.lexsort((both.row, both.message))), bad

    def _checked(self, messages: Messages, places: NDArray[np.int64]) -> tuple[LabelColumns, list[Bad]]:
        """Message by message: a bad one is named, its neighbours are taken."""
        good: list[tuple[int, int, Label]] = []
        bad: list[Bad] = []
        for at in places.tolist():
            key, value, arrow = messages[at]
            try:
                labels = _arrow_labels(value) if arrow else [checked(_LABELS.decode, key, value)]
            except BadMessage as error:
                bad.append(Bad(at, 0, error.reason, error.detail))
                continue
            for row, label in enumerate(labels):
                why = _label_fault(label, self._known)
                if why is None:
                    good.append((at, row, label))
                else:
                    bad.append(Bad(at, row, *why))
        return LabelColumns.of(
            self._models, [label for _, _, label in good], [(at, row) for at, row, _ in good]
        ), bad


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


def _arrow_labels(value: bytes | None) -> list[Label]:
    table = read_arrow(value)
    try:
        return [msgspec.convert(row, Label) for row in table.to_pylist()]
    except msgspec.ValidationError as error:
        raise BadMessage(*reason_of(error)) from error


def encode_label(event: GroundTruth) -> tuple[bytes, bytes]:
    """(key, value) of one ground truth."""
    return event.prediction_id.encode(), event.model_dump_json(exclude_none=True).encode()
