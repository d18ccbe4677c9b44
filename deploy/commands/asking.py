"""Why: every command of an operator is one HTTP call and one answer to wait for, and they must all fail the same way."""

from __future__ import annotations

import getpass
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import typer

from schemas.errors import ConfigurationError, PlatformError, RolloutError

TIMEOUT_S = 10.0
_LOOK_S = 0.2
_GOOD = ("accepted", "done", "duplicate")


def ask(
    api: str, model: str, verb: str, body: Mapping[str, Any], token: str | None, wait_s: float, as_json: bool
) -> None:
    """Send one request and print the controller's answer. Raises RolloutError when that is a refusal."""
    asked = call("POST", f"{api}/v1/deployments/{model}/{verb}", token, body)
    request_id = asked["request_id"]
    answer: dict[str, Any] | None = None
    deadline = time.monotonic() + wait_s
    while answer is None and time.monotonic() < deadline:
        answer = _answer(api, model, request_id, token)
        if answer is None:
            time.sleep(_LOOK_S)
    if as_json:
        typer.echo(json.dumps(asked | {"answer": answer}, indent=2))
    elif answer is None:
        typer.echo(
            f"{verb} {model}: asked ({request_id}), no answer yet; `driftline deployments {model}` shows it"
        )
    elif answer["outcome"] in _GOOD:
        typer.echo(f"{verb} {model}: {answer['outcome']}{': ' if answer['detail'] else ''}{answer['detail']}")
    if answer is not None and answer["outcome"] not in _GOOD:
        raise RolloutError(f"{verb} {model}: {answer['outcome']}: {answer['detail']}")


def sure(question: str, yes: bool) -> None:
    """Go on when ``yes`` or when a person says so. Raises ConfigurationError where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} Nobody can be asked here: say --yes")
    typer.confirm(question, abort=True)


def user() -> str:
    """Who sits here, as far as the machine knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have a number and no name
        return "cli"


def _answer(api: str, model: str, request_id: str, token: str | None) -> dict[str, Any] | None:
    """The answer, None while there is none; a model without a deployment has not answered either."""
    answers = call("GET", f"{api}/v1/deployments", token).get(model, {}).get("answers", [])
    return next((dict(answer) for answer in answers if answer["request_id"] == request_id), None)


def call(method: str, url: str, token: str | None, body: Mapping[str, Any] | None = None) -> Any:
    """One call of the API, as JSON. Raises PlatformError when nobody answers, RolloutError when the answer is no."""
    import httpx

    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        response = httpx.request(method, url, json=body, headers=headers, timeout=TIMEOUT_S)
        content = response.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PlatformError(
            f"{url} does not answer: {error}; is the controller up? `--api` says where"
        ) from error
    except ValueError as error:
        raise PlatformError(
            f"{url} answered {response.status_code} without JSON: is that a controller?"
        ) from error
    if response.is_error:
        detail = content.get("detail", content) if isinstance(content, dict) else content
        raise RolloutError(f"{url} answered {response.status_code}: {detail}")
    return content
