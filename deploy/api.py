"""The HTTP API of the controller and its status page: the same commands as the CLI's, and what has come of them.

Whatever changes anything becomes a signed command on ``control``; an answer of 202 says that it is there, and the
deployment's ``answers`` say what came of it. Reading needs no token, changing does when one is configured.
"""

from __future__ import annotations

import hmac
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from deploy.process import wall_ms
from schemas.contracts import ModelContract, ModelVersion
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
from schemas.errors import DriftlineError

BODY_BYTES_MAX = 65_536
LIMIT_MAX = 1_000
PAGE = Path(__file__).with_name("pages") / "status.html"


class ApiState(Protocol):
    """What the API shows; safe to call from any thread."""

    def deployments(self) -> dict[str, Deployment]: ...
    def contract(self, model: str) -> ModelContract | None: ...
    def versions(self, model: str) -> list[ModelVersion]: ...
    def decisions(self, model: str | None = None, limit: int = 100) -> list[Decision]: ...
    def alerts(self, limit: int = 100) -> list[Alert]: ...
    def event_time_ms(self) -> int | None: ...


class Body(BaseModel):
    """What every command may say."""

    model_config = ConfigDict(extra="forbid")

    by: str = Field(default="api", min_length=1, max_length=100, description="Who asks.")
    reason: str = Field(default="", max_length=2_000)
    request_id: str | None = Field(default=None, max_length=100, description="Idempotency key; made up if not given.")
    event_time_ms: int | None = Field(default=None, description="Decided as of this event time; now, if not given.")


class VersionBody(Body):
    version: str = Field(min_length=1, max_length=100)


class DeployBody(VersionBody):
    steps: tuple[tuple[float, int], ...] | None = Field(
        default=None, description="(weight, bake in ms); empty: all traffic at once after verification."
    )


class RetrainBody(Body):
    version: str | None = Field(default=None, max_length=100, description="The version to be succeeded.")


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


