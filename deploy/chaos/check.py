"""Compares what the loop left behind with what it must have left: pure, and every difference has an address.

The other side of each comparison is never the monitor: aggregates and outcomes come from the oracle, verdicts and decisions
from a replay in one piece (``python -m streams.offline``), the rest from the logs themselves and from what the load wrote
into its garbage's headers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from deploy.chaos.actual import AGGREGATES, Address, Message, Topics
from deploy.chaos.load import HEADER_BAD
from schemas.arrow import read_arrow
from schemas.blocks import decode_block
from schemas.control import ControlTick
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, HEADER_ORIGIN
from schemas.hashing import key_hashes
from schemas.ids import ROLES, RowId, partition_of
from schemas.rows import TABLES, whole_outcomes
from schemas.spans import Spans

SHOWN_MAX = 20
#: Garbage that can be read as its topic's type; the archive keeps a copy although the join refuses it.
READABLE_GARBAGE = frozenset({"unknown-model", "missing-feature", "wrong-key"})
_LOGS = {
    "signals": "signal_log",
    "alerts": "alert_log",
    "control": "control_log",
    "deployments": "deployment_log",
    "decisions": "decision_log",
    "dead-letters": "dead_letter_log",
}
_EVENTS = {"predictions": "prediction_log", "feedback": "label_log"}
#: Types on ``control`` that ask for nothing.
_FACTS = frozenset({"tick", "analysis", "scorer"})
#: The controller names the rule as the actor of what it does for it; these kinds are the policy's own.
_POLICY_DECISIONS = frozenset(
    {"alert-opened", "alert-raised", "alert-resolved", "retrain-requested", "rollback-requested"}
)
_MOMENTARY = ("recorded_ms", "signature", "key_id")


@dataclass(slots=True)
class Checked:
    """``compared`` and ``differing``: how many, by what was compared. ``examples``: the first of each, with addresses."""

    compared: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def differ(self, what: str, address: Any, expected: Any, actual: Any) -> None:
        """One difference."""
        self.differing[what] += 1
        if self.differing[what] <= SHOWN_MAX:
            self.examples.append(
                {
                    "what": what,
                    "address": _shown(address),
                    "expected": _shown(expected),
                    "actual": _shown(actual),
                }
            )

    def bags(self, what: str, expected: Iterable[Hashable], actual: Iterable[Hashable]) -> None:
        """Two bags are to hold the same things equally often."""
        want, have = Counter(expected), Counter(actual)
        self.compared[what] += want.total()
        for item in want.keys() | have.keys():
            if want[item] != have[item]:
                self.differ(what, item, f"{want[item]} times", f"{have[item]} times")

    def lists(self, what: str, expected: Sequence[Any], actual: Sequence[Any]) -> None:
        """Two lists are to hold the same in the same order; the first place where they part is told."""
        self.compared[what] += len(expected)
        if list(expected) == list(actual):
            return
        for at in range(max(len(expected), len(actual))):
            want, have = expected[at : at + 1], actual[at : at + 1]
            if list(want) != list(have):
                self.differ(what, f"place {at} of {len(expected)} and {len(actual)}", list(want), list(have))
                return


def check(
    expected: Mapping[str, Any],
    topics: Topics,
    aggregates: Mapping[str, Sequence[Sequence[Any]]],
    logs: Mapping[str, Sequence[Address]],
    partitions: int,
) -> Checked:
    """Everything. ``expected``: the document of ``streams.offline``."""
    checked = Checked()
    _aggregates(checked, expected["tables"], aggregates)
    _observations(checked, expected, topics["observations"])
    checked.bags("sent on", expected["sent_on"], expected["origins"])
    _dead_letters(checked, topics)
    _archive(checked, topics, logs)
    _verdicts(checked, expected, topics, partitions)
    _scores(checked, topics)
    _answers(checked, topics)
    return checked


def _aggregates(
    checked: Checked, expected: Mapping[str, Any], actual: Mapping[str, Sequence[Sequence[Any]]]
) -> None:
    for table in AGGREGATES:
        keys = len(TABLES[table].key)
        names = TABLES[table].names[keys:-1]
        want = {_plain(key): row for key, row in expected.get(table, [])}
        have = {_plain(row[:keys]): row[keys:] for row in actual[table]}
        in_parts: set[Any] = set()
        if table == "window_outcomes":
            in_parts = {key[:-1] for key in have if key[-1]}
            have = {_plain(key): row for key, row in whole_outcomes(actual[table]).items()}
        checked.compared[table] += len(want)
        for key in want.keys() | have.keys():
            if key not in want or key not in have:
                checked.differ(table, key, want.get(key, "no row"), have.get(key, "no row"))
                continue
            for name, left, right in zip(names, want[key], have[key], strict=True):
                # Which late labels came as a part of their own is a matter of timing, and so is when the last part came.
                if not _same(name, left, right) and not (name == "final_ms" and key in in_parts):
                    checked.differ(table, f"{key} {name}", left, right)


def _same(name: str, left: Any, right: Any) -> bool:
    if name.endswith(("log_loss_nano", "brier_nano")):
        # Two libraries' logarithms may differ in the last bit, and so may a rounded billionth.
        return bool(abs(left - right) <= 1)
    return bool(_plain(left) == _plain(right))


def _plain(value: Any) -> Any:
    """Comparable whatever library it came from: borders are computed and not counted, times may lack their zone."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=value.tzinfo or UTC).timestamp()
    if isinstance(value, Mapping):
        return tuple(sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return round(value, 9) if isinstance(value, float) else value


def _observations(checked: Checked, expected: Mapping[str, Any], messages: Sequence[Message]) -> None:
    rows: list[Address] = []
    net: Counter[tuple[Any, ...]] = Counter()
    for message in messages:
        if HEADER_KIND in message.headers:
            continue
        block = decode_block(message.value)
        if block.kind == "predictions":
            rows += zip(block.partition.tolist(), block.offset.tolist(), block.row.tolist(), strict=True)
            continue
        for identity, version, role, label, sign in zip(
            block.identity.tolist(), block.version.tolist(), block.role.tolist(), block.label.tolist(),
            block.sign.tolist(), strict=True,
        ):  # fmt: skip
            net[block.model, identity, block.versions[version], ROLES[role], label] += sign
    checked.bags("observed predictions", (tuple(at) for at in expected["addresses"]), rows)
    ids = [outcome[1].encode() for outcome in expected["outcomes"]]
    hashes = key_hashes(Spans.of(ids)).identity.tolist() if ids else []
    want = Counter(
        (model, identity, version, role, label)
        for (model, _, version, role, label), identity in zip(expected["outcomes"], hashes, strict=True)
    )
    checked.compared["outcomes"] += want.total()
    for key in want.keys() | net.keys():
        if want[key] != net[key]:
            checked.differ("outcomes", key, f"{want[key]} times", f"{net[key]} times")


def _dead_letters(checked: Checked, topics: Topics) -> None:
    want = [
        (topic, m.partition, m.offset, m.headers[HEADER_BAD].decode())
        for topic in _EVENTS
        for m in topics[topic]
        if HEADER_BAD in m.headers
    ]
    letters = [json.loads(m.value) for m in topics["dead-letters"]]
    have = [(d["topic"], d["partition"], d["offset"], d["reason"]) for d in letters]
    checked.bags("dead letters", want, have)


def _archive(checked: Checked, topics: Topics, logs: Mapping[str, Sequence[Address]]) -> None:
    for topic, table in _EVENTS.items():
        kept = [m for m in topics[topic] if HEADER_KIND not in m.headers and _readable(m)]
        checked.bags(table, {at for m in kept for at in _addresses(m)}, logs[table])
    for topic, table in _LOGS.items():
        kept = [m for m in topics[topic] if HEADER_KIND not in m.headers]
        checked.bags(table, [(m.partition, m.offset, 0) for m in kept], logs[table])


def _readable(message: Message) -> bool:
    reason = message.headers.get(HEADER_BAD)
    return reason is None or reason.decode() in READABLE_GARBAGE


def _addresses(message: Message) -> list[Address]:
    """Of the rows of a message, where they were first read."""
    origin = message.headers.get(HEADER_ORIGIN)
    if origin is not None:
        first = RowId.parse(origin.decode())
        return [(first.partition, first.offset, first.row)]
    rows = read_arrow(message.value).num_rows if _is_arrow(message) else 1
    return [(message.partition, message.offset, row) for row in range(rows)]


def _is_arrow(message: Message) -> bool:
    return message.headers.get(HEADER_FORMAT) == FORMAT_ARROW


def _verdicts(checked: Checked, expected: Mapping[str, Any], topics: Topics, partitions: int) -> None:
    for partition in range(partitions):
        mine = [
            json.loads(m.value)
            for m in topics["signals"]
            if m.partition == partition and HEADER_KIND not in m.headers
        ]
        checked.lists(f"signals of detect/{partition}", expected["signals"][f"detect/{partition}"], mine)
    written: dict[tuple[str, str], list[Any]] = {}
    for topic in ("control", "alerts", "decisions"):
        for message in topics[topic]:
            document = json.loads(message.value)
            task = _policy_task(topic, document, partitions)
            if task is not None:
                kept = {name: value for name, value in document.items() if name not in _MOMENTARY}
                written.setdefault((task, topic), []).append(kept)
    for task, by_topic in expected["policy"].items():
        for topic in ("control", "alerts", "decisions"):
            checked.lists(f"{topic} of {task}", by_topic.get(topic, []), written.get((task, topic), []))


def _policy_task(topic: str, document: Mapping[str, Any], partitions: int) -> str | None:
    """Which policy task wrote a document; None for another service's."""
    if document.get("type") == "tick":
        source = ControlTick.model_validate(document).source
        return source if source.startswith("policy/") else None
    by = str(document.get("issued_by") if topic == "control" else document.get("actor"))
    if topic == "alerts" and "/" in str(document.get("dedup_key")):
        # The controller's and the trainer's have a path; the policy's are hashes.
        return None
    if topic == "decisions" and document["kind"] not in _POLICY_DECISIONS:
        return None
    if topic == "alerts" or document.get("type") == "analysis" or by.startswith("policy/"):
        return f"policy/{partition_of(str(document['model']).encode(), partitions)}"
    return None


def _scores(checked: Checked, topics: Topics) -> None:
    """Each request has one answer, and each answer that is one stands in the prediction log once."""
    asked = [json.loads(m.value)["request_id"] for m in topics["scoring-requests"]]
    answers = [json.loads(m.value) for m in topics["scores"]]
    checked.bags("scores", asked, [answer["request_id"] for answer in answers])
    models = {answer["model"] for answer in answers}
    logged = [
        json.loads(m.value)
        for m in topics["predictions"]
        if not {HEADER_KIND, HEADER_BAD, HEADER_ORIGIN} & m.headers.keys() and not _is_arrow(m)
    ]
    checked.bags(
        "scored predictions",
        [(a["request_id"], a["version"] or "", a["role"]) for a in answers if a["status"] == "ok"],
        [
            (p["prediction_id"], p["version"], p.get("role", "stable"))
            for p in logged
            if p["model"] in models and p.get("role") != "shadow" and p.get("status", "ok") == "ok"
        ],
    )


def _answers(checked: Checked, topics: Topics) -> None:
    """Revisions have no gap and no repetition, and every request is answered by one."""
    revisions: dict[str, list[int]] = {}
    answered: set[str] = set()
    for message in topics["deployments"]:
        document = json.loads(message.value)
        revisions.setdefault(document["model"], []).append(document["revision"])
        answered |= {answer["request_id"] for answer in document["answers"]}
    for model, numbers in revisions.items():
        checked.lists(f"revisions of {model}", list(range(1, len(numbers) + 1)), numbers)
    commands = [json.loads(m.value) for m in topics["control"]]
    asked = {c["request_id"] for c in commands if c["type"] not in _FACTS}
    checked.bags("answers", asked, asked & answered)


def _shown(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 2_000 else text[:2_000] + "..."
