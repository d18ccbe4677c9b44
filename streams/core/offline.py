"""What the monitor must have come to, computed at leisure from whole logs: the other side of a chaos run's comparison.

The join is worked out by the oracle, which shares nothing with it. Detectors and policy are replayed, in one piece and
without a crash: verdicts are a function of the committed ``observations`` log, and decisions one of ``signals`` and of
when each deployment was taken up. A manifest says so to the transaction, and within one transaction there is an order
that explains all that was written, or the run is wrong.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from schemas.arrow import PREDICTION_COLUMNS, read_arrow
from schemas.contracts import ModelContract, ModelRecord, Reference
from schemas.errors import DeliveryError
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, HEADER_ORIGIN, KIND_TICK
from schemas.ids import RowId, partition_of
from schemas.settings import MonitorSettings
from streams.core import detect, policy
from streams.core.delivery import Manifest, Out, StageContext
from streams.core.oracle import Expected, Step, expected
from streams.core.records import Record

Row = tuple[Any, ...]
Documents = dict[str, list[dict[str, Any]]]
#: What a document says of the moment it was written and not of what was decided.
MOMENTARY = ("recorded_ms", "signature", "key_id")
#: The controller names the rule as the actor of what it does for it; these kinds are the policy's own.
POLICY_DECISIONS = frozenset(
    {"alert-opened", "alert-raised", "alert-resolved", "retrain-requested", "rollback-requested"}
)
_BATCH = 1_000
#: So many explanations of what was written are kept side by side, and so many are tried for one transaction.
_WAYS_MAX = 64
_ORDERS_MAX = 2_000


@dataclass(slots=True)
class Joined:
    """One partition's share. ``addresses``: (partition, offset, row) of each row that was new, as it was first read.
    ``sent_on``: rows of other partitions, which must stand on theirs once more; ``origins``: those that came so."""

    tables: dict[str, dict[Row, Row]] = field(default_factory=dict)
    outcomes: list[tuple[str, str, str, str, float]] = field(default_factory=list)
    addresses: list[tuple[int, int, int]] = field(default_factory=list)
    sent_on: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    duplicates: int = 0
    too_late: int = 0


def in_time_order(predictions: Sequence[Record], feedback: Sequence[Record]) -> Iterator[Record]:
    """Both inputs as one, each in its own order; which goes first is a matter of the broker's clock and of no weight."""
    left, right = list(reversed(predictions)), list(reversed(feedback))
    while left or right:
        first = left if not right or (left and left[-1].timestamp_ms <= right[-1].timestamp_ms) else right
        yield first.pop()


def joined(
    records: Iterable[Record],
    contracts: Mapping[str, ModelContract],
    references: Mapping[str, Mapping[str, Reference]],
    partition: int,
    partitions: int,
    garbage: str,
) -> Joined:
    """The join's share of one partition. Records with the header ``garbage`` are known to be unusable."""
    found = Joined()
    steps: list[Step] = []
    for record in records:
        if record.headers.get(HEADER_KIND) == KIND_TICK:
            steps.append(Step("tick", json.loads(record.value or b""), record.topic))
            continue
        if garbage in record.headers:
            continue
        for row, event, size in _events(record):
            origin = record.headers.get(HEADER_ORIGIN)
            address = RowId(record.topic, record.partition, record.offset, row)
            if origin is not None:
                address = RowId.parse(origin.decode())
                found.origins.append(str(address))
            elif partition_of(event["prediction_id"].encode(), partitions) != partition:
                found.sent_on.append(str(address))
                continue
            if record.topic == "predictions":
                usual = {"role": "stable", "score": None, "latency_ms": 0.0, "status": "ok"}
                event = usual | event | {"address": (address.partition, address.offset, address.row)}
                steps.append(Step("prediction", event, payload_bytes=size))
            else:
                steps.append(Step("label", {"revision": 0} | event, "feedback"))
    for model, contract in contracts.items():
        mine = (s for s in steps if s.kind == "tick" or s.event["model"] == model)
        _add(found, model, expected(contract, mine, partition, references.get(model)))
    return found


