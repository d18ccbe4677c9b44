"""The labelled rows that a training may see, named by their content; how they were chosen travels with them. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Origin:
    """How the rows were chosen. All times are event time.

    Predictions in ``(from_ms, to_ms]`` with what was known of their labels at ``requested_ms``. ``to_ms`` lies
    ``backed_off_ms`` before the request, so that labels that take long are in for the last rows as they are for the
    first; ``backed_off_by`` says what set it: ``configuration``, ``label horizon``, or ``measured`` on ``delays``
    predictions whose horizon had passed. One in ``sampled_every`` predictions was looked at; ``predictions`` were found;
    ``unlabelled`` of them had no label and became what ``unlabelled_are`` says; ``left_out`` rows were outside the
    contract.
    """

    requested_ms: int = 0
    from_ms: int = 0
    to_ms: int = 0
    backed_off_ms: int = 0
    backed_off_by: str = ""
    delays: int = 0
    maturity: float = 1.0
    label_horizon_ms: int = 0
    sampled_every: int = 1
    predictions: int = 0
    unlabelled: int = 0
    unlabelled_are: str = "drop"
    left_out: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``n`` labelled predictions in order of (event time, prediction id).

    ``table``: raw columns ``(n,)`` by feature name; numbers float64 with NaN as null, categories text with "" as null.
    ``labels``: 0 or 1. ``scores``: what answered then, NaN if nothing did; ``versions``: who. ``entities``: about whom
    or what, "" if not said. :meth:`said_by` makes ``scores`` those of one version alone.
    """

    table: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int8]
    event_ms: NDArray[np.int64]
    scores: NDArray[np.float64]
    versions: NDArray[Any]
    prediction_ids: NDArray[Any]
    entities: NDArray[Any]
    origin: Origin = Origin()

    @staticmethod
    def of(
        table: Mapping[str, NDArray[Any]],
        labels: NDArray[Any],
        event_ms: NDArray[np.int64],
        **columns: Any,
    ) -> Snapshot:
        """From columns in any order; those that are not given are empty, ids are the positions given."""
        rows = len(labels)
        blank = np.full(rows, "", object)
        made = Snapshot(
            dict(table),
            np.asarray(labels).astype(np.int8),
            np.asarray(event_ms, np.int64),
            columns.get("scores", np.full(rows, np.nan)),
            columns.get("versions", blank),
            columns.get("prediction_ids", np.array([f"{at:09d}" for at in range(rows)], object)),
            columns.get("entities", blank),
            columns.get("origin", Origin()),
        )
        return made.take(np.lexsort((made.prediction_ids.astype("U"), made.event_ms)))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Snapshot:
        """The rows at these positions, or where a mask is true."""
        return Snapshot(
            {name: column[rows] for name, column in self.table.items()},
            self.labels[rows],
            self.event_ms[rows],
            self.scores[rows],
            self.versions[rows],
            self.prediction_ids[rows],
            self.entities[rows],
            self.origin,
        )

    def said_by(self, version: str | None, answers: NDArray[np.float64] | None) -> Snapshot:
        """The same with the ``scores`` of ``version``: as it answered then, else ``answers`` (as it would have answered),
        else NaN."""
        rest = np.full(len(self), np.nan) if answers is None else np.asarray(answers, np.float64)
        mine = (self.versions == version) & np.isfinite(self.scores)
        return dataclasses.replace(self, scores=np.where(mine, self.scores, rest))

    def content_hash(self) -> str:
        """SHA-256, hex, over what is learnt from: id, time, label and features of every row, in an order of its own, so
        that it depends on neither the order of the rows nor that of the columns."""
        order = np.lexsort((self.prediction_ids.astype("U"), self.event_ms))
        digest = hashlib.sha256()
        columns: list[tuple[str, NDArray[Any]]] = [
            ("prediction_id", self.prediction_ids),
            ("event_ms", self.event_ms),
            ("label", self.labels),
            *sorted(self.table.items()),
        ]
        for name, column in columns:
            digest.update(json.dumps([name, len(column)]).encode())
            if column.dtype.kind in "OU":
                for value in column[order].tolist():
                    raw = (b"" if value is None else str(value).encode()) + b"\0"
                    digest.update(len(raw).to_bytes(4, "little") + raw)
            elif column.dtype.kind == "f":
                # One NaN and one zero: their bits differ by how they came to be.
                numbers = np.where(np.isnan(column), np.nan, column.astype(np.float64) + 0.0)[order]
                digest.update(np.ascontiguousarray(numbers).tobytes())
            else:
                digest.update(np.ascontiguousarray(column[order].astype(np.int64)).tobytes())
        return digest.hexdigest()
