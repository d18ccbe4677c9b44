"""When a micro-batch is done: it is full, or its first row has waited long enough. No clock: the caller says the time."""

from __future__ import annotations

from typing import Generic, TypeVar

Row = TypeVar("Row")


class MicroBatch(Generic[Row]):
    """Rows in order of arrival. Due when it holds ``rows_max``, or ``deadline_ms`` after its first row came."""

    def __init__(self, rows_max: int, deadline_ms: float) -> None:
        self.rows_max = rows_max
        self.deadline_ms = deadline_ms
        self.rows: list[Row] = []
        self._first_ms = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return self.rows_max - len(self.rows)

    def add(self, rows: list[Row], now_ms: float) -> None:
        """Append ``rows``, at most ``room`` of them. Raises ValueError when they do not fit."""
        if len(rows) > self.room:
            raise ValueError(f"{len(rows)} rows do not fit: room for {self.room}")
        if rows and not self.rows:
            self._first_ms = now_ms
        self.rows.extend(rows)

    def wait_ms(self, now_ms: float) -> float | None:
        """How long to wait for more rows; 0 when the batch is due, None when it is empty and nothing presses."""
        if not self.rows:
            return None
        if not self.room:
            return 0.0
        return max(0.0, self._first_ms + self.deadline_ms - now_ms)

    def take(self) -> list[Row]:
        """The rows; the batch is empty again."""
        rows, self.rows = self.rows, []
        return rows
