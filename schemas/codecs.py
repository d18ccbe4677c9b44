"""The hot path's codecs: from messages to columns, with decoders compiled from the models' own contracts.

pydantic says what a prediction is (``schemas.events``); validating with it costs several microseconds an event. Here each
contract becomes a msgspec type whose tag is the model's name, so one decoder validates and dispatches in one pass.
A message that does not fit becomes a :class:`Bad` with a reason of the closed list, and never touches its neighbours.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.arrow import model_of, open_arrow, whole_table
from schemas.arrow_predictions import ROLE_CODES, STATUS_CODES, ArrowBuilder, ArrowMessage
from schemas.columns import PredictionColumns, by_model, coded, renumbered
from schemas.contracts import ModelContract
from schemas.errors import BadMessage
from schemas.events import ID_CHARS_MAX, PredictionMade
from schemas.messages import TIME_MAX_MS, TIME_MIN_MS, Bad, Id, Messages, Name, Trace, checked
from schemas.scan import Scanned, scan
from schemas.scan_names import names_of
from schemas.scan_rows import LogRows
from schemas.spans import Spans

_Text = Annotated[str, msgspec.Meta(max_length=ID_CHARS_MAX)]
#: Checked once for each version in a batch: a pattern in the decoder would cost as much as all the rest of an event.
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _features_type(contract: ModelContract) -> type[msgspec.Struct]:
    fields: list[Any] = []
    rename: dict[str, str] = {}
    for at, feature in enumerate(contract.features):
        kind: Any = float if feature.kind == "numeric" else str
        name = f"f{at}"
        rename[name] = feature.name
        fields.append((name, kind | None, None) if feature.nullable else (name, kind))
    return msgspec.defstruct(
        "Features", fields, rename=rename, forbid_unknown_fields=True, gc=False, kw_only=True
    )


def _event_type(contract: ModelContract) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        "Prediction",
        [
            ("prediction_id", Id),
            ("version", Name),
            ("event_time_ms", int),
            ("features", _features_type(contract)),
            ("role", Literal["stable", "canary", "shadow"], "stable"),
            ("score", float | None, None),
            ("latency_ms", Annotated[float, msgspec.Meta(ge=0)], 0.0),
            ("status", Literal["ok", "error", "fallback"], "ok"),
            ("entity", _Text | None, None),
            ("trace_id", Trace | None, None),
            ("region", _Text | None, None),
        ],
        tag=contract.model,
        tag_field="model",
        forbid_unknown_fields=True,
        gc=False,
        kw_only=True,
        namespace={"contract": contract},
    )


class _Nobody(msgspec.Struct, tag="\x00", tag_field="model"):
    """No message is one. It makes the decoder's type a union even of one model: only then must `model` be there."""

    never: Annotated[int, msgspec.Meta(ge=1, le=0)]


class _Named(msgspec.Struct):
    """Of a document only whose it is."""

    model: str = ""


_NAMED = msgspec.json.Decoder(_Named)


class _FullDecoders:
    """For each model the decoder that says what is wrong with a message, made when one is first doubtful: of ten thousand
    models at once they would take a minute."""

    def __init__(self, contracts: Mapping[str, ModelContract]) -> None:
        self._contracts = contracts
        self._made: dict[str, msgspec.json.Decoder[Any]] = {}

    def decode(self, value: bytes) -> Any:
        """The event; its type has its ``contract``. Raises what msgspec raises."""
        try:
            model = _NAMED.decode(value).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            model = ""
        if not self._contracts:
            raise msgspec.ValidationError("Invalid value 'any' - at `$.model`")
        if model not in self._contracts:
            # Any of them says so.
            model = next(iter(self._contracts))
        decoder = self._made.get(model)
        if decoder is None:
            kind: Any = _Nobody | _event_type(self._contracts[model])
            decoder = self._made[model] = msgspec.json.Decoder(kind)
        return decoder.decode(value)


