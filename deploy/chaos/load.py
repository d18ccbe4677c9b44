"""What flows through the loop while it is broken: predictions, labels and garbage, with every disorder that is allowed.

Predictions come one by one or as Arrow batches, twice, late, and on partitions that are not theirs; labels come before their prediction, long after it,
twice, revised, too late to count, or never. Garbage carries the reason it must be refused for in a header: what is to
become of it is known without asking any code that is under test. Event time is the wall clock's, as the load reads it:
steps of the services' clocks do not touch it.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import msgspec
from confluent_kafka import KafkaError, Message, Producer

from deploy.chaos.model import DIRECT, SCORED, Features, bias, draw, truth
from schemas.arrow import encode_arrow_predictions
from schemas.clock import wall_ms
from schemas.errors import PlatformError
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, KIND_TICK, Tick
from schemas.ids import partition_of
from schemas.settings import KafkaSettings

#: Header of garbage: the reason for which it is to be dead-lettered.
HEADER_BAD = "chaos-bad"
HORIZON_MS = 180_000
_STEP_S = 0.02
_SCORED_SHARE = 0.25
#: Of the directly logged predictions, those that come in batches, and how many make one.
_BATCHED_SHARE = 0.3
_BATCH_ROWS = 16
_encode = msgspec.json.encode
Headers = list[tuple[str, str | bytes | None]]


@dataclass(frozen=True, slots=True, order=True)
class _Later:
    at_ms: int
    number: int
    topic: str = field(compare=False)
    key: bytes = field(compare=False)
    value: bytes = field(compare=False)
    #: None: as the key says; set for an Arrow batch, which has no key.
    partition: int | None = field(compare=False, default=None)
    astray: bool = field(compare=False, default=False)


class Load:
    """Writes ``events_per_s`` predictions a second from its own thread, from ``start`` to ``finish``.

    ``drift_s``: seconds after the start at which the world turns over.
    """

    def __init__(self, kafka: KafkaSettings, seed: int, events_per_s: float, drift_s: float) -> None:
        self._kafka = kafka
        self._rng = random.Random(seed + 1)
        self._rate = events_per_s
        self._drift_s = drift_s
        self._producer = Producer(
            kafka.producer(**{"linger.ms": 5, "queue.buffering.max.messages": 2_000_000})
        )
        self._later: list[_Later] = []
        self._batch: list[dict[str, object]] = []
        self._made = 0
        self._numbers = 0
        self._refused: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._error: Exception | None = None
        self.sent: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        """Scoring requests sent so far."""
        return self.sent["scoring-requests"]

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Stop, send what was to come later at once, and wait until the broker has all of it. Raises PlatformError."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise PlatformError(f"the load failed: {self._error!r}") from self._error
        self._send_batch(wall_ms())
        self._release(None)
        left = self._producer.flush(120)
        if left or self._refused:
            raise PlatformError(f"the broker did not take the load: {self._refused[:3] or f'{left} left'}")

    def tick(self, event_time_ms: int) -> None:
        """Say on every input partition that event time has come this far. Raises PlatformError."""
        value = Tick(event_time_ms=event_time_ms, source="chaos").model_dump_json().encode()
        for name in ("predictions", "feedback"):
            for partition in range(self._kafka.input_partitions):
                self._produce(name, None, value, partition, [(HEADER_KIND, KIND_TICK)])
        if self._producer.flush(60):
            raise PlatformError("the broker did not take the last ticks within a minute")

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            began = time.monotonic()
            while not self._stop.wait(_STEP_S):
                elapsed_s = time.monotonic() - began
                now_ms = wall_ms()
                while self._made < elapsed_s * self._rate:
                    self._event(now_ms, elapsed_s >= self._drift_s)
                self._release(now_ms)
                self._producer.poll(0)
        except Exception as error:  # noqa: BLE001  # told to whoever calls finish, whatever it is
            self._error = error

    def _event(self, now_ms: int, drifted: bool) -> None:
        """One request, what is known of it, and what goes wrong with it."""
        rng = self._rng
        self._made += 1
        identity = f"{self._made:09d}-{rng.getrandbits(32):08x}"
        scored = rng.random() < _SCORED_SHARE
        features = draw(rng, drifted)
        # A label that comes first: the prediction is asked for now and logged later.
        hurry = rng.random() < 0.03
        delay_ms = rng.randint(500, 2_500) if hurry else 0
        if scored:
            self._request(identity, features, now_ms, delay_ms)
        else:
            self._predictions(identity, features, now_ms, delay_ms)
        self._labels(identity, SCORED if scored else DIRECT, truth(rng, features, drifted), now_ms, hurry)
        if rng.random() < 0.005:
            self._garbage(now_ms)

    def _request(self, identity: str, features: Features, now_ms: int, delay_ms: int) -> None:
        body = {"request_id": identity, "model": SCORED, "event_time_ms": now_ms, "features": features,
                "entity": identity}  # fmt: skip
        self._send("scoring-requests", identity, body, now_ms + delay_ms)

    def _predictions(self, identity: str, features: Features, now_ms: int, delay_ms: int) -> None:
        rng = self._rng
        score = bias(features)
        event = {"prediction_id": identity, "model": DIRECT, "version": "1", "event_time_ms": now_ms,
                 "features": features, "score": score, "latency_ms": round(rng.uniform(1, 9), 2)}  # fmt: skip
        if rng.random() < _BATCHED_SHARE:
            self._batch.append(event)
            if len(self._batch) >= _BATCH_ROWS:
                self._send_batch(now_ms + delay_ms)
            return
        chance = rng.random()
        if chance < 0.01:
            delay_ms += rng.randint(7_000, 12_000)
        elif chance < 0.02:
            event |= {"status": "error", "score": None}
        elif chance < 0.03:
            self._send("predictions", identity, event, now_ms + delay_ms + rng.choice((0, 0, 1_500, 6_000)))
        self._send("predictions", identity, event, now_ms + delay_ms, astray=chance > 0.99)
        if chance > 0.95:
            # Not a number: the trainer, which counts, is never to register it.
            shadow = event | {"version": "unknown", "role": "shadow", "score": 1.0 - score}
            self._send("predictions", identity, shadow, now_ms + delay_ms)

    def _send_batch(self, at_ms: int) -> None:
        """What has gathered, cut by partition as an SDK does it; some batches come twice, some to the wrong partition."""
        if not self._batch:
            return
        rng, rows = self._rng, self._batch
        self._batch = []
        columns: dict[str, list[object]] = {
            name: [row[name] for row in rows] for name in rows[0] if name not in ("model", "features")
        }
        features: list[Features] = [row["features"] for row in rows]  # type: ignore[misc]
        columns |= {name: [row[name] for row in features] for name in features[0]}
        cut = encode_arrow_predictions(DIRECT, columns, self._kafka.input_partitions)
        self.sent["arrow-rows"] += len(rows)
        for partition, value in cut.items():
            chance = rng.random()
            due = (at_ms, at_ms + rng.choice((0, 1_500, 6_000))) if chance < 0.05 else (at_ms,)
            for one_ms in due:
                self._push("predictions", b"", value, one_ms, partition=partition, astray=chance > 0.97)

    def _labels(self, identity: str, model: str, label: float, now_ms: int, hurry: bool) -> None:
        rng = self._rng
        chance = rng.random()
        if chance < 0.08:
            return
        known_ms = now_ms + (
            1 if hurry else rng.randint(0, 3_000) if chance < 0.75 else rng.randint(3_000, 15_000)
        )
        if chance < 0.083:
            # Known so late that the prediction counts as unlabelled.
            known_ms = now_ms + HORIZON_MS + 3_600_000
        body = {"prediction_id": identity, "model": model, "label": label, "label_time_ms": known_ms}
        at_ms = min(known_ms, now_ms + 15_000)
        self._send("feedback", identity, body, at_ms, astray=chance > 0.995)
        if chance > 0.98:
            self._send("feedback", identity, body, at_ms + rng.choice((0, 400, 5_000)))
        elif chance > 0.955:
            again = body | {"label": 1.0 - label, "label_time_ms": known_ms + 700, "revision": 1}
            self._send("feedback", identity, again, at_ms + 700)

    def _garbage(self, now_ms: int) -> None:
        """A message that must be refused, and why."""
        rng = self._rng
        name = f"garbage-{self._made}"
        good = {"prediction_id": name, "model": DIRECT, "version": "1", "event_time_ms": now_ms,
                "features": draw(rng, False), "score": 0.5}  # fmt: skip
        label = {"prediction_id": name, "model": DIRECT, "label": 1.0, "label_time_ms": now_ms}
        short = {k: v for k, v in draw(rng, False).items() if k != "x1"}
        topic, reason, value = rng.choice(
            (
                ("predictions", "not-json", b'{"prediction_id": "half'),
                ("predictions", "wrong-type", _encode(good | {"score": "high"})),
                ("predictions", "unknown-field", _encode(good | {"colour": "red"})),
                ("predictions", "unknown-model", _encode(good | {"model": "nobody"})),
                ("predictions", "missing-feature", _encode(good | {"features": short})),
                ("predictions", "absurd-timestamp", _encode(good | {"event_time_ms": 631_152_000_000})),
                ("predictions", "wrong-key", _encode(good | {"prediction_id": "somebody-else"})),
                ("predictions", "bad-arrow", b"\xff\xff\xff\xff half a batch"),
                ("feedback", "not-json", b"\xff\xfe"),
                ("feedback", "wrong-type", _encode(label | {"label": "yes"})),
                ("feedback", "unknown-model", _encode(label | {"model": "nobody"})),
            )
        )
        partition = rng.randrange(self._kafka.input_partitions)
        self.sent["garbage"] += 1
        headers: Headers = [(HEADER_BAD, reason.encode())]
        if reason == "bad-arrow":
            headers.append((HEADER_FORMAT, FORMAT_ARROW))
        self._produce(topic, name.encode(), value, partition, headers)

    # -- sending --------------------------------------------------------------------------------------------------

    def _send(self, topic: str, key: str, body: object, at_ms: int, *, astray: bool = False) -> None:
        self._push(topic, key.encode(), _encode(body), at_ms, astray=astray)

    def _push(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        at_ms: int,
        *,
        partition: int | None = None,
        astray: bool = False,
    ) -> None:
        self._numbers += 1
        self.sent[topic] += 1
        heapq.heappush(self._later, _Later(at_ms, self._numbers, topic, key, value, partition, astray))

    def _release(self, now_ms: int | None) -> None:
        """Write what is due; everything when there is no later."""
        while self._later and (now_ms is None or self._later[0].at_ms <= now_ms):
            due = heapq.heappop(self._later)
            partitions = self._kafka.input_partitions
            arrow = due.partition is not None
            partition = partition_of(due.key, partitions) if due.partition is None else due.partition
            if due.astray:
                partition = (partition + 1) % partitions
            headers: Headers = [(HEADER_FORMAT, FORMAT_ARROW)] if arrow else []
            self._produce(due.topic, due.key or None, due.value, partition, headers)

    def _produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        partition: int,
        headers: Headers,
    ) -> None:
        while True:
            try:
                self._producer.produce(
                    self._kafka.topic(topic), value, key, partition, self._delivered, headers=headers
                )
                return
            except BufferError:
                self._producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._refused.append(str(error))
