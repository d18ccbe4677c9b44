"""The HTTP API of the controller and its status page: the same commands as the CLI's, and what has come of them.

Whatever changes anything becomes a signed command on ``control``; an answer of 202 says that it is there, and the
deployment's ``answers`` say what came of it. Reading needs no token, changing does when one is configured.
"""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from deploy.openapi import BODIES, COMMANDS, LIMIT_MAX, Body, openapi_document
from deploy.process import wall_ms
from schemas.contracts import ModelContract, ModelVersion, Policy
from schemas.control import Alert, Command, Decision, Deployment
from schemas.errors import DriftlineError

BODY_BYTES_MAX = 65_536
PAGE = Path(__file__).with_name("pages") / "status.html"
#: The page loads nothing and talks to nobody but this API, and no other page may frame it.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class ApiState(Protocol):
    """What the API shows; safe to call from any thread."""

    def deployments(self) -> dict[str, Deployment]: ...
    def contract(self, model: str) -> ModelContract | None: ...
    def versions(self, model: str) -> list[ModelVersion]: ...
    def decisions(self, model: str | None = None, limit: int = 100) -> list[Decision]: ...
    def alerts(self, limit: int = 100) -> list[Alert]: ...
    def event_time_ms(self) -> int | None: ...


_DEPLOYMENT: TypeAdapter[Any] = TypeAdapter(Deployment)
_DEPLOYMENTS: TypeAdapter[Any] = TypeAdapter(dict[str, Deployment])
_DECISIONS: TypeAdapter[Any] = TypeAdapter(list[Decision])
_ALERTS: TypeAdapter[Any] = TypeAdapter(list[Alert])


class Problem(Exception):
    """An answer that is an error: status and what to do."""

    def __init__(
        self,
        status: int,
        detail: str,
        fields: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = fields or []
        self.headers = headers


def create_app(state: ApiState, publish: Callable[[Command], None], token: str | None) -> Starlette:
    """The ASGI app. ``publish`` puts a command on ``control`` or raises DriftlineError; it is called in a thread."""

    async def page(_request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def openapi(_request: Request) -> Response:
        return JSONResponse(openapi_document())

    async def deployments(_request: Request) -> Response:
        return _json(_DEPLOYMENTS, dict(sorted(state.deployments().items())))

    async def deployment(request: Request) -> Response:
        model = request.path_params["model"]
        found = state.deployments().get(model)
        if found is None:
            raise Problem(404, f"model {model!r} has no deployment; known: {sorted(state.deployments())}")
        return _json(_DEPLOYMENT, found)

    async def versions(request: Request) -> Response:
        model = _known(state, request)
        # A reference holds samples of whole rows: megabytes nobody asks for here, and data of people.
        return JSONResponse([v.model_dump(mode="json", exclude={"reference"}) for v in state.versions(model)])

    async def decisions(request: Request) -> Response:
        model = request.query_params.get("model")
        return _json(_DECISIONS, state.decisions(model, _limit(request)))

    async def alerts(request: Request) -> Response:
        return _json(_ALERTS, state.alerts(_limit(request)))

    async def time_reached(_request: Request) -> Response:
        return JSONResponse({"event_time_ms": state.event_time_ms(), "wall_ms": wall_ms()})

    async def command(request: Request) -> Response:
        _authorised(request, token)
        verb = request.path_params["verb"]
        if verb not in BODIES:
            raise Problem(404, f"no command {verb!r}; there are: {', '.join(BODIES)}")
        model = _known(state, request)
        body = await _body(request, BODIES[verb])
        asked = command_of(verb, body, model, state)
        try:
            await run_in_threadpool(publish, asked)
        except DriftlineError as error:
            raise Problem(503, str(error)) from error
        return JSONResponse({"request_id": asked.request_id, "model": model, "type": verb}, status_code=202)

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
        Route("/v1/time", time_reached),
    ]
    return Starlette(routes=routes, exception_handlers={Problem: _problem, HTTPException: _no_route})


def _known(state: ApiState, request: Request) -> str:
    model: str = request.path_params["model"]
    if state.contract(model) is None:
        raise Problem(404, f"no contract for model {model!r}; `driftline contract apply FILE` publishes one")
    return model


def command_of(verb: str, body: Body, model: str, state: ApiState) -> Command:
    """What ``body`` asks for, as of the event time it names, else the one reached, else this machine's clock."""
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
        "expires_ms": at + (Policy() if contract is None else contract.policy).command_ttl,
        "issued_by": f"api/{body.by}",
        "reason": body.reason,
        "trace_id": uuid.uuid4().hex,
    }
    fields |= body.model_dump(exclude={"by", "reason", "request_id", "event_time_ms"})
    return COMMANDS[verb].model_validate(fields)


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return JSONResponse(
        {"detail": error.detail, "fields": error.fields}, status_code=error.status, headers=error.headers
    )


async def _no_route(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{error.detail}; /openapi.json lists what there is"
    return JSONResponse(
        {"detail": detail, "fields": []}, status_code=error.status_code, headers=error.headers
    )


def _json(adapter: TypeAdapter[Any], value: Any) -> Response:
    """Serialised by pydantic, which writes infinities (a score without bound) as null; JSON has none."""
    return Response(adapter.dump_json(value), media_type="application/json")


def _authorised(request: Request, token: str | None) -> None:
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Both are looked at, so that how long the answer takes says nothing about either.
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not token or not right:
        raise Problem(
            401,
            "this call changes something: send `Authorization: Bearer TOKEN` with the token of controller.api_token",
            headers={"www-authenticate": "Bearer"},
        )


async def _body(request: Request, kind: type[Body]) -> Body:
    # A page of any site may post text to this address without asking; JSON it may not. So this is no formality.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(
            415, "send `Content-Type: application/json`, with `{}` as body when there is nothing to say"
        )
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_BYTES_MAX:
            raise Problem(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
    try:
        return kind.model_validate_json(raw or b"{}")
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        if errors[0]["type"] == "json_invalid":
            raise Problem(400, f"the body is not JSON: {errors[0]['msg']}") from error
        fields = [{"field": ".".join(map(str, e["loc"])) or "body", "error": e["msg"]} for e in errors]
        named = "; ".join(f"{f['field']}: {f['error']}" for f in fields)
        raise Problem(422, f"the body does not fit: {named}", fields) from error


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", "100")
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and 1 <= int(text) <= LIMIT_MAX):
        raise Problem(
            422, f"limit must be a number from 1 to {LIMIT_MAX}", [{"field": "limit", "error": text[:100]}]
        )
    return int(text)
