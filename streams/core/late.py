"""What labels did to windows whose state has left memory: parts of their own, which the views add to the windows.

A settled window is never loaded again. What a transaction's labels changed in it is one part, numbered and written once:
counts of that transaction alone, negative where a revision took back what another part has. It stays in the state until
ClickHouse has confirmed it, and is then forgotten, so late labels of any age cost no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.contracts import ModelContract
from schemas.errors import StateCorrupt
from streams.core.aggregates import Outcomes, pack, unpack
from streams.core.delivery import Upserts
from streams.core.join_state import WindowKey
from streams.core.outcomes import OutcomeRows
from streams.core.window_rows import late_row, row_key
from streams.core.window_state import CellKey
from streams.core.windows import add_outcomes

LATE_SCHEMA = 1
PREFIX = "late/"
NEXT = "late-next"


@dataclass(slots=True)
class _Row:
    """One cell's share of a part. ``settles_ms``: by when its window's labels were to come."""

    outcomes: Outcomes
    settles_ms: int
    span_ms: int


_Part = dict[tuple[WindowKey, CellKey], _Row]


class LateOutcomes:
    """The parts of one task that ClickHouse has not confirmed."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._open: _Part = {}
        self._parts: dict[int, _Part] = {}
        self._next = 1
        self._unsent: list[int] = []
        self._gone: list[int] = []

    def __len__(self) -> int:
        """Rows that ClickHouse has not confirmed."""
        return len(self._open) + sum(map(len, self._parts.values()))

    def settle(self, outcomes: OutcomeRows, losses_nano: NDArray[np.int64], contract: ModelContract) -> None:
        """Add outcomes of one model in settled windows, and take back those they replace."""
        monitoring = contract.monitoring
        waits_ms = max(monitoring.allowed_lateness, monitoring.label_horizon)

        def cell_of(window: WindowKey, key: CellKey) -> Outcomes:
            row = self._open.get((window, key))
            if row is None:
                row = _Row(Outcomes(), window.end_ms + waits_ms, monitoring.window)
                self._open[window, key] = row
            return row.outcomes

        add_outcomes(cell_of, outcomes, losses_nano, contract.threshold)

    # -- state ----------------------------------------------------------------------------------------------------

    def changed_pieces(self) -> dict[str, bytes | None]:
        """What was settled since the last call as one part; None for parts that were confirmed."""
        pieces: dict[str, bytes | None] = {f"{PREFIX}{number}": None for number in self._gone}
        self._gone = []
        if self._open:
            number, self._next = self._next, self._next + 1
            self._parts[number], self._open = self._open, {}
            self._unsent.append(number)
            pieces[f"{PREFIX}{number}"] = _encode(self._parts[number])
            pieces[NEXT] = str(self._next).encode()
        return pieces

    def restore(self, pieces: Mapping[str, bytes]) -> None:
        """Become what ``pieces`` hold; every part is sent again. Raises StateCorrupt."""
        self._next = int(pieces.get(NEXT, b"1"))
        for name, data in pieces.items():
            if name.startswith(PREFIX):
                number = int(name.removeprefix(PREFIX))
                self._parts[number] = _decode(name, data)
                self._unsent.append(number)

    # -- warehouse ------------------------------------------------------------------------------------------------

    def upserts(self, version: int) -> list[Upserts]:
        """Rows of parts that were not given out yet, as of manifest ``version``: of each part together."""
        unsent, self._unsent = self._unsent, []
        found = []
        for number in unsent:
            rows = [
                late_row(
                    row_key(window, cell, self._partition),
                    number,
                    row.outcomes,
                    row.settles_ms,
                    row.span_ms,
                    version,
                )
                for (window, cell), row in self._parts[number].items()
            ]
            found.append(Upserts("window_outcomes", len(rows), rows, version, number))
        return found

    def confirm(self, sent: Iterable[Upserts]) -> None:
        """The warehouse has these rows."""
        for upserts in sent:
            if upserts.mark is not None and self._parts.pop(upserts.mark, None) is not None:
                self._gone.append(upserts.mark)


def _encode(part: _Part) -> bytes:
    rows = [
        [list(window), list(cell), row.settles_ms, row.span_ms, pack(row.outcomes)]
        for (window, cell), row in part.items()
    ]
    return msgspec.msgpack.encode([LATE_SCHEMA, rows])


def _decode(name: str, data: bytes) -> _Part:
    try:
        schema, rows = msgspec.msgpack.decode(data, strict=False)
        if schema != LATE_SCHEMA:
            raise StateCorrupt(f"piece {name}: schema {schema}, this code reads {LATE_SCHEMA}")
        return {
            (WindowKey(*window), tuple(cell)): _Row(unpack(packed), settles_ms, span_ms)
            for window, cell, settles_ms, span_ms, packed in rows
        }
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise StateCorrupt(f"piece {name} cannot be read: {error}") from error
