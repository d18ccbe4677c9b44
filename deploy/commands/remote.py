"""Why: an operator acts through the controller's HTTP API, so that what is typed here is asked, answered and on record
like every other request."""

from __future__ import annotations

import getpass
import json
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from schemas.errors import ConfigurationError, PlatformError, RolloutError

DEFAULT_API = "http://127.0.0.1:8080"
TIMEOUT_S = 10.0
_LOOK_S = 0.2
_GOOD = ("accepted", "done", "duplicate")

Api = Annotated[str, typer.Option("--api", envvar="DRIFTLINE_API", help="Where the controller listens.")]
Token = Annotated[
    str | None,
    typer.Option(
        envvar=["DRIFTLINE_TOKEN", "DRIFTLINE_CONTROLLER__API_TOKEN"], help="Bearer token, if it wants one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Reason = Annotated[str, typer.Option(help="Why; it stays on record.")]
By = Annotated[str | None, typer.Option(help="Who asks; it stays on record. You, if not given.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for the controller's answer; 0: do not.")]
Model = Annotated[str, typer.Argument(help="Name of the model.")]
Version = Annotated[str, typer.Argument(help="A registered version.")]


def deployments(
    model: Annotated[str | None, typer.Argument(help="One model; else all.")] = None,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Show which versions have the traffic."""
    address = f"{api}/v1/deployments"
    found = (
        call("GET", address, token) if model is None else {model: call("GET", f"{address}/{model}", token)}
    )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("model", "revision", "phase", "traffic", "rollback target", "why"):
        table.add_column(name)
    for name, d in found.items():
        traffic = (
            "  ".join(f"{version} {weight:.0%}" for version, weight in d["weights"].items()) or "fallback"
        )
        phase = d["phase"] + (f" ({d['pause']})" if d["pause"] else "")
        table.add_row(name, str(d["revision"]), phase, traffic, d["previous"] or "-", d["reason"])
    Console().print(table)


def deploy(
    model: Model,
    version: Version,
    step: Annotated[
        list[str] | None,
        typer.Option(metavar="WEIGHT:BAKE", help="Instead of the contract's steps, e.g. 0.1:12h."),
    ] = None,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="No steps: all traffic as soon as it is verified.")
    ] = False,
    reason: Reason = "",
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Start a rollout of a version."""
    body: dict[str, Any] = {"version": version, "reason": reason, "by": by or _user()}
    if at_once and step:
        raise ConfigurationError("--at-once and --step exclude each other")
    if at_once or step:
        body["steps"] = [_step(text) for text in step or ()]
    _ask(api, model, "deploy", body, token, wait, as_json)


def _step(text: str) -> tuple[float, int]:
    from schemas.contracts import parse_duration_ms

    weight, _, bake = text.partition(":")
    try:
        return float(weight), int(parse_duration_ms(bake))
    except ValueError:
        raise ConfigurationError(f"--step {text}: write WEIGHT:BAKE, for example 0.1:12h") from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have a number and no name
        return "cli"


def rollback(
    model: Model,
    version: Version,
    reason: Reason = "",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask back, which is done at a terminal only.")
    ] = False,
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Take a version off the traffic now."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Take version {version} of {model} off the traffic?", abort=True)
    _ask(
        api,
        model,
        "rollback",
        {"version": version, "reason": reason, "by": by or _user()},
        token,
        wait,
        as_json,
    )


def promote(
    model: Model,
    reason: Reason = "",
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Promote the candidate now. What is left of its bake times is skipped."""
    _ask(api, model, "promote", {"reason": reason, "by": by or _user()}, token, wait, as_json)


def pause(
    model: Model,
    reason: Reason = "",
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Stop a rollout where it is until it is resumed."""
    _ask(api, model, "pause", {"reason": reason, "by": by or _user()}, token, wait, as_json)


def resume(
    model: Model,
    reason: Reason = "",
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Let a paused rollout go on."""
    _ask(api, model, "resume", {"reason": reason, "by": by or _user()}, token, wait, as_json)


def retrain(
    model: Model,
    version: Annotated[
        str | None, typer.Option(help="Train a successor of this one; else the model's first.")
    ] = None,
    reason: Reason = "",
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Ask the trainer for a new version."""
    _ask(
        api,
        model,
        "retrain",
        {"version": version, "reason": reason, "by": by or _user()},
        token,
        wait,
        as_json,
    )


def _ask(
    api: str, model: str, verb: str, body: Mapping[str, Any], token: str | None, wait_s: float, as_json: bool
) -> None:
    """Send one request and print the controller's answer. Raises RolloutError when that is a refusal."""
    request_id = call("POST", f"{api}/v1/deployments/{model}/{verb}", token, body)["request_id"]
    answer: dict[str, Any] | None = None
    deadline = time.monotonic() + wait_s
    while answer is None and time.monotonic() < deadline:
        answer = _answer(api, model, request_id, token)
        if answer is None:
            time.sleep(_LOOK_S)
    if as_json:
        typer.echo(json.dumps({"request_id": request_id, "answer": answer}, indent=2))
    elif answer is None:
        typer.echo(
            f"{verb} {model}: asked ({request_id}), no answer yet; `driftline deployments {model}` shows it"
        )
    elif answer["outcome"] in _GOOD:
        typer.echo(f"{verb} {model}: {answer['outcome']}{': ' if answer['detail'] else ''}{answer['detail']}")
    if answer is not None and answer["outcome"] not in _GOOD:
        raise RolloutError(f"{verb} {model}: {answer['outcome']}: {answer['detail']}")


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
