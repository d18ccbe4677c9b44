"""Ground truths from messages: validated one by one, a bad one never touches its neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.arrow import read_arrow
from schemas.contracts import ModelContract
from schemas.errors import BadMessage
from schemas.events import GroundTruth
from schemas.messages import (
    TIME_MAX_MS,
    TIME_MIN_MS,
    Bad,
    Id,
    Message,
    Name,
    Trace,
    all_good,
    checked,
    reason_of,
)


class Label(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One ground truth as decoded; the same document as ``schemas.events.GroundTruth``."""

    prediction_id: Id
    model: Name
    label: float
    label_time_ms: int
    revision: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    trace_id: Trace | None = None


_LABELS = msgspec.json.Decoder(Label)


@dataclass(slots=True)
class LabelColumns:
    """Ground truths in the order of the messages; ``message (n,)`` and ``row (n,)`` say where each came from."""

    labels: list[Label]
    message: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def decode_labels(
    messages: Sequence[Message], contracts: Mapping[str, ModelContract]
) -> tuple[LabelColumns, list[Bad]]:
    """Ground truths, and what could not be used."""
    labels = all_good(_LABELS.decode, messages)
    if labels is not None and not any(_label_fault(label, contracts) for label in labels):
        return LabelColumns(labels, np.arange(len(labels)), np.zeros(len(labels), np.int64)), []
    good: list[tuple[int, int, Label]] = []
    bad: list[Bad] = []
    for at, (key, value, arrow) in enumerate(messages):
        try:
            labels = _arrow_labels(value) if arrow else [checked(_LABELS.decode, key, value)]
        except BadMessage as error:
            bad.append(Bad(at, 0, error.reason, error.detail))
            continue
        for row, label in enumerate(labels):
            why = _label_fault(label, contracts)
            if why is None:
                good.append((at, row, label))
            else:
                bad.append(Bad(at, row, *why))
    message, row_of = np.array([one[:2] for one in good], np.int64).reshape(len(good), 2).T
    return LabelColumns([one[2] for one in good], message, row_of), bad


def _label_fault(label: Label, contracts: Mapping[str, ModelContract]) -> tuple[str, str] | None:
    contract = contracts.get(label.model)
    if contract is None:
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
