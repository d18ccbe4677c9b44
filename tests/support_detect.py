"""A model's predictions and outcomes as the join would send them, and the detect stage fed with them in any order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from schemas.blocks import ObservationBlock, encode_block
from schemas.contracts import (
    ColumnReference,
    DetectorConfig,
    Feature,
    ModelContract,
    ModelRecord,
    ModelVersion,
    Monitoring,
    Reference,
)
from schemas.events import HEADER_KIND, KIND_TICK, STATUSES, Tick
from schemas.ids import ROLES
from schemas.settings import MonitorSettings
from schemas.verdicts import SignalChanged
from streams.core.delivery import Manifest, Out, StageContext
from streams.core.detect import DetectCore, create
from streams.core.records import Record

HOUR = 3_600_000
T0 = 1_700_000_000_000 // (24 * HOUR) * (24 * HOUR)
DETECTORS = (
    DetectorConfig(
        name="harm",
        kind="loss-above-promise",
        stream="loss",
        options={"block_ms": 6 * HOUR, "rows_min": 5, "threshold": 20},
    ),
    DetectorConfig(
        name="judge", kind="paired-judge", stream="comparison", options={"block_ms": 6 * HOUR, "alpha": 0.1}
    ),
    DetectorConfig(
        name="inputs",
        kind="drift-e-blocks",
        stream="features",
        options={"rows_min": 5, "run": "5d"},
    ),
    DetectorConfig(
        name="adwin",
        kind="river-drift",
        stream="score",
        options={"name": "ADWIN", "params": {"delta": 0.01}, "warm_up_rows": 20, "hold_rows": 50},
    ),
)


def contract(detectors: Sequence[DetectorConfig] = DETECTORS, **changes: Any) -> ModelContract:
    """One numeric and one categorical feature; ``monitoring``: further fields of it."""
    features = changes.pop(
        "features", (Feature(name="x"), Feature(name="where", kind="categorical", categories=("a",)))
    )
    monitoring = Monitoring(detectors=tuple(detectors), **changes.pop("monitoring", {}))
    return ModelContract(model="m", features=features, monitoring=monitoring, **changes)


def version(name: str) -> ModelVersion:
    """A version whose reference is x uniform on [0, 1], in blocks of six hours."""
    x = ColumnReference(rows=1_000, quantiles=tuple(np.linspace(0, 1, 101).tolist()))
    where = ColumnReference(rows=1_000, shares=(0.9, 0.1))
    rng = np.random.default_rng(1)
    bins = {
        name: tuple((*rng.multinomial(200, shares).tolist(), 0) for _ in range(40))
        for name, shares in {"x": (0.01, 0.09, *(0.1,) * 8, 0.09, 0.01), "where": (0.9, 0.1)}.items()
    }
    reference = Reference(columns={"x": x, "where": where}, bins=bins, block_ms=6 * HOUR)
    return ModelVersion(model="m", version=name, uri=name, sha256="0" * 64, reference=reference)


def started(
    models: Sequence[ModelContract | ModelVersion] = (), partitions: int = 2, restored: Any = None
) -> DetectCore:
    """A core that knows ``models``; ``restored``: (pieces, manifest) of an earlier one."""
    core = create(StageContext("detect", 0, partitions, MonitorSettings()))
    known = models or (contract(), version("v1"), version("v2"))
    core.activate(
        [ModelRecord(contract=m) if isinstance(m, ModelContract) else ModelRecord(version=m) for m in known]
    )
    core.restore(*(restored or ({}, None)))
    return core


def predictions(
    time_ms: Sequence[int], *, identity: Sequence[int], who: str = "v1", role: str = "stable", **columns: Any
) -> ObservationBlock:
    """A block of predictions of one version in one role; ``columns``: x, score, status, contract_hash."""
    n = len(time_ms)
    x = np.asarray(columns.get("x", np.full(n, 0.5)), np.float64)
    none = {
        "label": np.empty(0),
        "label_time_ms": np.empty(0, np.int64),
        "loss": np.empty(0),
        "sign": np.empty(0, np.int8),
    }
    features = columns.get("features", np.column_stack([x, np.zeros(n)]))
    return _block("predictions", time_ms, identity, who, role, columns, features=features, **none)


def outcomes(
    time_ms: Sequence[int], *, identity: Sequence[int], who: str = "v1", role: str = "stable", **columns: Any
) -> ObservationBlock:
    """A block of outcomes that became known at ``label_ms`` (an hour after ``time_ms`` unless given)."""
    n = len(time_ms)
    known = np.asarray(columns.get("label_ms", np.asarray(time_ms) + HOUR), np.int64)
    label = np.asarray(columns.get("label", np.zeros(n)), np.float64)
    return _block(
        "outcomes",
        time_ms,
        identity,
        who,
        role,
        columns,
        features=np.empty((0, 0)),
        label=label,
        label_time_ms=known,
        loss=np.zeros(n),
        sign=np.asarray(columns.get("sign", np.ones(n)), np.int8),
    )


def _block(
    kind: Any, time_ms: Sequence[int], identity: Sequence[int], who: str, role: str, columns: Any, **rest: Any
) -> ObservationBlock:
    n = len(time_ms)
    status = STATUSES.index(columns.get("status", "ok"))
    return ObservationBlock(
        kind=kind,
        model=columns.get("model", "m"),
        versions=(who,),
        contract_hash=columns.get("contract_hash", ""),
        partition=np.zeros(n, np.int32),
        offset=np.asarray(identity, np.int64),
        row=np.zeros(n, np.int32),
        identity=np.asarray(identity, np.uint64),
        event_time_ms=np.asarray(time_ms, np.int64),
        version=np.zeros(n, np.int32),
        role=np.full(n, ROLES.index(role), np.int8),  # type: ignore[arg-type]
        score=np.asarray(columns.get("score", np.full(n, 0.1)), np.float64),
        latency_ms=np.ones(n),
        status=np.full(n, status, np.int8),
        segments=np.asarray(columns.get("segments", np.empty((0, 0))), np.int32),
        **rest,
    )


def tick(time_ms: int, source: int = 0, sources: int = 1, feedback_ms: int | None = None) -> Tick:
    """Time as join task ``source`` tells it."""
    return Tick(event_time_ms=time_ms, source=f"join/{source}", sources=sources, feedback_time_ms=feedback_ms)


def records(items: Iterable[ObservationBlock | Tick], start: int = 0) -> list[Record]:
    """What stands on the partition, from offset ``start``."""
    found = []
    for offset, item in enumerate(items, start):
        if isinstance(item, Tick):
            body, headers = item.model_dump_json().encode(), {HEADER_KIND: KIND_TICK}
            found.append(Record("observations", 0, offset, None, body, headers))
        else:
            found.append(Record("observations", 0, offset, item.model.encode(), encode_block(item)))
    return found


def signals(outs: Iterable[Out]) -> list[SignalChanged]:
    """The signals among ``outs``."""
    return [
        SignalChanged.model_validate_json(out.value or b"") for out in outs if HEADER_KIND not in out.headers
    ]


def manifest_of(core: DetectCore, next_offset: int) -> Manifest:
    """What the shell would write after everything below ``next_offset`` was applied."""
    low = core.positions().get(("observations", 0), next_offset)
    return Manifest(
        task="detect/0",
        offsets={("observations", 0): low},
        high={("observations", 0): next_offset},
        watermarks=core.watermarks(),
    )
