"""Every answer that is an error looks the same: ``application/problem+json`` (RFC 9457), with what to do in ``detail``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is an error: status, what to do, and for a wrong body which ``fields`` are wrong."""

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


def problem_response(problem: Problem) -> Response:
    """What the caller sees."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.fields:
        content["fields"] = problem.fields
    return JSONResponse(content, problem.status, problem.headers, MEDIA_TYPE)


async def on_problem(_request: Request, error: Exception) -> Response:
    """Starlette's handler of :class:`Problem`."""
    assert isinstance(error, Problem)
    return problem_response(error)


async def on_no_route(_request: Request, error: Exception) -> Response:
    """Starlette's handler of what no route answers."""
    assert isinstance(error, HTTPException)
    headers = None if error.headers is None else dict(error.headers)
    detail = f"{error.detail}; /openapi.json lists what there is"
    return problem_response(Problem(error.status_code, detail, headers=headers))


async def on_crash(_request: Request, _error: Exception) -> Response:
    """Starlette's handler of what nobody expected: the traceback is in the log, not in the answer."""
    return problem_response(Problem(500, "the controller failed to answer; its log says why"))
