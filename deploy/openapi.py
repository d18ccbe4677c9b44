"""What may be asked of the controller over HTTP, and the OpenAPI document that is made from it and so cannot differ."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from schemas.contracts import ModelVersion
from schemas.control import (
    Alert,
    Command,
    Decision,
    Deployment,
    DeployRequested,
    PauseRequested,
    PromoteRequested,
    ResumeRequested,
    RetrainRequested,
    RollbackRequested,
)

#: The last millisecond of the year 9999; what lies beyond is a unit mixed up, not a time.
TIME_MS_MAX = 253_402_300_799_999
LIMIT_MAX = 1_000


class Body(BaseModel):
    """What every command may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str = Field(default="api", min_length=1, max_length=100, description="Who asks.")
    reason: str = Field(default="", max_length=2_000)
    request_id: str | None = Field(
        default=None, min_length=1, max_length=100, description="Idempotency key; made up if not given."
    )
    event_time_ms: int | None = Field(
        default=None, ge=0, le=TIME_MS_MAX, description="Decided as of this event time; now, if not given."
    )


Weight = Annotated[float, Field(gt=0, le=1)]
BakeMs = Annotated[int, Field(ge=0, le=TIME_MS_MAX)]


class VersionBody(Body):
    version: str = Field(min_length=1, max_length=100)


class DeployBody(VersionBody):
    steps: tuple[tuple[Weight, BakeMs], ...] | None = Field(
        default=None,
        max_length=100,
        description="(weight, bake in ms of event time) instead of the contract's; empty: promote at once.",
    )


class RetrainBody(Body):
    version: str | None = Field(
        default=None, min_length=1, max_length=100, description="The version to be succeeded."
    )


BODIES: dict[str, type[Body]] = {
    "deploy": DeployBody,
    "promote": Body,
    "pause": Body,
    "resume": Body,
    "rollback": VersionBody,
    "retrain": RetrainBody,
}
COMMANDS: dict[str, type[Command]] = {
    "deploy": DeployRequested,
    "promote": PromoteRequested,
    "pause": PauseRequested,
    "resume": ResumeRequested,
    "rollback": RollbackRequested,
    "retrain": RetrainRequested,
}


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 of this API, from the models it speaks."""
    models: list[type[BaseModel]] = [
        Deployment,
        Decision,
        Alert,
        ModelVersion,
        *dict.fromkeys(BODIES.values()),
    ]
    _, schema = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    parts = schema.get("$defs", {})
    parts["Problem"] = {
        "type": "object",
        "properties": {
            "detail": {"type": "string"},
            "fields": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["detail"],
    }
    parts["Accepted"] = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("request_id", "model", "type")},
        "required": ["request_id", "model", "type"],
    }
    parts["Time"] = {
        "type": "object",
        "properties": {"event_time_ms": {"type": ["integer", "null"]}, "wall_ms": {"type": "integer"}},
        "required": ["event_time_ms", "wall_ms"],
    }
    parts["Health"] = {"type": "object", "properties": {"status": {"const": "ok"}}, "required": ["status"]}
    model_path = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    limit = {
        "name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": 100}
    }  # fmt: skip
    which = {"name": "model", "in": "query", "schema": {"type": "string"}}
    paths: dict[str, Any] = {
        "/healthz": {"get": _get("Alive", _ref("Health"))},
        "/v1/deployments": {
            "get": _get(
                "Routing state of every model", {"type": "object", "additionalProperties": _ref("Deployment")}
            )
        },
        "/v1/deployments/{model}": {
            "get": _get("Routing state of one model", _ref("Deployment"), [model_path], [404])
        },
        "/v1/models/{model}/versions": {
            "get": _get("Announced versions", _list("ModelVersion"), [model_path], [404])
        },
        "/v1/decisions": {
            "get": _get("Latest facts, newest first", _list("Decision"), [which, limit], [422])
        },
        "/v1/alerts": {"get": _get("Latest alerts, newest first", _list("Alert"), [limit], [422])},
        "/v1/time": {
            "get": _get("Event time the loop has reached, and the controller's clock", _ref("Time"))
        },
    }
    for verb, body in BODIES.items():
        paths[f"/v1/deployments/{{model}}/{verb}"] = {
            "post": {
                "operationId": verb,
                "summary": f"Ask for: {verb}",
                "security": [{"token": []}],
                "parameters": [model_path],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _ref(body.__name__)}},
                },
                "responses": {"202": _content("On its way; see `answers`", _ref("Accepted"))}
                | {
                    str(code): _content("Refused", _ref("Problem"))
                    for code in (400, 401, 404, 413, 415, 422, 503)
                },
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Driftline controller", "version": "1"},
        "paths": paths,
        "components": {"schemas": parts, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(name)}


def _content(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _get(
    summary: str,
    schema: dict[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    errors: list[int] | None = None,
) -> dict[str, Any]:
    responses = {"200": _content("OK", schema)}
    responses |= {str(code): _content("Refused", _ref("Problem")) for code in errors or []}
    return {"summary": summary, "parameters": parameters or [], "responses": responses}
