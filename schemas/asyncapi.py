"""The topics as a document: AsyncAPI 3, and JSON Schemas of everything people write or read.

Both are made from the models and the topic table, so they cannot say anything else than the code does.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from schemas.arrow import PREDICTION_COLUMNS
from schemas.blocks import DTYPES
from schemas.contracts import ModelContract, ModelRecord, ModelVersion
from schemas.control import COMMANDS, Alert, Decision, Deployment
from schemas.events import (
    HEADER_FORMAT,
    HEADER_KIND,
    HEADER_ORIGIN,
    HEADER_TRACE,
    MESSAGE_BYTES_MAX,
    DeadLetter,
    GroundTruth,
    PredictionMade,
    Score,
    ScoringRequest,
    Tick,
)
from schemas.topics import TOPICS, Topic, topic_config
from schemas.verdicts import SignalChanged

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ARROW = "application/vnd.apache.arrow.stream"
_MSGPACK = "application/msgpack"

#: Documents as JSON, by name.
MODELS: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (
        PredictionMade, GroundTruth, Tick, ScoringRequest, Score, SignalChanged, Alert, Deployment, Decision,
        ModelContract, ModelVersion, ModelRecord, DeadLetter,
    )
}  # fmt: skip

#: What each topic carries, by message name. A topic that is missing here is a failing test.
MESSAGES: dict[str, tuple[str, ...]] = {
    "predictions": ("PredictionMade", "PredictionBatch", "Tick"),
    "feedback": ("GroundTruth", "GroundTruthBatch", "Tick"),
    "observations": ("ObservationBlock", "Tick"),
    "signals": ("SignalChanged", "Tick"),
    "alerts": ("Alert",),
    "control": ("AnyCommand",),
    "deployments": ("Deployment",),
    "decisions": ("Decision",),
    "models": ("ModelRecord",),
    "scoring-requests": ("ScoringRequest",),
    "scores": ("Score",),
    "dead-letters": ("DeadLetter",),
    "state": ("TaskState",),
}

#: Who writes and who reads each topic, as services of a deployment; ``you`` is the user's own code.
WRITERS: dict[str, tuple[str, ...]] = {
    "predictions": ("you", "scorer"),
    "feedback": ("you",),
    "observations": ("monitor",),
    "signals": ("monitor",),
    "alerts": ("monitor",),
    "control": ("you", "monitor", "trainer", "scorer"),
    "deployments": ("controller",),
    "decisions": ("controller", "monitor"),
    "models": ("you", "trainer"),
    "scoring-requests": ("you",),
    "scores": ("scorer",),
    "dead-letters": ("monitor", "scorer"),
    "state": ("monitor",),
}
READERS: dict[str, tuple[str, ...]] = {
    "predictions": ("monitor", "archive"),
    "feedback": ("monitor", "archive"),
    "observations": ("monitor",),
    "signals": ("monitor", "archive"),
    "alerts": ("you", "notifier", "archive"),
    "control": ("controller", "scorer", "trainer", "archive"),
    "deployments": ("scorer", "controller", "trainer", "monitor", "archive"),
    "decisions": ("you", "controller", "archive"),
    "models": ("monitor", "controller", "scorer", "trainer"),
    "scoring-requests": ("scorer",),
    "scores": ("you",),
    "dead-letters": ("you", "archive"),
    "state": ("monitor",),
}

#: Messages that are not JSON: content type and what they are.
_BINARY: dict[str, tuple[str, str]] = {
    "PredictionBatch": (
        _ARROW,
        (
            f"Header `{HEADER_FORMAT}: arrow`. One Arrow IPC stream; schema metadata `model`; columns "
            f"{', '.join(PREDICTION_COLUMNS)} and one for each feature. All rows belong to the record's partition."
        ),
    ),
    "GroundTruthBatch": (
        _ARROW,
        f"Header `{HEADER_FORMAT}: arrow`. One Arrow IPC stream with the fields of GroundTruth as columns.",
    ),
    "ObservationBlock": (_MSGPACK, f"Columns as raw little-endian arrays: {', '.join(DTYPES)}."),
    "TaskState": (_MSGPACK, "A task's manifest, or a chunk of one piece of its state. Internal."),
}


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema (draft 2020-12) of every document, by name, each whole in itself."""
    schemas = {name: model.model_json_schema() for name, model in MODELS.items()}
    schemas["AnyCommand"] = COMMANDS.json_schema()
    return {name: {"$schema": DIALECT, "title": name, **schema} for name, schema in sorted(schemas.items())}


