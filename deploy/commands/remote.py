"""Why: an operator acts through the controller's HTTP API, so that what is typed here is asked, answered and on record
like every other request."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from deploy.commands.asking import TIMEOUT_S, ask, call, sure, user
from deploy.commands.common import print_table
from schemas.errors import ConfigurationError

DEFAULT_API = "http://127.0.0.1:8080"

Api = Annotated[str, typer.Option("--api", envvar="DRIFTLINE_API", help="Where the controller listens.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="DRIFTLINE_TOKEN", help="A token of `driftline tokens create`, if it wants one."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Reason = Annotated[str, typer.Option(help="Why; it stays on record.")]
By = Annotated[
    str | None, typer.Option(help="Who asks, where no token says it; it stays on record. You, if not given.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask back.")]
Gate = Annotated[
    str | None,
    typer.Option(
        help="confirm-rollout, confirm-traffic-increase or confirm-promotion; else the one that waits."
    ),
]
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
    from deploy.audit.story import traffic_text

    rows = []
    for name, d in found.items():
        by_region = {r["region"]: r["weights"] for r in d.get("regions", ())}
        traffic = traffic_text(d["weights"], by_region)
        waits = f" ({d['pause']})" if d["pause"] else f" (at {d['gate']['kind']})" if d.get("gate") else ""
        rows.append(
            (name, str(d["revision"]), d["phase"] + waits, traffic, d["previous"] or "-", d["reason"])
        )
    print_table(("model", "revision", "phase", "traffic", "rollback target", "why"), rows)


def gates(api: Api = DEFAULT_API, token: Token = None, as_json: AsJson = False) -> None:
    """Show the gates that rollouts wait at, and who has said yes."""
    waiting = [
        {"model": name, **d["gate"]}
        for name, d in call("GET", f"{api}/v1/deployments", token).items()
        if d.get("gate")
    ]
    if as_json:
        typer.echo(json.dumps(waiting, indent=2))
        return
    from deploy.audit.story import when

    head = ("model", "gate", "version", "traffic when it opens", "approvals", "by", "expires (UTC)")
    print_table(
        head,
        [
            (
                g["model"], g["kind"], g["version"],
                f"{g['weight']:.0%}" + (f" of {g['region']}" if g.get("region") else ""),
                f"{len(g['approved_by'])} of {g['approvals_needed']}" if g["approvals_needed"] else "webhook",
                ", ".join(g["approved_by"]) or "-", when(g["expires_ms"]),
            )
            for g in waiting
        ],
    )  # fmt: skip


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
    yes: Yes = False,
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Start a rollout of a version."""
    body: dict[str, Any] = {"version": version, "reason": reason, "by": by or user()}
    if at_once and step:
        raise ConfigurationError("--at-once and --step exclude each other")
    if at_once:
        sure(f"Give version {version} of {model} all traffic at once?", yes)
    if at_once or step:
        body["steps"] = [_step(text) for text in step or ()]
    ask(api, model, "deploy", body, token, wait, as_json)


def _step(text: str) -> tuple[float, int]:
    from schemas.documents import parse_duration_ms

    weight, _, bake = text.partition(":")
    try:
        return float(weight), int(parse_duration_ms(bake))
    except ValueError:
        raise ConfigurationError(f"--step {text}: write WEIGHT:BAKE, for example 0.1:12h") from None


def rollback(
    model: Model,
    version: Version,
    reason: Reason = "",
    yes: Yes = False,
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Take a version off the traffic now."""
    sure(f"Take version {version} of {model} off the traffic?", yes)
    ask(
        api,
        model,
        "rollback",
        {"version": version, "reason": reason, "by": by or user()},
        token,
        wait,
        as_json,
    )


def promote(
    model: Model,
    reason: Reason = "",
    yes: Yes = False,
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Promote the candidate now. What is left of its bake times is skipped."""
    sure(f"Give the candidate of {model} all traffic now?", yes)
    ask(api, model, "promote", {"reason": reason, "by": by or user()}, token, wait, as_json)


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
    ask(api, model, "pause", {"reason": reason, "by": by or user()}, token, wait, as_json)


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
    ask(api, model, "resume", {"reason": reason, "by": by or user()}, token, wait, as_json)


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
    ask(
        api,
        model,
        "retrain",
        {"version": version, "reason": reason, "by": by or user()},
        token,
        wait,
        as_json,
    )


def approve(
    model: Model,
    version: Version,
    gate: Gate = None,
    reason: Reason = "",
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Say yes at the gate a rollout waits at. Nobody who asked for the rollout counts."""
    ask(api, model, "approve", _of_gate(version, gate, reason, by), token, wait, as_json)


def reject(
    model: Model,
    version: Version,
    gate: Gate = None,
    reason: Reason = "",
    yes: Yes = False,
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Say no at a gate: the rollout ends."""
    sure(f"End the rollout of version {version} of {model}?", yes)
    ask(api, model, "reject", _of_gate(version, gate, reason, by), token, wait, as_json)


def _of_gate(version: str, gate: str | None, reason: str, by: str | None) -> dict[str, Any]:
    return {"version": version, "gate": gate, "reason": reason, "by": by or user()}


def override(
    model: Model,
    version: Version,
    reason: Annotated[str, typer.Option(help="Why; it stays on record.")],
    yes: Yes = False,
    by: By = None,
    wait: Wait = TIMEOUT_S,
    api: Api = DEFAULT_API,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Pass a gate, or end a pause for missing data, without what it waits for."""
    sure(f"Let version {version} of {model} go on without what its rollout waits for?", yes)
    body = {"version": version, "reason": reason, "by": by or user()}
    ask(api, model, "override", body, token, wait, as_json)
