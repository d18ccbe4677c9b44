"""The command ``driftline``: everything a person or a unit file starts. Modules are imported when a command needs them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.errors import ConfigurationError, DriftlineError, PlatformError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Detect, decide, act: a streaming monitor for models.")
contract_app = typer.Typer(no_args_is_help=True, help="Contracts: what a model's owner declares.")
app.add_typer(contract_app, name="contract")

API_DEFAULT = "http://127.0.0.1:8080"
DataDir = Annotated[Path, typer.Option("--data-dir", help="Where the local platform keeps everything.")]
ApiUrl = Annotated[str, typer.Option("--api", envvar="DRIFTLINE_API", help="The controller's address.")]
Token = Annotated[str | None, typer.Option("--token", envvar="DRIFTLINE_TOKEN", help="Bearer token of the API.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option("--reason", help="Goes on record.")]
By = Annotated[str, typer.Option("--by", help="Who asks; goes on record.")]
USER = os.environ.get("USER", "cli")


def _home() -> Path:
    return Path.home() / ".local" / "share" / "driftline"


def main() -> None:
    """The console script: an error of ours is one line and exit status 1, never a traceback."""
    try:
        app(standalone_mode=False)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except typer.Abort:
        sys.exit(130)
    except DriftlineError as error:
        print(f"driftline: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        import click

        if isinstance(error, click.ClickException):
            error.show()
            sys.exit(error.exit_code)
        raise


# -- the local platform ---------------------------------------------------------------------------------------------


@app.command()
def up(
    data_dir: DataDir = _home(),  # noqa: B008 - typer reads it once
    kafka_port: int = 9092,
    warehouse_port: int = 8123,
    api_port: int = 8080,
    partitions: int = 4,
) -> None:
    """Start Kafka, ClickHouse and every service here; Ctrl-C stops them all."""
    from rich.console import Console

    from deploy.local.platform import Platform

    console = Console()

    def say(service: str, text: str) -> None:
        console.print(f"  [dim]{service:<11}[/dim] {text}", highlight=False)

    platform = Platform(
        data_dir,
        kafka_port=kafka_port,
        warehouse_port=warehouse_port,
        api_port=api_port,
        input_partitions=partitions,
        say=say,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with platform:
        console.print(
            f"\nKafka {platform.kafka.bootstrap}   ClickHouse http://127.0.0.1:{platform.clickhouse.port}   "
            f"status page {platform.api_url}\nCtrl-C stops everything.\n",
            highlight=False,
        )
        while not stop.is_set() and not platform.wait(0.2):
            pass
    if platform.failure:
        raise PlatformError(platform.failure)


@app.command()
def down(data_dir: DataDir = _home()) -> None:  # noqa: B008
    """Stop what `driftline up` started."""
    from deploy.local.platform import stop_running

    print("stopped" if stop_running(data_dir) else f"nothing runs over {data_dir}")


@app.command()
def status(data_dir: DataDir = _home(), as_json: AsJson = False) -> None:  # noqa: B008
    """Which services run, where, and how often they had to be started again."""
    import psutil
    from rich.console import Console
    from rich.table import Table

    from deploy.local.platform import read_state

    state = read_state(data_dir)
    if state is None:
        raise PlatformError(f"nothing runs over {data_dir}; `driftline up` starts it")
    if as_json:
        print(json.dumps(state, indent=1))
        return
    table = Table("service", "pid", "state", "restarts", "where")
    where = {"kafka": state["kafka"], "warehouse": state["clickhouse"], "controller": state["api"]}
    for name, pid in state["processes"].items():
        alive = pid is not None and psutil.pid_exists(pid)
        table.add_row(
            name, str(pid), "up" if alive else "down", str(state["restarted"].get(name, 0)), where.get(name, "")
        )
    Console().print(table)


@app.command()
def logs(
    service: str,
    data_dir: DataDir = _home(),  # noqa: B008
    lines: Annotated[int, typer.Option("-n", "--lines")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow")] = False,
) -> None:
    """The last lines of a service's log."""
    known = {p.stem: p for p in (data_dir / "logs").glob("*.log")}
    known |= {name: data_dir / name / f"{name}.log" for name in ("kafka", "warehouse")}
    path = known.get(service)
    if path is None or not path.exists():
        raise PlatformError(f"no log of {service!r} below {data_dir}; there are: {', '.join(sorted(known))}")
    tail = ["tail", "-n", str(lines), *(["-f"] if follow else []), str(path)]
    os.execvp(tail[0], tail)


