"""Why: a trial that only looks right proves nothing; this says how each ended, what its candidate had, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.demo.terminal import day
from deploy.demo.traffic import OBEYED_S, Traffic
from deploy.demo.trials import CANDIDATE, STABLE, Trial
from schemas.control import Deployment, Phase


@dataclass(slots=True)
class Result:
    """How one trial ended. ``end``: promoted, rolled-back, stopped, failed or open; ``why``: the controller's words.

    ``steps``: the shares it was to walk through; ``step``: the greatest of those it entered.
    """

    trial: Trial
    end: str
    why: str
    steps: tuple[float, ...]
    step: float
    traffic: Traffic
    started: str
    ended: str

    @property
    def failures(self) -> list[str]:
        """What went otherwise than it should, in sentences."""
        name, traffic, found = f"{self.trial.strategy}, {self.trial.candidate} candidate", self.traffic, []
        if self.end != self.trial.expected:
            found.append(f"{name}: it is {self.end} ({self.why}), expected was {self.trial.expected}")
        if traffic.weight_max > self.step:
            found.append(
                f"{name}: it had {traffic.weight_max:.0%} of the traffic, its step is {self.step:.0%}"
            )
        if traffic.beyond:
            found.append(f"{name}: it gave {traffic.beyond} answers beyond its step")
        if traffic.last_s is not None and traffic.last_s >= OBEYED_S:
            found.append(f"{name}: it answered for {traffic.last_s:.2f} s after it was rolled back")
        winner = CANDIDATE if self.end == "promoted" else STABLE
        if set(traffic.after) != {winner}:
            found.append(f"{name}: afterwards v{winner} alone should answer, and did {traffic.after}")
        return found

    def document(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "model": self.trial.model,
            "strategy": self.trial.strategy,
            "candidate": self.trial.candidate,
            "end": self.end,
            "why": self.why,
            "steps": list(self.steps),
            "step": self.step,
            "weight_max": self.traffic.weight_max,
            "share_max": round(self.traffic.share_max, 5),
            "shares": [
                {"weight": s.weight, "given": s.given, "answers": s.answers} for s in self.traffic.shares
            ],
            "answers_beyond_its_step": self.traffic.beyond,
            "last_answer_after_rollback_s": self.traffic.last_s,
            "answers_afterwards": self.traffic.after,
            "started": self.started,
            "ended": self.ended,
        }


@dataclass(slots=True)
class RolloutReport:
    """All trials, and whether every request has its one answer."""

    results: list[Result] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """What is written to the report's file."""
        trials = [result.document() for result in self.results]
        return self.figures | {"trials": trials, "failures": self.failures}


def result_of(trial: Trial, revisions: list[Deployment], traffic: Traffic) -> Result:
    """The verdict on one trial, by its model's committed revisions (at least one) and its traffic."""
    rollout = [now for now in revisions if now.candidate == CANDIDATE]
    last = revisions[-1]
    return Result(
        trial=trial,
        end=_end(last),
        why=last.reason,
        steps=tuple(weight for weight, _ in rollout[-1].steps) if rollout else (),
        step=max((now.steps[now.step][0] for now in rollout if now.steps), default=0.0),
        traffic=traffic,
        started=day(rollout[0].rollout_since_ms or rollout[0].event_time_ms) if rollout else "",
        ended=day(last.event_time_ms),
    )


def _end(now: Deployment) -> str:
    """What became of the candidate, by the newest revision."""
    if now.candidate is not None:
        return "open"
    if now.stable == CANDIDATE and now.weights == {CANDIDATE: 1.0}:
        return "promoted"
    if now.phase is Phase.SUCCEEDED:
        return "stopped"
    return now.phase.value


def print_rollouts(report: RolloutReport, console: Console) -> None:
    """The verdict a person reads."""
    for result in report.results:
        traffic, trial = result.traffic, result.trial
        title = f"{trial.strategy} with a {trial.candidate} candidate: {result.end}"
        table = Table(title=title, title_justify="left", show_header=False)
        given = [f"{s.given:,} of {s.answers:,} ({s.share:.1%}) at {s.weight:.0%}" for s in traffic.shares]
        rows = [
            ("why", result.why),
            ("rollout", f"{result.started} to {result.ended}, shares {_shares(result.steps)}"),
            ("greatest share decided", f"{traffic.weight_max:.0%}, its step {result.step:.0%}"),
            ("answers it gave", "; ".join(given)),
            ("of them beyond its step", str(traffic.beyond)),
            ("answers afterwards", ", ".join(f"v{v}: {n:,}" for v, n in sorted(traffic.after.items()))),
        ]
        if traffic.last_s is not None:
            rows.append(("last answer after the rollback", f"{traffic.last_s:.2f} s"))
        for row in rows:
            table.add_row(*row)
        console.print(table)
    figures = report.figures
    console.print(
        f"{figures['requests']:,} requests, {figures['answered']:,} answered, {figures['answered_twice']} twice, "
        f"in {figures['seconds']} s",
        highlight=False,
    )
    if not report.failures:
        console.print("[green]Each ended as it should, and no candidate had more than its step.[/green]")


def _shares(steps: tuple[float, ...]) -> str:
    return ", ".join(f"{weight:.0%}" for weight in steps)