def asyncapi_document(version: str = "0.1.0") -> dict[str, Any]:
    """The AsyncAPI 3.0.0 document of all topics. ``version``: of the distribution."""
    schemas: dict[str, Any] = {}
    for name in MODELS:
        _collect(schemas, name, MODELS[name].model_json_schema(ref_template="#/components/schemas/{model}"))
    _collect(schemas, "AnyCommand", COMMANDS.json_schema(ref_template="#/components/schemas/{model}"))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Driftline",
            "version": version,
            "description": "What Driftline reads from Kafka and what it writes there. Keys are UTF-8 text; partitions "
            "of keyed topics are murmur2(key), as Kafka's Java client computes it.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(topic) for name, topic in TOPICS.items()},
        "operations": _operations(),
        "components": {
            "messages": {
                name: _message(name) for name in sorted({n for names in MESSAGES.values() for n in names})
            },
            "schemas": dict(sorted(schemas.items())),
        },
    }


def _collect(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    for inner, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(inner, definition)
    schemas[name] = schema


def _channel(topic: Topic) -> dict[str, Any]:
    config = topic_config(topic)
    binding: dict[str, Any] = {
        "topicConfiguration": {
            "cleanup.policy": [config["cleanup.policy"]],
            "max.message.bytes": int(config["max.message.bytes"]),
        },
        "bindingVersion": "0.5.0",
    }
    if "retention.ms" in config:
        binding["topicConfiguration"]["retention.ms"] = int(config["retention.ms"])
    if isinstance(topic.partitions, int):
        binding["partitions"] = topic.partitions
    return {
        "address": topic.name,
        "summary": topic.summary,
        "description": f"Key: {topic.key}. Partitions: {topic.partitions}. Compacted: {'yes' if topic.compacted else 'no'}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in MESSAGES[topic.name]},
        "bindings": {"kafka": binding},
    }


def _operations() -> dict[str, Any]:
    operations: dict[str, Any] = {}
    for topic in TOPICS:
        for action, who in (("send", WRITERS[topic]), ("receive", READERS[topic])):
            for service in who:
                operations[f"{service}-{action}-{topic}"] = {
                    "action": action,
                    "channel": {"$ref": f"#/channels/{topic}"},
                    "summary": f"{service} {'writes' if action == 'send' else 'reads'} {topic}",
                }
    return operations


def _message(name: str) -> dict[str, Any]:
    if name in _BINARY:
        content, summary = _BINARY[name]
        return {"name": name, "contentType": content, "summary": summary, "headers": _headers(name)}
    doc = (
        (MODELS[name].__doc__ or name).strip().splitlines()[0] if name in MODELS else "A request or a report."
    )
    message: dict[str, Any] = {
        "name": name,
        "contentType": "application/json",
        "summary": doc,
        "payload": {"$ref": f"#/components/schemas/{name}"},
    }
    if headers := _headers(name):
        message["headers"] = headers
    return message


def _headers(name: str) -> dict[str, Any]:
    text = {"type": "string"}
    match name:
        case "Tick":
            return {
                "type": "object",
                "required": [HEADER_KIND],
                "properties": {HEADER_KIND: {"const": "tick"}},
            }
        case "PredictionBatch" | "GroundTruthBatch":
            fixed = {HEADER_FORMAT: {"const": "arrow"}}
            return {"type": "object", "required": [HEADER_FORMAT], "properties": fixed}
        case "PredictionMade" | "GroundTruth":
            described = {
                HEADER_ORIGIN: text | {"description": "Set by the monitor: where the row was first read."},
                HEADER_TRACE: text | {"description": "W3C trace id, 32 hex digits."},
            }
            return {
                "type": "object",
                "description": f"At most {MESSAGE_BYTES_MAX} bytes.",
                "properties": described,
            }
        case _:
            return {}
