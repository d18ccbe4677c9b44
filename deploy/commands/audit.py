"""Why: who asks what happened to a model, and whether the record can be believed, asks the record and not the service."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.commands.common import print_table


class Source(StrEnum):
    KAFKA = "kafka"
    CLICKHOUSE = "clickhouse"


def audit(
    model: Annotated[str | None, typer.Argument(help="One model; else all.")] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check signatures and that no fact is missing; else exit status 1."),
    ] = False,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="From a decision to the predictions it rests on, or from a prediction to the decisions it fed: any of "
            "their ids or trace ids. Reads ClickHouse.",
        ),
    ] = None,
    source: Annotated[Source, typer.Option(help="Where to read the record.")] = Source.KAFKA,
    key: Annotated[
        list[str] | None,
        typer.Option(help="A public key to believe, base64 or a .pub file, instead of signing.trusted."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what was decided about a model, by whom and why; or check that the record is whole."""
    from deploy.audit.source import from_clickhouse, from_kafka
    from schemas.errors import ConfigurationError, RecordError
    from schemas.settings import ServiceSettings

    if verify and trace is not None:
        raise ConfigurationError("--verify and --trace exclude each other")
    settings = ServiceSettings.load()
    if trace is not None:
        _trace(trace, settings, as_json)
        return
    # Without a key there is nothing to check against: said before the record is read.
    keys = _keys(key or (), settings.signing.trusted) if verify else []
    record = from_kafka(settings.kafka) if source is Source.KAFKA else from_clickhouse(settings.clickhouse)
    if model is not None:
        record = record.of(model)
        if not record.facts and not record.anchors:
            raise RecordError(f"there is no fact about model {model!r} in {source.value}")
    if verify:
        _verify(record, keys, source, as_json)
    else:
        _tell(record.facts, as_json, with_model=model is None)


def _keys(given: Sequence[str], trusted: Sequence[str]) -> list[str]:
    """Public keys as base64; files are read. Raises ConfigurationError when there is none."""
    from schemas.errors import ConfigurationError

    try:
        found = [
            Path(text).read_text().strip() if text.endswith(".pub") else text for text in given or trusted
        ]
    except OSError as error:
        raise ConfigurationError(f"--key: {error}") from error
    if not found:
        raise ConfigurationError("no key to check signatures with: set signing.trusted, or give --key")
    return found


def _verify(record: Any, keys: Sequence[str], source: Source, as_json: bool) -> None:
    from deploy.audit.check import check
    from schemas.errors import RecordError
    from schemas.signing import Verifier

    faults = check(record, Verifier(keys))
    models = {fact.model for fact in record.facts}
    if as_json:
        shown = {
            "facts": len(record.facts),
            "models": len(models),
            "faults": [fault.shown() for fault in faults],
        }
        typer.echo(json.dumps(shown, indent=2))
    elif not faults:
        typer.echo(
            f"{len(record.facts)} facts about {len(models)} models in {source.value}: signed, and none is missing"
        )
    for fault in () if as_json else faults[1:]:
        typer.echo(str(fault))
    if faults:
        raise RecordError(f"the record is not whole, {len(faults)} faults; the first: {faults[0]}")


def _tell(facts: Sequence[Any], as_json: bool, with_model: bool) -> None:
    from deploy.audit.story import columns, in_event_time, shown

    ordered = in_event_time(facts)
    if as_json:
        typer.echo(json.dumps([shown(fact) for fact in ordered], indent=2))
        return
    head = ("event time (UTC)", "what", "version", "who", "why", "traffic after")
    body = [columns(fact) for fact in ordered]
    if with_model:
        head, body = ("model", *head), [(fact.model, *row) for fact, row in zip(ordered, body, strict=True)]  # type: ignore[assignment]
    print_table(head, body)


def _trace(text: str, settings: Any, as_json: bool) -> None:
    from deploy.audit.story import when
    from deploy.audit.trace import trace

    found = trace(settings.clickhouse, text)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for prediction in found["predictions"]:
        typer.echo(
            f"prediction {prediction['prediction_id']}: {prediction['model']} v{prediction['version']} "
            f"({prediction['role']}), {when(prediction['event_time_ms'])}, trace {prediction['trace_id'] or '-'}"
        )
    print_table(
        ("event time (UTC)", "model", "what", "version", "why", "evidence", "rests on", "trace"),
        [
            (
                when(d["event_time_ms"]), d["model"], d["kind"], d["version"] or "-", d["detail"],
                f"{d['detector']} {d['score']:.3g}/{d['threshold']:.3g}",
                f"{d['predictions']} predictions of v{d['version']}, {when(d['since_ms'])} to {when(d['until_ms'])}",
                d["trace_id"],
            )
            for d in found["decisions"]
        ],
    )  # fmt: skip
    for d in found["decisions"]:
        for worst in d["worst"]:
            typer.echo(f"{d['detector']}: worst {worst['prediction_id']} (trace {worst['trace_id'] or '-'})")
