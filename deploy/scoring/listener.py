"""What a scorer hears beside requests: contracts, deployments, rollback requests. Applied between two micro-batches.

Reading is a thread's work, so that a request to leave a version never waits for a slow fetch, and so is loading versions:
a revision that needs one which is not loaded waits for it while the one before goes on answering. Applying is the scoring
loop's, so that no batch sees half a change.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial

from confluent_kafka import Message
from pydantic import ValidationError

from deploy.broadcast import Broadcast
from deploy.core.routing import versions_of
from deploy.core.trips import Trip
from deploy.process import wall_ms
from deploy.scoring.background import Background
from deploy.scoring.core import ScoringCore
from deploy.scoring.engine import Engine
from schemas.contracts import ModelRecord
from schemas.control import COMMANDS, ControlTick, Deployment, Phase, RollbackRequested
from schemas.errors import DriftlineError, SignatureError
from schemas.failpoints import failpoint
from schemas.observability import Metrics
from schemas.settings import KafkaSettings
from schemas.signing import Verifier

log = logging.getLogger(__name__)


class Listener:
    """Feeds ``core`` and ``engine`` from `models`, `deployments` and `control`.

    ``report(model, revision, failed=..., golden=..., tripped=..., awaiting=...)`` publishes a scorer's fact.
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
        self._queue: queue.SimpleQueue[list[Message] | Callable[[], None] | Exception] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="broadcast", daemon=True)
        self._digests: dict[str, dict[str, str]] = {}
        #: By model, the revision that waits for a version to be loaded; a newer one takes its place.
        self._waiting: dict[str, Deployment] = {}
        self._loading: set[str] = set()
        #: By model, the versions that wait for the registry, as was last said.
        self._awaited: dict[str, frozenset[str]] = {}
        self._trying: set[tuple[str, str]] = set()
        self._background = Background(self._queue.put)
        self._live = False
        self._left = False
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
            if not isinstance(heard, list):
                heard()
                continue
            for record in heard:
                self._apply(record)

    def take_left(self) -> bool:
        """Whether a version was taken off the traffic since this was last asked."""
        left, self._left = self._left, False
        return left

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._background.close()
        self._broadcast.close()

    def try_again(self, now_ms: int) -> None:
        """Try versions whose breaker has been open for long enough on their golden sets, never on a request; and load what
        could not be loaded because the registry was away."""
        for name, model in self._core.models.items():
            if self._engine.awaited(name):
                self._load(name)
            for version in model.breaker.to_try(now_ms):
                if (name, version) not in self._trying:
                    self._trying.add((name, version))
                    self._background.submit(partial(self._try, name, version, now_ms))

    def _try(self, name: str, version: str, now_ms: int) -> Callable[[], None]:
        return partial(self._tried, name, version, now_ms, self._golden_agrees(name, version))

    def _tried(self, name: str, version: str, now_ms: int, well: bool) -> None:
        self._trying.discard((name, version))
        breaker = self._core.model(name).breaker
        if well:
            breaker.reset(version)
            log.warning(
                "version serves again: its golden set runs", extra={"model": name, "version": version}
            )
        elif version in breaker.open:
            breaker.tried_in_vain(version, now_ms)

    def _golden_agrees(self, name: str, version: str) -> bool:
        loaded = self._engine.get(name, version)
        try:
            return loaded is not None and loaded.golden_agrees()
        except Exception:  # a model that cannot run its golden set does not agree with it
            log.exception("golden set of %s/%s", name, version)
            return False

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
            if not self._engine.claim(version.model, self._wanted(version.model)):
                self._load(version.model)
            elif self._live:
                self._background.submit(partial(self._warm, version.model, version.version, version.sha256))

    def _on_deployment(self, deployment: Deployment) -> None:
        name = deployment.model
        newest = self._waiting.get(name) or self._core.model(name).routes.newest
        if newest is not None and deployment.revision <= newest.revision:
            return
        self._waiting[name] = deployment
        if not self._engine.claim(name, self._wanted(name)):
            self._load(name)
        self._apply_if_ready(name)

    def _apply_if_ready(self, name: str) -> None:
        """A revision waits for the versions it sends requests to; those it only keeps warm come when they come."""
        waiting = self._waiting.get(name)
        if waiting is not None:
            weights, shadow = waiting.traffic_in(self._core.model(name).routes.region)
            serving = {*shadow, *(v for v, weight in weights.items() if weight > 0)}
            # Before the first request there is no revision that could go on answering while the registry is away.
            away = set() if self._live else self._engine.awaited(name).keys()
            if self._engine.settled(name, serving - away):
                self._apply_waiting(name)

    def _apply_waiting(self, name: str) -> None:
        """Let the revision that waited route requests from now on."""
        deployment = self._waiting.pop(name, None)
        model = self._core.model(name)
        before = model.routes.newest
        if deployment is None or not model.routes.add(deployment):
            return
        if self._live:
            failpoint("scorer.swapped")
        self._metrics.set("driftline_deployment_revision", deployment.revision, model=name)
        self._look_for_region(before, deployment)
        for command, outcome in model.trips.deployment(deployment, self.event_time_ms, wall_ms()):
            self._tell(command, outcome)
        if self._live and before is not None and _left_a_version(before, deployment):
            self._left = True
            self._prove(deployment)

    def _look_for_region(self, before: Deployment | None, deployment: Deployment) -> None:
        """Say, once a rollout, that it does not name this instance's region."""
        name, region = deployment.model, self._core.model(deployment.model).routes.region
        regions = [r.region for r in deployment.regions]
        unlisted = bool(regions) and region not in regions
        self._metrics.set("driftline_region_unlisted", unlisted, model=name)
        if unlisted and (before is None or before.entered != deployment.entered):
            log.warning(
                "the rollout of version %s goes by the regions %s, and this scorer is of %s: it serves the stable version "
                "alone until the end; set scorer.region, or name the region in rollout.regions",
                deployment.candidate, ", ".join(regions), region or "none", extra={"model": name},
            )  # fmt: skip

    def _wanted(self, name: str) -> list[str]:
        """Versions that are routed or kept warm, and those that a waiting revision needs; the most needed first."""
        waiting = self._waiting.get(name)
        routed = self._core.model(name).routes.versions()
        return [*dict.fromkeys([*(versions_of(waiting) if waiting is not None else ()), *routed])]

    def _load(self, name: str) -> None:
        """Have everything loaded that is wanted: at once before the first request, in the background afterwards."""
        wanted, digests = self._wanted(name), dict(self._digests.get(name, {}))
        if not self._live:
            self._loaded(name, wanted, self._engine.load(name, wanted, digests))
        elif name not in self._loading:
            self._loading.add(name)
            self._background.submit(partial(self._load_now, name, wanted, digests))

    def _load_now(self, name: str, wanted: list[str], digests: dict[str, str]) -> Callable[[], None]:
        return partial(self._loaded, name, wanted, self._engine.load(name, wanted, digests))

    def _loaded(self, name: str, wanted: list[str], failed: dict[str, str]) -> None:
        self._loading.discard(name)
        model = self._core.model(name)
        failed_before = model.failed - self._awaited.get(name, frozenset())
        now_failed, awaited = frozenset(self._engine.failed(name)), self._engine.awaited(name)
        self._say_what_waits(name, awaited)
        for version in model.failed - now_failed - awaited.keys():
            model.breaker.reset(version)
        if failed and now_failed != failed_before:
            for version, why in failed.items():
                log.error("version cannot be served: %s", why, extra={"model": name, "version": version})
            newest = self._waiting.get(name) or model.routes.newest
            self._report(name, newest.revision if newest else 0, failed=failed)
        model.failed = now_failed | awaited.keys()
        self._metrics.set("driftline_loaded_bytes", self._engine.memory_bytes)
        self._apply_if_ready(name)
        if not set(self._wanted(name)) <= set(wanted):
            self._load(name)

    def _say_what_waits(self, name: str, awaited: dict[str, str]) -> None:
        """The registry's absence is no version's fault, and is told as what it is."""
        self._metrics.set("driftline_awaited_versions", len(awaited), model=name)
        before = self._awaited.pop(name, frozenset())
        if awaited:
            self._awaited[name] = frozenset(awaited)
        if awaited.keys() == before:
            return
        newest = self._waiting.get(name) or self._core.model(name).routes.newest
        self._report(name, newest.revision if newest else 0, awaiting=awaited)
        if awaited:
            log.warning(
                "the registry is away: what is loaded goes on answering, %s will be loaded when it is back: %s",
                ", ".join(sorted(awaited)), next(iter(awaited.values())), extra={"model": name},
            )  # fmt: skip
        else:
            log.info("the registry is back", extra={"model": name})

    def _warm(self, name: str, version: str, sha256: str) -> Callable[[], None]:
        """A version that was announced will soon be wanted."""
        try:
            self._engine.warm(name, version, sha256)
        except DriftlineError as error:
            # Not served, so nobody's trouble yet: it is tried again, and reported, when it is wanted.
            why = str(error)
            return lambda: log.info("version is not loaded ahead: %s", why, extra={"model": name})
        return lambda: self._metrics.set("driftline_loaded_bytes", self._engine.memory_bytes)

    def _prove(self, deployment: Deployment) -> None:
        """After a rollback: does the version that answers now still compute what was recorded at its registration?"""
        version = deployment.stable
        if version is not None and self._engine.get(deployment.model, version) is not None:
            self._background.submit(partial(self._run_golden, deployment, version))

    def _run_golden(self, deployment: Deployment, version: str) -> Callable[[], None]:
        return partial(self._proven, deployment, version, self._golden_agrees(deployment.model, version))

    def _proven(self, deployment: Deployment, version: str, same: bool) -> None:
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
            self._left = True
            failpoint("scorer.tripped")
            self._metrics.count("driftline_trips_total", model=command.model, version=command.version)
            newest = self._core.model(command.model).routes.newest
            revision = newest.revision if newest else 0
            self._report(command.model, revision, tripped=(command.version,), about=command.request_id)


def _left_a_version(before: Deployment, after: Deployment) -> bool:
    rolled_back = after.phase is Phase.ROLLED_BACK and before.phase is not Phase.ROLLED_BACK
    return rolled_back or bool(set(after.tripped) - set(before.tripped))
