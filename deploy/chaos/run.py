"""``driftline chaos``: the whole loop under load, broken on purpose, then held against an exact offline computation.

The run is over when nothing is on its way any more; only then are logs and tables read. It passes when every figure,
outcome, verdict, decision, answer and copy is what it must be, and when something happened at all: a run without an
alarm, a retrain or a fault proves nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from deploy.chaos.actual import Topics, read_aggregates, read_logs, read_topics
from deploy.chaos.check import Checked, check
from deploy.chaos.drain import DRAIN_S, archived, drain
from deploy.chaos.faults import Injector, Say
from deploy.chaos.load import HEADER_BAD, Load
from deploy.chaos.model import DIRECT, SCORED, first_versions
from deploy.chaos.probe import Probe
from deploy.chaos.schedule import Fault, schedule
from deploy.demo.watch import LoopWatch
from deploy.local.children import PROJECT_ROOT
from deploy.local.platform import Platform
from deploy.models import publish_records
from deploy.registry import Registry
from schemas.clock import ENVIRONMENT, wall_ms
from schemas.errors import DriftlineError, PlatformError
from schemas.events import HEADER_KIND
from schemas.signing import Signer

#: The world turns over after this share of the run.
DRIFT_SHARE = 0.35
OFFLINE_S = 900.0
RESTARTS_MAX = 60
_SCORED_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """What ``driftline chaos`` was asked for."""

    minutes: float = 5.0
    seed: int = 7
    events_per_s: float = 300.0
    report: Path = Path("chaos-report.json")
    data_dir: Path | None = None
    keep: bool = False
    input_partitions: int = 4
    workers: int = 1


def run_chaos(options: ChaosOptions, say: Say) -> int:
    """Run, compare, report. Returns the exit status: 0 only if everything is equal."""
    faults = schedule(options.seed, options.minutes, options.workers)
    report: dict[str, Any] = {
        "seed": options.seed,
        "minutes": options.minutes,
        "events_per_s": options.events_per_s,
        "workers": options.workers,
        "schedule": [fault.document() for fault in faults],
        "passed": False,
    }
    _write(options.report, report)
    say("chaos", f"seed {options.seed}: {len(faults)} faults in {options.minutes:g} minutes")
    for fault in faults:
        say("chaos", str(fault))
    own = options.data_dir is None
    data_dir = Path(tempfile.mkdtemp(prefix="driftline-chaos-")) if own else options.data_dir
    assert data_dir is not None
    try:
        report |= _Run(options, faults, data_dir, say).play()
    except DriftlineError as error:
        report["failures"] = [str(error)]
    report["passed"] = not report["failures"]
    _write(options.report, report)
    for failure in report["failures"]:
        say("chaos", f"FAILED {failure}")
    say("chaos", f"{'passed' if report['passed'] else 'failed'}; the report: {options.report}")
    if own and report["passed"] and not options.keep:
        shutil.rmtree(data_dir, ignore_errors=True)
    elif own:
        say("chaos", f"data and logs are kept in {data_dir}")
    return 0 if report["passed"] else 1


def _write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")


class _Run:
    """One run over one data directory."""

    def __init__(self, options: ChaosOptions, faults: list[Fault], data_dir: Path, say: Say) -> None:
        self._options = options
        self._faults = faults
        self._say = say
        #: How processes ended, those that were killed on purpose among them.
        self._deaths: Counter[str] = Counter()
        self._clock_file = data_dir.resolve() / "clock-offset"
        self._platform = Platform(
            data_dir,
            input_partitions=options.input_partitions,
            monitors=options.workers,
            restarts_max=RESTARTS_MAX,
            environment={
                "DRIFTLINE_MONITOR__TICK_INTERVAL": "200ms",
                "DRIFTLINE_MONITOR__TICK_DELAY": "1s",
                "DRIFTLINE_MONITOR__COMMIT_INTERVAL": "200ms",
                # Room for a minute of predictions: what is labelled later is looked up.
                "DRIFTLINE_MONITOR__HOT_INDEX_BYTES_MAX": "1000000",
                "DRIFTLINE_MONITOR__LABEL_LOOKUP_INTERVAL": "200ms",
                "DRIFTLINE_ARCHIVE__FLUSH_INTERVAL": "200ms",
                # A crash in native code says where.
                "PYTHONFAULTHANDLER": "1",
                ENVIRONMENT: str(self._clock_file),
            },
            say=self._hear,
        )

    def _hear(self, service: str, text: str) -> None:
        """What the platform has to tell; how a process died is for the report, a crash above all."""
        if text.startswith("died"):
            self._deaths[f"{service} {text.partition(';')[0]}"] += 1
        self._say(service, text)

    def play(self) -> dict[str, Any]:
        """Everything between starting and stopping the platform; the report's figures."""
        with self._platform as platform:
            watch = LoopWatch(platform.kafka, alive=lambda: platform.failure)
            watch.start()
            try:
                self._deploy(watch)
                return self._play(watch)
            finally:
                watch.stop()

    def _play(self, watch: LoopWatch) -> dict[str, Any]:
        options, platform = self._options, self._platform
        seconds = 60 * options.minutes
        load = Load(platform.kafka, options.seed, options.events_per_s, DRIFT_SHARE * seconds)
        probe = Probe(platform, watch, lambda: load.requests, _SCORED_SHARE * options.events_per_s)
        injector = Injector(platform, probe, self._clock_file, self._say)
        probe.start()
        began = time.monotonic()
        load.start()
        breaking = threading.Thread(target=injector.run, args=(self._faults, began), daemon=True)
        breaking.start()
        try:
            if platform.wait(max(0.0, began + seconds - time.monotonic())):
                raise PlatformError(platform.failure or "the platform was stopped in the middle of the run")
            load.finish()
            breaking.join(DRAIN_S)
            loaded_s = time.monotonic() - began
            problems = drain(platform, load, probe, watch, self._say)
            drained_s = time.monotonic() - began - loaded_s
        finally:
            injector.end()
            probe.stop()
        self._say("chaos", f"load of {loaded_s:.0f} s, drained {drained_s:.1f} s later; comparing")
        topics = read_topics(platform.kafka)
        problems += archived(platform, topics)
        expected = self._offline()
        checked = check(
            expected,
            topics,
            read_aggregates(platform.clickhouse),
            read_logs(platform.clickhouse),
            options.input_partitions,
        )
        return self._report(load, injector, topics, expected, checked, problems) | {
            "load_s": round(loaded_s, 1),
            "drain_s": round(drained_s, 1),
        }

    def _deploy(self, watch: LoopWatch) -> None:
        """Version 1 of both models, through the registry and the controller's API."""
        platform = self._platform
        registry = Registry(platform.registry, Signer.create(platform.signing_key))
        publish_records(platform.kafka, first_versions(registry, self._options.seed, wall_ms()))
        for model in (DIRECT, SCORED):
            body = {"by": "chaos", "version": "1", "steps": [], "event_time_ms": wall_ms()}
            response = httpx.post(f"{platform.api_url}/v1/deployments/{model}/deploy", json=body, timeout=30)
            if response.status_code != 202:
                raise PlatformError(f"deploying {model}: {response.status_code} {response.text}")
        watch.wait(lambda: all(_stable(watch, model) for model in (DIRECT, SCORED)), 60, "the first versions")

    def _offline(self) -> dict[str, Any]:
        """The document of ``python -m streams.offline``, in a process of its own: this package knows no monitor."""
        out = self._platform.data_dir / "offline.msgpack"
        done = subprocess.run(
            [sys.executable, "-m", "streams.offline", str(out), "--garbage", HEADER_BAD],
            env=os.environ | self._platform.environment(),
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            timeout=OFFLINE_S,
            check=False,
        )
        if done.returncode != 0:
            raise PlatformError(f"the offline computation failed: {done.stderr.strip()[-2_000:]}")
        document: dict[str, Any] = msgspec.msgpack.decode(out.read_bytes(), strict=False)
        return document

    def _report(
        self,
        load: Load,
        injector: Injector,
        topics: Topics,
        expected: dict[str, Any],
        checked: Checked,
        problems: list[str],
    ) -> dict[str, Any]:
        kinds = Counter(json.loads(m.value)["type"] for m in topics["control"])
        seen = {
            "signals": sum(HEADER_KIND not in m.headers for m in topics["signals"]),
            "alerts": len(topics["alerts"]),
            "commands": {kind: times for kind, times in sorted(kinds.items()) if kind != "tick"},
            "revisions": len(topics["deployments"]),
            "dead_letters": len(topics["dead-letters"]),
            "duplicates": expected["duplicates"],
            "sent_on": len(expected["sent_on"]),
            "outcomes": len(expected["outcomes"]),
        }
        failures = [
            *problems,
            *(f"{what}: {times} differences" for what, times in sorted(checked.differing.items())),
        ]
        failures += [f"nothing happened: no {name}" for name in ("signals", "alerts") if not seen[name]]
        if not kinds["retrain"]:
            failures.append("nothing happened: the drift led to no retrain")
        if expected["too_late"]:
            failures.append(
                f"{expected['too_late']} predictions came after their window was final: the machine was too slow for "
                "this load, and what is exact then hangs on the order of two topics"
            )
        return {
            "failures": failures,
            "sent": dict(sorted(load.sent.items())),
            "seen": seen,
            "compared": dict(sorted(checked.compared.items())),
            "differing": dict(sorted(checked.differing.items())),
            "examples": checked.examples,
            "faults": [injected.document() for injected in injector.done],
            "caught_up_s": _recoveries(injector),
            "deaths": dict(sorted(self._deaths.items())),
            "restarted": {name: times for name, times in self._platform.restarted.items() if times},
        }


def _stable(watch: LoopWatch, model: str) -> bool:
    deployment = watch.newest(model)
    return deployment is not None and deployment.stable is not None


def _recoveries(injector: Injector) -> dict[str, dict[str, float]]:
    """Seconds until caught up, by kind and target: how many, the median, the longest."""
    found: dict[str, list[float]] = {}
    for injected in injector.done:
        if injected.caught_up_s is not None:
            found.setdefault(f"{injected.fault.kind} {injected.fault.target}", []).append(
                injected.caught_up_s
            )
    return {
        name: {"times": len(s), "median": round(statistics.median(s), 2), "longest": round(max(s), 2)}
        for name, s in sorted(found.items())
    }
