"""What ``driftline detectors`` and ``driftline calibrate`` run, as a process: the acting side never imports this package.

Reads files and prints; everything it says is worked out by the pure modules beside it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.errors import ConfigurationError, DriftlineError

if TYPE_CHECKING:
    from detectors.tools.trial import Trial

#: Narrower than this a table of sentences is unreadable; files and pipes have no width.
_WIDTH_MIN = 100
_WIDTH_PIPE = 160

app = typer.Typer(
    name="driftline detectors",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The kinds of detectors there are, what each sees and costs, and trials of them on files.",
    epilog="`driftline detectors` alone lists them; `driftline detectors NAME` shows one.",
)
Kind = Annotated[str, typer.Argument(help="A kind, as `driftline detectors` lists them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal and console.width >= _WIDTH_MIN else Console(width=_WIDTH_PIPE)


@app.command("list")
def list_(
    as_json: AsJson = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of detectors/README.md.")
    ] = False,
) -> None:
    """List the kinds. What each reads, sees and costs, and whether it may wake a person."""
    from detectors.tools.catalogue import as_json as shown
    from detectors.tools.catalogue import cost, entries, markdown

    found = entries()
    if as_json:
        typer.echo(json.dumps([shown(entry) for entry in found], indent=1))
        return
    if as_markdown:
        typer.echo(markdown(found))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 1, 0))
    table.add_column("kind", no_wrap=True, style="bold")
    table.add_column("reads (family)", min_width=22)
    table.add_column("cost a row", justify="right", no_wrap=True)
    table.add_column("state", ratio=2)
    table.add_column("restart")
    table.add_column("pages")
    table.add_column("sees", ratio=3)
    table.add_column("blind to", ratio=3)
    for e in found:
        reads = "\n".join(f"{stream} ({family})" for stream, family in e.reads.items())
        table.add_row(e.kind, reads, cost(e.cost_ns), e.state, e.restart, e.pages, e.sees, e.blind_to)
    _console().print(table)
    typer.echo(
        "cost: one core, one row of ten columns where a kind reads many. restart: exact goes on as if never stopped, "
        "warm-up learns again.\npages: whether its false alarms can be bounded well enough to wake a person. "
        "`driftline detectors NAME` says the rest,\n`driftline detectors try NAME FILE.csv` runs one over a file."
    )


@app.command()
def show(kind: Kind, as_json: AsJson = False) -> None:
    """Show one kind whole: why it exists, its formula, paper and options."""
    from detectors.registry import spec_class
    from detectors.tools.catalogue import as_json as shown
    from detectors.tools.catalogue import cost, documentation, entry, options

    found = entry(kind)
    if as_json:
        schema = spec_class(kind).model_json_schema()
        typer.echo(json.dumps(shown(found) | {"doc": documentation(kind), "options": schema}, indent=1))
        return
    from rich.table import Table

    console = _console()
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in (
        ("reads", ", ".join(f"{stream} ({family})" for stream, family in found.reads.items())),
        ("sees", found.sees),
        ("blind to", found.blind_to),
        ("cost a row", cost(found.cost_ns)),
        ("state", found.state),
        ("restart", found.restart),
        ("may page", found.pages),
    ):
        facts.add_row(f"[bold]{name}[/bold]", value)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("option", "type", "default", ""):
        table.add_column(name)
    for option in options(kind):
        default = "required" if option.required else json.dumps(option.default)
        words = option.description + (" The knob that is fitted to the budget." if option.knob else "")
        table.add_row(option.name, option.type, default, words.strip())
    typer.echo(f"{kind}\n\n{documentation(kind)}\n")
    console.print(facts)
    typer.echo("")
    console.print(table)


@app.command("try")
def try_(
    kind: Kind,
    file: Annotated[Path, typer.Argument(help="A CSV file whose first line names the columns.")],
    options: Annotated[str, typer.Option(help="The kind's options, JSON.")] = "{}",
    columns: Annotated[
        str | None, typer.Option(help="Columns to read, a,b,c; else all that say something.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="The column of times: ISO 8601, or seconds or milliseconds since 1970.")
    ] = None,
    row_every: Annotated[str, typer.Option(help="Time between rows of a file without times.")] = "1m",
    reference_rows: Annotated[
        int, typer.Option(min=1, help="So many first rows are the reference: what no drift looks like.")
    ] = 2_000,
    reference: Annotated[
        Path | None, typer.Option(help="Another CSV file as the reference; then FILE is read from its start.")
    ] = None,
    stream: Annotated[
        str | None, typer.Option(help="features, score, predictions, loss or comparison.")
    ] = None,
    per: Annotated[str, typer.Option(help="At most one false alarm in so much event time.")] = "30d",
    plot: Annotated[Path | None, typer.Option(help="Write the picture here, as SVG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run one over a CSV file. Prints every change of its verdict and draws its score."""
    from detectors.registry import spec_class
    from detectors.tools.tables import read_csv
    from detectors.tools.trial import default_stream, try_kind
    from schemas.contracts import FalsePages

    spec = spec_class(kind)
    table = read_csv(file)
    if stream is not None and stream not in spec.streams:
        raise ConfigurationError(f"--stream {stream}: {kind} reads {', '.join(spec.streams)}")
    trial = try_kind(
        kind,
        table,
        stream=default_stream(spec, table) if stream is None else stream,  # type: ignore[arg-type]  # checked above
        options=_options(options),
        columns=[name.strip() for name in columns.split(",") if name.strip()] if columns else (),
        time=time,
        row_ms=_duration("--row-every", row_every),
        reference_rows=reference_rows,
        reference=None if reference is None else read_csv(reference),
        false_pages=FalsePages(max=1, per=_duration("--per", per)),
    )
    _report(kind, file, trial, plot, as_json)