@app.command()
def demo(
    sample: Annotated[float, typer.Option(help="Share of the flights to replay.")] = 1.0,
    no_drift: Annotated[bool, typer.Option(help="Shuffle the flights over time: no retrain must happen.")] = False,
    healthy_v3: Annotated[bool, typer.Option(help="Leave the defect out: no rollback must happen.")] = False,
    verify: Annotated[bool, typer.Option(help="Recompute everything with pandas and compare.")] = True,
    seed: int = 7,
    data_dir: Annotated[Path | None, typer.Option(help="Keep everything here; default: a folder that is removed.")] = None,
    keep: Annotated[bool, typer.Option(help="Do not remove the folder.")] = False,
    report: Path = Path("demo-report.json"),
    api_port: Annotated[int, typer.Option(help="Of the status page; 0: any free port.")] = 8080,
    kill: Annotated[list[str] | None, typer.Option(help="SERVICE@MM-DD: kill -9 it on that day; repeatable.")] = None,
) -> None:
    """Replay the flights of 2013 through the whole loop."""
    from rich.console import Console

    from deploy.demo.run import DemoOptions, run_demo
    from deploy.local.children import free_port, require_free_port

    try:
        require_free_port(api_port, "the status page")
    except PlatformError:
        api_port = free_port()
    # SIGTERM must run the same clean-up as Ctrl-C: nothing of the demo may outlive it.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    options = DemoOptions(
        sample=sample,
        no_drift=no_drift,
        healthy_v3=healthy_v3,
        verify=verify,
        seed=seed,
        data_dir=data_dir,
        keep=keep,
        report=report,
        api_port=api_port,
        kill=tuple(_kill(text) for text in kill or ()),
    )
    try:
        status_code = run_demo(options, Console())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(status_code)