class PredictionDecoder:
    """Decodes predictions of every model in ``contracts``; compile once, use for each batch."""

    def __init__(self, contracts: Iterable[ModelContract]) -> None:
        self.contracts = {contract.model: contract for contract in contracts}
        self._full = _FullDecoders(self.contracts)
        self._builders = {model: _Builder(contract) for model, contract in self.contracts.items()}
        self._in_order = list(self.contracts.values())
        self._names = names_of(self.contracts) if self.contracts else None

    def decode(
        self, messages: Messages, time_ms: int | None = None, log: LogRows | None = None
    ) -> tuple[list[PredictionColumns], list[Bad]]:
        """``time_ms``: the stream's own event time, None before it has any. ``log``: where rows of the log are to go.

        Returns columns for each model, rows in the order of the messages, and what could not be used.
        """
        bad: list[Bad] = []
        columns, left = self._scanned(messages, log)
        if len(left):
            columns = by_model(columns + self._checked(messages, left, bad, log))
        if not _all_sane(columns, time_ms):
            columns = [_sane(c, time_ms, bad) for c in columns]
        return [c for c in columns if len(c)], bad

    def _scanned(
        self, messages: Messages, log: LogRows | None
    ) -> tuple[list[PredictionColumns], NDArray[np.int64]]:
        """What nearly every event is; and which messages are anything else."""
        if self._names is None or messages.arrow.all():
            return [], np.arange(len(messages))
        rows = scan(self._names, messages.keys, messages.values, messages.arrow, log)
        sizes = messages.values.length[rows.places]
        models = np.unique(rows.model)
        contracts = [self._in_order[model] for model in models.tolist()]
        return _split(rows, sizes, models, contracts), rows.left

    def _checked(
        self, messages: Messages, places: NDArray[np.int64], bad: list[Bad], log: LogRows | None
    ) -> list[PredictionColumns]:
        """Message by message: a bad one is named, its neighbours are taken."""
        rows: dict[str, tuple[list[int], list[Any], list[int]]] = {}
        batches: dict[str, list[ArrowMessage]] = {}
        columns: list[PredictionColumns] = []
        for at in places.tolist():
            try:
                if messages.arrow[at]:
                    batch = self._opened(at, messages.values.view(at))
                    batches.setdefault(batch.model, []).append(batch)
                    continue
                key, value, _ = messages[at]
                event = checked(self._full.decode, key, value)
            except BadMessage as error:
                bad.append(Bad(at, 0, error.reason, error.detail))
                continue
            kept = rows.setdefault(type(event).contract.model, ([], [], []))
            kept[0].append(at)
            kept[1].append(event)
            kept[2].append(len(value or b""))
        for model, opened in batches.items():
            for _, same in itertools.groupby(opened, lambda batch: batch.schema):
                columns += self._builders[model].arrow.built(list(same), bad, log)
        for model, (at_each, events, sizes) in rows.items():
            columns.append(
                self._builders[model].columns(np.array(at_each, np.int64), events, np.array(sizes, np.int64))
            )
        return columns

    def _opened(self, at: int, value: memoryview | None) -> ArrowMessage:
        schema, batches = open_arrow(value)
        model = model_of(schema, "replace")
        if model not in self.contracts:
            whole_table(schema, batches)
            raise BadMessage(
                "unknown-model", f"no contract for model {model!r} in the batch's schema metadata"
            )
        return ArrowMessage(at, model, schema, batches, len(value or b""))


def _split(
    rows: Scanned, sizes: NDArray[np.int64], models: NDArray[np.int64], contracts: Sequence[ModelContract]
) -> list[PredictionColumns]:
    """Columns of each of ``models``: put in order at once, and cut; of ten thousand models each has few rows."""
    n, widths = len(rows.model), [len(contract.features) for contract in contracts]
    order = np.argsort(rows.model, kind="stable") if len(models) > 1 else np.arange(n)
    bounds = np.append(np.searchsorted(rows.model[order], models), n).tolist()
    message, size, start, length = (
        rows.places[order],
        sizes[order],
        rows.ids.start[order],
        rows.ids.length[order],
    )
    row, version, role = np.zeros(n, np.int32), rows.version[order], rows.role[order]
    time_ms, score = rows.event_time_ms[order], rows.score[order]
    latency_ms, status = rows.latency_ms[order], rows.status[order]
    alike = len(set(widths)) == 1
    at, values = rows.at[order], rows.features
    if alike:
        values = values.reshape(-1, widths[0])
        values = values[order] if len(models) > 1 else values
    found = []
    for contract, width, (begin, end) in zip(contracts, widths, itertools.pairwise(bounds), strict=True):
        own = slice(begin, end)
        features = values[own] if alike else values[at[own, None] + np.arange(width)]
        found.append(PredictionColumns(
            contract, message[own], row[own], Spans(rows.ids.buffer, start[own], length[own]),
            *renumbered(rows.versions, version[own]), role[own], time_ms[own], score[own], latency_ms[own],
            status[own], features, size[own],
        ))  # fmt: skip
    return found


