"""The API and its pages as one ASGI app: the CLI's verbs, and what has come of them.

Whatever changes anything becomes a signed command on ``control``; an answer of 202 says that it is there, and the
deployment's ``answers`` say what came of it. Every call is a line in the log with who made it and what came of it: those
that change something or were refused always, reads when the log level is debug.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from deploy.http.access import Access
from deploy.http.bodies import VERBS, Body, Verb
from deploy.http.callers import ApiRole, Caller
from deploy.http.problems import Problem, on_crash, on_no_route, on_problem
from deploy.http.reads import ApiState, Reads, known_model
from deploy.process import wall_ms
from schemas.contracts import Policy
from schemas.control import Command
from schemas.errors import DriftlineError

audit = logging.getLogger("deploy.http.audit")
BODY_BYTES_MAX = 65_536
PAGES = Path(__file__).parents[1] / "pages"
#: A page loads nothing from elsewhere and talks to nobody but this API, and no other page may frame it.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
Handler = Callable[[Request], Awaitable[Response]]


def create_app(state: ApiState, publish: Callable[[Command], None], access: Access) -> Starlette:
    """The ASGI app. ``publish`` puts a command on ``control`` or raises DriftlineError; it is called in a thread."""
    reads = Reads(state)

    def command(name: str, verb: Verb) -> Handler:
        async def ask(request: Request) -> Response:
            model = known_model(state, request)
            body = await _body(request, verb.body)
            asked = command_of(verb, body, model, state, request.state.caller, request.state.trace_id)
            request.state.asked = asked
            try:
                await run_in_threadpool(publish, asked)
            except DriftlineError as error:
                raise Problem(503, str(error)) from error
            said = {"request_id": asked.request_id, "model": model, "type": name, "trace_id": asked.trace_id}
            return JSONResponse(said, status_code=202)

        return ask

    def guarded(path: str, handler: Handler, needed: ApiRole = ApiRole.VIEWER, method: str = "GET") -> Route:
        async def endpoint(request: Request) -> Response:
            request.state.trace_id = _trace_id(request)
            caller: Caller | None = None
            status = 500
            try:
                caller = await access.caller(request)
                request.state.caller = caller
                access.admit(caller, needed)
                response = await handler(request)
                status = response.status_code
                response.headers.setdefault("cache-control", "no-store")
                response.headers.setdefault("x-content-type-options", "nosniff")
                return response
            except Problem as problem:
                status = problem.status
                raise
            finally:
                _note(request, caller, status, loud=method != "GET" or status in (401, 403, 429))

        return Route(path, endpoint, methods=[method])

    routes = [
        Route("/", _page("status.html")),
        Route("/models/{model}", _page("deployment.html")),
        *(Route(f"/pages/{file.name}", _page(file.name)) for file in sorted(PAGES.glob("*.[cj]s*"))),
        Route("/healthz", reads.health),
        Route("/openapi.json", reads.openapi),
        guarded("/v1/me", reads.me, ApiRole.NONE),
        guarded("/v1/deployments", reads.deployments),
        guarded("/v1/deployments/{model}", reads.deployment),
        guarded("/v1/deployments/{model}/history", reads.history),
        guarded("/v1/deployments/{model}/analysis", reads.analysis),
        *(
            guarded(f"/v1/deployments/{{model}}/{name}", command(name, verb), verb.role, "POST")
            for name, verb in VERBS.items()
        ),
        guarded("/v1/models/{model}/versions", reads.versions),
        guarded("/v1/decisions", reads.decisions),
        guarded("/v1/alerts", reads.alerts),
        guarded("/v1/time", reads.time),
    ]
    handlers: dict[Any, Any] = {Problem: on_problem, HTTPException: on_no_route, Exception: on_crash}
    return Starlette(routes=routes, exception_handlers=handlers)


def _page(name: str) -> Handler:
    async def page(_request: Request) -> Response:
        return FileResponse(PAGES / name, headers=PAGE_HEADERS)

    return page


def _note(request: Request, caller: Caller | None, status: int, loud: bool) -> None:
    """One line on record for this call."""
    asked: Command | None = getattr(request.state, "asked", None)
    audit.log(
        logging.INFO if loud else logging.DEBUG,
        "%s %s by %s: %d", request.method, request.url.path[:300], caller.name if caller else "nobody", status,
        extra={
            "event": "api-call",
            "status": status,
            "caller": caller.name if caller else None,
            "role": str(caller.role) if caller else None,
            "via": caller.via if caller else None,
            "address": request.client.host if request.client else None,
            "request_id": asked.request_id if asked else None,
            "issued_by": asked.issued_by if asked else None,
            "trace_id": request.state.trace_id,
        },
    )  # fmt: skip


def _trace_id(request: Request) -> str:
    """The caller's trace, or a new one (W3C trace context: 32 hex digits, not all zero)."""
    match = _TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
    return match[1] if match and int(match[1], 16) else uuid.uuid4().hex


def command_of(verb: Verb, body: Body, model: str, state: ApiState, caller: Caller, trace_id: str) -> Command:
    """What ``body`` asks for, as of the event time it names, else the one reached, else this machine's clock.

    A caller who has shown who they are is on record by that name, whatever the body says.
    """
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
        "issued_by": f"api/{caller.name if caller.known else body.by}",
        "reason": body.reason,
        "trace_id": trace_id,
        "config_hash": "" if contract is None else contract.hash,
    }
    fields |= body.model_dump(exclude={"by", "reason", "request_id", "event_time_ms"})
    return verb.command.model_validate(fields)


async def _body(request: Request, kind: type[Body]) -> Body:
    # A page of any site may post text to this address without asking; JSON it may not. So this is no formality.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(
            415, "send `Content-Type: application/json`, with `{}` as body when there is nothing to say"
        )
    raw = b""
    try:
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > BODY_BYTES_MAX:
                raise Problem(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
    except ClientDisconnect as error:
        raise Problem(400, "the body ended early") from error
    try:
        return kind.model_validate_json(raw or b"{}")
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        if errors[0]["type"] == "json_invalid":
            raise Problem(400, f"the body is not JSON: {errors[0]['msg']}") from error
        fields = [{"field": ".".join(map(str, e["loc"])) or "body", "error": e["msg"]} for e in errors]
        named = "; ".join(f"{f['field']}: {f['error']}" for f in fields)
        raise Problem(422, f"the body does not fit: {named}", fields) from error
