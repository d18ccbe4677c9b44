"""Arrow batches to rows of a log table, column by column: what ``schemas.scan_log`` is for JSON.

A batch whose columns are not of the plain types is left for whoever reads it row by row; so is nothing else, and a row means
the same whoever made it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import ArrowRows, is_text
from schemas.errors import BadMessage
from schemas.native import (
    Buffers,
    coded,
    keys_coded,
    maps,
    native_block,
    nullable,
    numbers,
    same_coded,
    same_text,
    texts,
)
from schemas.row_binary import RowBlock
from schemas.scan_log import KINDS, Field
from schemas.spans import NULL, Spans

_TEXT, _LONG, _SHORT, _REAL, _REAL_FROM_0, _REAL_OR_NULL, _MAPS = range(len(KINDS))
_ANYTHING = 2**31
#: Which rows are taken: their places; None: all.
Kept = NDArray[np.int64] | None
#: Which rows have a value; None: all.
There = NDArray[np.bool_] | None

#: Of each row its partition, its offset, its row there.
Addresses = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class _Unusual(Exception):
    """A column is not of a plain type."""


def arrow_rows(
    fields: Sequence[Field],
    columns: Sequence[tuple[str, str]],
    table: pa.Table,
    model: str | None,
    addresses: Addresses,
) -> RowBlock | None:
    """Rows of batches of one schema, one for each event that can be used; None: it has to be read row by row.

    ``columns``: names and types of what ``fields`` are in the table (features: two maps, of numbers and of texts), and then of
    the address. ``model``: of all rows, where it is no column: then every other column is a feature, and what is null is not
    there.
    """
    try:
        gathered = _Gathered(table, {field.name for field in fields}, model is not None)
        for field in fields:
            if field.kind == "maps":
                gathered.features()
            elif field.name == "model" and model is not None:
                gathered.same(model)
            else:
                gathered.field(field)
        return gathered.block(columns, addresses)
    except (_Unusual, BadMessage, pa.ArrowException):
        return None


class _Gathered:
    """Columns of one batch on their way into rows: each is made once it is known which rows are taken.

    What makes a column must not hold on to this: the two would keep each other, and all columns, until the garbage collector
    comes, which it seldom does.
    """

    def __init__(self, table: pa.Table, names: set[str], wide: bool) -> None:
        self._rows = ArrowRows(table, table.column_names if wide else names, ())
        self._n = table.num_rows
        self._names, self._wide = names, wide
        self._made: list[Callable[[Kept, str], Buffers]] = []
        self._usable: There = None

    def same(self, value: str) -> None:
        """A text that all rows have."""
        n = self._n

        def made(kept: Kept, kind: str) -> Buffers:
            rows = n if kept is None else len(kept)
            return same_coded(value, rows) if _is_coded(kind) else same_text(value, rows)

        self._made.append(made)

    def field(self, field: Field) -> None:
        """A field's column, or its default; rows that have no usable value of it are none."""
        kind = KINDS.index(field.kind)
        missing = field.name not in self._rows
        if missing and field.default is None:
            raise _Unusual(field.name)
        if kind == _TEXT:
            if missing:
                self.same(field.default or "")
            else:
                self._text(field)
        elif kind in (_LONG, _SHORT):
            whole = np.zeros(self._n, np.int64) if missing else self._whole_of(field)
            self._whole(whole)
        else:
            self._real(field, kind, missing)

    def features(self) -> None:
        """Every column that is no field."""
        reals: list[str] = []
        told: dict[str, Spans] = {}
        for name in self._rows.table.column_names:
            if name in self._names:
                continue
            kind = self._rows.kind(name)
            if is_text(kind):
                told[name] = self._spans(name)
            elif not pa.types.is_null(kind):
                reals.append(name)
        self._numbers(reals)
        self._texts(told)

    def block(self, columns: Sequence[tuple[str, str]], addresses: Addresses) -> RowBlock:
        """All of it as rows."""
        kept = None if self._usable is None else np.flatnonzero(self._usable)
        rows = self._n if kept is None else len(kept)
        for values in addresses:
            self._whole(values)
        return native_block(
            rows,
            [
                (name, keys_coded(kind), made(kept, kind))
                for (name, kind), made in zip(columns, self._made, strict=True)
            ],
        )

    def _only(self, usable: NDArray[np.bool_]) -> None:
        """Rows for which ``usable`` is false are none."""
        if not usable.all():
            self._usable = usable if self._usable is None else self._usable & usable

    def _may_be_null(self, field: Field) -> bool:
        return field.default is not None and (self._wide or field.null)

    def _whole(self, values: NDArray[np.int64]) -> None:
        self._made.append(lambda kept, kind: numbers(_of(values, kept), kind))

    def _numbers(self, reals: list[str]) -> None:
        values = np.empty((self._n, len(reals)))
        held = [self._put_reals(name, values[:, at]) for at, name in enumerate(reals)]
        there = _all_there(self._n, held)
        self._made.append(
            lambda kept, _: maps(reals, _of(values, kept), there if there is None else _of(there, kept))
        )

    def _texts(self, told: dict[str, Spans]) -> None:
        held = [spans.length >= 0 if (spans.length < 0).any() else None for spans in told.values()]
        there = _all_there(self._n, held)
        both = Spans.concat(list(told.values())) if told else Spans.of([])
        # Row by row, as a map has them.
        n = self._n
        places = np.arange(len(both)).reshape(len(told), n).T

        def made(kept: Kept, _: str) -> Buffers:
            if not told:
                return maps([], np.empty((n if kept is None else len(kept), 0)), None)
            values = both if len(told) == 1 and kept is None else both.take(_of(places, kept).reshape(-1))
            return maps(list(told), values, there if there is None else _of(there, kept))

        self._made.append(made)

    def _spans(self, name: str) -> Spans:
        spans, _ = self._rows.spans(name, _ANYTHING)
        if (there := self._valid(name)) is not None:
            spans.length[~there] = NULL
        return spans

    def _text(self, field: Field) -> None:
        if not is_text(self._rows.kind(field.name)):
            raise _Unusual(field.name)
        spans = self._spans(field.name)
        there = spans.length >= 0
        if not there.all():
            self._only(there | self._may_be_null(field))
            default = Spans.of([(field.default or "").encode()])
            both = Spans.concat([spans, default])
            spans = Spans(both.buffer, both.start[:-1], both.length[:-1])
            spans.start[~there], spans.length[~there] = both.start[-1], both.length[-1]
        if field.low or int(spans.length.max(initial=0)) > field.high:
            _, fits = self._rows.spans(field.name, field.high)
            self._only(fits | ((spans.length == 0) & (field.low == 0)) | ~there)
        if field.values:
            values, codes = self._rows.texts(field.name, None)
            known = np.array([value is None or value in field.values for value in values], np.bool_)
            self._only(known[codes])

        rows = self._rows

        def made(kept: Kept, kind: str) -> Buffers:
            if not _is_coded(kind):
                return texts(spans if kept is None else spans.take(kept))
            values, codes = rows.texts(field.name, None)
            return coded([value or field.default or "" for value in values], _of(codes, kept))

        self._made.append(made)

    def _real(self, field: Field, kind: int, missing: bool) -> None:
        there: There
        if missing:
            real, there = np.zeros(self._n), np.zeros(self._n, np.bool_)
        elif pa.types.is_boolean(self._rows.kind(field.name)):
            raise _Unusual(field.name)
        else:
            real = np.empty(self._n)
            there = self._put_reals(field.name, real)
        if there is not None and not (missing or self._may_be_null(field)):
            self._only(there)
        if kind == _REAL_FROM_0:
            below = ~(real >= 0)
            self._only(~(below if there is None else below & there))

        def made(kept: Kept, _: str) -> Buffers:
            of, told = _of(real, kept), there if there is None else _of(there, kept)
            if kind == _REAL_OR_NULL:
                return nullable(of, told)
            return numbers(of if told is None else np.where(told, of, 0.0), "Float64")

        self._made.append(made)

    def _whole_of(self, field: Field) -> NDArray[np.int64]:
        if not pa.types.is_integer(self._rows.kind(field.name)):
            raise _Unusual(field.name)
        there = self._valid(field.name)
        column = self._rows.table.column(field.name).combine_chunks().cast(pa.int64())
        if there is not None:
            column = column.fill_null(0)
        values = np.asarray(column.to_numpy(zero_copy_only=False), np.int64)
        within = (values >= field.low) & (values <= field.high)
        self._only(within if there is None else np.where(there, within, self._may_be_null(field)))
        return values

    def _put_reals(self, name: str, into: NDArray[np.float64]) -> There:
        """Numbers of any plain type to where they stay, ``(n,)``, zero where there is none; which are there."""
        kind = self._rows.kind(name)
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise _Unusual(name)
        column = self._rows.table.column(name)
        there = self._valid(name)
        filled = column if there is None else pc.fill_null(column, pa.scalar(0).cast(kind))
        end = 0
        for chunk in filled.chunks:
            begin, end = end, end + len(chunk)
            into[begin:end] = chunk.to_numpy(zero_copy_only=False)
        return there

    def _valid(self, name: str) -> There:
        if not self._rows.nulls(name):
            return None
        column = self._rows.table.column(name).combine_chunks()
        return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)


def _is_coded(kind: str) -> bool:
    return kind.startswith("LowCardinality")


def _of(values: NDArray[Any], kept: Kept) -> NDArray[Any]:
    return values if kept is None else values[kept]


def _all_there(rows: int, each: Sequence[There]) -> There:
    """``(rows, k)``: which rows have which of ``k``; None: all have all."""
    if all(there is None for there in each):
        return None
    return np.stack([np.ones(rows, np.bool_) if there is None else there for there in each], axis=1)
