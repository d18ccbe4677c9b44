"""How many requests a second one scorer answers when the queue is full, beside the same session on ready batches.

Both run on one thread of ONNX Runtime, in the same minute, on the same machine, which the scorer shares with the broker. On
a machine that has other work to do the figures by the clock say little; those by CPU-second hold.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from deploy.registry import Registry
from deploy.scoring.engine import Engine
from deploy.scoring.provider import look
from schemas.settings import KafkaSettings, ScorerSection
from tests.bench.figures import say
from tests.bench.scorer.harness import WAIT_S, Ground, ScorerProcess
from tests.bench.scorer.subjects import MODEL, SIZES, matrix, register, requests

_BATCH_ROWS = 512
_WARM_UP = 0.1


def run(bootstrap: str, folder: Path, quick: bool) -> None:
    """Figures for each size of model, on the CPU and, where it runs, on CUDA."""
    wishes = ["cpu"] if look().obstacle is not None else ["cpu", "cuda"]
    for size in SIZES:
        register(folder / f"bare-{size}", size, versions=1)
        for wish in wishes:
            bare = bare_rows(folder / f"bare-{size}", wish, 0.5 if quick else 2.0)
            count = 20_000 if quick else {"small": 300_000, "large": 100_000}[size]
            full = full_queue(bootstrap, folder, f"full-{size}-{wish}", size, wish, count)
            for per, alone, value in zip(("s", "cpu_s"), bare, full, strict=True):
                name, unit = f"session.{size}.{wish}.rows_per_{per}", per.replace("cpu_s", "CPU-s")
                say(name, alone, f"rows/{unit}", batch_rows=_BATCH_ROWS)
                figure = f"scorer.{size}.{wish}.requests_per_{per}"
                say(figure, value, f"requests/{unit}", name, value / alone, requests=count)


def bare_rows(registry: Path, wish: str, seconds: float) -> tuple[float, float]:
    """Rows of the session alone on batches that are ready, by the second and by the CPU-second."""
    engine = Engine(Registry(registry), ScorerSection(provider=wish))
    engine.load(MODEL, ["1"], {})
    loaded = engine.get(MODEL, "1")
    assert loaded is not None
    ready = matrix(_BATCH_ROWS)
    for _ in range(5):
        loaded.run(ready)
    began, cpu, rows = time.perf_counter(), time.thread_time(), 0
    while time.perf_counter() - began < seconds:
        loaded.run(ready)
        rows += _BATCH_ROWS
    found = rows / (time.perf_counter() - began), rows / (time.thread_time() - cpu)
    if wish == "cuda" and (share := _gpu_share(lambda: loaded.run(ready))) is not None:
        say("session.cuda.utilisation", share, "share of time")
    return found


def full_queue(
    bootstrap: str, folder: Path, name: str, size: str, wish: str, count: int
) -> tuple[float, float]:
    """Requests by the second, from Kafka's timestamps of the answers without the first tenth; and by the CPU-second of the
    whole process, all its threads, from its ready line on."""
    ground = Ground(bootstrap, folder, name, size)
    ground.deploy()
    for first in range(0, count, 20_000):
        ground.send(requests(min(20_000, count - first), first))
    ground.producer.flush(60)
    with ScorerProcess(ground, provider=wish, batch_rows_max=_BATCH_ROWS) as scorer:
        process = psutil.Process(scorer.process.pid)
        before = process.cpu_times()
        deadline = time.monotonic() + WAIT_S
        while ground.lag():
            if time.monotonic() > deadline:
                raise SystemExit(f"{ground.lag()} requests are unanswered after {WAIT_S:g} s")
            time.sleep(0.3)
        after = process.cpu_times()
    times = answer_times(ground.kafka, count)
    start = int(count * _WARM_UP)
    by_clock = (count - start) * 1_000 / max(1, times[-1] - times[start])
    return by_clock, count / (after.user + after.system - before.user - before.system)


def answer_times(kafka: KafkaSettings, count: int) -> list[int]:
    """Kafka's timestamps of all answers, ascending."""
    consumer = Consumer(kafka.consumer(None))
    topic = kafka.topic("scores")
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(kafka.input_partitions)])
    times: list[int] = []
    while len(times) < count:
        records = consumer.consume(10_000, 2.0)
        if not records:
            raise SystemExit(f"{len(times)} answers to {count} requests")
        times += [record.timestamp()[1] for record in records if record.error() is None]
    consumer.close()
    return sorted(times)


def _gpu_share(work: Callable[[], object]) -> float | None:
    """Share of time the device was busy while ``work`` ran for a second, as its driver tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    until = time.perf_counter() + 1.0
    asked = None
    while time.perf_counter() < until or (asked is not None and asked.poll() is None):
        work()
        if asked is None and time.perf_counter() > until - 0.3:
            asked = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert asked is not None
    told = asked.communicate()[0].split()
    return float(told[0]) / 100 if asked.returncode == 0 and told else None
