"""Why: one command gives a newcomer the whole system, and one takes it away; the rest look at it from outside."""

from __future__ import annotations

import json
import signal
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.errors import ConfigurationError, PlatformError

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_DATA_DIR = Path("~/.local/share/driftline")
DEFAULT_API_PORT = 8080
DEMO_YEAR = 2013
_FOLLOW_S = 0.2

DataDir = Annotated[Path, typer.Option(help="Where Kafka, warehouse, registry and logs live.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: choose a free one.")]


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    kafka_port: Port = 9092,
    warehouse_port: Port = 8123,
    api_port: Port = DEFAULT_API_PORT,
    partitions: Annotated[int, typer.Option(min=1, max=1024, help="Input partitions of new topics.")] = 4,
) -> None:
    """Start everything here. Kafka, the warehouse and every service; Ctrl-C or SIGTERM stops them all."""
    from rich.console import Console

    from deploy.local.platform import Platform

    console = Console()
    platform = Platform(
        data_dir.expanduser(),
        kafka_port=kafka_port,
        warehouse_port=warehouse_port,
        api_port=api_port,
        input_partitions=partitions,
        say=lambda service, text: _say(console, service, text),
    )
    interruptible()
    try:
        platform.start()
        console.print(
            f"\nStatus page  {platform.api_url}\nKafka        {platform.kafka.bootstrap}\n"
            f"Warehouse    http://{platform.clickhouse.host}:{platform.clickhouse.port}\n"
            f"Data         {platform.data_dir}\n\n"
            'Commands in another terminal find it by: eval "$(driftline env)"\nCtrl-C stops everything.\n',
            highlight=False,
        )
        platform.wait()
    except KeyboardInterrupt:
        console.print("stopping", highlight=False)
    finally:
        platform.stop()
    if platform.failure:
        raise PlatformError(platform.failure)


def interruptible() -> None:
    """The first request to stop interrupts what is going on; later ones change nothing, so that stopping ends."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, lambda *_: None)
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        signal.signal(number, interrupt)


def _say(console: Console, service: str, text: str) -> None:
    from rich.text import Text

    console.print(Text.assemble((f"{service:<12}", "bold"), text))


def down(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stop what `up` started; the data stays."""
    from deploy.local.platform import stop_running

    stopped = stop_running(data_dir.expanduser())
    typer.echo("stopped" if stopped else f"nothing runs over {data_dir.expanduser()}")


def status(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is known as JSON.")] = False,
) -> None:
    """Show what runs: process, restarts, endpoint. Exit status 1 when nothing runs or a process is dead."""
    import psutil

    from deploy.local.platform import read_state

    state = read_state(data_dir.expanduser())
    if state is None:
        raise PlatformError(f"no platform runs over {data_dir.expanduser()}; `driftline up` starts one")
    endpoints = {"kafka": state["kafka"], "warehouse": state["clickhouse"], "controller": state["api"]}
    rows = [
        {
            "service": name,
            "pid": pid,
            "alive": psutil.pid_exists(pid),
            "restarts": state["restarted"].get(name, 0),
            "endpoint": endpoints.get(name, ""),
        }
        for name, pid in state["processes"].items()
    ]
    if as_json:
        typer.echo(json.dumps({"pid": state["pid"], "services": rows}, indent=1))
    else:
        _table(rows)
    if not all(row["alive"] for row in rows):
        raise typer.Exit(1)


