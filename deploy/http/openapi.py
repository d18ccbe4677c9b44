"""The OpenAPI document of the API, made from the models it speaks and so unable to differ from them."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deploy.http.bodies import VERBS
from deploy.http.history import AnalysisPoint, WeightPoint
from deploy.http.problems import MEDIA_TYPE
from schemas.contracts import ModelVersion
from schemas.control import Alert, Decision, Deployment

LIMIT_MAX = 1_000
_DENIED = (401, 403, 429)


@cache
def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 of this API."""
    models: list[type[BaseModel]] = [
        Deployment, Decision, Alert, ModelVersion, WeightPoint, AnalysisPoint,
        *dict.fromkeys(verb.body for verb in VERBS.values()),
    ]  # fmt: skip
    _, schema = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    parts = schema.get("$defs", {}) | _small_parts()
    return {
        "openapi": "3.1.0",
        "info": {"title": "Driftline controller", "version": "1"},
        "security": [{"token": []}, {}],
        "paths": _reads() | _verbs(),
        "components": {
            "schemas": parts,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `driftline tokens create`, or a JWT of the identity provider.",
                }
            },
        },
    }


def _small_parts() -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "integer"}
    return {
        "Problem": {
            "type": "object",
            "description": "RFC 9457.",
            "properties": {"type": text, "title": text, "status": number, "detail": text}
            | {"fields": {"type": "array", "items": {"type": "object"}}},
            "required": ["type", "title", "status", "detail"],
        },
        "Accepted": _object(dict.fromkeys(("request_id", "model", "type", "trace_id"), text)),
        "Time": _object({"event_time_ms": {"type": ["integer", "null"]}, "wall_ms": number}),
        "Health": _object({"status": {"const": "ok"}}),
        "Me": _object(
            {
                "name": text,
                "role": {"enum": ["none", "viewer", "operator", "admin"]},
                "via": text,
                "may": {"type": "array", "items": {"enum": list(VERBS)}},
            }
        ),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _reads() -> dict[str, Any]:
    name = {"type": "string", "minLength": 1, "maxLength": 100}
    model = {"name": "model", "in": "path", "required": True, "schema": name}
    limit = {
        "name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": 100}
    }  # fmt: skip
    which = {"name": "model", "in": "query", "schema": {"type": "string"}}
    by_model = {"type": "object", "additionalProperties": _ref("Deployment")}
    return {
        "/healthz": {"get": _get("Alive", _ref("Health"), denied=False) | {"security": []}},
        "/v1/me": {"get": _get("Who the caller is, and what they may", _ref("Me"))},
        "/v1/deployments": {"get": _get("Routing state of every model", by_model)},
        "/v1/deployments/{model}": {
            "get": _get("Routing state of one model", _ref("Deployment"), [model], [404])
        },
        "/v1/deployments/{model}/history": {
            "get": _get("Traffic by version over time", _list("WeightPoint"), [model, limit], [404, 422])
        },
        "/v1/deployments/{model}/analysis": {
            "get": _get("Measurements over time", _list("AnalysisPoint"), [model, limit], [404, 422])
        },
        "/v1/models/{model}/versions": {
            "get": _get("Announced versions", _list("ModelVersion"), [model], [404])
        },
        "/v1/decisions": {
            "get": _get("Latest facts, newest first", _list("Decision"), [which, limit], [422])
        },
        "/v1/alerts": {"get": _get("Latest alerts, newest first", _list("Alert"), [limit], [422])},
        "/v1/time": {
            "get": _get("Event time the loop has reached, and the controller's clock", _ref("Time"))
        },
    }


def _verbs() -> dict[str, Any]:
    name = {"type": "string", "minLength": 1, "maxLength": 100}
    model = {"name": "model", "in": "path", "required": True, "schema": name}
    refusals = (400, *_DENIED, 404, 413, 415, 422, 503)
    return {
        f"/v1/deployments/{{model}}/{verb}": {
            "post": {
                "operationId": verb,
                "summary": said.summary,
                "description": f"Needs the role {said.role}. The deployment's `answers` say what came of it.",
                "security": [{"token": []}],
                "parameters": [
                    model,
                    {
                        "name": "traceparent",
                        "in": "header",
                        "schema": {"type": "string"},
                        "description": "W3C trace context: its trace id goes on record; made up if not given.",
                    },
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _ref(said.body.__name__)}},
                },
                "responses": {"202": _content("On its way; see `answers`", _ref("Accepted"))}
                | {str(code): _refused() for code in refusals},
            }
        }
        for verb, said in VERBS.items()
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(name)}


def _content(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _refused() -> dict[str, Any]:
    return {"description": "Refused", "content": {MEDIA_TYPE: {"schema": _ref("Problem")}}}


def _get(
    summary: str,
    schema: dict[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    errors: list[int] | None = None,
    denied: bool = True,
) -> dict[str, Any]:
    responses = {"200": _content("OK", schema)}
    responses |= {str(code): _refused() for code in (*(_DENIED if denied else ()), *(errors or []))}
    return {"summary": summary, "parameters": parameters or [], "responses": responses}
