"""Versions changed under load: swaps that drop and double nothing, and rollbacks that take effect at once."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from schemas.control import Answer, Outcome, Phase, RollbackRequested
from tests.bench.figures import say
from tests.bench.scorer.harness import WAIT_S, Answers, Ground, Load, ScorerProcess, percentile
from tests.bench.scorer.subjects import MODEL, requests

_RATE_PER_S = 1_000


def run(bootstrap: str, folder: Path, quick: bool) -> None:
    """Figures of swaps and of rollbacks."""
    _swaps(bootstrap, folder, 5 if quick else 40)
    _rollbacks(bootstrap, folder, 10 if quick else 200)


def _swaps(bootstrap: str, folder: Path, swaps: int) -> None:
    """Everything from version 1 to 2 and back, again and again, as soon as the other one answers."""
    ground = Ground(bootstrap, folder, "swap")
    ground.deploy()
    asked = requests(120 * _RATE_PER_S)
    with ScorerProcess(ground, provider="cpu"):
        answers = Answers(ground.kafka)
        with Load(ground, asked, _RATE_PER_S) as load:
            for swap in range(swaps):
                version = "21"[swap % 2]
                revision = ground.deploy(stable=version, weights={version: 1.0})
                answers.wait(lambda seen, revision=revision: bool(seen) and seen[-1].revision == revision)
        answers.wait(lambda seen: len(seen) >= len(load.sent_ms))
        answers.wait(lambda _: not ground.lag())
    counts = Counter(one.request_id for one in answers.close())
    say(
        "scorer.swap.dropped",
        sum(key not in counts for key in load.sent_ms),
        "requests",
        swaps=swaps,
        requests=len(load.sent_ms),
    )
    say(
        "scorer.swap.doubled",
        sum(times > 1 for times in counts.values()),
        "requests",
        swaps=swaps,
        requests=len(load.sent_ms),
    )


def _rollbacks(bootstrap: str, folder: Path, rollbacks: int) -> None:
    """From the request's Kafka timestamp to that of the last answer by the version it names, half of the load on it."""
    ground = Ground(bootstrap, folder, "rollback")
    ground.deploy()
    asked_ms: dict[int, int] = {}
    with ScorerProcess(ground, provider="cpu"):
        answers = Answers(ground.kafka)
        with Load(ground, requests(300 * _RATE_PER_S), _RATE_PER_S) as load:
            for number in range(rollbacks):
                revision = ground.deploy(
                    phase=Phase.PROGRESSING,
                    candidate="2",
                    weights={"1": 0.5, "2": 0.5},
                    control_offsets={0: number},
                )
                answers.wait(
                    lambda seen, r=revision: any(
                        one.revision == r and one.version == "2" for one in seen[-400:]
                    )
                )
                asked_ms[revision] = _ask(ground, number, revision)
                at = len(answers.seen)
                answers.wait(lambda seen, at=at: _left(seen, at))
                answer = Answer(
                    request_id=f"rollback-{number}",
                    outcome=Outcome.DONE,
                    control_partition=0,
                    control_offset=number,
                )
                ground.deploy(
                    phase=Phase.ROLLED_BACK,
                    tripped=("2",),
                    answers=(answer,),
                    control_offsets={0: number + 1},
                )
        answers.wait(lambda seen: len(seen) >= len(load.sent_ms))
    last_ms = {
        one.revision: one.kafka_ms
        for one in sorted(answers.close(), key=lambda one: one.kafka_ms)
        if one.version == "2"
    }
    took = [max(0, last_ms[revision] - at_ms) for revision, at_ms in asked_ms.items()]
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        say(
            f"scorer.rollback.{name}",
            percentile(took, share),
            "ms",
            rollbacks=len(took),
            requests_per_s=_RATE_PER_S,
        )


def _left(seen: list, at: int) -> bool:  # type: ignore[type-arg]
    """Whether the last of the answers since ``at`` are all by the other version: a fair coin says that once in 2^40."""
    return len(seen) >= at + 40 and all(one.version == "1" for one in seen[-40:])


def _ask(ground: Ground, number: int, revision: int) -> int:
    """Send the request; its Kafka timestamp once the broker has it."""
    command = RollbackRequested(
        request_id=f"rollback-{number}", model=MODEL, version="2", deployment_revision=revision, cause="bench",
        event_time_ms=0, expires_ms=2**52, issued_by="bench",
    )  # fmt: skip
    written: list[int] = []
    there = threading.Event()

    def delivered(_error: object, message: object) -> None:
        written.append(message.timestamp()[1])  # type: ignore[attr-defined]
        there.set()

    ground.producer.produce(
        ground.kafka.topic("control"),
        command.model_dump_json().encode(),
        MODEL.encode(),
        on_delivery=delivered,
    )
    while not there.is_set():
        ground.producer.poll(0.001)
    assert there.wait(WAIT_S)
    return written[0]
