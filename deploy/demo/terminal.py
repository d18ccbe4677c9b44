"""Why: whoever runs the demo should see the story happen, in event time, in words an SRE would use."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.demo.watch import LoopWatch
from schemas.control import Alert, Decision, Deployment, Severity

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

    def service(self, name: str, text: str) -> None:
        """A line about a service of the platform."""
        self._console.print(f"  [dim]{name:<11}[/dim] {escape(text)}", highlight=False)

    def opens(self, api_url: str, flights: int, options: Any) -> None:
        """The head of the story, and the progress bar."""
        what = f"{flights:,} flights of 2013"
        if options.no_drift:
            what += ", shuffled over time (no drift)"
        if options.healthy_v3:
            what += ", v3 healthy"
        self._console.print(
            f"\nReplaying {what}. Watch it on [link={api_url}]{api_url}[/link]\n", highlight=False
        )
        self._total = flights
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.fields[when]}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:>7,} / {task.total:,} flights"),
                TextColumn("{task.fields[labels]:>7,} labels"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("replay", total=flights, when="2013-01-01", labels=0)
            self._bar.start()

    def progress(self, event_time_ms: int, sent: int, labels: int) -> None:
        """Called by the replay after every step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=sent, when=day(event_time_ms)[:10], labels=labels)
        elif self._total and sent * 10 // self._total > self._printed_share:
            self._printed_share = sent * 10 // self._total
            self._say(event_time_ms, "replay", "dim", f"{sent:,} flights, {labels:,} labels")

    def follow(self, watch: LoopWatch, model: str) -> None:
        """Print alerts, decisions and routing changes of ``model`` as they appear, until closed."""
        self._thread = threading.Thread(target=self._follow, args=(watch, model), name="story", daemon=True)
        self._thread.start()

    def _follow(self, watch: LoopWatch, model: str) -> None:
        alerts = decisions = revisions = 0
        weights: dict[str, float] = {}
        while True:
            last = self._stop.wait(0.2)
            for alert in watch.alerts[alerts:]:
                self._alert(alert.record)
            alerts = len(watch.alerts)
            for decision in watch.decisions[decisions:]:
                self._decision(decision.record)
            decisions = len(watch.decisions)
            deployments = watch.deployments.get(model, [])
            for deployment in deployments[revisions:]:
                if deployment.record.weights != weights:
                    weights = deployment.record.weights
                    self._weights(deployment.record)
            revisions = len(deployments)
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
            self._say(decision.event_time_ms, decision.kind, "cyan", decision.detail)

    def _weights(self, deployment: Deployment) -> None:
        split = (
            ", ".join(f"v{version} {share:.0%}" for version, share in deployment.weights.items())
            or "fallback only"
        )
        self._say(deployment.event_time_ms, "traffic", "bold blue", f"{split} ({deployment.phase})")

    def _say(self, event_time_ms: int, what: str, style: str, text: str) -> None:
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
