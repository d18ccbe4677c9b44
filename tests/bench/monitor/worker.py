"""A broker, a warehouse and one monitor process, and what that process has used."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clickhouse_connect
import psutil

from deploy.local.platform import Platform
from deploy.models import publish_records
from schemas.contracts import ModelRecord

WAIT_S = 900.0
_FED = re.compile(r'driftline_watermark_ms\{(?=.*source="predictions")(?=.*stage="detect")')


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: ``quick`` is little of everything."""

    quick: bool
    events: int


@contextmanager
def platform_with(records: Sequence[ModelRecord], **environment: str) -> Iterator[Platform]:
    """Kafka and the warehouse with these models; time is in the load, so no ticker runs."""
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        platform = Platform(
            Path(folder),
            services=(),
            environment={"DRIFTLINE_MONITOR__TICKER": "off", **environment},
            say=lambda service, text: print(f"{service}: {text}", file=sys.stderr),
        )
        with platform:
            publish_records(platform.kafka, list(records))
            yield platform


def process_of(platform: Platform, service: str = "monitor") -> psutil.Process:
    """The service's process."""
    state = json.loads((platform.data_dir / "platform.json").read_text())
    return psutil.Process(state["processes"][service])


def wait_restarted(platform: Platform, service: str = "monitor") -> None:
    """Until a service that was killed is ready again."""
    while not (platform.restarted.get(service) and platform.ready(service)):
        if platform.failure:
            raise SystemExit(f"{service} did not come back: {platform.failure}")
        time.sleep(0.01)


def used_s(process: psutil.Process) -> float:
    """CPU seconds so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def counted(client: Any, model: str = "bench") -> int:
    """Predictions of a model in the windows so far."""
    found = client.query(
        "SELECT sum(predictions) FROM windows WHERE segment = '' AND model = {model:String}", {"model": model}
    )
    return int(found.result_rows[0][0] or 0)


def wait_watched(platform: Platform, end_ms: int, services: Sequence[str] = ("monitor",)) -> None:
    """Until the detectors of every partition have been fed all that is before ``end_ms``, as the workers' metrics say: they
    come after the windows, and are part of the work."""
    shown = json.loads((platform.data_dir / "platform.json").read_text())["metrics"]
    began = time.perf_counter()
    while True:
        text = "".join(
            urllib.request.urlopen(shown[name], timeout=WAIT_S).read().decode() for name in services
        )
        found = [float(line.rpartition(" ")[2]) for line in text.splitlines() if _FED.match(line)]
        if len(found) >= platform.kafka.input_partitions and min(found) >= end_ms - 1:
            return
        if time.perf_counter() - began > WAIT_S or platform.failure:
            raise SystemExit(f"the detectors did not finish: {platform.failure or 'too slow'}")
        time.sleep(0.1)


def wait_for(platform: Platform, events: int) -> float:
    """Seconds until the aggregates of so many events are in ClickHouse."""
    began = time.perf_counter()
    with clickhouse_connect.get_client(**platform.clickhouse.client()) as client:
        while counted(client) < events:
            if time.perf_counter() - began > WAIT_S or platform.failure:
                raise SystemExit(f"the monitor did not finish: {platform.failure or 'too slow'}")
            time.sleep(0.1)
    return time.perf_counter() - began