def _kill(text: str) -> tuple[str, int]:
    service, _, date = text.partition("@")
    try:
        at = datetime.strptime(f"2013-{date}", "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise ConfigurationError(f"--kill {text!r}: write for example monitor@06-15") from error
    return service, int(at.timestamp() * 1000)


# -- services -------------------------------------------------------------------------------------------------------


def _stream(name: str) -> None:
    os.execv(sys.executable, [sys.executable, "-m", "streams", name])


@app.command()
def monitor() -> None:
    """The monitor: Faust workers from prediction logs to alerts and commands."""
    _stream("monitor")


@app.command()
def archive() -> None:
    """Copies every log to ClickHouse."""
    _stream("archive")


@app.command()
def controller() -> None:
    """The deployment controller, its HTTP API and status page."""
    from deploy.controller.service import run
    from schemas.settings import ControllerSettings

    raise typer.Exit(run(ControllerSettings.load()))


@app.command()
def scorer(check: Annotated[bool, typer.Option(help="Say which provider would run, and why.")] = False) -> None:
    """The scoring consumer."""
    from deploy.scoring import service
    from schemas.settings import ScorerSettings

    settings = ScorerSettings.load()
    if check:
        print(service.check(settings))
        return
    raise typer.Exit(service.run(settings))


@app.command()
def trainer() -> None:
    """Trains a successor when one is asked for."""
    from deploy.training.service import run
    from schemas.settings import TrainerSettings

    raise typer.Exit(run(TrainerSettings.load()))


@app.command()
def notifier() -> None:
    """Carries alerts to console, webhook, Slack and PagerDuty."""
    from deploy.notify.service import run
    from schemas.settings import NotifierSettings

    raise typer.Exit(run(NotifierSettings.load()))


# -- preparation ----------------------------------------------------------------------------------------------------


@app.command()
def topics() -> None:
    """Create the topics that are missing."""
    from deploy.topics import create_topics
    from schemas.settings import ServiceSettings

    created = create_topics(ServiceSettings.load().kafka)
    print("\n".join(created) if created else "all topics are there")


@app.command()
def migrate() -> None:
    """Bring the ClickHouse database up to date; can be repeated."""
    from deploy.migrate import migrate as apply_all
    from schemas.settings import ServiceSettings

    applied = apply_all(ServiceSettings.load().clickhouse)
    print("\n".join(f"{m.number:04d}_{m.name}" for m in applied) if applied else "nothing to do")


@app.command()
def config(service: Annotated[str | None, typer.Argument(help="One service; all if not given.")] = None,
           as_json: AsJson = False) -> None:  # fmt: skip
    """Settings in force, secrets masked."""
    import yaml

    from schemas.settings import SERVICES

    if service is not None and service not in SERVICES:
        raise ConfigurationError(f"no service {service!r}; there are: {', '.join(SERVICES)}")
    shown: dict[str, Any] = {}
    for name in SERVICES if service is None else [service]:
        shown |= SERVICES[name].load().shown()
    print(json.dumps(shown, indent=1) if as_json else yaml.safe_dump(shown, sort_keys=False).rstrip())


@app.command()
def schemas(out: Annotated[Path | None, typer.Option(help="Write files here instead of printing.")] = None) -> None:
    """JSON Schemas of everything that travels, and the AsyncAPI document of the topics."""
    from schemas.asyncapi import asyncapi_document, json_schemas

    documents = {"asyncapi": asyncapi_document(), **json_schemas()}
    if out is None:
        print(json.dumps(documents, indent=1))
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{len(documents)} files in {out}")


@app.command()
def metrics() -> None:
    """The closed list of exported metrics, as a Markdown table."""
    from schemas.metrics import METRICS

    print("| metric | kind | labels | meaning |\n| --- | --- | --- | --- |")
    for metric in METRICS.values():
        print(f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.help} |")


@contract_app.command("check")
def contract_check(file: Path) -> None:
    """Say whether FILE is a sound contract, down to its detectors' options."""
    from schemas.contracts import load_contract

    contract = load_contract(file)
    print(f"{file}: model {contract.model}, {len(contract.features)} features, "
          f"{len(contract.monitoring.detectors)} detectors, hash {contract.hash[:12]}")  # fmt: skip


@contract_app.command("apply")
def contract_apply(file: Path) -> None:
    """Publish FILE's contract; it takes effect at once."""
    from deploy.models import publish_records
    from schemas.contracts import ModelRecord, load_contract
    from schemas.settings import ServiceSettings

    contract = load_contract(file)
    publish_records(ServiceSettings.load().kafka, [ModelRecord(contract=contract)])
    print(f"contract of {contract.model} published, hash {contract.hash[:12]}")


# -- deployments, over the HTTP API ---------------------------------------------------------------------------------


def _call(api: str, method: str, path: str, token: str | None, body: dict[str, Any] | None = None) -> Any:
    import httpx

    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        response = httpx.request(method, f"{api}{path}", json=body, headers=headers, timeout=30)
    except httpx.HTTPError as error:
        raise PlatformError(f"the controller at {api} does not answer: {error}") from error
    if response.status_code >= 400:
        try:
            detail = response.json()["detail"]
        except (ValueError, KeyError):
            detail = response.text
        raise PlatformError(f"{response.status_code}: {detail}")
    return response.json()


@app.command()
def deployments(model: Annotated[str | None, typer.Argument()] = None, api: ApiUrl = API_DEFAULT,
                token: Token = None, as_json: AsJson = False) -> None:  # fmt: skip
    """Who has the traffic."""
    from rich.console import Console
    from rich.table import Table

    found = _call(api, "GET", "/v1/deployments" + (f"/{model}" if model else ""), token)
    found = {model: found} if model else found
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table("model", "revision", "phase", "traffic", "rollback target", "why")
    for name, d in found.items():
        split = ", ".join(f"v{v} {w:.0%}" for v, w in d["weights"].items()) or "fallback"
        table.add_row(name, str(d["revision"]), d["phase"], split, d["previous"] or "", d["reason"])
    Console().print(table)


def _ask(verb: str, model: str, api: str, token: str | None, as_json: bool, **body: Any) -> None:
    answer = _call(api, "POST", f"/v1/deployments/{model}/{verb}", token, {k: v for k, v in body.items() if v is not None})
    print(json.dumps(answer) if as_json else f"asked: {verb} of {model}, request {answer['request_id']}")


@app.command()
def deploy(model: str, version: str, reason: Reason = "", by: By = USER, api: ApiUrl = API_DEFAULT, token: Token = None,
           as_json: AsJson = False) -> None:  # fmt: skip
    """Start a rollout of VERSION."""
    _ask("deploy", model, api, token, as_json, version=version, reason=reason, by=by)


@app.command()
def rollback(model: str, version: str, reason: Reason = "", by: By = USER, api: ApiUrl = API_DEFAULT,
             token: Token = None, as_json: AsJson = False,
             yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:  # fmt: skip
    """Take VERSION off the traffic now."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Take v{version} of {model} off the traffic?", abort=True)
    _ask("rollback", model, api, token, as_json, version=version, reason=reason, by=by)


@app.command()
def promote(model: str, reason: Reason = "", by: By = USER, api: ApiUrl = API_DEFAULT, token: Token = None,
            as_json: AsJson = False) -> None:  # fmt: skip
    """Give the candidate all traffic now."""
    _ask("promote", model, api, token, as_json, reason=reason, by=by)


@app.command()
def pause(model: str, reason: Reason = "", by: By = USER, api: ApiUrl = API_DEFAULT, token: Token = None,
          as_json: AsJson = False) -> None:  # fmt: skip
    """Stop the rollout where it is."""
    _ask("pause", model, api, token, as_json, reason=reason, by=by)


@app.command()
def resume(model: str, reason: Reason = "", by: By = USER, api: ApiUrl = API_DEFAULT, token: Token = None,
           as_json: AsJson = False) -> None:  # fmt: skip
    """Go on with a paused rollout."""
    _ask("resume", model, api, token, as_json, reason=reason, by=by)


@app.command()
def retrain(model: str, reason: Reason = "", by: By = USER, api: ApiUrl = API_DEFAULT, token: Token = None,
            as_json: AsJson = False) -> None:  # fmt: skip
    """Ask for a successor of the stable version."""
    _ask("retrain", model, api, token, as_json, reason=reason, by=by)


if __name__ == "__main__":
    main()
