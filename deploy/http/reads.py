"""What the API shows, and from where: no handler here changes anything."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deploy.http.bodies import VERBS
from deploy.http.callers import Caller
from deploy.http.history import AnalysisPoint, WeightPoint
from deploy.http.openapi import LIMIT_MAX, openapi_document
from deploy.http.problems import Problem
from deploy.process import wall_ms
from schemas.contracts import ModelContract, ModelVersion
from schemas.control import Alert, Decision, Deployment


class ApiState(Protocol):
    """What the API shows; safe to call from any thread."""

    def deployments(self) -> dict[str, Deployment]: ...
    def contract(self, model: str) -> ModelContract | None: ...
    def versions(self, model: str) -> list[ModelVersion]: ...
    def decisions(self, model: str | None = None, limit: int = 100) -> list[Decision]: ...
    def alerts(self, limit: int = 100) -> list[Alert]: ...
    def weights(self, model: str, limit: int = 100) -> list[WeightPoint]: ...
    def analysis(self, model: str, limit: int = 100) -> list[AnalysisPoint]: ...
    def event_time_ms(self) -> int | None: ...


_DEPLOYMENT: TypeAdapter[Any] = TypeAdapter(Deployment)
_DEPLOYMENTS: TypeAdapter[Any] = TypeAdapter(dict[str, Deployment])
_DECISIONS: TypeAdapter[Any] = TypeAdapter(list[Decision])
_ALERTS: TypeAdapter[Any] = TypeAdapter(list[Alert])
_WEIGHTS: TypeAdapter[Any] = TypeAdapter(list[WeightPoint])
_ANALYSIS: TypeAdapter[Any] = TypeAdapter(list[AnalysisPoint])


class Reads:
    """One handler a route; ``state`` is what they read."""

    def __init__(self, state: ApiState) -> None:
        self._state = state

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def openapi(self, _request: Request) -> Response:
        return JSONResponse(openapi_document())

    async def me(self, request: Request) -> Response:
        caller: Caller = request.state.caller
        may = [name for name, verb in VERBS.items() if caller.role >= verb.role]
        return JSONResponse({"name": caller.name, "role": str(caller.role), "via": caller.via, "may": may})

    async def deployments(self, _request: Request) -> Response:
        return _json(_DEPLOYMENTS, dict(sorted(self._state.deployments().items())))

    async def deployment(self, request: Request) -> Response:
        return _json(_DEPLOYMENT, _deployed(self._state, request))

    async def history(self, request: Request) -> Response:
        model = _deployed(self._state, request).model
        return _json(_WEIGHTS, self._state.weights(model, _limit(request)))

    async def analysis(self, request: Request) -> Response:
        model = _deployed(self._state, request).model
        return _json(_ANALYSIS, self._state.analysis(model, _limit(request)))

    async def versions(self, request: Request) -> Response:
        model = known_model(self._state, request)
        # A reference holds samples of whole rows: megabytes nobody asks for here, and data of people.
        return JSONResponse(
            [v.model_dump(mode="json", exclude={"reference"}) for v in self._state.versions(model)]
        )

    async def decisions(self, request: Request) -> Response:
        model = request.query_params.get("model")
        return _json(_DECISIONS, self._state.decisions(model, _limit(request)))

    async def alerts(self, request: Request) -> Response:
        return _json(_ALERTS, self._state.alerts(_limit(request)))

    async def time(self, _request: Request) -> Response:
        return JSONResponse({"event_time_ms": self._state.event_time_ms(), "wall_ms": wall_ms()})


def known_model(state: ApiState, request: Request) -> str:
    """The model of the path. Raises Problem 404 when it has no contract."""
    model: str = request.path_params["model"]
    if state.contract(model) is None:
        raise Problem(404, f"no contract for model {model!r}; `driftline contract apply FILE` publishes one")
    return model


def _deployed(state: ApiState, request: Request) -> Deployment:
    model = request.path_params["model"]
    found = state.deployments().get(model)
    if found is None:
        raise Problem(404, f"model {model!r} has no deployment; known: {sorted(state.deployments())}")
    return found


def _json(adapter: TypeAdapter[Any], value: Any) -> Response:
    """Serialised by pydantic, which writes infinities (a score without bound) as null; JSON has none."""
    return Response(adapter.dump_json(value), media_type="application/json")


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", "100")
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and 1 <= int(text) <= LIMIT_MAX):
        raise Problem(
            422, f"limit must be a number from 1 to {LIMIT_MAX}", [{"field": "limit", "error": text[:100]}]
        )
    return int(text)
