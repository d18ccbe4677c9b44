"""The controller's shell: ``control`` in, ``deployments``, ``decisions`` and ``alerts`` out, each revision in one transaction.

What it knows is the newest revision of each model; that names the offsets of ``control`` to read on from, so a controller
killed at any instruction reads the same messages again and decides the same. A second controller fences the first.
Measurements and questions to webhooks run on threads of their own; what they find comes back over ``control``.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from pydantic import ValidationError

from deploy.broadcast import Broadcast
from deploy.controller.checks import Checks
from deploy.controller.measure import Measurer
from deploy.controller.patience import Patience
from deploy.controller.view import View
from deploy.controller.webhooks import Webhooks
from deploy.core.ledger import Ledger
from deploy.core.rollout import Step, World, decide, needs_time
from deploy.http.server import ApiServer
from deploy.outage import FENCED, Outages
from deploy.process import serve_metrics, stop_event, wall_ms
from deploy.registry import Registry
from deploy.store.address import open_cache, open_store
from schemas.contracts import ModelRecord, ModelVersion
from schemas.control import (
    COMMANDS,
    Alert,
    AnyCommand,
    CanaryAnalysis,
    Command,
    ControlTick,
    Decision,
    Deployment,
    Measured,
)
from schemas.errors import BrokerError, DriftlineError, Fenced, SignatureError
from schemas.events import HEADER_KIND, HEADER_TRACE, KIND_TICK
from schemas.failpoints import failpoint
from schemas.observability import Metrics, configure_logs
from schemas.record import head_of
from schemas.settings import QUIET, ControllerSettings
from schemas.signing import Signer, Verifier
from schemas.verdicts import SignalChanged

log = logging.getLogger(__name__)
_LOOK_S = 0.05
#: What is not on `control` after so long is refused, and does not come later.
_SUBMIT_MS = 8_000
_TRANSACTION_S = 30.0
#: How long a decision may wait for a registry in a bucket; what takes longer is found at a later tick.
REGISTRY_WAIT_S = 2.0
#: So many records of `control` after its last revision a model gets one that changes nothing but where to read on from: a
#: restart never reads more, however long a model has been left in peace.
CHECKPOINT_RECORDS = 100_000


def run(
    settings: ControllerSettings, stop: threading.Event | None = None, metrics: Metrics | None = None
) -> int:
    """Serve until told to stop. Returns the exit status; 3 when another controller has taken over."""
    configure_logs(settings)
    stop = stop or stop_event()
    metrics = metrics or Metrics()
    serve_metrics(metrics, settings)
    controller = Controller(settings, metrics)
    api: ApiServer | None = None
    outages = Outages(settings.kafka, "controller", metrics, stop)
    try:
        if settings.controller.api_port:
            api = ApiServer(settings.controller, controller.view, controller.submit)
        with outages:
            outages.through(controller.open)
            if stop.is_set():
                return 0
            if api is not None:
                api.start()
            log.info(
                "controller is ready", extra={"event": "ready", "api_port": settings.controller.api_port}
            )
            serve(controller, outages, stop)
    except Fenced as error:
        log.error("another controller has taken over: %s", error)
        return 3
    except DriftlineError as error:
        log.error("controller ends: %s", error)
        return 1
    finally:
        if api is not None:
            api.stop()
        controller.close()
    return 0


def serve(controller: Controller, outages: Outages, stop: threading.Event) -> None:
    """Turn after turn until told to stop; after an outage from what is on record, as after a restart."""
    while not stop.is_set():
        try:
            controller.turn()
        except BrokerError as error:
            outages.sit_out(error)
            outages.through(controller.open)


class Controller:
    """Reads, decides, publishes. One thread calls ``turn``; ``view`` may be read by others. ``call_s``: time limit of each
    call to the broker about a transaction."""

    def __init__(
        self, settings: ControllerSettings, metrics: Metrics, call_s: float = _TRANSACTION_S
    ) -> None:
        self.view = View()
        self._call_s = call_s
        self._settings = settings
        self._kafka = settings.kafka
        self._metrics = metrics
        key = settings.signing.key_file
        self._signer = None if key is None else Signer.load(key)
        trusted = list(settings.signing.trusted)
        self._verifier = Verifier(trusted) if trusted else None
        address = settings.controller.registry
        registry = Registry(
            open_store(address, settings.s3), self._signer, self._verifier, open_cache(address, settings.s3)
        )
        patience = None if isinstance(address, Path) else Patience(REGISTRY_WAIT_S)
        self._checks = Checks(registry, self._announced, self.view.contract, patience)
        self._states: dict[str, Deployment] = {}
        self._ledger = Ledger()
        self._sources: dict[str, int] = {}
        self._time_ms = -1
        self._offsets: dict[int, int] = {}
        self._producer: Producer | None = None
        self._unsettled = False
        self._commands = Producer(self._kafka.producer(**{"message.timeout.ms": _SUBMIT_MS, **QUIET}))
        self._input: Broadcast | None = None
        self._looked_ms = -1
        self._measurer = Measurer(
            settings.clickhouse,
            self._kafka.input_partitions,
            self.submit,
            metrics,
            settings.controller.archive_timeout,
        )
        key_text = settings.controller.webhook_key
        self._webhooks = Webhooks(
            None if key_text is None else key_text.get_secret_value(), self.submit, metrics
        )

    def open(self) -> None:
        """Fence a predecessor, learn where things stand, and where to read on. Again after an outage: what was decided and
        not written is decided anew. Raises BrokerError."""
        self._settle()
        self._let_go()
        self._states, self._ledger = {}, Ledger()
        self._sources, self._offsets = {}, {}
        self._time_ms = self._looked_ms = -1
        self.view.begin()
        producer = self._producer = Producer(
            self._kafka.producer(
                **{"transactional.id": f"{self._kafka.topic_prefix}controller", "linger.ms": 0, **QUIET}
            )
        )
        try:
            producer.init_transactions(self._call_s)
        except KafkaException as error:
            raise BrokerError(f"the controller's transactions could not be initialised: {error}") from error
        with Broadcast(self._kafka, ["deployments"]) as history:
            for message in history.read_to_end():
                self._hear("deployments", message)
        self._input = Broadcast(self._kafka, ["models", "alerts", "decisions", "signals"])
        for message in self._input.read_to_end():
            self._hear(self._input.name(message), message)
        starts = self._start_offsets()
        self._remember_time(starts)
        self._input.add("control", starts)

    def _start_offsets(self) -> dict[int, int]:
        """The earliest offset any model still needs; what a model has had already is passed over message by message."""
        known = [state.control_offsets for state in self._states.values()]
        if not known or len(known) < len(self.view.contracts()):
            return {}
        return {
            p: min(offsets.get(p, 0) for offsets in known) for p in {p for offsets in known for p in offsets}
        }

    def _remember_time(self, starts: dict[int, int]) -> None:
        """Time as it stood where reading begins: else an expired command could be obeyed after a restart."""
        for state in self._states.values():
            if starts and state.control_offsets == starts:
                self._sources = dict(state.control_times)
                self._time_ms = self._reached()
                if self._time_ms >= 0:
                    self.view.reached(self._time_ms)
                return

    def turn(self) -> None:
        """Read what there is and act on it."""
        assert self._input is not None
        for message in self._input.poll(_LOOK_S):
            topic = self._input.name(message)
            if topic == "control":
                self._control(message)
            else:
                self._hear(topic, message)
        if self._time_ms < 0:
            return
        states = list(self._states.values())
        if self._time_ms > self._looked_ms:
            self._looked_ms = self._time_ms
            self._measurer.look(states, self.view.contract, self._time_ms)
        self._webhooks.look(states, self.view.contract, self._time_ms)
        self._checkpoint(states)

    def _checkpoint(self, states: list[Deployment]) -> None:
        for state in states:
            read = sum(self._offsets.values()) - sum(state.control_offsets.get(p, 0) for p in self._offsets)
            if read > CHECKPOINT_RECORDS:
                again = state.model_copy(update={"revision": state.revision + 1})
                self._publish(state.model, Step(again, again))

    def _hear(self, topic: str, message: Message) -> None:
        value = message.value()
        if value is None:
            return
        try:
            if topic == "models":
                self.view.record(ModelRecord.model_validate_json(value))
            elif topic == "deployments":
                self._know(Deployment.model_validate_json(value))
            elif topic == "decisions":
                fact = Decision.model_validate_json(value)
                self._ledger.learn(fact)
                self.view.decided(fact)
            elif topic == "alerts":
                self.view.alerted(Alert.model_validate_json(value))
            elif topic == "signals" and (HEADER_KIND, KIND_TICK) not in (message.headers() or ()):
                self._measurer.heard(SignalChanged.model_validate_json(value))
        except ValidationError as error:
            self._metrics.count("driftline_errors_total", where=f"controller: {topic}")
            log.warning("%s/%s/%s cannot be read: %s", topic, message.partition(), message.offset(), error)

    def _know(self, deployment: Deployment) -> None:
        held = self._states.get(deployment.model)
        if held is None or held.revision < deployment.revision:
            self._states[deployment.model] = deployment
            self.view.deployed(deployment)
            self._metrics.set("driftline_deployment_revision", deployment.revision, model=deployment.model)

    # -- one message of control -----------------------------------------------------------------------------------

    def _control(self, message: Message) -> None:
        partition, offset = int(message.partition() or 0), int(message.offset() or 0)
        self._offsets[partition] = offset + 1
        try:
            command = COMMANDS.validate_json(message.value() or b"")
        except ValidationError as error:
            self._metrics.count("driftline_errors_total", where="controller: control")
            log.warning("control/%s/%s cannot be read and is passed over: %s", partition, offset, error)
            return
        if isinstance(command, ControlTick):
            self._tick(command, partition, offset)
        else:
            if isinstance(command, CanaryAnalysis):
                self.view.analysed(command)
            self._obey(command.model, command, (partition, offset))

    def _tick(self, tick: ControlTick, partition: int, offset: int) -> None:
        """Time is the slowest policy task's; it moves when all of them have spoken."""
        self._sources[tick.source] = max(
            tick.event_time_ms, self._sources.get(tick.source, tick.event_time_ms)
        )
        reached = self._reached()
        if reached <= self._time_ms:
            return
        self._time_ms = reached
        self.view.reached(reached)
        moved = tick.model_copy(update={"event_time_ms": reached})
        for model, state in list(self._states.items()):
            if needs_time(state):
                self._obey(model, moved, (partition, offset))

    def _reached(self) -> int:
        """The time all policy tasks have reached, or any other source; -1 before that. It never goes back."""
        policies = [at for source, at in self._sources.items() if source.startswith("policy/")]
        others = [at for source, at in self._sources.items() if not source.startswith("policy/")]
        if len(policies) >= self._kafka.input_partitions:
            others.append(min(policies))
        return max(others, default=-1)

    def _obey(self, model: str, command: AnyCommand, address: tuple[int, int]) -> None:
        state = self._states.get(model)
        if state is not None and address[1] < state.control_offsets.get(address[0], 0):
            return
        contract = self.view.contract(model)
        if contract is None:
            self._refresh_models()
            contract = self.view.contract(model)
        if contract is None:
            log.error("control/%s/%s is about model %s, which has no contract", *address, model)
            return
        world = World(
            contract,
            lambda v: self._checks.verify(model, v),
            self._time_ms,
            self._settings.controller.activation_delay,
            lambda v: self._checks.intact(model, v),
            lambda v: self._checks.approvals(model, v),
        )
        step = decide(state, command, address, world, self._untrusted(command))
        failpoint("controller.decided")
        self._publish(model, step)
        if isinstance(command, Measured):
            self.view.measured(self._states[model])

    def _untrusted(self, command: AnyCommand) -> str | None:
        if self._verifier is None or not isinstance(command, Command):
            return None
        try:
            self._verifier.verify(command)
        except SignatureError as error:
            self._metrics.count("driftline_errors_total", where="controller: signature")
            return str(error)
        return None

    def _announced(self, model: str, version: str) -> ModelVersion | None:
        """The version's record on `models`, which may be newer than what was read."""
        record = self.view.version(model, version)
        if record is None:
            self._refresh_models()
            record = self.view.version(model, version)
        return record

    def _refresh_models(self) -> None:
        with Broadcast(self._kafka, ["models"]) as models:
            for message in models.read_to_end():
                self._hear("models", message)

    # -- what leaves ----------------------------------------------------------------------------------------------

    def _publish(self, model: str, step: Step) -> None:
        self._states[model] = step.state
        # A fact without a revision is decided again after a restart; what is on record is not recorded twice.
        decisions = [
            self._complete(d, step)
            for d in step.decisions
            if step.deployment is not None or not self._ledger.holds(d)
        ]
        if step.deployment is None and not decisions:
            return
        decisions = [
            d if self._signer is None else self._signer.sign(d) for d in self._ledger.link(decisions)
        ]
        head = head_of(decisions[-1]) if decisions else self._ledger.head(model)
        producer = self._producer
        assert producer is not None
        self._unsettled = True
        try:
            producer.begin_transaction()
            for decision in decisions:
                self._produce(
                    producer, "decisions", model, decision.model_dump_json().encode(), decision.trace_id
                )
            if step.deployment is not None:
                revision = step.deployment.model_copy(
                    update={
                        "control_offsets": dict(self._offsets),
                        "control_times": dict(self._sources),
                        "facts": head.sequence,
                        "facts_head": head.digest,
                    }
                )
                self._produce(producer, "deployments", model, revision.model_dump_json().encode(), None)
                self._states[model] = revision
                for alert in step.alerts:
                    self._produce(
                        producer, "alerts", alert.incident, alert.model_dump_json().encode(), alert.trace_id
                    )
            failpoint("controller.produced")
            producer.commit_transaction(self._call_s)
        except KafkaException as error:
            if error.args[0].code() in FENCED:
                raise Fenced(str(error)) from error
            raise BrokerError(f"a decision about {model} could not be written: {error}") from error
        self._unsettled = False
        failpoint("controller.committed")
        for decision in decisions:
            self._ledger.learn(decision)
            self._metrics.count("driftline_decisions_total", model=model, kind=decision.kind)
            log.info(
                "%s: %s", decision.kind, decision.detail,
                extra={"event": "decision", "model": model, "trace_id": decision.trace_id},
            )  # fmt: skip
        if step.deployment is not None:
            for alert in step.alerts:
                self._metrics.count(
                    "driftline_alerts_total", model=model, severity=alert.severity.value, status=alert.status
                )
            self.view.deployed(self._states[model])
            self._metrics.set("driftline_deployment_revision", step.deployment.revision, model=model)

    def _complete(self, fact: Decision, step: Step) -> Decision:
        """What only the shell knows of a fact: when it is written, which bytes the version is, who has the traffic now."""
        record = None if fact.version is None else self.view.version(fact.model, fact.version)
        return fact.model_copy(
            update={
                "recorded_ms": wall_ms(),
                "model_digest": fact.model_digest or ("" if record is None else record.sha256),
                "weights": None if step.deployment is None else step.deployment.weights,
                "regions": {} if step.deployment is None else step.deployment.regional_weights,
            }
        )

    def _produce(self, producer: Producer, topic: str, key: str, value: bytes, trace: str | None) -> None:
        headers: list[tuple[str, str | bytes | None]] = (
            [] if trace is None else [(HEADER_TRACE, trace.encode())]
        )
        producer.produce(self._kafka.topic(topic), value, key.encode(), 0, headers=headers)

    def submit(self, command: Command) -> None:
        """Put a command or a fact on ``control``, signed with this service's key; any thread may. Raises BrokerError."""
        signed = command if self._signer is None else self._signer.sign(command)
        said: list[KafkaError | None] = []
        self._commands.produce(
            self._kafka.topic("control"), signed.model_dump_json().encode(), signed.model.encode(), 0,
            on_delivery=lambda error, _message: said.append(error),
        )  # fmt: skip
        self._commands.flush(2 * _SUBMIT_MS / 1_000)
        if said != [None]:
            raise BrokerError(f"the command could not be written to `control`: is the broker up? {said}")

    def close(self) -> None:
        self._measurer.close()
        self._webhooks.close()
        self._commands.close()
        self._let_go()

    def _settle(self) -> None:
        """End a transaction whose end was not heard of: it is there whole or not at all, and what follows reads which. Raises
        BrokerError while it cannot be ended."""
        if self._producer is None or not self._unsettled:
            return
        try:
            self._producer.commit_transaction(self._call_s)
        except KafkaException as error:
            if error.args[0].retriable():
                raise BrokerError(f"the controller's last transaction is not settled yet: {error}") from error
        self._unsettled = False

    def _let_go(self) -> None:
        # In the middle of a call to it, the client cannot be closed: it is left to the process's end.
        if self._producer is not None and not self._unsettled:
            self._producer.close()
        if self._input is not None:
            self._input.close()
        self._producer = self._input = None
