"""The scanner and the full decoders read every document alike: what the scanner takes, and what it leaves to them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.codecs import PredictionDecoder
from schemas.events import GroundTruth, PredictionMade
from schemas.json_text import FAILED, number, text_end
from schemas.labels import LabelDecoder
from schemas.messages import Bad, Messages
from schemas.scan import scan
from schemas.scan_labels import FIELDS as SCANNED_LABELS
from schemas.scan_labels import label_names, scan_labels
from schemas.scan_names import FIELDS as SCANNED
from schemas.scan_names import names_of
from tests.support_documents import CONTRACTS, documents
from tests.support_examples import examples
from tests.support_join import prediction, truth

PAD = b" " * 8


DECODER, LABELS, NAMES = PredictionDecoder(CONTRACTS.values()), LabelDecoder(CONTRACTS), names_of(CONTRACTS)


def _read(text: bytes) -> tuple[int, float, int]:
    """The number at the beginning of a text."""
    return number(np.frombuffer(text, np.uint8), 0, len(text))


@examples(150)
@given(
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**20), 10**20),
    st.sampled_from(["", "e", "g"]),
)
@example(9007199254740993, "")
@example(2**64, "")
@example(10 * 2**64, "e")
@example(5e-324, "")
@example(1.7976931348623157e308, "")
@example(-0.0, "")
@example(8.5e22, "e")
def test_a_number_is_the_double_nearest_to_its_text_or_none(value: float, style: str) -> None:
    """As Python reads it, to the last bit, in every way of writing."""
    text = repr(value) if not style else f"{value:.17{style}}"
    end, read, whole = _read(text.encode() + b",")
    if end == FAILED:
        return
    assert end == len(text)
    assert (read, math.copysign(1, read)) == (float(text), math.copysign(1, float(text)))
    if whole != -(2**63):
        assert whole == int(text)


def test_hardly_a_number_is_left() -> None:
    """What services send: a double as its shortest text, prices, counts."""
    rng = np.random.default_rng(1)
    drawn = [
        *map(repr, rng.normal(size=5_000).tolist()),
        *map(str, rng.integers(-(10**17), 10**17, 1_000).tolist()),
    ]
    drawn += [f"{x:.{k % 7}f}" for k, x in enumerate((rng.normal(size=2_000) * 1e6).tolist())]
    assert [text for text in drawn if _read(text.encode())[0] != len(text)] in ([], ["-0"])


def test_halfway_between_two_doubles_is_not_guessed() -> None:
    """Ties and their neighbours, where 64 bits of the product say nothing."""
    for exponent in range(-60, 60):
        for odd in (2**53 + 1, 2**54 + 2, 2**53 - 1):
            text = f"{odd}e{exponent}"
            end, read, _ = _read(text.encode())
            assert end == FAILED or read == float(text), text


def test_what_is_no_number_of_json_is_none() -> None:
    """Python's own reader is more generous."""
    for text in (
        b"",
        b"-",
        b".5",
        b"1.",
        b"01",
        b"1e",
        b"1e+",
        b"+1",
        b"1.e5",
        b"-.1",
        b"nan",
        b"Infinity",
        b"00",
    ):
        assert _read(text)[0] == FAILED, text
    for text in (b"1_0", b"1 2", b"0x10"):
        assert _read(text)[0] == 1, text


@settings(deadline=None)
@given(st.text(), st.integers(0, 9))
def test_a_text_ends_at_its_quote_or_is_left(text: str, pad: int) -> None:
    """ASCII without escapes, at any place relative to words of eight bytes; never read beyond the end."""
    body = b"x" * pad + text.encode() + b'"' + b"y" * 9
    end = text_end(np.frombuffer(body, np.uint8), 0, len(body))
    plain = all(32 <= ord(c) < 128 and c != "\\" for c in text.split('"')[0])
    assert end == (body.index(b'"') if plain else FAILED)
    cut = np.frombuffer(body[: body.index(b'"')] + b'"', np.uint8)
    assert text_end(cut, 0, len(cut) - 1) == FAILED


def _same(ours: Any, theirs: Any, fields: tuple[str, ...]) -> None:
    assert list(ours.keys) == list(theirs.keys)
    for field in fields:
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), field)


@examples(60)
@given(st.lists(documents("prediction"), max_size=6))
def test_predictions_are_the_same_whoever_reads_them(
    messages: list[tuple[bytes | None, bytes, bool]],
) -> None:
    """All at once through the scanner, and each by the full decoder: rows, their order, and what is said of bad ones."""
    given_ = Messages.of(messages)
    columns, bad = DECODER.decode(given_, None)
    careful = PredictionDecoder(CONTRACTS.values())
    careful._names = None
    expected, faults = careful.decode(given_, None)
    assert sorted(bad, key=lambda b: b.message) == sorted(faults, key=lambda b: b.message)
    by_model = {one.contract.model: one for one in expected}
    assert {one.contract.model for one in columns} == set(by_model)
    for one in columns:
        other = by_model[one.contract.model]
        assert [one.versions[v] for v in one.version] == [other.versions[v] for v in other.version]
        _same(one, other, ("message", "row", "role", "event_time_ms", "score", "latency_ms", "status", "features",
                           "payload_bytes"))  # fmt: skip


@examples(60)
@given(st.lists(documents("label"), max_size=6))
def test_labels_are_the_same_whoever_reads_them(messages: list[tuple[bytes | None, bytes, bool]]) -> None:
    """As above, of ground truths."""
    given_ = Messages.of(messages)
    columns, bad = LABELS.decode(given_)
    faults: list[Bad] = []
    (expected,) = LABELS._checked(given_, np.arange(len(messages)), faults)
    assert sorted(bad, key=lambda b: b.message) == sorted(faults, key=lambda b: b.message)
    _same(columns, expected, ("model", "label", "label_time_ms", "revision", "message", "row"))


def test_the_scanner_knows_every_field() -> None:
    """One that it does not know would send every event that has it to the full decoder."""
    assert set(SCANNED) == set(PredictionMade.model_fields)
    assert set(SCANNED_LABELS) == set(GroundTruth.model_fields)


def test_the_scanner_takes_what_services_send() -> None:
    """Otherwise every figure of speed would be that of the full decoder: any order, blanks, other scripts, any model."""
    events = [
        prediction(
            "a",
            model="flights",
            entity="customer-1",
            region="eu",
            trace_id="0" * 32,
            role="canary",
            status="error",
        ),
        dict(reversed(prediction("b", model="one", features={"x": 1e-3}).items())),
        prediction(
            "c", model="other", features={"size.m-2": 2, "origin": "Zürich", "wind": None}, score=None
        ),
    ]
    texts = [
        json.dumps(e, ensure_ascii=False, indent=at).encode() for at, e in enumerate(events) for _ in range(2)
    ]
    told = Messages.of([(None, text, False) for text in texts])
    rows = scan(NAMES, told.keys, told.values, told.arrow)
    assert rows.left.tolist() == []
    assert rows.model.tolist() == [0, 0, 2, 2, 1, 1]
    labels = Messages.of(
        [(b"a", json.dumps(truth("a", revision=3), indent=at).encode(), False) for at in range(3)]
    )
    found = scan_labels(label_names(CONTRACTS), labels.keys, labels.values, labels.arrow)
    assert (found.left.tolist(), found.revision.tolist()) == ([], [3, 3, 3])
