"""The end of a chaos run: waits until nothing is on its way any more, and says what did not come to rest."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError

from deploy.chaos.actual import Topics
from deploy.chaos.faults import Say
from deploy.chaos.load import HORIZON_MS, Load
from deploy.chaos.model import DIRECT, SCORED
from deploy.chaos.probe import Probe, wait_for
from deploy.demo.watch import LoopWatch
from deploy.local.platform import STATE_FILE, STORES, Platform
from schemas.clock import wall_ms

#: At the end event time goes on by this much: every window is closed and final, every rollout over.
AFTER_MS = HORIZON_MS + 120_000
DRAIN_S = 120.0
QUIET_S = 4.0


def drain(platform: Platform, load: Load, probe: Probe, watch: LoopWatch, say: Say) -> list[str]:
    """Tell the end of event time and wait until the loop has taken all of it in; what went wrong, empty if nothing."""
    problems: list[str] = []

    def until(what: str, condition: Callable[[], bool]) -> None:
        # What comes to rest after something that did not says nothing.
        if not problems and not wait_for(condition, DRAIN_S, lambda: platform.failure):
            problems.append(platform.failure or f"{what}: not within {DRAIN_S:.0f} s")
            say("chaos", f"FAILED {problems[-1]}")

    processes = {*STORES, *platform.restarted}
    until("all processes up", lambda: all(platform.ready(name) for name in processes))
    until("an answer to every request", lambda: probe.open_requests <= 0)
    # Rows found astray are sent on; their second way must be behind them when the end of time is told.
    now_ms = wall_ms()
    until("the loop to take in all of the load", lambda: watch.watermark_ms >= now_ms)
    # An answer counts from behind its question on: the clock must still go.
    until("every label that is looked up to be answered", lambda: _none(platform, "pending_label_lookups"))
    end_ms = wall_ms() + AFTER_MS
    load.tick(end_ms)
    until("the end of time at the loop's other end", lambda: watch.watermark_ms >= end_ms)
    until("the end of trainings and rollouts", _Quiet(watch))
    until("the warehouse to have every aggregate", lambda: _none(platform, "warehouse_dirty"))
    return problems


def _none(platform: Platform, gauge: str) -> bool:
    """Whether ``gauge`` of every task of every worker is zero."""
    state = json.loads((platform.data_dir / STATE_FILE).read_text())
    waiting: list[str] = []
    for name, url in state["metrics"].items():
        if not name.startswith("monitor"):
            continue
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                text = response.read().decode()
        except OSError:
            return False
        waiting += re.findall(rf"^driftline_{gauge}\{{[^}}]*\}} (\S+)", text, re.MULTILINE)
    return bool(waiting) and not any(float(value) for value in waiting)


def archived(platform: Platform, topics: Topics) -> list[str]:
    """Wait until the archive has passed the last record of every topic it copies; what went wrong."""
    ends: dict[tuple[str, int], int] = {}
    for topic, messages in topics.items():
        for message in messages:
            ends[topic, message.partition] = message.offset + 1

    def passed() -> bool:
        try:
            with clickhouse_connect.get_client(**platform.clickhouse.client()) as client:
                rows = client.query(
                    "SELECT topic, partition, max(next_offset) FROM archive_progress GROUP BY ALL"
                )
        except (ClickHouseError, OSError):
            return False
        reached = {(topic, partition): next_offset for topic, partition, next_offset in rows.result_rows}
        copied = {topic for topic, _ in reached}
        return bool(copied) and all(reached.get(tp, 0) >= end for tp, end in ends.items() if tp[0] in copied)

    if wait_for(passed, DRAIN_S, lambda: platform.failure):
        return []
    return [f"the archive did not reach the end of its topics in {DRAIN_S:.0f} s"]


class _Quiet:
    """Whether for some seconds nobody has decided, trained or routed anything."""

    def __init__(self, watch: LoopWatch) -> None:
        self._watch = watch
        self._mark: tuple[int, ...] = ()
        self._since_s = 0.0

    def __call__(self) -> bool:
        watch = self._watch
        mark = (
            len(watch.commands),
            len(watch.decisions),
            len(watch.alerts),
            sum(map(len, watch.deployments.values())),
        )
        if mark != self._mark or any(watch.training_open(model) for model in (DIRECT, SCORED)):
            self._mark, self._since_s = mark, time.monotonic()
        return time.monotonic() - self._since_s >= QUIET_S