def env(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Print what another shell needs to speak to what `up` started: eval "$(driftline env)"."""
    import shlex

    from deploy.local.platform import read_state

    state = read_state(data_dir.expanduser())
    if state is None:
        raise PlatformError(f"no platform runs over {data_dir.expanduser()}; `driftline up` starts one")
    for name, value in state["environment"].items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("service", "pid", "alive", "restarts", "endpoint"):
        table.add_column(name, justify="right" if name in ("pid", "restarts") else "left")
    for row in rows:
        alive = "[green]yes[/green]" if row["alive"] else "[red]no[/red]"
        table.add_row(row["service"], str(row["pid"]), alive, str(row["restarts"]), row["endpoint"])
    Console().print(table)


def logs(
    service: Annotated[str, typer.Argument(help="A service, kafka or warehouse.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 50,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the end of a log. Of a stopped platform too."""
    from deploy.local.platform import SERVICES

    root = data_dir.expanduser()
    stores = {name: root / name / f"{name}.log" for name in ("kafka", "warehouse")}
    paths = stores | {name: root / "logs" / f"{name}.log" for name in SERVICES}
    if service not in paths:
        raise ConfigurationError(f"unknown service {service!r}; known: {', '.join(paths)}")
    try:
        with paths[service].open(errors="replace") as source:
            for text in deque(source, maxlen=lines):
                typer.echo(text, nl=False)
            while follow:
                rest = source.read()
                typer.echo(rest, nl=False)
                if not rest:
                    time.sleep(_FOLLOW_S)
    except FileNotFoundError:
        raise PlatformError(
            f"{paths[service]} is not there: {service} was never started over {root}"
        ) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def demo(
    strategy: Annotated[
        str | None, typer.Option(help="Try one strategy instead: canary, shadow, blue-green, ab or dark.")
    ] = None,
    candidate: Annotated[
        str | None,
        typer.Option(help="With --strategy: good (if not given), or bad: it takes the hour in UTC."),
    ] = None,
    sample: Annotated[float, typer.Option(help="Share of the flights, above 0 up to 1.")] = 1.0,
    no_drift: Annotated[
        bool, typer.Option(help="Shuffle the flights over time: no retrain may happen.")
    ] = False,
    healthy_v3: Annotated[bool, typer.Option(help="Leave the defect out: no rollback may happen.")] = False,
    verify: Annotated[bool, typer.Option(help="Recompute every figure from the flights and compare.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of sample and shuffle.")] = 7,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep everything here; else a directory that is removed.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Do not remove the temporary directory.")] = False,
    report: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("demo-report.json"),
    api_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="8080, or a free one if that is taken.")
    ] = None,
    partitions: Annotated[int, typer.Option(min=1, max=1024)] = 4,
    kill: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVICE@MM-DD", help="kill -9 it on that day of 2013; repeatable."),
    ] = None,
) -> None:
    """Replay a year of flights. Through the whole loop: drift, retrain, defect, rollback.

    With --strategy: some days of it, in which one strategy lets a good candidate in or keeps a bad one out.
    """
    if not 0 < sample <= 1:
        raise ConfigurationError(f"--sample {sample:g}: must be above 0 and at most 1")
    kills = tuple(parse_kill(text) for text in kill or ())

    from rich.console import Console

    setting: dict[str, Any] = {
        "sample": sample,
        "seed": seed,
        "data_dir": data_dir,
        "keep": keep,
        "report": report,
        "api_port": demo_port() if api_port is None else api_port,
        "input_partitions": partitions,
    }
    run: Callable[[Console], int]
    if strategy is None and candidate is None:
        from deploy.demo.run import DemoOptions, run_demo

        year = DemoOptions(no_drift=no_drift, healthy_v3=healthy_v3, verify=verify, kill=kills, **setting)
        run = partial(run_demo, year)
    else:
        from deploy.demo.rollouts import RolloutOptions, run_rollouts
        from deploy.demo.trials import Trial

        if no_drift or healthy_v3 or kills or not verify:
            raise ConfigurationError(
                "--no-drift, --healthy-v3, --no-verify and --kill belong to the year's story, --strategy has none of them"
            )
        run = partial(run_rollouts, RolloutOptions((Trial.named(strategy, candidate or "good"),), **setting))
    interruptible()
    try:
        raise typer.Exit(run(Console()))
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None


def demo_port() -> int:
    """The usual API port, or 0 (choose one) when somebody has it."""
    from deploy.local.children import require_free_port

    try:
        require_free_port(DEFAULT_API_PORT, "the status page")
    except PlatformError:
        return 0
    return DEFAULT_API_PORT


def parse_kill(text: str) -> tuple[str, int]:
    """``monitor@07-15`` as (service, event time in ms of that UTC day's start). Raises ConfigurationError."""
    from deploy.local.platform import SERVICES

    service, _, day = text.partition("@")
    if service not in SERVICES:
        raise ConfigurationError(f"--kill {text}: {service!r} is no service; known: {', '.join(SERVICES)}")
    try:
        at = datetime.strptime(f"{DEMO_YEAR}-{day}", "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ConfigurationError(f"--kill {text}: write SERVICE@MM-DD, for example {service}@07-15") from None
    return service, int(at.timestamp()) * 1000
