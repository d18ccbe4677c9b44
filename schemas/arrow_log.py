"""Arrow batches to rows of a log table, column by column: what ``schemas.scan_log`` is for JSON.

A batch whose columns are not of the plain types is left for whoever reads it row by row; so is nothing else, and a row means
the same whoever made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import ArrowRows, is_text
from schemas.compiled import compiled, put_eight, put_real
from schemas.errors import BadMessage
from schemas.json_text import Bytes, Integers, Whole
from schemas.row_binary import RowBlock, put_address, put_bytes, put_four, put_length
from schemas.scan_log import KINDS, ROW_BYTES, Field
from schemas.spans import NULL, Spans

_TEXT, _LONG, _SHORT, _REAL, _REAL_FROM_0, _REAL_OR_NULL, _MAPS = range(len(KINDS))
_ANYTHING = 2**31


class _Columns(NamedTuple):
    """What rows are written from. ``plan (f, 2)``: a kind, and which of the texts, whole numbers or doubles it is. Texts are
    ``start`` and ``length (t, n)`` in one buffer, -1: null; numbers ``whole (i, n)``, ``real (r, n)`` and ``there (r, n)``.

    ``number`` and ``category (k, 3)``: a feature's column (of doubles, of texts), its name's start and length.
    """

    plan: NDArray[np.int64]
    buffer: Bytes
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    whole: NDArray[np.int64]
    real: NDArray[np.float64]
    there: NDArray[np.bool_]
    number: NDArray[np.int64]
    category: NDArray[np.int64]


class _Unusual(Exception):
    """A column is not of a plain type."""


def arrow_rows(
    fields: Sequence[Field], table: pa.Table, model: str | None, address: tuple[int, int, int]
) -> RowBlock | None:
    """Rows of a batch, one for each event that can be used; None: it has to be read row by row.

    ``model``: of all rows, where it is no column: then every other column is a feature, and what is null is not there.
    ``address``: (partition, offset, row) of the first; rows count up.
    """
    try:
        gathered = _Gathered(table, {field.name for field in fields}, model is not None)
        for field in fields:
            if field.kind == "maps":
                gathered.features()
            elif field.name == "model" and model is not None:
                gathered.text(model)
            else:
                gathered.field(field)
        return gathered.rows(address)
    except (_Unusual, BadMessage, pa.ArrowException):
        return None


class _Gathered:
    """Columns of one batch on their way into rows."""

    def __init__(self, table: pa.Table, names: set[str], wide: bool) -> None:
        self._rows = ArrowRows(table, table.column_names if wide else names, ())
        self._n = table.num_rows
        self._names, self._wide = names, wide
        self._plan: list[tuple[int, int]] = []
        self._texts: list[Spans] = []
        self._whole: list[NDArray[np.int64]] = []
        self._real: list[NDArray[np.float64]] = []
        self._there: list[NDArray[np.bool_]] = []
        self._maps: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
        self._usable = np.ones(self._n, np.bool_)

    def text(self, value: str) -> None:
        """A text that all rows have."""
        one = Spans.of([value.encode()])
        self._add_text(Spans(one.buffer, np.zeros(self._n, np.int64), np.full(self._n, one.length[0])))

    def field(self, field: Field) -> None:
        """A field's column, or its default; rows that have no usable value of it are none."""
        kind = KINDS.index(field.kind)
        missing = field.name not in self._rows
        if missing and field.default is None:
            raise _Unusual(field.name)
        if kind == _TEXT:
            if missing:
                self.text(field.default or "")
            else:
                self._add_text(self._text_of(field))
            return
        if kind in (_LONG, _SHORT):
            values = np.zeros(self._n, np.int64) if missing else self._whole_of(field)
            self._plan.append((kind, len(self._whole)))
            self._whole.append(values)
            return
        if missing:
            real, there = np.zeros(self._n), np.zeros(self._n, np.bool_)
        elif pa.types.is_boolean(self._rows.kind(field.name)):
            raise _Unusual(field.name)
        else:
            real, there = self._real_of(field.name)
            self._usable &= there | self._may_be_null(field)
        if kind == _REAL_FROM_0:
            self._usable &= ~there | (real >= 0)
        self._plan.append((kind, len(self._real)))
        self._real.append(real)
        self._there.append(there)

    def _may_be_null(self, field: Field) -> bool:
        return field.default is not None and (self._wide or field.null)

    def features(self) -> None:
        """Every column that is no field."""
        numbers, texts = self._maps
        for name in self._rows.table.column_names:
            if name in self._names:
                continue
            kind = self._rows.kind(name)
            if is_text(kind):
                texts.append((name, len(self._texts)))
                self._texts.append(self._spans(name))
            elif not pa.types.is_null(kind):
                numbers.append((name, len(self._real)))
                real, there = self._real_of(name)
                self._real.append(real)
                self._there.append(there)
        self._plan.append((_MAPS, 0))

    def rows(self, address: tuple[int, int, int]) -> RowBlock:
        """All of it as rows."""
        names = [self._named(self._maps[0]), self._named(self._maps[1])]
        of_texts = Spans.concat(self._texts) if self._texts else Spans.of([])
        shape = (len(self._texts), self._n)
        columns = _Columns(
            np.array(self._plan, np.int64), of_texts.buffer, of_texts.start.reshape(shape), of_texts.length.reshape(shape),
            _table(self._whole, self._n, np.int64), _table(self._real, self._n, np.float64),
            _table(self._there, self._n, np.bool_), *names,
        )  # fmt: skip
        held = int(np.maximum(columns.length, 0).sum()) + self._n * int(sum(m[:, 2].sum() for m in names))
        width = ROW_BYTES + 16 * (len(self._real) + len(self._texts) + len(self._whole))
        to = np.empty(held + self._n * width, np.uint8)
        size = _write(columns, self._usable, *address, to)
        return RowBlock(int(np.count_nonzero(self._usable)), to[:size].data)

    def _add_text(self, spans: Spans) -> None:
        self._plan.append((_TEXT, len(self._texts)))
        self._texts.append(spans)

    def _named(self, features: list[tuple[str, int]]) -> NDArray[np.int64]:
        """Column, start and length of the name of each feature; names lie behind the texts."""
        found = np.zeros((len(features), 3), np.int64)
        for at, (name, column) in enumerate(features):
            shift = sum(len(spans.buffer) for spans in self._texts)
            held = name.encode()
            found[at] = column, shift, len(held)
            # A name is a text like others, of which no row is looked up.
            self._texts.append(
                Spans(np.frombuffer(held, np.uint8), np.zeros(self._n, np.int64), np.full(self._n, NULL))
            )
        return found

    def _spans(self, name: str) -> Spans:
        spans, _ = self._rows.spans(name, _ANYTHING)
        if self._rows.nulls(name):
            spans.length[~self._valid(name)] = NULL
        return spans

    def _text_of(self, field: Field) -> Spans:
        if not is_text(self._rows.kind(field.name)):
            raise _Unusual(field.name)
        spans = self._spans(field.name)
        there = spans.length >= 0
        self._usable &= there | self._may_be_null(field)
        if not there.all():
            default = Spans.of([(field.default or "").encode()])
            both = Spans.concat([spans, default])
            spans = Spans(both.buffer, both.start[:-1], both.length[:-1])
            spans.start[~there], spans.length[~there] = both.start[-1], both.length[-1]
        if field.low or int(spans.length.max(initial=0)) > field.high:
            _, fits = self._rows.spans(field.name, field.high)
            self._usable &= fits | ((spans.length == 0) & (field.low == 0)) | ~there
        if field.values:
            values, codes = self._rows.texts(field.name, None)
            known = np.array([value is None or value in field.values for value in values], np.bool_)
            self._usable &= known[codes]
        return spans

    def _whole_of(self, field: Field) -> NDArray[np.int64]:
        if not pa.types.is_integer(self._rows.kind(field.name)):
            raise _Unusual(field.name)
        there = self._valid(field.name)
        column = self._rows.table.column(field.name).combine_chunks().cast(pa.int64()).fill_null(0)
        values = np.asarray(column.to_numpy(zero_copy_only=False), np.int64)
        within = (values >= field.low) & (values <= field.high)
        self._usable &= np.where(there, within, self._may_be_null(field))
        return values

    def _real_of(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Numbers of any plain type as doubles, and which are there."""
        kind = self._rows.kind(name)
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise _Unusual(name)
        column = self._rows.table.column(name).combine_chunks()
        there = self._valid(name)
        filled = column if not column.null_count else pc.fill_null(column, pa.scalar(0).cast(kind))
        return filled.to_numpy(zero_copy_only=False).astype(np.float64), there

    def _valid(self, name: str) -> NDArray[np.bool_]:
        if not self._rows.nulls(name):
            return np.ones(self._n, np.bool_)
        column = self._rows.table.column(name).combine_chunks()
        return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)


def _table(columns: Sequence[NDArray[Any]], n: int, kind: Any) -> NDArray[Any]:
    return np.array(columns, kind) if columns else np.empty((0, n), kind)


@compiled
def _write(
    columns: _Columns, usable: NDArray[np.bool_], partition: int, offset: int, first: int, to: Bytes
) -> Whole:
    """Write rows to ``to``; how many bytes."""
    at = 0
    for row in range(len(usable)):
        if not usable[row]:
            continue
        for f in range(len(columns.plan)):
            kind, which = columns.plan[f, 0], columns.plan[f, 1]
            if kind == _TEXT:
                at = put_bytes(to, at, columns.buffer, columns.start[which, row], columns.length[which, row])
            elif kind == _LONG:
                put_eight(to, at, np.uint64(columns.whole[which, row]))
                at += 8
            elif kind == _SHORT:
                at = put_four(to, at, columns.whole[which, row])
            elif kind == _MAPS:
                at = _put_numbers(columns.number, columns, row, to, at)
                at = _put_texts(columns.category, columns, row, to, at)
            else:
                there = columns.there[which, row]
                if kind == _REAL_OR_NULL:
                    to[at] = 0 if there else 1
                    at += 1
                if there or kind != _REAL_OR_NULL:
                    put_real(to, at, columns.real[which, row] if there else 0.0)
                    at += 8
        at = put_address(to, at, partition, offset, first + row)
    return at


@compiled
def _put_numbers(of: Integers, columns: _Columns, row: int, to: Bytes, at: int) -> Whole:
    count = 0
    for i in range(len(of)):
        count += columns.there[of[i, 0], row]
    at = put_length(to, at, count)
    for i in range(len(of)):
        if columns.there[of[i, 0], row]:
            at = put_bytes(to, at, columns.buffer, of[i, 1], of[i, 2])
            put_real(to, at, columns.real[of[i, 0], row])
            at += 8
    return at


@compiled
def _put_texts(of: Integers, columns: _Columns, row: int, to: Bytes, at: int) -> Whole:
    count = 0
    for i in range(len(of)):
        count += columns.length[of[i, 0], row] >= 0
    at = put_length(to, at, count)
    for i in range(len(of)):
        if columns.length[of[i, 0], row] >= 0:
            at = put_bytes(to, at, columns.buffer, of[i, 1], of[i, 2])
            at = put_bytes(
                to, at, columns.buffer, columns.start[of[i, 0], row], columns.length[of[i, 0], row]
            )
    return at