class _Builder:
    """Turns decoded events of one contract into columns."""

    def __init__(self, contract: ModelContract) -> None:
        self.contract = contract
        self.arrow = ArrowBuilder(contract, self._coded)
        self._codes = [
            {category: float(code) for code, category in enumerate(feature.categories)}
            for feature in contract.features
        ]

    def columns(
        self, places: NDArray[np.int64], events: list[Any], sizes: NDArray[np.int64]
    ) -> PredictionColumns:
        n = len(events)
        fields = list(zip(*map(msgspec.structs.astuple, events), strict=True))
        ids, versions, times, features, roles, scores, latencies, statuses = fields[:8]
        matrix = np.empty((n, len(self.contract.features)), np.float64)
        by_column = zip(*map(msgspec.structs.astuple, features), strict=True)
        for at, (feature, values) in enumerate(zip(self.contract.features, by_column, strict=True)):
            matrix[:, at] = values if feature.kind == "numeric" else self._coded(at, values)
        names, version = coded(versions)
        return PredictionColumns(
            self.contract,
            places,
            np.zeros(n, np.int32),
            Spans.of([i.encode() for i in ids]),
            names,
            version,
            _codes(roles, ROLE_CODES),
            _integers(times),
            np.array(scores, np.float64),
            np.array(latencies, np.float64),
            _codes(statuses, STATUS_CODES),
            matrix,
            sizes,
        )

    def _coded(self, at: int, values: Iterable[str | None]) -> list[float]:
        codes = self._codes[at]
        unknown = float(len(codes))
        return [np.nan if value is None else codes.get(value, unknown) for value in values]


def _codes(names: Sequence[str], code: Mapping[str, int]) -> NDArray[np.int8]:
    if len(set(names)) == 1:
        return np.full(len(names), code[names[0]], np.int8)
    return np.fromiter(map(code.__getitem__, names), np.int8, len(names))


def _integers(values: Sequence[int]) -> NDArray[np.int64]:
    """Whole numbers of any size; those beyond 62 bits are cut, and are absurd whatever they stand for."""
    try:
        return np.clip(np.array(values, np.int64), -(2**62), 2**62)
    except OverflowError:
        return np.array([min(max(value, -(2**62)), 2**62) for value in values], np.int64)


def _times_allowed(contract: ModelContract, time_ms: int | None) -> tuple[int, int]:
    if time_ms is None:
        return TIME_MIN_MS, TIME_MAX_MS
    monitoring = contract.monitoring
    return (
        max(TIME_MIN_MS, time_ms - monitoring.event_age_max),
        min(TIME_MAX_MS, time_ms + monitoring.event_ahead_max),
    )


def _all_sane(columns: Sequence[PredictionColumns], time_ms: int | None) -> bool:
    """Whether ``_sane`` would take nothing out; false may also mean that models allow different times."""
    if not columns:
        return True
    times = np.concatenate([one.event_time_ms for one in columns])
    allowed = [_times_allowed(one.contract, time_ms) for one in columns]
    if (
        not len(times)
        or times.min() < max(low for low, _ in allowed)
        or times.max() > min(h for _, h in allowed)
    ):
        return False
    names = {name for one in columns for name in one.versions}
    infinite = np.isinf(np.concatenate([one.score for one in columns])).any()
    return not infinite and all(map(_VERSION.fullmatch, names))


def _sane(columns: PredictionColumns, time_ms: int | None, bad: list[Bad]) -> PredictionColumns:
    """Take out rows whose time is absurd, whose score is not finite or whose version is no name."""
    times = columns.event_time_ms
    low, high = _times_allowed(columns.contract, time_ms)
    wrong = (times < low) | (times > high)
    infinite = np.isinf(columns.score)
    unnamed = np.array([_VERSION.fullmatch(name) is None for name in columns.versions], bool)[columns.version]
    faulty = wrong | infinite | unnamed
    if not faulty.any():
        return columns
    for i in np.flatnonzero(faulty):
        if unnamed[i]:
            why = (
                "invalid-value",
                f"version {columns.versions[columns.version[i]][:120]!r}: letters, digits, dot, dash, underscore only",
            )
        elif wrong[i]:
            why = (
                "absurd-timestamp",
                f"event_time_ms {times[i]} is not within [{low}, {high}] around the stream's time",
            )
        else:
            why = ("not-finite", "score is infinite")
        bad.append(Bad(int(columns.message[i]), int(columns.row[i]), *why, alone=True))
    return columns.take(np.flatnonzero(~faulty))


def encode_prediction(event: PredictionMade) -> tuple[bytes, bytes]:
    """(key, value) of one prediction."""
    return event.prediction_id.encode(), event.model_dump_json(exclude_none=True).encode()
