"""Why: whether a candidate ever had more than its share is read off what was committed, not off what anybody meant.

Shares decided stand in the revisions on `deployments`; shares given are counted from the answers on `scores`. Each answer
names the revision it was routed by. A share of the traffic is a share of the callers, by a hash: so an answer is within
its step if its caller stands in the candidate's part of the hash at that revision. The share of the answers beside it is
what that came to, and lies off the step by as much as chance makes of so few callers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from confluent_kafka import Consumer, KafkaError, TopicPartition

from deploy.core.routing import caller_unit
from deploy.demo.replay import FOR
from deploy.demo.watch import Stamped
from schemas.control import Deployment
from schemas.errors import PlatformError
from schemas.settings import KafkaSettings

#: An answer by a version that had been taken off this long before is one too many.
OBEYED_S = 1.0
READ_TIMEOUT_S = 60.0


class Answer(msgspec.Struct, frozen=True):
    """One committed answer, as far as it is read."""

    request_id: str
    model: str
    version: str | None
    event_time_ms: int
    revision: int
    status: str = "ok"
    kafka_ms: int = 0

    @property
    def entity(self) -> str:
        """The flight it is about."""
        return self.request_id.partition(FOR)[0]


@dataclass(frozen=True, slots=True)
class Share:
    """What the candidate gave of ``answers`` while it had ``weight``."""

    weight: float
    given: int
    answers: int

    @property
    def share(self) -> float:
        """Of the answers, the candidate's part; 0 without any."""
        return self.given / self.answers if self.answers else 0.0


@dataclass(slots=True)
class Traffic:
    """What a candidate had. ``weight_max``: the greatest weight of any revision while it was the candidate.

    ``shares``: answers by weight, in the order of the weights. ``beyond``: its answers that no revision gave it, to
    callers outside its part of the hash or before a revision was in force. ``last_s``: seconds from the revision that
    took it off to its last answer; 0 if there is none after it, None if it was not taken off. ``after``: answers by version
    once the rollout was over.
    """

    weight_max: float = 0.0
    shares: list[Share] = field(default_factory=list)
    beyond: int = 0
    last_s: float | None = None
    after: dict[str, int] = field(default_factory=dict)

    @property
    def share_max(self) -> float:
        """The greatest share of the answers it gave at any weight it had as a candidate."""
        return max((share.share for share in self.shares), default=0.0)


def traffic_of(
    revisions: Sequence[Stamped[Deployment]], answers: Iterable[Answer], candidate: str
) -> Traffic:
    """What ``candidate`` had of a model's traffic, by its committed revisions and its committed answers."""
    known = {stamped.record.revision: stamped.record for stamped in revisions}
    open_at = {number for number, now in known.items() if now.candidate == candidate}
    found = Traffic(
        weight_max=max((known[number].weights.get(candidate, 0.0) for number in open_at), default=0.0)
    )
    left_ms = next((s.kafka_ms for s in revisions if candidate in s.record.tripped), None)
    given: dict[float, int] = {}
    total: dict[float, int] = {}
    last_ms = left_ms
    for answer in answers:
        now = known.get(answer.revision)
        mine = answer.version == candidate
        if mine and (now is None or not _within(now, answer, candidate)):
            found.beyond += 1
        if now is not None and answer.revision in open_at:
            weight = now.weights.get(candidate, 0.0)
            total[weight] = total.get(weight, 0) + 1
            given[weight] = given.get(weight, 0) + mine
        elif now is not None and answer.revision > max(open_at, default=0):
            who = answer.version or "fallback"
            found.after[who] = found.after.get(who, 0) + 1
        if mine and last_ms is not None:
            last_ms = max(last_ms, answer.kafka_ms)
    found.shares = [Share(weight, given[weight], total[weight]) for weight in sorted(total)]
    if left_ms is not None and last_ms is not None:
        found.last_s = (last_ms - left_ms) / 1_000
    return found


def _within(now: Deployment, answer: Answer, candidate: str) -> bool:
    """Whether that revision gave the candidate this caller at this time."""
    weight = now.weights.get(candidate, 0.0)
    return answer.event_time_ms >= now.effective_ms and caller_unit(now.model, answer.entity) < weight


def read_answers(kafka: KafkaSettings) -> Mapping[str, list[Answer]]:
    """Every committed answer on `scores`, by model. Raises PlatformError when the end is not reached in time."""
    consumer = Consumer(kafka.consumer(None, **{"enable.partition.eof": True}))
    partitions = range(kafka.input_partitions)
    consumer.assign([TopicPartition(kafka.topic("scores"), partition, 0) for partition in partitions])
    decode = msgspec.json.Decoder(Answer).decode
    found: dict[str, list[Answer]] = {}
    ended, deadline = 0, time.monotonic() + READ_TIMEOUT_S
    try:
        while ended < kafka.input_partitions:
            if time.monotonic() > deadline:
                raise PlatformError(f"`scores` could not be read to its end within {READ_TIMEOUT_S:.0f} s")
            for message in consumer.consume(20_000, timeout=1.0):
                error = message.error()
                if error is not None:
                    ended += error.code() == KafkaError._PARTITION_EOF
                    continue
                answer = msgspec.structs.replace(
                    decode(message.value() or b""), kafka_ms=int(message.timestamp()[1])
                )
                found.setdefault(answer.model, []).append(answer)
    finally:
        consumer.close()
    return found
