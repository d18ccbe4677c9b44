"""Why: each strategy, tried on real flights with a good and with a bad candidate, in one command that says how it went.

Everything is as in production: a platform of its own, versions registered and signed, the deploy asked for over HTTP, the
monitor, the controller and the scorer deciding by what they see. Only event time runs faster than the clock. What came of
it is read off the committed topics.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from deploy.core import analysis
from deploy.core.schedule import due
from deploy.demo.flights import DAY_MS, HOUR_MS, Flights, load_flights
from deploy.demo.operator import Operator
from deploy.demo.replay import Replay
from deploy.demo.stage import perform
from deploy.demo.terminal import Story
from deploy.demo.traffic import read_answers, traffic_of
from deploy.demo.trials import (
    ALONE_MS,
    BEGIN_MS,
    CANDIDATE,
    STABLE,
    Trained,
    Trial,
    register,
    train_models,
)
from deploy.demo.verdicts import RolloutReport, print_rollouts, result_of
from deploy.demo.watch import LoopWatch
from deploy.local.platform import Platform
from deploy.models import publish_records
from deploy.registry import Registry
from schemas.contracts import ModelContract
from schemas.control import AnyCommand, CanaryAnalysis, Measured
from schemas.signing import Signer

STEP_MS = 6 * HOUR_MS
SPAN_MS = 12 * HOUR_MS
#: No rollout is waited for longer; after it has ended the flights go on for so long, so that it is seen who answers them.
DAYS_MAX = 24
AFTER_MS = DAY_MS


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """What ``driftline demo --strategy`` was asked for. Several trials run side by side on one platform."""

    trials: tuple[Trial, ...]
    sample: float = 1.0
    seed: int = 7
    data_dir: Path | None = None
    keep: bool = False
    report: Path = Path("demo-report.json")
    api_port: int = 0
    input_partitions: int = 4


def run_rollouts(options: RolloutOptions, console: Console) -> int:
    """Run the trials. Returns the exit status: 0 only if each ended as it should and no candidate exceeded its step."""
    began = time.monotonic()
    with ThreadPoolExecutor(1) as aside:
        prepared = aside.submit(prepare, options)

        def play_timed(platform: Platform, story: Story) -> RolloutReport:
            report = play(options, platform, *prepared.result(), story)
            report.figures["seconds"] = round(time.monotonic() - began, 1)
            return report

        return perform(options, console, SPAN_MS, play_timed, print_rollouts)


def prepare(options: RolloutOptions) -> tuple[Flights, Trained]:
    """The flights to replay, and the models: they learn from all flights, however few are replayed."""
    end = BEGIN_MS + DAYS_MAX * DAY_MS + AFTER_MS
    trained = train_models(load_flights())
    return load_flights(options.sample, seed=options.seed).between(BEGIN_MS, end), trained


def play(
    options: RolloutOptions, platform: Platform, flights: Flights, trained: Trained, story: Story
) -> RolloutReport:
    """Run the trials on a platform that is paced by event time (``stage.paced(SPAN_MS)``); it stays up."""
    registry = Registry(platform.registry, Signer.load(platform.signing_key))
    contracts = {trial.model: trial.contract() for trial in options.trials}
    for trial in options.trials:
        publish_records(platform.kafka, register(registry, trial, trained))
    watch = LoopWatch(platform.kafka, alive=lambda: platform.failure)
    watch.start()
    pace = Pace(watch, contracts)
    replay = Replay(
        platform.kafka, flights, watch, tuple(contracts), STEP_MS, SPAN_MS, story.progress, pace.behind
    )
    try:
        names = ", ".join(f"{trial.strategy} with a {trial.candidate} candidate" for trial in options.trials)
        what = f"the flights of September 2013: {names}"
        story.opens(platform.api_url, what, len(flights) * len(contracts))
        story.follow(watch, tuple(contracts), lambda command: said_of(command, contracts))
        operators = [Operator(platform, contract, watch) for contract in contracts.values()]
        replay.run(BEGIN_MS, BEGIN_MS)
        replay.drain(BEGIN_MS - 1)
        for operator in operators:
            operator.deploy(STABLE, "the first version")
        at = BEGIN_MS + ALONE_MS
        replay.run(BEGIN_MS, at)
        replay.drain(at - 1)
        for operator in operators:
            operator.deploy(CANDIDATE, "trained on July and August with all its trees")
        at = _until_over(replay, operators, at)
        replay.run(at, at + AFTER_MS)
        replay.drain(at + AFTER_MS - 1)
        story.close()
        return _report(options, platform, watch, replay)
    finally:
        replay.stop()
        watch.stop()


def _until_over(replay: Replay, operators: list[Operator], at: int) -> int:
    """Replay until no rollout is open; the event time reached."""
    end = BEGIN_MS + DAYS_MAX * DAY_MS
    while at < end and any(operator.rollout_open() for operator in operators):
        replay.run(at, at + STEP_MS)
        at += STEP_MS
    replay.drain(at - 1)
    return at


@dataclass(slots=True)
class Pace:
    """Measurements are taken by the clock; a replay that runs ahead of them would make them late."""

    watch: LoopWatch
    contracts: dict[str, ModelContract]
    _read: int = 0
    _measured: dict[tuple[str, str], int] = field(default_factory=dict)

    def behind(self, event_time_ms: int) -> bool:
        """Whether a measurement that was due by then has not been taken."""
        for stamped in self.watch.commands[self._read :]:
            self._read += 1
            if isinstance(stamped.record, Measured):
                for m in stamped.record.measurements:
                    self._measured[stamped.record.model, m.metric] = m.to_ms
        return any(self._waits(contract, event_time_ms) for contract in self.contracts.values())

    def _waits(self, contract: ModelContract, event_time_ms: int) -> bool:
        now = self.watch.newest(contract.model)
        return now is not None and any(
            self._measured.get((contract.model, metric.name), 0) < task.at_ms
            for task in due(now, contract.rollout, event_time_ms)
            for metric, _ in task.metrics
        )


def said_of(command: AnyCommand, contracts: dict[str, ModelContract]) -> str | None:
    """An analysis in words: what was compared, how large the difference is, and its confidence sequence."""
    if isinstance(command, CanaryAnalysis):
        seen = command.evidence
        low, high = seen.interval or (float("nan"), float("nan"))
        return (
            f"{command.detector}: {command.state} on {seen.rows:,} pairs, Brier {seen.effect or 0:+.4f} "
            f"[{low:+.4f}, {high:+.4f}], e-value of harm {command.score:.3g} of {command.threshold:.3g}"
        )
    if isinstance(command, Measured) and command.model in contracts:
        metrics = {m.name: m for m in contracts[command.model].rollout.metrics}
        said = []
        for m in command.measurements:
            reading = analysis.read(metrics[m.metric], m, None)
            low, high = reading.interval or (float("nan"), float("nan"))
            value = float("nan") if reading.value is None else reading.value
            said.append(
                f"{m.metric}: {reading.standing} on {m.rows:,} pairs that count for {m.counts_for or m.rows:,}, "
                f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
                f"{' better' if reading.better else ''} {reading.detail or m.error}".rstrip()
            )
        return "; ".join(said)
    return None


def _report(
    options: RolloutOptions,
    platform: Platform,
    watch: LoopWatch,
    replay: Replay,
) -> RolloutReport:
    answers = read_answers(platform.kafka)
    report = RolloutReport()
    for trial in options.trials:
        revisions = watch.deployments.get(trial.model, [])
        traffic = traffic_of(revisions, answers.get(trial.model, []), CANDIDATE)
        report.results.append(result_of(trial, [stamped.record for stamped in revisions], traffic))
    report.figures = {
        "requests": replay.sent,
        "answered": sum(replay.answers.by_version.values()),
        "rejected": replay.answers.rejected,
        "answered_twice": replay.answers.doubled,
    }
    report.failures = [failure for result in report.results for failure in result.failures]
    if report.figures["answered"] != replay.sent or replay.answers.doubled:
        report.failures.append(
            f"{replay.sent} requests, {report.figures['answered']} answered, {replay.answers.doubled} of them twice"
        )
    return report
