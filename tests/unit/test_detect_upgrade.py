"""A detector whose code or configuration changed between two lives of a worker: it warms up again, and says so."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from schemas.contracts import ModelRecord
from schemas.errors import SnapshotError
from schemas.verdicts import SignalChanged, State
from streams.core.delivery import Manifest
from streams.core.detect_state import DETECT_SCHEMA
from tests.support_detect import contract, records, signals, started
from tests.support_story import heard, interleaved, steps

HARM = "detector/m/v1/harm"
EVERYTHING = records(interleaved(steps(0, 6), 0))
Pieces = dict[str, bytes]


def _stop() -> tuple[Pieces, Manifest, list[SignalChanged]]:
    """The state of a worker that has seen everything, and what it said."""
    core = started()
    said = heard(core, EVERYTHING)
    pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
    end = {("observations", 0): EVERYTHING[-1].offset + 1}
    return pieces, Manifest(task="detect/0", sequence=7, offsets=end, high=end), said


def _changed(pieces: Pieces, change: Callable[[list[object]], None]) -> Pieces:
    body = msgspec.msgpack.decode(pieces[HARM])
    change(body)
    return pieces | {HARM: msgspec.msgpack.encode(body)}


def _newer_detector(body: list[object]) -> None:
    kind, schema, *state = msgspec.msgpack.decode(body[6])  # type: ignore[call-overload]
    body[6] = msgspec.msgpack.encode([kind, schema + 1, *state])


def _newer_layout(body: list[object]) -> None:
    body[0] = DETECT_SCHEMA + 1
    del body[7:]


def _other_configuration(body: list[object]) -> None:
    body[2] = "another"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_newer_detector, "another code version"),
        (_newer_layout, "another code version"),
        (_other_configuration, "configured otherwise now"),
    ],
)
def test_a_detector_that_cannot_go_on_warms_up_again_and_says_so_once(
    change: Callable[[list[object]], None], why: str
) -> None:
    """What was said of it is taken back with the reason; the others go on without a word; the next restart is silent."""
    pieces, manifest, said = _stop()
    last = next(s for s in reversed(said) if (s.detector, s.version) == ("harm", "v1"))
    assert last.verdict.state is State.DRIFT
    core = started(restored=(_changed(pieces, change), manifest))
    [signal] = signals(core.outputs())
    assert (signal.model, signal.version, signal.detector) == ("m", "v1", "harm")
    assert (signal.previous, signal.verdict.state) == (State.DRIFT, State.INCONCLUSIVE)
    assert "begins again" in signal.verdict.evidence.note and why in signal.verdict.evidence.note
    written = core.changed_pieces()
    assert set(written) - {"meta"} == {HARM}, "only it is stored anew"
    stored = {name: data for name, data in (pieces | written).items() if data is not None}
    assert signals(started(restored=(stored, manifest)).outputs()) == []


def test_unchanged_code_and_configuration_go_on_without_a_word() -> None:
    """A restart alone says nothing and rewrites nothing."""
    pieces, manifest, _ = _stop()
    core = started(restored=(pieces, manifest))
    assert core.outputs() == []
    assert set(core.changed_pieces()) <= {"meta"}


def test_a_task_whose_own_state_is_of_another_layout_does_not_start() -> None:
    """Its watermarks would be guesses; the message says what to do."""
    pieces, manifest, _ = _stop()
    schema, *rest = msgspec.msgpack.decode(pieces["meta"])
    other = pieces | {"meta": msgspec.msgpack.encode([schema + 1, *rest])}
    with pytest.raises(SnapshotError, match="run the version that wrote it"):
        started(restored=(other, manifest))


def test_a_detector_that_is_configured_otherwise_while_it_runs_says_so_too() -> None:
    """One that is taken out of the contract says nothing: there is nothing left to speak for."""
    core = started()
    heard(core, EVERYTHING)
    named = {d.name: d for d in contract().monitoring.detectors}
    harm = named["harm"].model_copy(update={"options": {**named["harm"].options, "threshold": 50}})
    kept = [harm, named["inputs"], named["adwin"]]
    core.activate([ModelRecord(contract=contract(kept, revision=2))])
    found = signals(core.outputs())
    assert {(s.detector, s.verdict.state) for s in found} == {("harm", State.INCONCLUSIVE)}
    assert all("configured otherwise now" in s.verdict.evidence.note for s in found)
