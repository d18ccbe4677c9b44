"""Predictions from Arrow batches: what is ordinary in one pass a column over all batches of a fetch, the rest column by column
with what is wrong with which row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.arrow import PREDICTION_COLUMNS, ArrowRows, is_text, whole_table
from schemas.arrow_plain import FINITE, INFINITE, MISSING, Odd, PlainBatches, numbered
from schemas.arrow_rows import UNREAD, Coded, write_rows
from schemas.columns import PredictionColumns, not_finite, renumbered, without
from schemas.contracts import ModelContract
from schemas.errors import BadMessage
from schemas.events import ID_CHARS_MAX, MESSAGE_BYTES_MAX, STATUSES
from schemas.ids import ROLES
from schemas.messages import Bad
from schemas.scan_rows import LogRows

_LOGGED = frozenset((*PREDICTION_COLUMNS, "model", "features"))
#: Columns that a batch must have.
_NEEDED = ("prediction_id", "version", "event_time_ms")
ROLE_CODES: dict[str, int] = {role: code for code, role in enumerate(ROLES)}
STATUS_CODES = {status: code for code, status in enumerate(STATUSES)}


class ArrowMessage(NamedTuple):
    """A message of Arrow batches, and how many bytes it was."""

    at: int
    model: str
    schema: pa.Schema
    batches: list[pa.RecordBatch]
    size: int


class _Table(NamedTuple):
    """A message as a table, and how many bytes it was."""

    at: int
    size: int
    table: pa.Table


class ArrowBuilder:
    """Turns batches of one contract into columns. ``coded``: of values of the feature at a place, their codes."""

    def __init__(
        self, contract: ModelContract, coded: Callable[[int, Iterable[str | None]], list[float]]
    ) -> None:
        self.contract = contract
        self._coded = coded
        self._columns = frozenset((*PREDICTION_COLUMNS, *contract.feature_names))
        #: Whether a feature is called like something else that is logged.
        self._special = not _LOGGED.isdisjoint(contract.feature_names)
        self._needed = frozenset(_NEEDED) | {one.name for one in contract.features if not one.nullable}

    def built(
        self, batches: list[ArrowMessage], bad: list[Bad], log: LogRows | None = None
    ) -> list[PredictionColumns]:
        """Batches of one schema at once; one by one if one of them is no good, so that it alone is rejected. ``log``: where rows of
        the log go that can be made on the way."""
        try:
            try:
                return [self._from_plain(batches, log)]
            except Odd:
                return [self._from_arrow(batches, bad)]
        except BadMessage as error:
            if len(batches) == 1:
                bad.append(Bad(batches[0].at, 0, error.reason, error.detail))
                return []
        return [columns for batch in batches for columns in self.built([batch], bad, log)]

    def _from_plain(self, messages: list[ArrowMessage], log: LogRows | None) -> PredictionColumns:
        """Rows of batches of one schema, of which each is as it should be. Raises Odd where one may not be."""
        if any(len(one.batches) != 1 for one in messages):
            raise Odd
        with PlainBatches([one.batches[0] for one in messages]) as batch:
            contract, features = self.contract, self.contract.features
            if not batch.names <= self._columns or not self._needed <= batch.names:
                raise Odd
            unread = batch.names & set(UNREAD)
            if log is None:
                batch.check_texts(unread)
            reals = np.empty((len(features) + 2, batch.rows), np.float64)
            texts: dict[int, Coded] = {}
            gaps = False
            for place, feature in enumerate(features):
                if feature.name in batch and feature.kind == "categorical":
                    texts[place] = values, codes = batch.texts(feature.name)
                    of_values = np.array(self._coded(place, values))
                    of_values.take(codes, out=reals[place], mode="clip")
                    found = FINITE
                elif feature.name in batch:
                    found = batch.floats(feature.name, reals[place])
                else:
                    reals[place], found = np.nan, MISSING
                if found == INFINITE or (found == MISSING and not feature.nullable):
                    raise Odd
                gaps = gaps or found == MISSING
            score, latency = reals[-2], reals[-1]
            if "score" not in batch:
                score[:] = np.nan
            elif batch.floats("score", score) != FINITE:
                gaps = True
            if "latency_ms" not in batch:
                latency[:] = 0.0
            elif batch.floats("latency_ms", latency) != FINITE or latency.min() < 0.0:
                raise Odd
            told, version = batch.texts("version")
            counts = batch.counts
            message, row, size = numbered(
                counts,
                np.array([[one.at for one in messages], [one.size for one in messages] // counts], np.int64),
            )
            columns = PredictionColumns(
                contract, message, row, batch.keys("prediction_id", ID_CHARS_MAX), *renumbered(told, version),
                _plain_codes(batch, "role", ROLE_CODES), batch.integers("event_time_ms"), score, latency,
                _plain_codes(batch, "status", STATUS_CODES), reals[:-2].T, size,
            )  # fmt: skip
            if log is not None:
                others = {name: batch.keys(name, MESSAGE_BYTES_MAX, 0) for name in unread}
                if not (gaps or self._special):
                    write_rows(log, [one.at for one in messages], columns, texts, others, "score" in batch)
            return columns

    def _from_arrow(self, messages: list[ArrowMessage], bad: list[Bad]) -> PredictionColumns:
        """Rows of batches of one schema. Raises BadMessage when they cannot be used at all."""
        contract = self.contract
        batches = [_Table(one.at, one.size, whole_table(one.schema, one.batches)) for one in messages]
        table = batches[0].table if len(batches) == 1 else pa.concat_tables([one.table for one in batches])
        batch = ArrowRows(table, self._columns, _NEEDED)
        for name in UNREAD:
            kind = batch.kind(name) if name in batch else pa.null()
            if not (is_text(kind) or pa.types.is_null(kind)):
                raise BadMessage("wrong-type", f"column {name} is of {kind}, not of texts")
        matrix = self._matrix(batch)
        times, score = batch.integers("event_time_ms"), batch.floats("score", np.nan)
        latency = batch.floats("latency_ms", 0.0)
        if not np.isfinite(latency).all() or (latency < 0.0).any():
            batch.fault(
                ~(latency >= 0.0) | np.isinf(latency), "invalid-value", "latency_ms is not a number from 0 on"
            )
        role, status = batch.codes("role", "stable", ROLE_CODES), batch.codes("status", "ok", STATUS_CODES)
        keys, named = batch.spans("prediction_id", ID_CHARS_MAX)
        batch.fault(~named, "invalid-value", "prediction_id is empty or too long")
        told, version = batch.texts("version", None)
        if None in told:
            no_text = np.array([value is None for value in told], np.bool_)
            batch.fault(no_text[version], "invalid-value", "version is not a text")
        names, known = renumbered([value or "" for value in told], version)
        counts = [one.table.num_rows for one in batches]
        columns = PredictionColumns(
            contract,
            np.repeat([one.at for one in batches], counts),
            np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
            keys,
            names,
            known,
            role,
            times,
            score,
            latency,
            status,
            matrix,
            np.repeat([one.size // max(one.table.num_rows, 1) for one in batches], counts),
        )
        return without(columns, batch.faults, bad) if batch.faults else columns

    def _matrix(self, batch: ArrowRows) -> NDArray[np.float64]:
        """The features, shape (n, k), column by column, and what is wrong with them."""
        features = self.contract.features
        columns = np.empty((len(features), batch.rows), np.float64)
        odd = []
        for place, feature in enumerate(features):
            if feature.name not in batch and not feature.nullable:
                raise BadMessage("missing-feature", f"the batch has no column {feature.name}")
            if feature.kind == "numeric":
                batch.floats(feature.name, np.nan, columns[place])
            else:
                values, coded_as = batch.texts(feature.name, None)
                np.array(self._coded(place, values)).take(coded_as, out=columns[place], mode="clip")
            # Looked through while it is at hand.
            if not_finite(columns[place]):
                odd.append(place)
        for place in odd:
            name, column = features[place].name, columns[place]
            if not features[place].nullable:
                batch.fault(np.isnan(column), "missing-feature", f"{name} is null or NaN")
            batch.fault(np.isinf(column), "not-finite", f"{name} is infinite")
        return columns.T


def _plain_codes(batch: PlainBatches, name: str, allowed: Mapping[str, int]) -> NDArray[np.int8]:
    """A column of a closed vocabulary, whose first word is in place of none."""
    if name not in batch:
        return np.zeros(batch.rows, np.int8)
    values, places = batch.texts(name)
    if not allowed.keys() >= set(values):
        raise Odd
    return np.array([allowed[value] for value in values], np.int8)[places]