def _events(record: Record) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(row, document, bytes) of each event of a usable record, its share of the bytes where it is one of a batch."""
    value = record.value or b""
    if record.headers.get(HEADER_FORMAT) != FORMAT_ARROW:
        yield 0, json.loads(value), len(value)
        return
    table = read_arrow(value)
    model = (table.schema.metadata or {})[b"model"].decode()
    for row, data in enumerate(table.to_pylist()):
        document = {name: item for name in PREDICTION_COLUMNS if (item := data.pop(name, None)) is not None}
        yield row, document | {"model": model, "features": data}, len(value) // table.num_rows


def _add(found: Joined, model: str, share: Expected) -> None:
    for table, rows in share.tables.items():
        found.tables.setdefault(table, {}).update(rows)
    found.outcomes += [(model, *outcome) for outcome in share.outcomes]
    found.addresses += [p.event["address"] for p in share.predictions]
    found.duplicates += share.duplicates
    found.too_late += share.too_late


def signals(
    observations: Sequence[Record], models: Sequence[ModelRecord], partition: int, settings: MonitorSettings
) -> list[Out]:
    """Everything the detect task of ``partition`` writes, in its order."""
    core = detect.create(StageContext("detect", partition, settings.kafka.input_partitions, settings))
    core.activate(models)
    outs: list[Out] = []
    for at in range(0, len(observations), _BATCH):
        core.apply(observations[at : at + _BATCH], 0)
        outs += core.outputs()
    return outs


@dataclass(slots=True)
class _Way:
    """One explanation of what a policy task wrote so far, and whether it ``fits`` what it did write."""

    core: policy.PolicyCore
    written: Documents = field(default_factory=dict)
    fits: bool = True

    def step(self, records: Sequence[Record], actual: Documents) -> None:
        self.core.apply(records, 0)
        for out in self.core.outputs():
            document = settled(json.loads(out.value or b""))
            held = self.written.setdefault(out.topic, [])
            self.fits = self.fits and actual.get(out.topic, [])[len(held) : len(held) + 1] == [document]
            held.append(document)

    def copy(self) -> _Way:
        return _Way(
            deepcopy(self.core), {topic: list(held) for topic, held in self.written.items()}, self.fits
        )

    def state(self) -> str:
        models = self.core._models
        return json.dumps([models[name].model_dump_json() for name in sorted(models)])


def decisions(
    signals: Sequence[Record],
    deployments: Sequence[Record],
    manifests: Sequence[Manifest],
    models: Sequence[tuple[int, ModelRecord]],
    actual: Documents,
    context: StageContext,
) -> Documents:
    """What a policy task writes by topic, as :func:`settled` documents: the explanation that fits ``actual``, or where
    none does, one that does not. ``manifests``: all of the task's since its first, in order. ``models``: with their offsets;
    a version is known from the transaction on that had read of it. Raises DeliveryError when one in between is missing."""
    core = policy.PolicyCore(context, lambda message: message)
    core.activate([record for _, record in models if record.contract is not None])
    ways = [_Way(core)]
    source = ("signals", context.partition)
    at, seen, announced = 0, 0, 0
    for before, manifest in zip((None, *manifests), manifests, strict=False):
        if before is not None and manifest.sequence != before.sequence + 1:
            raise DeliveryError(
                f"{context.task}: manifest {manifest.sequence} follows {before.sequence}: a transaction is missing, or "
                "the state topic was compacted meanwhile"
            )
        end, known = manifest.high.get(source, at), manifest.activations.get("deployments", seen)
        rows = [r for r in signals if at <= r.offset < end]
        news = [r for r in deployments if seen <= r.offset < known]
        told = manifest.activations.get("models", announced)
        versions = [r for offset, r in models if announced <= offset < told and r.version is not None]
        for way in ways:
            way.core.activate(versions)
        ways = _explained(ways, rows, news, actual)
        at, seen, announced = end, known, told
    # A way that wrote less than was written has fitted so far, and is none.
    return next((way.written for way in ways if way.written == actual), ways[0].written)


def _explained(ways: list[_Way], rows: list[Record], news: list[Record], actual: Documents) -> list[_Way]:
    """Every distinct way to go on that fits; the first of all when none does."""
    after: dict[str, _Way] = {}
    unfit: _Way | None = None
    for way in ways:
        for order in itertools.islice(_orders(rows, news), _ORDERS_MAX if news else 1):
            tried = way.copy() if news else way
            tried.step(order, actual)
            if not tried.fits:
                unfit = unfit or tried
            elif len(after) < _WAYS_MAX:
                after.setdefault(tried.state() if len(ways) > 1 or news else "", tried)
    return list(after.values()) or ([] if unfit is None else [unfit]) or ways


def _orders(rows: list[Record], news: list[Record]) -> Iterator[list[Record]]:
    """In which order a task may have taken rows and news, the likely ones first: of revisions of a model that come
    together only the newest is heard, unless something woke the task in between."""
    for places in itertools.combinations_with_replacement(range(len(rows) + 1), len(news)):
        for all_heard in (False, True):
            heard: dict[Any, tuple[int, Record]] = {}
            for number, (place, one) in enumerate(zip(places, news, strict=True)):
                heard[number if all_heard else (place, one.key)] = (place, one)
            if all_heard and len(set(zip(places, (n.key for n in news), strict=True))) == len(news):
                continue
            order: list[Record] = []
            for at in range(len(rows) + 1):
                order += [one for place, one in heard.values() if place == at]
                order += rows[at : at + 1]
            yield order


def settled(document: dict[str, Any]) -> dict[str, Any]:
    """A document without what depends on the moment of writing."""
    return {name: value for name, value in document.items() if name not in MOMENTARY}


def writer(topic: str, document: Mapping[str, Any], partitions: int) -> int | None:
    """Which policy task wrote a document of ``control``, ``alerts`` or ``decisions``; None for other writers."""
    if document.get("type") == "tick":
        source = str(document["source"])
        return int(source.removeprefix("policy/")) if source.startswith("policy/") else None
    by = document.get("issued_by") if topic == "control" else document.get("actor")
    if topic == "alerts":
        dedup_key = str(document.get("dedup_key"))
        if dedup_key.startswith("controller/") or dedup_key == f"{document['model']}/training":
            return None
    if topic == "decisions" and document["kind"] not in POLICY_DECISIONS:
        return None
    if topic == "alerts" or document.get("type") == "analysis" or str(by).startswith("policy/"):
        return partition_of(str(document["model"]).encode(), partitions)
    return None