def _options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--options {text}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"--options {text}: write an object, for example '{{\"rows_min\": 50}}'")
    return found


def _duration(name: str, text: str) -> int:
    from schemas.contracts import parse_duration_ms

    try:
        found = int(parse_duration_ms(text))
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}") from None
    if found <= 0:
        raise ConfigurationError(f"{name} {text}: must be more than 0")
    return found


def _report(kind: str, file: Path, trial: Trial, plot: Path | None, as_json: bool) -> None:
    from detectors.tools import report
    from detectors.tools.plot import Picture, svg, terminal

    title = f"{kind} over {file.name}: {len(trial.alarms)} alarms in {trial.rows - trial.start:,} rows"
    picture = Picture(title, trial.points, trial.alarms, trial.start, trial.rows - 1)
    if plot is not None:
        try:
            plot.write_text(svg(picture))
        except OSError as error:
            raise ConfigurationError(f"--plot {plot}: cannot be written: {error}") from error
    if as_json:
        typer.echo(json.dumps(report.trial_json(trial), indent=1))
        return
    console = _console()
    for note in trial.notes:
        typer.echo(f"note: {note}")
    for line in report.heading(kind, file, trial):
        typer.echo(line)
    typer.echo("")
    console.print(report.changes(trial))
    typer.echo("")
    typer.echo(terminal(picture, width=min(console.width - 14, 120)))
    if plot is not None:
        typer.echo(f"\npicture in {plot}")


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A contract, YAML or JSON.")]) -> None:
    """Say whether a contract's detectors can be built, down to their options and columns."""
    from detectors.columns import columns_read
    from detectors.registry import spec_for
    from schemas.contracts import load_contract

    faults = []
    contract = load_contract(file)
    for config in contract.monitoring.detectors:
        try:
            columns_read(contract, config, spec_for(config))
        except ConfigurationError as error:
            faults.append(str(error))
    if faults:
        raise ConfigurationError(f"{file}: " + "\n".join(faults))


@app.command(hidden=True)  # people write `driftline calibrate`
def calibrate(
    file: Annotated[Path, typer.Argument(help="JSON: {contract, version}; version may be null.")],
    history: Annotated[Path | None, typer.Option(help="CSV of the model's history, free of drift.")] = None,
    time: Annotated[str | None, typer.Option(help="Its column of times.")] = None,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure false alarms. What every detector of a model promises, beside what it does on data without drift."""
    from detectors.tools import promises
    from detectors.tools.calibrate import duration
    from detectors.tools.tables import read_csv
    from schemas.contracts import ModelContract, ModelVersion

    try:
        data = json.loads(file.read_text())
        contract = ModelContract.model_validate(data["contract"])
        version = None if data.get("version") is None else ModelVersion.model_validate(data["version"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"{file}: not a contract and its version: {error}") from error
    table = None if history is None else read_csv(history)
    found = promises.measure(contract, version, table, time, seed)
    if as_json:
        typer.echo(json.dumps(promises.as_json(found), indent=1))
        return
    of = "its history" if version is None else f"version {version.version}"
    budget = contract.monitoring.false_pages
    typer.echo(
        f"{contract.model}, reference: {of}; at most {budget.max:g} false pages in {duration(budget.per)}, shared by "
        "the detectors that can page\n"
    )
    _console().print(promises.printed(found))
    typer.echo(
        "Alarms in the time that was run over, and the exact 95 % interval of the time between them. Resampled rows: "
        "drawn one by one;\nresampled days: whole days, so that autocorrelation shows; time order: rows held out of "
        "the reference, as they came."
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code: 0, 1 with one line that says what is wrong, 2 for a wrong call."""
    given = sys.argv[1:] if arguments is None else arguments
    # Libraries behind the adapters warn of their own affairs while they are imported.
    warnings.simplefilter("ignore")
    try:
        ended = app(given, standalone_mode=False, prog_name="driftline detectors")
    except DriftlineError as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    except ModuleNotFoundError as error:
        typer.echo(f"error: this kind needs the package {error.name}, which is not installed", err=True)
        return 1
    except typer.Abort:
        return 130
    except Exception as error:
        # Usage errors belong to typer, whose class of them is click's.
        show_usage = getattr(error, "show", None)
        if show_usage is None:
            raise
        show_usage()
        return int(getattr(error, "exit_code", 2))
    return ended if isinstance(ended, int) else 0


if __name__ == "__main__":
    sys.exit(main())
