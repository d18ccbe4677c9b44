"""The exported documents say what the code does, and are valid by their own standards."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from schemas.asyncapi import DIALECT, MESSAGES, READERS, WRITERS, asyncapi_document, json_schemas
from schemas.topics import TOPICS
from tests.support_join import CONTRACT, prediction, truth


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in _references(value)]
    return [ref for value in node for ref in _references(value)] if isinstance(node, list) else []


def _resolve(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


@pytest.mark.parametrize("name", sorted(json_schemas()))
def test_every_schema_is_valid_and_whole_in_itself(name: str) -> None:
    """A user's validator needs nothing but the one file."""
    schema = json_schemas()[name]
    assert schema["$schema"] == DIALECT
    jsonschema.Draft202012Validator.check_schema(schema)
    for reference in _references(schema):
        assert reference.startswith("#/$defs/")
        assert _resolve(schema, reference)


def test_the_schemas_accept_what_the_stream_accepts() -> None:
    """The events of the other tests, and a contract, against the exported schemas."""
    schemas = json_schemas()
    jsonschema.validate(prediction(), schemas["PredictionMade"])
    jsonschema.validate(truth(), schemas["GroundTruth"])
    jsonschema.validate(json.loads(CONTRACT.model_dump_json()), schemas["ModelContract"])
    for broken in (
        prediction(colour="red"),
        prediction(role="king"),
        {k: v for k, v in prediction().items() if k != "model"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schemas["PredictionMade"])


def test_the_document_describes_every_topic() -> None:
    """Channels are the topic table; each has messages, somebody who writes and somebody who reads."""
    document = asyncapi_document()
    assert document["asyncapi"] == "3.0.0"
    assert set(document["channels"]) == set(TOPICS) == set(MESSAGES) == set(WRITERS) == set(READERS)
    for name, channel in document["channels"].items():
        assert channel["address"] == name
        assert set(channel["messages"]) == set(MESSAGES[name])
    actions = {(o["channel"]["$ref"], o["action"]) for o in document["operations"].values()}
    assert actions == {(f"#/channels/{t}", action) for t in TOPICS for action in ("send", "receive")}


def test_every_reference_of_the_document_leads_somewhere() -> None:
    """No message without a schema, no schema without its parts."""
    document = asyncapi_document()
    references = _references(document)
    assert "#/components/schemas/PredictionMade" in references
    for reference in references:
        assert _resolve(document, reference)
    assert json.loads(json.dumps(document)) == document


def test_payload_schemas_are_valid_json_schema() -> None:
    """AsyncAPI payloads are JSON Schemas too."""
    document = asyncapi_document()
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema({"title": name, **schema})
