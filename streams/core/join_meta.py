"""What the join stores beside windows and index: how far time has gone, what became of predictions, how many were bad.

Every transaction writes the small part of it, so nothing in that may grow with the number of models: which windows are
settled follows from the times and the contracts, and is stored for models only of which that is not so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from schemas.contracts import ModelContract
from schemas.errors import StateCorrupt
from streams.core.join_counts import ModelCounts

META_SCHEMA = 6
META, MODELS = "meta", "models"
BEGINNING_MS = -(2**62)


@dataclass(slots=True)
class Meta:
    """``floor_ms``: by model, windows that end by then are settled. ``first_number``: see ``JoinIndex``."""

    prediction_ms: int = BEGINNING_MS
    feedback_ms: int = BEGINNING_MS
    judged: int = 0
    bad: int = 0
    first_number: int = 0
    floor_ms: dict[str, int] = field(default_factory=dict)
    changed: bool = True
    written: bytes = b""

    def settle(self, contracts: Mapping[str, ModelContract]) -> None:
        """Time has gone on. A floor never sinks, not even when a contract gives its labels more time."""
        for model, contract in contracts.items():
            floor_ms = self._floor_ms(contract)
            self.floor_ms[model] = max(floor_ms, self.floor_ms.get(model, floor_ms))

    def _floor_ms(self, contract: ModelContract) -> int:
        monitoring = contract.monitoring
        return min(
            self.prediction_ms - monitoring.allowed_lateness, self.feedback_ms - monitoring.label_horizon
        )

    def changed_pieces(
        self, contracts: Mapping[str, ModelContract], totals: Mapping[str, ModelCounts]
    ) -> dict[str, bytes | None]:
        """What is to be written; a model that time has not yet reached has no floor."""
        if not self.changed:
            return {}
        self.changed = False
        times = [self.prediction_ms, self.feedback_ms, self.judged, self.bad, self.first_number]
        pieces: dict[str, bytes | None] = {META: msgspec.msgpack.encode([META_SCHEMA, *times])}
        others = {
            model: self.floor_ms.get(model)
            for model, contract in contracts.items()
            if self.floor_ms.get(model) != self._floor_ms(contract)
        }
        models = msgspec.msgpack.encode([others, totals]) if others or totals else b""
        if models != self.written:
            self.written = models
            pieces[MODELS] = models or None
        return pieces


def restored(
    pieces: Mapping[str, bytes], contracts: Mapping[str, ModelContract]
) -> tuple[Meta, dict[str, ModelCounts]]:
    """What ``pieces`` hold, under the contracts of then; and the totals. Raises StateCorrupt."""
    if META not in pieces:
        return Meta(), {}
    schema, *times = msgspec.msgpack.decode(pieces[META])
    if schema != META_SCHEMA:
        raise StateCorrupt(f"piece {META}: schema {schema}, this code reads {META_SCHEMA}")
    meta = Meta(*times)
    meta.written = pieces.get(MODELS, b"")
    others, totals = msgspec.msgpack.decode(
        meta.written or msgspec.msgpack.encode([{}, {}]),
        type=tuple[dict[str, int | None], dict[str, ModelCounts]],
    )
    meta.floor_ms = {m: meta._floor_ms(contract) for m, contract in contracts.items() if m not in others}
    meta.floor_ms |= {model: floor_ms for model, floor_ms in others.items() if floor_ms is not None}
    return meta, totals
