"""The POLICY stage: what signals mean for people and for the rollout.

Signals are facts; rules in the model's contract decide. One incident a cause: the first rule that matches opens it, further
detectors join it, its alert goes out once, its action at most once a cooldown, and it is resolved when every detector has
taken its verdict back or the version has left the traffic. A verdict that comes during the cooldown of a resolved incident,
or about a version without traffic, is held: still standing when neither is so any more, it opens an incident then. Actions
are level-triggered: one that must wait (a rollout is open, the interval between retrains has not passed), and one that the
controller refused, is tried again as event time moves. An error or an inconclusive verdict never acts. Every decision is a
signed fact; ids are content hashes, so a replay repeats them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, assert_never

import msgspec
from pydantic import BaseModel, ValidationError

from schemas.contracts import ModelContract, ModelRecord, Rule
from schemas.control import (
    CanaryAnalysis,
    Command,
    ControlTick,
    Decision,
    Deployment,
    Outcome,
    RetrainRequested,
    RollbackRequested,
    Severity,
)
from schemas.errors import SnapshotError
from schemas.events import HEADER_KIND, KIND_TICK, Tick
from schemas.ids import content_hash
from schemas.record import POLICY, head_of, link
from schemas.signing import Signer
from schemas.verdicts import Family, SignalChanged, State
from streams.core.delivery import Manifest, Out, StageContext, TopicPartition, Upserts
from streams.core.incidents import (
    Incident,
    ModelState,
    alert_of,
    command_fields,
    fact_of,
    headline,
    known,
    matching_rule,
    place,
    rule_named,
    served,
    summary,
    trace_headers,
)
from streams.core.records import Input, Record, one_by_one

POLICY_SCHEMA = 2
DAY_MS = 86_400_000
BEGINNING_MS = -(2**62)
#: Versions of a model whose digest is remembered, the last announced.
DIGESTS_KEPT = 1_000
#: Answers after which a command counts as carried out.
_OBEYED = frozenset({Outcome.ACCEPTED, Outcome.DONE, Outcome.DUPLICATE})
Sign = Callable[[Command | Decision], Command | Decision]


def create(context: StageContext) -> PolicyCore:
    """The policy stage's core; signs with the settings' key when there is one."""
    key = context.settings.signing.key_file
    signer = None if key is None else Signer.load(key)
    return PolicyCore(context, (lambda message: message) if signer is None else signer.sign)


class PolicyCore:
    """See the module. ``sign`` must be deterministic (Ed25519 is)."""

    stage = "policy"

    def __init__(self, context: StageContext, sign: Sign) -> None:
        self._context = context
        self._sign = sign
        self._contracts: dict[str, ModelContract] = {}
        self._digests: dict[str, dict[str, str]] = {}
        self._models: dict[str, ModelState] = {}
        self._changed: set[str] = set()
        self._sources: dict[str, int] = {}
        self._time_ms = BEGINNING_MS
        self._time_changed = False
        self._outs: list[Out] = []
        self._counted: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
        self._now_ms = 0

    def activate(self, records: Sequence[ModelRecord]) -> None:
        for record in records:
            if record.contract is not None:
                self._contracts[record.contract.model] = record.contract
            if record.version is not None:
                digests = self._digests.setdefault(record.version.model, {})
                digests[record.version.version] = record.version.sha256
                if len(digests) > DIGESTS_KEPT:
                    del digests[next(iter(digests))]

    def apply(self, records: Sequence[Input], now_ms: int) -> None:
        self._now_ms = now_ms
        for record in one_by_one(records):
            if record.topic == "deployments":
                self._deployment(record)
            elif record.headers.get(HEADER_KIND) == KIND_TICK:
                self._tick(record)
            else:
                self._signal(record)

    # -- input ----------------------------------------------------------------------------------------------------

    def _deployment(self, record: Record) -> None:
        try:
            deployment = Deployment.model_validate_json(record.value or b"")
        except ValidationError:
            return
        state = self._state(deployment.model)
        if state.deployment is not None and state.deployment.revision >= deployment.revision:
            return
        state.deployment = deployment
        self._changed.add(deployment.model)
        answers = {answer.request_id: answer.outcome for answer in deployment.answers}
        if state.asked is not None and state.asked[0] in answers:
            request_id, asked_ms = state.asked
            state.asked = None
            if answers[request_id] in _OBEYED:
                state.retrained_ms = asked_ms
        for incident in state.incidents.values():
            if incident.request_id in answers:
                self._answered(incident)
            if incident.resolved_ms is None and not served(deployment, incident.version):
                # The detectors have not taken it back: should the version come back, it counts again.
                state.held |= {place(signal): signal for signal in incident.agreeing.values()}
                self._resolve(
                    incident, max(self._time_ms, incident.opened_ms), "the version has left the traffic"
                )
                incident.agreeing = {}
        state.held = {
            place: signal for place, signal in state.held.items() if known(deployment, signal.version)
        }

    def _answered(self, incident: Incident) -> None:
        """The controller answered the incident's command, or let it expire. While the incident stands, the action is
        wanted still: a refused request is repeated after the rule's cooldown, a training that failed or did not help
        after the interval between retrains."""
        incident.request_id = None
        if incident.resolved_ms is None:
            incident.pending = True

    def _tick(self, record: Record) -> None:
        try:
            tick = Tick.model_validate_json(record.value or b"")
        except ValidationError:
            self._count("driftline_errors_total", where="policy: tick that cannot be read")
            return
        if tick.event_time_ms <= self._sources.get(tick.source, BEGINNING_MS):
            return
        self._sources[tick.source] = tick.event_time_ms
        self._time_changed = True
        if len(self._sources) < max(tick.sources, 1):
            return
        reached = min(self._sources.values())
        if reached <= self._time_ms:
            return
        self._time_ms = reached
        for model in sorted(self._models):
            self._look_again(model, self._models[model], reached)
        value = ControlTick(event_time_ms=reached, source=self._context.task).model_dump_json().encode()
        self._outs.append(Out("control", None, value, 0, {HEADER_KIND: KIND_TICK}))

    def _look_again(self, model: str, state: ModelState, reached: int) -> None:
        """What had to wait: unanswered commands, verdicts that are held, actions."""
        contract = self._contracts.get(model)
        if contract is None:
            return
        ttl = contract.policy.command_ttl
        if state.asked is not None and reached > state.asked[1] + ttl:
            state.asked = None
            self._changed.add(model)
        for incident in state.incidents.values():
            open_ms = incident.acted_ms if incident.request_id is not None else None
            if open_ms is not None and reached > open_ms + ttl:
                self._answered(incident)
                self._changed.add(model)
        for where in sorted(state.held):
            signal = state.held[where]
            rule = matching_rule(contract, signal)
            if rule is None or not self._may_open(state, rule, signal, reached):
                continue
            del state.held[where]
            at = max(reached, signal.event_time_ms)
            self._agree(contract, rule, signal.model_copy(update={"event_time_ms": at}))
        for incident in state.incidents.values():
            if incident.pending:
                self._act(model, incident, reached)

    def _signal(self, record: Record) -> None:
        try:
            signal = SignalChanged.model_validate_json(record.value or b"")
        except ValidationError:
            self._count("driftline_errors_total", where="policy: signal that cannot be read")
            return
        contract = self._contracts.get(signal.model)
        if contract is None:
            return
        if signal.family is Family.COMPARISON:
            self._pass_on(signal)
        match signal.verdict.state:
            case State.DRIFT | State.WARNING | State.ERROR:
                rule = matching_rule(contract, signal)
                if rule is not None:
                    self._agree(contract, rule, signal)
            case State.STABLE:
                self._take_back(signal)
            case State.INCONCLUSIVE:
                pass
            case _:
                assert_never(signal.verdict.state)

    def _pass_on(self, signal: SignalChanged) -> None:
        """The controller reads ``control`` alone: analyses of a candidate reach it there, in order with everything."""
        analysis = CanaryAnalysis(
            model=signal.model,
            version=signal.version,
            detector=signal.detector,
            state=signal.verdict.state,
            evidence=signal.verdict.evidence,
            score=signal.verdict.score,
            threshold=signal.verdict.threshold,
            event_time_ms=signal.event_time_ms,
            signal_id=signal.signal_id,
            trace_id=signal.trace_id,
        )
        self._outs.append(Out("control", signal.model.encode(), analysis.model_dump_json().encode(), 0))

    # -- incidents ------------------------------------------------------------------------------------------------

    def _agree(self, contract: ModelContract, rule: Rule, signal: SignalChanged) -> None:
        state = self._state(signal.model)
        self._changed.add(signal.model)
        if not self._may_open(state, rule, signal, signal.event_time_ms):
            state.held[place(signal)] = signal
            return
        state.held.pop(place(signal), None)
        key = f"{signal.version}/{rule.name}"
        incident = state.incidents.get(key)
        if incident is None or incident.resolved_ms is not None:
            name = content_hash(f"{signal.model}/{key}/{signal.signal_id}".encode())[:16]
            incident = state.incidents[key] = Incident(
                incident=name,
                model=signal.model,
                version=signal.version,
                role=signal.role,
                rule=rule.name,
                opened_ms=signal.event_time_ms,
                trace_id=signal.trace_id or signal.signal_id[:32],
            )
        incident.agreeing[signal.detector] = signal
        incident.seen[signal.detector] = signal
        if len(incident.agreeing) < rule.streak:
            return
        self._tell(contract, rule, incident, signal.event_time_ms)
        sound = [s for s in incident.agreeing.values() if s.verdict.state is not State.ERROR]
        if len(sound) < rule.streak or rule.action == "none" or incident.wanted:
            return
        incident.wanted = incident.pending = True
        self._act(signal.model, incident, signal.event_time_ms)

    def _may_open(self, state: ModelState, rule: Rule, signal: SignalChanged, at_ms: int) -> bool:
        """Whether a verdict belongs to an incident now: one is open, or the last one's cooldown has passed."""
        if state.deployment is not None and not served(state.deployment, signal.version):
            return False
        incident = state.incidents.get(f"{signal.version}/{rule.name}")
        if incident is None or incident.resolved_ms is None or incident.severity is None:
            return True
        return at_ms >= incident.resolved_ms + rule.cooldown

    def _tell(self, contract: ModelContract, rule: Rule, incident: Incident, event_time_ms: int) -> None:
        """One alert an incident, and a second one when a detector that may page joins those that may not."""
        severity = Severity(rule.severity)
        if severity is Severity.PAGE and not any(signal.pages for signal in incident.agreeing.values()):
            severity = Severity.TICKET
        raised = incident.severity is Severity.TICKET and severity is Severity.PAGE
        if incident.severity is not None and not raised:
            return
        incident.severity = severity
        self._alert(incident, rule, severity, "trigger", event_time_ms, summary(incident))
        self._decide(
            contract,
            incident,
            "alert-raised" if raised else "alert-opened",
            event_time_ms,
            headline(incident),
        )

    def _take_back(self, signal: SignalChanged) -> None:
        state = self._models.get(signal.model)
        if state is None:
            return
        if state.held.pop(place(signal), None) is not None:
            self._changed.add(signal.model)
        for incident in state.incidents.values():
            if incident.version == signal.version and signal.detector in incident.agreeing:
                del incident.agreeing[signal.detector]
                self._changed.add(signal.model)
                if not incident.agreeing and incident.resolved_ms is None:
                    self._resolve(
                        incident, signal.event_time_ms, "the detectors have taken their verdicts back"
                    )

    def _resolve(self, incident: Incident, event_time_ms: int, why: str) -> None:
        incident.resolved_ms = event_time_ms
        incident.pending = False
        self._changed.add(incident.model)
        contract = self._contracts.get(incident.model)
        if incident.severity is not None and contract is not None:
            # A rule that is gone from the contract still ends what it began.
            rule = rule_named(contract, incident.rule) or Rule(name=incident.rule)
            self._alert(incident, rule, incident.severity, "resolve", event_time_ms, why)
            self._decide(contract, incident, "alert-resolved", event_time_ms, why)

    # -- actions --------------------------------------------------------------------------------------------------

    def _act(self, model: str, incident: Incident, event_time_ms: int) -> None:
        contract = self._contracts[model]
        rule = rule_named(contract, incident.rule)
        if rule is None:
            incident.pending = False
            return
        state = self._state(model)
        if incident.acted_ms is not None and event_time_ms < incident.acted_ms + rule.cooldown:
            return
        command = self._command(contract, rule, state, incident, event_time_ms)
        if command is None:
            return
        day = event_time_ms // DAY_MS
        if state.commands.get(day, 0) >= contract.policy.commands_per_day_max:
            return
        # The day before stays: signals of several partitions do not come in the order of their times.
        state.commands = {d: n for d, n in state.commands.items() if d >= day - 1}
        state.commands[day] = state.commands.get(day, 0) + 1
        incident.pending = False
        incident.acted_ms = event_time_ms
        incident.request_id = command.request_id
        if isinstance(command, RetrainRequested):
            state.asked = (command.request_id, event_time_ms)
        self._changed.add(model)
        signed = self._sign(command)
        self._send("control", model, signed, incident.trace_id)
        kind = "retrain-requested" if isinstance(command, RetrainRequested) else "rollback-requested"
        self._count("driftline_commands_total", model=model, type=kind)
        self._decide(contract, incident, kind, event_time_ms, command.reason, command.request_id)

    def _command(
        self, contract: ModelContract, rule: Rule, state: ModelState, incident: Incident, event_time_ms: int
    ) -> Command | None:
        """The command ``rule`` asks for, or None while it has to wait."""
        deployment = state.deployment
        if deployment is None or incident.version not in deployment.answering:
            return None
        match rule.action:
            case "none":
                return None
            case "rollback":
                if incident.version != deployment.stable:
                    return self._rollback(contract, incident, deployment, event_time_ms)
                target = deployment.previous
                if target is not None and target not in deployment.tripped:
                    return self._rollback(contract, incident, deployment, event_time_ms)
                return self._retrain(contract, state, incident, deployment, event_time_ms)
            case "retrain":
                return self._retrain(contract, state, incident, deployment, event_time_ms)
            case _:
                assert_never(rule.action)

    def _rollback(
        self, contract: ModelContract, incident: Incident, deployment: Deployment, event_time_ms: int
    ) -> RollbackRequested:
        fields = command_fields("rollback", contract, incident, deployment, event_time_ms)
        return RollbackRequested(version=incident.version, **fields)

    def _retrain(
        self,
        contract: ModelContract,
        state: ModelState,
        incident: Incident,
        deployment: Deployment,
        event_time_ms: int,
    ) -> RetrainRequested | None:
        if deployment.training is not None or deployment.candidate is not None or state.asked is not None:
            return None
        last = state.retrained_ms
        if last is not None and event_time_ms < last + contract.policy.retrain_interval:
            return None
        fields = command_fields("retrain", contract, incident, deployment, event_time_ms)
        return RetrainRequested(version=incident.version, **fields)

    # -- what leaves ----------------------------------------------------------------------------------------------

    def _alert(
        self,
        incident: Incident,
        rule: Rule,
        severity: Severity,
        status: Literal["trigger", "resolve"],
        event_time_ms: int,
        summary: str,
    ) -> None:
        alert = alert_of(incident, rule, severity, status, event_time_ms, summary)
        self._count("driftline_alerts_total", model=incident.model, severity=severity.value, status=status)
        self._send("alerts", incident.incident, alert, incident.trace_id)

    def _decide(
        self,
        contract: ModelContract,
        incident: Incident,
        kind: str,
        event_time_ms: int,
        detail: str,
        request_id: str | None = None,
    ) -> None:
        state = self._state(contract.model)
        digest = self._digests.get(contract.model, {}).get(incident.version, "")
        decision = fact_of(
            contract, incident, state.deployment, kind, event_time_ms, detail, digest, request_id
        )
        decision = decision.model_copy(update={"recorded_ms": self._now_ms})
        fact = link(decision, POLICY, state.record)
        state.record = head_of(fact)
        self._changed.add(contract.model)
        self._send("decisions", contract.model, self._sign(fact), incident.trace_id)

    def _send(self, topic: str, key: str, message: BaseModel, trace_id: str | None) -> None:
        body = message.model_dump_json().encode()
        self._outs.append(Out(topic, key.encode(), body, 0, trace_headers(trace_id)))

    def outputs(self) -> list[Out]:
        outs, self._outs = self._outs, []
        return outs

    # -- state ----------------------------------------------------------------------------------------------------

    def _state(self, model: str) -> ModelState:
        return self._models.setdefault(model, ModelState())

    def changed_pieces(self) -> dict[str, bytes | None]:
        pieces: dict[str, bytes | None] = {
            f"model/{model}": msgspec.msgpack.encode([POLICY_SCHEMA, self._models[model].model_dump_json()])
            for model in sorted(self._changed)
        }
        self._changed = set()
        if self._time_changed:
            pieces["time"] = msgspec.msgpack.encode([POLICY_SCHEMA, self._time_ms, self._sources])
            self._time_changed = False
        return pieces

    def restore(self, pieces: Mapping[str, bytes], manifest: Manifest | None) -> None:
        for name, data in pieces.items():
            schema, *fields = msgspec.msgpack.decode(data)
            if schema != POLICY_SCHEMA:
                raise SnapshotError(
                    f"{self._context.task}: {name} was written with schema {schema}, this is {POLICY_SCHEMA}; "
                    "run the version that wrote it, or empty this task's state"
                )
            if name == "time":
                self._time_ms, self._sources = fields
            else:
                self._models[name.removeprefix("model/")] = ModelState.model_validate_json(fields[0])

    def positions(self) -> dict[TopicPartition, int]:
        return {}

    def watermarks(self) -> dict[str, int]:
        return {"signals": self._time_ms}

    def committed(self, sequence: int) -> None:
        """Nothing waits for it."""

    def upserts(self) -> list[Upserts]:
        return []

    def confirm(self, sent: Sequence[Upserts]) -> None:
        """This stage writes no aggregates."""

    def measurements(self) -> Iterable[tuple[str, dict[str, str], float]]:
        counted, self._counted = self._counted, {}
        for (name, labels), value in counted.items():
            yield name, dict(labels), value

    def _count(self, name: str, **labels: str) -> None:
        key = (name, tuple(sorted(labels.items())))
        self._counted[key] = self._counted.get(key, 0) + 1
