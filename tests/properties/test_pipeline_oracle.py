"""The join stage against the offline oracle, on histories that hypothesis makes up."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import decode_block
from schemas.contracts import DetectorConfig, Feature, ModelContract, ModelRecord, Monitoring
from schemas.events import HEADER_KIND, KIND_TICK
from schemas.ids import ROLES, RowId
from schemas.rows import whole_outcomes
from schemas.settings import MonitorSettings
from streams.core import oracle
from streams.core.delivery import Manifest, StageContext, Upserts
from streams.core.oracle import Step
from streams.core.pipeline import JoinCore, create
from streams.core.records import Record
from tests.support_examples import examples
from tests.support_upserts import spread

T0 = 1_700_000_000_000 // 3_600_000 * 3_600_000
MINUTE = 60_000
CONTRACT = ModelContract(
    model="m",
    features=(
        Feature(name="x", nullable=True, low=-2.0, high=2.0),
        Feature(name="y"),
        Feature(name="where", kind="categorical", nullable=True, categories=("EWR", "JFK", "LGA")),
    ),
    monitoring=Monitoring(
        window=120 * MINUTE,
        window_step=60 * MINUTE,
        allowed_lateness=10 * MINUTE,
        label_horizon=180 * MINUTE,
        event_ahead_max=2 * 86_400_000,
        segments=("where",),
        # Without one no features would be observed.
        detectors=(DetectorConfig(name="psi", kind="psi", stream="features"),),
        segments_max=2,
        histogram_bins=5,
    ),
)
# Quarters have exact products with 1e6 and 1000, so that rounding is the same by any method.
quarters = st.integers(-12, 12).map(lambda n: n / 4)


@st.composite
def predictions(draw: st.DrawFn) -> Step:
    """One prediction; its id decides when it was made, as all roles of a request share its time."""
    number = draw(st.integers(0, 25))
    event = {
        "prediction_id": f"p{number}",
        "model": "m",
        "version": draw(st.sampled_from(["v1", "v2"])),
        "role": draw(st.sampled_from(ROLES)),
        "event_time_ms": T0 + number * 17 * MINUTE,
        "features": {
            "x": draw(st.none() | quarters),
            "y": draw(quarters),
            "where": draw(st.none() | st.sampled_from(["EWR", "JFK", "LGA", "BOS"])),
        },
        "score": draw(st.none() | st.integers(0, 64).map(lambda n: n / 64)),
        "latency_ms": draw(st.integers(0, 4000)) / 4,
        "status": draw(st.sampled_from(["ok", "error", "fallback"])),
    }
    return Step("prediction", event, payload_bytes=len(json.dumps(event)))


labels = st.builds(
    lambda number, label, after, revision: Step(
        "label",
        {
            "prediction_id": f"p{number}",
            "model": "m",
            "label": float(label),
            "label_time_ms": T0 + (number * 17 + after) * MINUTE,
            "revision": revision,
        },
        "feedback",
    ),
    st.integers(0, 25),
    st.booleans(),
    st.integers(0, 200),
    st.integers(0, 2),
)
ticks = st.builds(
    lambda topic, minute: Step("tick", {"event_time_ms": T0 + minute * MINUTE}, topic),
    st.sampled_from(["predictions", "feedback"]),
    st.integers(0, 800),
)
histories = st.lists(predictions() | labels | predictions() | labels | ticks, max_size=60)


class Shell:
    """The least a shell does: offsets, transactions into a dictionary, a warehouse that is a dictionary."""

    def __init__(self) -> None:
        self.pieces: dict[str, bytes] = {}
        self.sequence = 0
        self.offsets = {"predictions": 0, "feedback": 0}
        self.tables: dict[str, dict[Any, Any]] = {
            "window_counts": {},
            "window_features": {},
            "window_outcomes": {},
        }
        self.blocks: list[Any] = []
        self.outbox: list[Upserts] = []
        self.core = self.start()

    def start(self) -> JoinCore:
        core = create(StageContext("join", 0, 1, MonitorSettings()))
        core.activate([ModelRecord(contract=CONTRACT)])
        core.restore(
            dict(self.pieces), Manifest(task="join/0", sequence=self.sequence) if self.sequence else None
        )
        return core

    def apply(self, steps: list[Step]) -> None:
        records = []
        for step in steps:
            offset = self.offsets[step.topic]
            self.offsets[step.topic] += 1
            headers = {HEADER_KIND: KIND_TICK} if step.kind == "tick" else {}
            key = None if step.kind == "tick" else step.event["prediction_id"].encode()
            records.append(Record(step.topic, 0, offset, key, json.dumps(step.event).encode(), headers))
        self.core.apply(records, 0)

    def commit(self) -> None:
        for out in self.core.outputs():
            assert out.topic == "observations"
            if HEADER_KIND not in out.headers:
                self.blocks.append(decode_block(out.value))
        for name, data in self.core.changed_pieces().items():
            if data is None:
                self.pieces.pop(name, None)
            else:
                self.pieces[name] = data
        self.sequence += 1
        self.core.committed(self.sequence)

    def warehouse(self, away: bool = False) -> None:
        """Send everything that waits and confirm it, or find the warehouse away."""
        self.outbox += self.core.upserts()
        if not away:
            for upsert in spread(self.outbox):
                held = self.tables[upsert.table].get(upsert.key)
                if held is None or held[-1] <= upsert.version:
                    self.tables[upsert.table][upsert.key] = upsert.row[len(upsert.key) :]
            self.core.confirm(self.outbox)
            self.outbox = []

    def kill(self) -> None:
        """Lose all that is not in the log."""
        self.outbox = []
        self.core = self.start()


def _held(shell: Shell, table: str) -> dict[Any, Any]:
    rows = shell.tables[table]
    if table == "window_outcomes":
        return whole_outcomes((*key, *row[:-1]) for key, row in rows.items())
    return {key: row[:-1] for key, row in rows.items()}


def _plain(row: Any) -> list[Any]:
    # Borders of histogram cells are the one thing that is not counted but computed.
    return [[round(x, 9) for x in item] if isinstance(item, list) else item for item in row]


def _check(shell: Shell, steps: list[Step]) -> None:
    wanted = oracle.expected(CONTRACT, steps)
    for table, rows in wanted.tables.items():
        held = _held(shell, table)
        assert set(held) == set(rows), table
        for key, row in rows.items():
            assert _plain(held[key]) == _plain(row), (table, key)
    observed: Counter[tuple[str, int]] = Counter()
    outcomes: Counter[tuple[int, str, str, float]] = Counter()
    by_address: dict[tuple[int, int], str] = {}
    seen = [s for s in steps if s.topic == "predictions"]
    for block in shell.blocks:
        for at in range(len(block)):
            address = RowId(
                "predictions", int(block.partition[at]), int(block.offset[at]), int(block.row[at])
            )
            step = seen[address.offset]
            version, role = block.versions[block.version[at]], ROLES[block.role[at]]
            assert (step.event["version"], step.event["role"]) == (version, role)
            assert step.event["event_time_ms"] == block.event_time_ms[at]
            prediction_id = step.event["prediction_id"]
            if block.kind == "predictions":
                observed[(prediction_id, address.offset)] += 1
                x = step.event["features"]["x"]
                assert np.isnan(block.features[at, 0]) if x is None else block.features[at, 0] == x
            else:
                by_address[(address.partition, address.offset)] = prediction_id
                outcomes[(prediction_id, version, role, float(block.label[at]))] += int(block.sign[at])
    assert sorted(i for i, _ in observed.elements()) == sorted(
        p.event["prediction_id"] for p in wanted.predictions
    )
    assert +outcomes == Counter(wanted.outcomes)
    assert not -outcomes


@examples(75)
@given(histories, st.data())
def test_any_history_cut_and_restart_equals_the_oracle(steps: list[Step], data: st.DataObject) -> None:
    """Any order, batch cut, duplicate, late row, early label, revision, kill and warehouse outage: the same figures."""
    shell, at, committed, kills = Shell(), 0, 0, 0
    offsets = dict(shell.offsets)
    while at < len(steps):
        size = data.draw(st.integers(1, 15))
        shell.apply(steps[at : at + size])
        at = min(at + size, len(steps))
        what = data.draw(st.sampled_from(["commit", "commit and kill", "kill", "go on"]))
        if what.startswith("commit"):
            shell.commit()
            committed, offsets = at, dict(shell.offsets)
            if data.draw(st.booleans()):
                shell.warehouse(away=data.draw(st.booleans()))
        if what.endswith("kill") and kills < 4:
            kills += 1
            shell.kill()
            shell.offsets, at = dict(offsets), committed
    shell.commit()
    shell.warehouse()
    _check(shell, steps)


def _on_time(steps: list[Step]) -> tuple[list[Step], list[Step]]:
    """The two inputs of a history in event time, each row followed by a tick of its time."""
    rows = [s for s in steps if s.kind != "tick"]
    order = {"predictions": "event_time_ms", "feedback": "label_time_ms"}
    inputs = []
    for topic, name in order.items():
        mine = sorted((s for s in rows if s.topic == topic), key=lambda s: int(s.event[name]))
        ticked = [(s, Step("tick", {"event_time_ms": s.event[name]}, topic)) for s in mine]
        end = Step("tick", {"event_time_ms": T0 + 2_000 * MINUTE}, topic)
        inputs.append([step for pair in ticked for step in pair] + [end])
    return inputs[0], inputs[1]


def _told(shell: Shell) -> list[Any]:
    """What a detector is fed: outcome rows in its own order."""
    rows = []
    for block in shell.blocks:
        for at in range(len(block) if block.kind == "outcomes" else 0):
            row = (
                block.identity[at],
                block.versions[block.version[at]],
                block.role[at],
                block.label[at],
                block.sign[at],
            )
            rows.append((int(block.label_time_ms[at]), *map(str, row)))
    return sorted(rows)


@examples(40)
@given(st.lists(predictions() | labels, max_size=40), st.data())
def test_however_the_two_inputs_interleave_the_result_is_the_same(
    steps: list[Step], data: st.DataObject
) -> None:
    """A monitor that reads one input hours ahead of the other sees the same outcomes, revisions included."""
    one, two = _on_time(steps)
    usual, other = Shell(), Shell()
    usual.apply(one[:-1] + two + one[-1:])
    left = [list(one), list(two)]
    while any(left):
        pick = data.draw(st.sampled_from([at for at in (0, 1) if left[at]]))
        size = data.draw(st.integers(1, 20))
        other.apply(left[pick][:size])
        other.commit()
        if data.draw(st.integers(0, 9)) == 0:
            other.kill()
        del left[pick][:size]
    for shell in (usual, other):
        shell.commit()
        shell.warehouse()
    for table, rows in usual.tables.items():
        assert {k: r[:-1] for k, r in other.tables[table].items()} == {k: r[:-1] for k, r in rows.items()}, (
            table
        )
    assert _told(usual) == _told(other)
