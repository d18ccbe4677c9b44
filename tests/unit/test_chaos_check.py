"""The comparison of a chaos run: it is worth what it finds, so each kind of damage is done once."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from deploy.chaos.actual import AGGREGATES, READ, Message
from deploy.chaos.check import check
from deploy.chaos.load import HEADER_BAD
from schemas.arrow import encode_arrow
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, HEADER_ORIGIN, KIND_TICK
from schemas.ids import partition_of
from schemas.rows import TABLES

START = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = "m"
PARTITIONS = 2
MINE = partition_of(MODEL.encode(), PARTITIONS)
#: Two rows.
BATCH = encode_arrow(pa.table({"prediction_id": ["b1", "b2"]}))


def row(table: str) -> tuple[list[Any], list[Any]]:
    """One row as (key, values), every value a 1 of its type."""
    values: list[Any] = []
    for name, kind in TABLES[table].columns[:-1]:
        if name == "window_start":
            values.append(START)
        elif kind.startswith(("Array", "Map")):
            values.append([1] if kind.startswith("Array") else {1: 1})
        else:
            values.append("x" if "String" in kind else 1)
    keys = len(TABLES[table].key)
    return values[:keys], values[keys:]


def expected_row(table: str) -> tuple[list[Any], list[Any]]:
    """The same as the offline computation has it, which knows no parts."""
    key, values = row(table)
    return key[: -1 if table == "window_outcomes" else None], values


def message(at: int, on: int = 0, /, **body: Any) -> Message:
    return Message(on, at, None, json.dumps(body).encode(), {})


class Books:
    """A small run in which everything is as it must be."""

    def __init__(self) -> None:
        prediction = {"prediction_id": "r1", "model": "scored", "version": "1"}
        request = {"type": "retrain", "request_id": "q", "model": MODEL, "issued_by": "policy/harm"}
        alert = {"model": MODEL, "alert_id": "a"}
        revision = {"model": MODEL, "revision": 1, "answers": [{"request_id": "q"}]}
        letter = {"topic": "predictions", "partition": 0, "offset": 2, "reason": "not-json"}
        self.topics: dict[str, list[Message]] = {name: [] for name in READ} | {
            "predictions": [
                message(0, **prediction),
                Message(0, 1, None, b"{}", {HEADER_KIND: KIND_TICK}),
                Message(0, 2, None, b"{", {HEADER_BAD: b"not-json"}),
                message(3, prediction_id="s1", model=MODEL, version="1"),
                Message(1, 0, None, b"{}", {HEADER_ORIGIN: b"predictions/0/3/0"}),
                Message(1, 1, None, BATCH, {HEADER_FORMAT: FORMAT_ARROW}),
            ],
            "signals": [message(0, MINE, model=MODEL, signal_id="s")],
            "alerts": [message(0, **alert)],
            "control": [message(0, **request, signature="x")],
            "deployments": [message(0, **revision)],
            "dead-letters": [message(0, **letter)],
            "scoring-requests": [message(0, request_id="r1")],
            "scores": [message(0, request_id="r1", model="scored", version="1", role="stable", status="ok")],
        }
        self.tables = {name: [[*row(name)[0], *row(name)[1]]] for name in AGGREGATES}
        self.logs: dict[str, list[tuple[int, int, int]]] = {
            "prediction_log": [(0, 0, 0), (0, 3, 0), (1, 1, 0), (1, 1, 1)], "label_log": [], "signal_log": [(MINE, 0, 0)], "alert_log": [(0, 0, 0)],
            "control_log": [(0, 0, 0)], "deployment_log": [(0, 0, 0)], "decision_log": [], "dead_letter_log": [(0, 0, 0)],
        }  # fmt: skip
        task = f"policy/{MINE}"
        self.expected: dict[str, Any] = {
            "tables": {name: [expected_row(name)] for name in AGGREGATES},
            "outcomes": [],
            "addresses": [],
            "sent_on": ["predictions/0/3/0"],
            "origins": ["predictions/0/3/0"],
            "signals": {f"detect/{p}": [] for p in range(PARTITIONS)},
            "policy": {f"policy/{p}": {} for p in range(PARTITIONS)},
        }
        self.expected["signals"][f"detect/{MINE}"] = [{"model": MODEL, "signal_id": "s"}]
        self.expected["policy"][task] = {"control": [request], "alerts": [alert]}

    def differing(self) -> set[str]:
        checked = check(self.expected, self.topics, self.tables, self.logs, PARTITIONS)
        assert {example["what"] for example in checked.examples} == set(checked.differing)
        return set(checked.differing)


def test_books_in_order_have_no_difference() -> None:
    """The whole comparison, on a run where nothing went wrong."""
    assert Books().differing() == set()


def _lose_row(books: Books) -> None:
    books.tables["window_counts"] = []


def _invent_row(books: Books) -> None:
    books.expected["tables"]["window_outcomes"] = []


def _miscount(books: Books) -> None:
    books.tables["window_counts"][0][len(TABLES["window_counts"].key)] += 1


def _lose_stray(books: Books) -> None:
    books.expected["origins"] = []


def _send_stray_twice(books: Books) -> None:
    books.expected["origins"] *= 2


def _observe_nothing(books: Books) -> None:
    books.expected["addresses"] = [[0, 0, 0]]


def _lose_outcome(books: Books) -> None:
    books.expected["outcomes"] = [[MODEL, "r1", "1", "stable", 1.0]]


def _lose_letter(books: Books) -> None:
    books.topics["dead-letters"] = []
    books.logs["dead_letter_log"] = []


def _archive_twice(books: Books) -> None:
    books.logs["prediction_log"].append((0, 0, 0))


def _lose_row_of_a_batch(books: Books) -> None:
    books.logs["prediction_log"].remove((1, 1, 1))


def _archive_garbage(books: Books) -> None:
    books.logs["prediction_log"].append((0, 2, 0))


def _signal_twice(books: Books) -> None:
    books.topics["signals"].append(message(1, MINE, model=MODEL, signal_id="s"))
    books.logs["signal_log"].append((MINE, 1, 0))


def _lose_command(books: Books) -> None:
    books.topics["control"] = []
    books.logs["control_log"] = []


def _alert_otherwise(books: Books) -> None:
    books.topics["alerts"] = [message(0, model=MODEL, alert_id="b")]


def _answer_twice(books: Books) -> None:
    books.topics["scores"] *= 2


def _score_without_log(books: Books) -> None:
    first = books.topics["predictions"][0]
    books.topics["predictions"][0] = first._replace(headers={HEADER_KIND: KIND_TICK})
    books.logs["prediction_log"].remove((0, 0, 0))


def _skip_revision(books: Books) -> None:
    body = json.loads(books.topics["deployments"][0].value) | {"revision": 3}
    books.topics["deployments"] = [message(0, **body)]


def _leave_unanswered(books: Books) -> None:
    body = json.loads(books.topics["deployments"][0].value) | {"answers": []}
    books.topics["deployments"] = [message(0, **body)]


DAMAGE: dict[Callable[[Books], None], set[str]] = {
    _lose_row: {"window_counts"},
    _invent_row: {"window_outcomes"},
    _miscount: {"window_counts"},
    _lose_stray: {"sent on"},
    _send_stray_twice: {"sent on"},
    _observe_nothing: {"observed predictions"},
    _lose_outcome: {"outcomes"},
    _lose_letter: {"dead letters"},
    _archive_twice: {"prediction_log"},
    _lose_row_of_a_batch: {"prediction_log"},
    _archive_garbage: {"prediction_log"},
    _signal_twice: {f"signals of detect/{MINE}"},
    _lose_command: {f"control of policy/{MINE}"},
    _alert_otherwise: {f"alerts of policy/{MINE}"},
    _answer_twice: {"scores", "scored predictions"},
    _score_without_log: {"scored predictions"},
    _skip_revision: {f"revisions of {MODEL}"},
    _leave_unanswered: {"answers"},
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_is_found_and_named(damage: Callable[[Books], None]) -> None:
    """Exactly the comparison that it concerns differs."""
    books = Books()
    damage(books)
    assert books.differing() == DAMAGE[damage]


def test_what_depends_on_the_moment_of_writing_is_not_compared() -> None:
    """Signatures and times of recording; nothing else is forgiven."""
    books = Books()
    before = deepcopy(books.topics["control"])
    books.topics["control"] = [m._replace(value=m.value.replace(b'"x"', b'"y"')) for m in before]
    assert books.topics["control"] != before
    assert books.differing() == set()


def test_what_late_labels_changed_is_compared_together_with_what_they_changed() -> None:
    """A window's parts are one row, whatever is in which; when the last part came is a matter of timing."""
    books = Books()
    (whole,) = books.tables["window_outcomes"]
    names = TABLES["window_outcomes"].names
    late = [-value if isinstance(value, int) else value for value in whole]
    for at, name in enumerate(names[:-1]):
        if name == "part":
            late[at], whole[at] = 3, 0
        elif at < len(TABLES["window_outcomes"].key) or name in (
            "span_ms",
            "settled_ms",
            "first_label_ms",
            "final",
        ):
            late[at] = whole[at]
        elif name == "final_ms":
            late[at] = whole[at] + 5
        elif name == "last_label_ms":
            late[at] = 0
        elif isinstance(whole[at], list):
            whole[at], late[at] = [3], [-2]
        elif isinstance(whole[at], dict):
            whole[at], late[at] = {}, {1: 1}
        else:
            whole[at], late[at] = 3, -2
    books.tables["window_outcomes"].append(late)
    assert books.differing() == set()
    late[names.index("labelled")] += 1
    assert books.differing() == {"window_outcomes"}