class Problem(Exception):
    """An answer that is an error: status and what to do."""

    def __init__(self, status: int, detail: str, fields: list[dict[str, Any]] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = fields or []


def create_app(state: ApiState, publish: Callable[[Command], None], token: str | None) -> Starlette:
    """The ASGI app. ``publish`` puts a command on ``control`` or raises DriftlineError; it is called in a thread."""

    async def page(_request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def openapi(_request: Request) -> Response:
        return JSONResponse(openapi_document())

    async def deployments(_request: Request) -> Response:
        return JSONResponse({model: d.model_dump(mode="json") for model, d in sorted(state.deployments().items())})

    async def deployment(request: Request) -> Response:
        model = request.path_params["model"]
        found = state.deployments().get(model)
        if found is None:
            raise Problem(404, f"model {model!r} has no deployment; known: {sorted(state.deployments())}")
        return JSONResponse(found.model_dump(mode="json"))

    async def versions(request: Request) -> Response:
        model = _known(request)
        rows = [v.model_dump(mode="json", exclude={"reference"}) for v in state.versions(model)]
        return JSONResponse(rows)

    async def decisions(request: Request) -> Response:
        model = request.query_params.get("model")
        return JSONResponse([d.model_dump(mode="json") for d in state.decisions(model, _limit(request))])

    async def alerts(request: Request) -> Response:
        return JSONResponse([a.model_dump(mode="json") for a in state.alerts(_limit(request))])

    async def time(_request: Request) -> Response:
        return JSONResponse({"event_time_ms": state.event_time_ms(), "wall_ms": wall_ms()})

    async def command(request: Request) -> Response:
        _authorised(request, token)
        verb = request.path_params["verb"]
        if verb not in BODIES:
            raise Problem(404, f"no command {verb!r}; there are: {', '.join(BODIES)}")
        model = _known(request)
        body = await _body(request, BODIES[verb])
        asked = _command(verb, body, model)
        try:
            await run_in_threadpool(publish, asked)
        except DriftlineError as error:
            raise Problem(503, str(error)) from error
        return JSONResponse({"request_id": asked.request_id, "model": model, "type": verb}, status_code=202)

    def _known(request: Request) -> str:
        model: str = request.path_params["model"]
        if state.contract(model) is None:
            raise Problem(404, f"no contract for model {model!r}; `driftline contract apply FILE` publishes one")
        return model

    def _command(verb: str, body: Body, model: str) -> Command:
        contract = state.contract(model)
        known = state.event_time_ms()
        at = body.event_time_ms if body.event_time_ms is not None else known if known is not None else wall_ms()
        newest = state.deployments().get(model)
        fields: dict[str, Any] = {
            "request_id": body.request_id or str(uuid.uuid4()),
            "model": model,
            "deployment_revision": 0 if newest is None else newest.revision,
            "cause": "operator",
            "event_time_ms": at,
            "expires_ms": at + (contract.policy.command_ttl if contract is not None else 86_400_000),
            "issued_by": f"api/{body.by}",
            "reason": body.reason,
            "trace_id": uuid.uuid4().hex,
        }
        fields |= body.model_dump(exclude={"by", "reason", "request_id", "event_time_ms"})
        return COMMANDS[verb].model_validate(fields)

    routes = [
        Route("/", page),
        Route("/healthz", health),
        Route("/openapi.json", openapi),
        Route("/v1/deployments", deployments),
        Route("/v1/deployments/{model}", deployment),
        Route("/v1/deployments/{model}/{verb}", command, methods=["POST"]),
        Route("/v1/models/{model}/versions", versions),
        Route("/v1/decisions", decisions),
        Route("/v1/alerts", alerts),
        Route("/v1/time", time),
    ]
    return Starlette(routes=routes, exception_handlers={Problem: _problem})


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return JSONResponse({"detail": error.detail, "fields": error.fields}, status_code=error.status)


def _authorised(request: Request, token: str | None) -> None:
    if token is None:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise Problem(401, "this call changes something: send `Authorization: Bearer TOKEN`")


async def _body(request: Request, kind: type[Body]) -> Body:
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_BYTES_MAX:
            raise Problem(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
    try:
        return kind.model_validate(json.loads(raw or b"{}"))
    except ValidationError as error:
        fields = [{"field": ".".join(map(str, e["loc"])), "error": e["msg"]} for e in error.errors()]
        named = "; ".join(f"{f['field']}: {f['error']}" for f in fields)
        raise Problem(422, f"the body does not fit: {named}", fields) from error
    except ValueError as error:
        raise Problem(400, f"the body is not JSON: {error}") from error


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", "100")
    if not text.isdigit() or not 1 <= int(text) <= LIMIT_MAX:
        raise Problem(422, f"limit must be a number from 1 to {LIMIT_MAX}")
    return int(text)


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 of this API, from the models it speaks."""
    models: list[type[BaseModel]] = [Deployment, Decision, Alert, ModelVersion, *dict.fromkeys(BODIES.values())]
    _, schema = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    parts = schema.get("$defs", {})
    parts["Problem"] = {
        "type": "object",
        "properties": {"detail": {"type": "string"}, "fields": {"type": "array", "items": {"type": "object"}}},
        "required": ["detail"],
    }
    parts["Accepted"] = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("request_id", "model", "type")},
        "required": ["request_id", "model", "type"],
    }
    model_path = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    limit = {
        "name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": 100}
    }  # fmt: skip
    which = {"name": "model", "in": "query", "schema": {"type": "string"}}
    paths: dict[str, Any] = {
        "/healthz": {"get": _get("Alive", {"type": "object"})},
        "/v1/deployments": {
            "get": _get("Routing state of every model", {"type": "object", "additionalProperties": _ref("Deployment")})
        },
        "/v1/deployments/{model}": {"get": _get("Routing state of one model", _ref("Deployment"), [model_path], [404])},
        "/v1/models/{model}/versions": {
            "get": _get("Announced versions", _list("ModelVersion"), [model_path], [404])
        },
        "/v1/decisions": {"get": _get("Latest facts, newest first", _list("Decision"), [which, limit], [422])},
        "/v1/alerts": {"get": _get("Latest alerts, newest first", _list("Alert"), [limit], [422])},
        "/v1/time": {"get": _get("Event time the loop has reached", {"type": "object"})},
    }
    for verb, body in BODIES.items():
        paths[f"/v1/deployments/{{model}}/{verb}"] = {
            "post": {
                "operationId": verb,
                "summary": f"Ask for: {verb}",
                "security": [{"token": []}],
                "parameters": [model_path],
                "requestBody": {"content": {"application/json": {"schema": _ref(body.__name__)}}},
                "responses": {"202": _content("On its way; see `answers`", _ref("Accepted"))}
                | {str(code): _content("Refused", _ref("Problem")) for code in (400, 401, 404, 413, 422, 503)},
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
    summary: str, schema: dict[str, Any], parameters: list[dict[str, Any]] | None = None, errors: list[int] | None = None
) -> dict[str, Any]:
    responses = {"200": _content("OK", schema)}
    responses |= {str(code): _content("Refused", _ref("Problem")) for code in errors or []}
    return {"summary": summary, "parameters": parameters or [], "responses": responses}
