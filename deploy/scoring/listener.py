"""What a scorer hears beside requests: contracts, deployments, rollback requests. Applied between two micro-batches.

Reading is a thread's work, so that a request to leave a version never waits for a slow fetch; applying is the scoring
loop's, so that no batch sees half a change.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from confluent_kafka import Message
from pydantic import ValidationError

from deploy.broadcast import Broadcast
from deploy.core.trips import Trip
from deploy.process import wall_ms
from deploy.scoring.core import ScoringCore
from deploy.scoring.engine import Engine
from schemas.contracts import ModelRecord
from schemas.control import COMMANDS, ControlTick, Deployment, Phase, RollbackRequested
from schemas.errors import SignatureError
from schemas.observability import Metrics
from schemas.settings import KafkaSettings
from schemas.signing import Verifier

log = logging.getLogger(__name__)


class Listener:
    """Feeds ``core`` and ``engine`` from `models`, `deployments` and `control`.

    ``report(model, revision, failed=..., golden=..., tripped=...)`` publishes a scorer's fact.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        core: ScoringCore,
        engine: Engine,
        metrics: Metrics,
        report: Callable[..., None],
        verifier: Verifier | None,
    ) -> None:
        self._core = core
        self._engine = engine
        self._metrics = metrics
        self._report = report
        self._verifier = verifier
        self._broadcast = Broadcast(kafka, ("models", "deployments"))
        self._queue: queue.SimpleQueue[list[Message] | Exception] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="broadcast", daemon=True)
        self._digests: dict[str, dict[str, str]] = {}
        self._live = False
        self.event_time_ms = 0

    def start(self) -> None:
        """Know the present before the first request: `models` and `deployments` to their ends, then `control` from the
        offset that the deployments say is answered."""
        records = self._broadcast.read_to_end()
        for topic in ("models", "deployments"):
            for record in records:
                if self._broadcast.name(record) == topic:
                    self._apply(record)
        newest = [m.routes.newest for m in self._core.models.values()]
        answered = [d.control_offsets if d is not None else {} for d in newest]
        partitions = {p for offsets in answered for p in offsets}
        self._broadcast.add("control", {p: min(o.get(p, 0) for o in answered) for p in partitions})
        for record in self._broadcast.read_to_end():
            self._apply(record)
        self._live = True
        self._thread.start()

    def apply_pending(self) -> None:
        """Take in everything heard since the last call. Raises what the reading thread died of."""
        while True:
            try:
                heard = self._queue.get_nowait()
            except queue.Empty:
                return
            if isinstance(heard, Exception):
                raise heard
            for record in heard:
                self._apply(record)

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._broadcast.close()

    def _read(self) -> None:
        try:
            while not self._stop.is_set():
                records = self._broadcast.poll(0.2)
                if records:
                    self._queue.put(records)
        except Exception as error:  # noqa: BLE001 - handed to the scoring loop, which ends the process
            self._queue.put(error)

    def _apply(self, record: Message) -> None:
        value = record.value()
        if value is None:
            return
        topic = self._broadcast.name(record)
        try:
            match topic:
                case "models":
                    self._on_model(ModelRecord.model_validate_json(value))
                case "deployments":
                    self._on_deployment(Deployment.model_validate_json(value))
                case "control":
                    self._on_command(record, value)
        except ValidationError as error:
            self._metrics.count("driftline_errors_total", where=topic)
            log.error("%s/%s/%s is not readable: %s", topic, record.partition(), record.offset(), error)

    def _on_model(self, record: ModelRecord) -> None:
        if record.contract is not None:
            self._core.model(record.contract.model).contract(record.contract)
        elif record.version is not None:
            version = record.version
            self._digests.setdefault(version.model, {})[version.version] = version.sha256
            self._load(version.model)

    def _on_deployment(self, deployment: Deployment) -> None:
        model = self._core.model(deployment.model)
        before = model.routes.newest
        if not model.routes.add(deployment):
            return
        self._metrics.set("driftline_deployment_revision", deployment.revision, model=deployment.model)
        self._load(deployment.model)
        for command, outcome in model.trips.deployment(deployment, self.event_time_ms, wall_ms()):
            self._tell(command, outcome)
        if self._live and before is not None and _left_a_version(before, deployment):
            self._prove(deployment)

    def _load(self, name: str) -> None:
        model = self._core.model(name)
        failed = self._engine.keep(name, model.routes.versions(), self._digests.get(name, {}))
        now_failed = frozenset(self._engine.failed(name))
        for version in model.failed - now_failed:
            model.breaker.reset(version)
        if failed and now_failed != model.failed:
            for version, why in failed.items():
                log.error("version cannot be served: %s", why, extra={"model": name, "version": version})
            newest = model.routes.newest
            self._report(name, newest.revision if newest else 0, failed=failed)
        model.failed = now_failed

    def _prove(self, deployment: Deployment) -> None:
        """After a rollback: does the version that answers now still compute what was recorded at its registration?"""
        version = deployment.stable
        loaded = self._engine.get(deployment.model, version) if version is not None else None
        if version is None or loaded is None:
            return
        try:
            same = loaded.golden_agrees()
        except Exception:  # a model that cannot run its golden set does not agree with it
            log.exception("golden set of %s/%s", deployment.model, version)
            same = False
        log.log(
            logging.INFO if same else logging.ERROR,
            "after the rollback, outputs on the golden set %s those on record",
            "equal" if same else "DIFFER from",
            extra={"model": deployment.model, "version": version},
        )
        self._report(deployment.model, deployment.revision, golden={version: same})

    def _on_command(self, record: Message, value: bytes) -> None:
        command = COMMANDS.validate_json(value)
        if isinstance(command, ControlTick):
            self.event_time_ms = max(self.event_time_ms, command.event_time_ms)
            return
        if not isinstance(command, RollbackRequested):
            return
        if self._verifier is not None:
            try:
                self._verifier.verify(command)
            except SignatureError as error:
                self._metrics.count("driftline_errors_total", where="signature")
                log.error("rollback request %s is not obeyed: %s", command.request_id, error)
                return
        model = self._core.model(command.model)
        newest = model.routes.newest
        partition, offset = int(record.partition() or 0), int(record.offset() or 0)
        if newest is not None and offset < newest.control_offsets.get(partition, 0):
            return
        self._tell(command, model.trips.request(command, self.event_time_ms, wall_ms()))

    def _tell(self, command: RollbackRequested, outcome: Trip) -> None:
        log.info(
            "rollback request %s of version %s: %s",
            command.request_id,
            command.version,
            outcome,
            extra={"model": command.model, "version": command.version, "trace_id": command.trace_id},
        )
        if outcome is Trip.TRIPPED:
            self._metrics.count("driftline_trips_total", model=command.model, version=command.version)
            newest = self._core.model(command.model).routes.newest
            revision = newest.revision if newest else 0
            self._report(command.model, revision, tripped=(command.version,), about=command.request_id)


def _left_a_version(before: Deployment, after: Deployment) -> bool:
    rolled_back = after.phase is Phase.ROLLED_BACK and before.phase is not Phase.ROLLED_BACK
    return rolled_back or bool(set(after.tripped) - set(before.tripped))
