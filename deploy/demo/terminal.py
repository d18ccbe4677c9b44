"""Why: whoever runs the demo should see the story happen, in event time, in words an SRE would use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.demo.watch import LoopWatch
from schemas.control import Alert, AnyCommand, ControlTick, Decision, Deployment, Severity

Aside = Callable[[AnyCommand], str | None]
_SEVERITY = {Severity.PAGE: "bold red", Severity.TICKET: "yellow", Severity.INFO: "dim"}


def day(event_time_ms: int) -> str:
    """Event time as people say it: ``2013-06-14 12:00``."""
    return datetime.fromtimestamp(event_time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


class Story:
    """Prints one line for each thing that happens, under a progress bar where there is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: Any = None
        self._total = 0
        self._printed_share = -1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._named = False

    def service(self, name: str, text: str) -> None:
        """A line about a service of the platform."""
        self._console.print(f"  [dim]{name:<11}[/dim] {escape(text)}", highlight=False)

    def opens(self, api_url: str, what: str, requests: int) -> None:
        """The head of the story, and the progress bar over so many requests."""
        self._console.print(
            f"\nReplaying {what}. Watch it on [link={api_url}]{api_url}[/link]\n", highlight=False
        )
        self._total = requests
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.fields[when]}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:>7,} / {task.total:,} requests"),
                TextColumn("{task.fields[labels]:>7,} labels"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("replay", total=requests, when="2013", labels=0)
            self._bar.start()

    def progress(self, event_time_ms: int, sent: int, labels: int) -> None:
        """Called by the replay after every step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=sent, when=day(event_time_ms)[:10], labels=labels)
        elif self._total and sent * 10 // self._total > self._printed_share:
            self._printed_share = sent * 10 // self._total
            self._say(event_time_ms, "replay", "dim", f"{sent:,} requests, {labels:,} labels")

    def follow(self, watch: LoopWatch, models: Sequence[str], aside: Aside | None = None) -> None:
        """Print alerts, decisions and routing changes of ``models`` as they appear, until closed.

        ``aside(command)``: what is to be said of a fact on `control`, if anything.
        """
        self._named = len(models) > 1
        self._thread = threading.Thread(
            target=self._follow, args=(watch, tuple(models), aside), name="story", daemon=True
        )
        self._thread.start()

    def _follow(self, watch: LoopWatch, models: tuple[str, ...], aside: Aside | None) -> None:
        commands = alerts = decisions = 0
        revisions = dict.fromkeys(models, 0)
        weights: dict[str, dict[str, float]] = {model: {} for model in models}
        while True:
            last = self._stop.wait(0.2)
            for command in watch.commands[commands:]:
                commands += 1
                fact = command.record
                if aside is not None and not isinstance(fact, ControlTick) and (text := aside(fact)):
                    self._say(fact.event_time_ms, "analysis", "magenta", text, fact.model)
            for alert in watch.alerts[alerts:]:
                alerts += 1
                self._alert(alert.record)
            for decision in watch.decisions[decisions:]:
                decisions += 1
                self._decision(decision.record)
            for model in models:
                for deployment in watch.deployments.get(model, [])[revisions[model] :]:
                    revisions[model] += 1
                    if deployment.record.weights != weights[model]:
                        weights[model] = deployment.record.weights
                        self._weights(deployment.record)
            if last:
                return

    def _alert(self, alert: Alert) -> None:
        style = _SEVERITY[alert.severity] if alert.status == "trigger" else "green"
        self._say(
            alert.event_time_ms,
            alert.severity if alert.status == "trigger" else "resolved",
            style,
            alert.title,
        )

    def _decision(self, decision: Decision) -> None:
        if not decision.kind.startswith("alert"):
            self._say(decision.event_time_ms, decision.kind, "cyan", decision.detail, decision.model)

    def _weights(self, deployment: Deployment) -> None:
        split = (
            ", ".join(f"v{version} {share:.0%}" for version, share in deployment.weights.items())
            or "fallback only"
        )
        text = f"{split} ({deployment.phase})"
        self._say(deployment.event_time_ms, "traffic", "bold blue", text, deployment.model)

    def _say(self, event_time_ms: int, what: str, style: str, text: str, model: str = "") -> None:
        if self._named and model:
            text = f"{model}: {text}"
        self._console.print(
            f"  [dim]{day(event_time_ms)}[/dim]  [{style}]{what:<17}[/{style}] {escape(text)}",
            highlight=False,
        )

    def close(self) -> None:
        """Stop following and leave the bar where it is. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
