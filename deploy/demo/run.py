"""Why: the complete loop, on real data, in one command, with an exit status that says whether it closed.

Starts the platform, replays the year 2013, plays the operator where a person would act (ask for the first training,
deploy the third version), and reports what came out. Nothing in the story is scripted: detections, the retrain and the
rollback happen because the data makes them happen, or they do not happen.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deploy.demo.flights import DAY_MS, Flights, load_flights, month_start_ms
from deploy.demo.operator import Operator
from deploy.demo.replay import Replay
from deploy.demo.report import Report, build_report, print_report
from deploy.demo.stage import perform
from deploy.demo.terminal import Story
from deploy.demo.verify import verify, wait_for_warehouse
from deploy.demo.watch import LoopWatch
from deploy.local.platform import Platform
from deploy.models import publish_records
from schemas.contracts import ModelRecord, load_contract

MODEL = "flights"
CONTRACT = Path(__file__).with_name("flights.yaml")
STEP_MS = DAY_MS
SPAN_MS = 2 * DAY_MS
FIRST_TRAINING_MONTH = 3
#: The operator deploys the third version on 25 August.
OPERATOR_MONTH, OPERATOR_DAY = 8, 25


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What ``driftline demo`` was asked for. ``kill``: (service, month, day) to ``kill -9`` when the replay gets there."""

    sample: float = 1.0
    no_drift: bool = False
    healthy_v3: bool = False
    verify: bool = True
    seed: int = 7
    data_dir: Path | None = None
    keep: bool = False
    report: Path = Path("demo-report.json")
    api_port: int = 0
    input_partitions: int = 4
    kill: tuple[tuple[str, int], ...] = ()


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the whole story. Returns the exit status: 0 only if nothing was lost and the loop closed as it should."""
    began = time.monotonic()
    with ThreadPoolExecutor(1) as loader:
        loading = loader.submit(load_flights, options.sample, shuffle=options.no_drift, seed=options.seed)
        return perform(
            options,
            console,
            SPAN_MS,
            lambda platform, story: _play(options, platform, loading.result(), story, began),
            print_report,
        )


def _play(options: DemoOptions, platform: Platform, flights: Flights, story: Story, began: float) -> Report:
    contract = load_contract(CONTRACT)
    publish_records(platform.kafka, [ModelRecord(contract=contract)])
    watch = LoopWatch(platform.kafka, alive=lambda: platform.failure)
    watch.start()
    operator = Operator(platform, contract, watch)
    story.opens(platform.api_url, _what(options, len(flights)), len(flights))
    replay = Replay(platform.kafka, flights, watch, (MODEL,), STEP_MS, SPAN_MS, story.progress)
    story.follow(watch, (MODEL,))
    try:
        ready = time.monotonic()
        start, end = _whole_days(flights)
        _replay_year(options, platform, replay, operator, start, end)
        settled = end + contract.monitoring.label_horizon + contract.monitoring.window + DAY_MS
        replay.tick(settled)
        replay.drain(settled)
        replayed = time.monotonic()
        wait_for_warehouse(platform.clickhouse, settled, replay.sent)
        checked = verify(flights, contract, platform.kafka, platform.clickhouse) if options.verify else None
        story.close()
        return build_report(
            options=options,
            clickhouse=platform.clickhouse,
            flights=flights,
            replay=replay,
            watch=watch,
            contract=contract,
            checked=checked,
            seconds={
                "start_s": ready - began,
                "replay_s": replayed - ready,
                "paced_s": replay.waited_s,
                "total_s": time.monotonic() - began,
            },
            restarted=platform.restarted,
        )
    finally:
        replay.stop()
        watch.stop()


def _what(options: DemoOptions, flights: int) -> str:
    shuffled = ", shuffled over time (no drift)" if options.no_drift else ""
    return f"{flights:,} flights of 2013{shuffled}{', v3 healthy' if options.healthy_v3 else ''}"


def _replay_year(
    options: DemoOptions,
    platform: Platform,
    replay: Replay,
    operator: Operator,
    start: int,
    end: int,
) -> None:
    acts: list[tuple[int, str, object]] = [
        (month_start_ms(FIRST_TRAINING_MONTH), "first", operator.first_training),
        (
            month_start_ms(OPERATOR_MONTH) + (OPERATOR_DAY - 1) * DAY_MS,
            "deploy",
            lambda: operator.deploy_candidate(healthy=options.healthy_v3),
        ),
        *((at, "kill", lambda name=name: platform.kill(name)) for name, at in options.kill),
    ]
    at = start
    for when, kind, act in sorted(acts, key=lambda item: item[0]):
        replay.run(at, when)
        at = max(at, when)
        if kind != "kill":
            replay.drain(at - 1)
        while kind == "deploy" and operator.rollout_open():
            # As a person would, the operator lets a rollout that is under way end first.
            replay.run(at, at + DAY_MS)
            at += DAY_MS
            replay.drain(at - 1)
        assert callable(act)
        act()
    replay.run(at, end)


def _whole_days(flights: Flights) -> tuple[int, int]:
    """The replay's span: from the day of the first flight to the day after the last label, in whole UTC days."""
    first = int(flights.departs_ms[0])
    last = max(int(flights.departs_ms[-1]), int(flights.label_ms.max()))
    return first // DAY_MS * DAY_MS, (last // DAY_MS + 1) * DAY_MS
