"""A CSV file as columns that a detector can read: numeric or categorical by inspection, with a time for each row.

Whoever tries a detector has a file, no contract. What is wrong with the file is said with its line and column.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.contracts import Feature
from schemas.errors import ConfigurationError

#: Texts that mean "no value".
NULLS = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})
#: Distinct texts a categorical column may have; the rest of them count as one unknown value.
CATEGORIES_MAX = 200
#: A column with at least this share of numbers is numeric, and its other values are mistakes.
_NUMBERS_MIN = 0.9
#: Numbers below are taken as seconds since 1970, from here on as milliseconds.
_SECONDS_BELOW = 100_000_000_000
ROW_MS = 60_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """``texts``: each column's values as written, None where there is none; ``lines``: each row's line in the file."""

    path: Path
    texts: dict[str, list[str | None]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> list[str | None]:
        """The column's texts. Raises ConfigurationError that lists the columns there are."""
        try:
            return self.texts[name]
        except KeyError:
            raise ConfigurationError(
                f"{self.path}: no column {name!r}; there are: {', '.join(self.texts)}"
            ) from None

    def take(self, order: Sequence[int]) -> Table:
        """The rows at ``order``."""
        texts = {name: [column[at] for at in order] for name, column in self.texts.items()}
        return Table(self.path, texts, [self.lines[at] for at in order])

    def where(self, at: int, name: str) -> str:
        """``file.csv, line 17, column x``."""
        return f"{self.path}, line {self.lines[at]}, column {name}"


def read_csv(path: Path) -> Table:
    """The file's columns. Raises ConfigurationError: cannot be read, no header, a row of another width, no rows."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as source:
            return _read(path, csv.reader(source, strict=True))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as CSV: {error}") from error


def _read(path: Path, reader: Any) -> Table:
    lines: list[int] = []
    pool: dict[str, str | None] = {}
    try:
        header = next(reader, None)
        if not header:
            raise ConfigurationError(f"{path}: is empty; the first line must name the columns")
        names = [name.strip() for name in header]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated or "" in names:
            raise ConfigurationError(
                f"{path}, line 1: every column needs a name of its own"
                + (f"; {', '.join(map(repr, repeated))} is there more than once" if repeated else "")
            )
        columns: list[list[str | None]] = [[] for _ in names]
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise ConfigurationError(
                    f"{path}, line {reader.line_num}: {len(row)} values, but the header names {len(names)} columns"
                )
            lines.append(reader.line_num)
            for column, value in zip(columns, row, strict=True):
                column.append(pool[value] if value in pool else pool.setdefault(value, _known(value)))
    except csv.Error as error:
        raise ConfigurationError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
    if not lines:
        raise ConfigurationError(f"{path}: has a header and no rows")
    return Table(path, dict(zip(names, columns, strict=True)), lines)


def _known(value: str) -> str | None:
    text = value.strip()
    return None if text.lower() in NULLS else text


def numbers(table: Table, name: str) -> Floats:
    """A numeric column ``(n,)``, null as NaN. Raises ConfigurationError naming the first line that is no number."""
    values = _floats(table.column(name))
    for at, (value, text) in enumerate(zip(values, table.column(name), strict=True)):
        if value is None and text is not None:
            raise ConfigurationError(f"{table.where(at, name)}: {text!r} is not a number")
    return np.array([math.nan if value is None else value for value in values])


def _floats(texts: Sequence[str | None]) -> list[float | None]:
    known: dict[str | None, float | None] = {None: None}
    for text in texts:
        if text not in known:
            try:
                known[text] = float(text or "")
            except ValueError:
                known[text] = None
    return [known[text] for text in texts]


def feature(table: Table, name: str, reference_rows: int) -> Feature:
    """What a column is, by inspection: numeric, or a category with the values of the first ``reference_rows`` rows.

    Raises ConfigurationError where a column is almost all numbers: the rest must be mistakes or nulls.
    """
    texts = table.column(name)
    filled = sum(text is not None for text in texts)
    readable = sum(value is not None for value in _floats(texts))
    if readable == filled:
        return Feature(name=name, nullable=filled < len(texts))
    if readable >= _NUMBERS_MIN * filled:
        at = next(
            i
            for i, (v, t) in enumerate(zip(_floats(texts), texts, strict=True))
            if v is None and t is not None
        )
        raise ConfigurationError(
            f"{table.where(at, name)}: {texts[at]!r} is not a number, and {readable / filled:.1%} of the column are; "
            "correct it, leave it empty if it is unknown, or leave the column out with --columns"
        )
    counts = Counter(text for text in texts[:reference_rows] if text is not None)
    frequent = sorted(text for text, _ in counts.most_common(CATEGORIES_MAX))
    return Feature(
        name=name, kind="categorical", nullable=filled < len(texts), categories=tuple(frequent or ("?",))
    )


def worth_reading(table: Table, name: str) -> bool:
    """Whether a column says anything by itself: not a name or a time, which differ in almost every row, nor empty."""
    texts = [text for text in table.column(name) if text is not None]
    if not texts:
        return False
    if any(value is not None for value in _floats(texts[:100])):
        return True
    return len(set(texts)) <= CATEGORIES_MAX


def times(table: Table, name: str | None, row_ms: int = ROW_MS) -> NDArray[np.int64]:
    """Event time of each row in ms: an ISO 8601 text (UTC unless it says), or seconds or milliseconds since 1970.

    Without a column one row comes every ``row_ms``. Raises ConfigurationError naming the line.
    """
    if name is None:
        return np.arange(len(table), dtype=np.int64) * row_ms
    found = np.empty(len(table), np.int64)
    known: dict[str, int] = {}
    for at, text in enumerate(table.column(name)):
        if text is None:
            raise ConfigurationError(f"{table.where(at, name)}: a row without a time")
        if text not in known:
            try:
                known[text] = _time_ms(text)
            except (ValueError, OverflowError):
                raise ConfigurationError(
                    f"{table.where(at, name)}: {text!r} is no time; write 2024-05-01T13:30:00Z, or seconds or "
                    "milliseconds since 1970"
                ) from None
        found[at] = known[text]
    return found


def _time_ms(text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    return round(number * 1000) if abs(number) < _SECONDS_BELOW else round(number)
