"""Why: "nothing lost, nothing twice" is a claim about the worst day; this command has one, and checks the books after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.errors import ConfigurationError

#: After an hour the broker compacts the history of transactions that decisions are explained with.
MINUTES_MAX = 50.0


def chaos(
    minutes: Annotated[
        float, typer.Option(help="How long the load runs and faults are injected, at most 50.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="Decides what is broken, when and in which order.")] = 7,
    report: Annotated[Path, typer.Option(help="Where the JSON report goes.")] = Path("chaos-report.json"),
    events_per_s: Annotated[
        float, typer.Option(help="Predictions a second; labels, repeats and garbage come on top.")
    ] = 300.0,
    partitions: Annotated[int, typer.Option(min=1, max=1024, help="Input partitions.")] = 4,
    workers: Annotated[
        int,
        typer.Option(
            min=1, max=16, help="Monitor workers that share the partitions; each is killed in turn."
        ),
    ] = 1,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep everything here; must be new. Else a directory that is removed.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Do not remove the temporary directory.")] = False,
) -> None:
    """Break the running loop at random. Then compare everything with an exact offline computation.

    Starts Kafka, the warehouse and every service over a fresh directory and puts load on them: duplicates, late and
    stray rows, labels before, long after and again, garbage, and a drift in the middle. Meanwhile processes are killed
    and stopped, the broker and the warehouse with them, files cannot be written, the clock steps. The same seed breaks
    the same things in the same order; the schedule is printed first. Exit status 0 only when nothing is lost and
    nothing is twice.
    """
    if not 0 < minutes <= MINUTES_MAX or events_per_s <= 0:
        raise ConfigurationError(f"--minutes is above 0 and at most {MINUTES_MAX:g}, --events-per-s above 0")
    if data_dir is not None and data_dir.expanduser().exists() and any(data_dir.expanduser().iterdir()):
        raise ConfigurationError(f"--data-dir {data_dir}: a chaos run needs a directory that is new or empty")

    from deploy.chaos.run import ChaosOptions, run_chaos
    from deploy.commands.local import interruptible

    options = ChaosOptions(
        minutes=minutes,
        seed=seed,
        events_per_s=events_per_s,
        report=report,
        data_dir=None if data_dir is None else data_dir.expanduser(),
        keep=keep,
        input_partitions=partitions,
        workers=workers,
    )
    interruptible()
    try:
        raise typer.Exit(run_chaos(options, lambda service, text: typer.echo(f"{service:<12}{text}")))
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None
