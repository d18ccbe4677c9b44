"""The trainer process: retrain requests in, registered versions, reports and alerts out; on a schedule it asks by itself.

Everything it needs to know it reads from the topics again at each start, and what it makes is named by the request that
asked for it: killed anywhere, it ends where it would have ended. A request is tried a limited number of times, counted on
disk; a training that gives no model is an incident, with an alert, and ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaException, Message
from pydantic import ValidationError

from deploy.broadcast import Broadcast
from deploy.models import publish_records
from deploy.outage import Outages
from deploy.process import serve_metrics, stop_event
from deploy.registry import Registry
from deploy.store.address import open_store
from deploy.training import incident
from deploy.training.outbox import Outbox
from deploy.training.plan import NOT_BETTER, Plan
from deploy.training.runner import Result, Runner
from deploy.training.trainers import Cancelled
from schemas.contracts import ModelContract, ModelRecord
from schemas.control import COMMANDS, Alert, ControlTick, Deployment, RetrainRequested, TrainingFinished
from schemas.errors import BrokerError, DriftlineError, Fenced, SignatureError
from schemas.failpoints import failpoint
from schemas.observability import Metrics, configure_logs
from schemas.settings import TrainerSettings
from schemas.signing import Signer, Verifier

log = logging.getLogger(__name__)

EXIT_UNEXPECTED = 70
_LOOK_S = 0.25
_DETAIL_MAX = 1_000


def run(
    settings: TrainerSettings, stop: threading.Event | None = None, metrics: Metrics | None = None
) -> int:
    """Train whenever a deployment asks for it, until told to stop. Returns 0, or 70 after an error it cannot survive."""
    if stop is None:
        configure_logs(settings)
        stop = stop_event()
    metrics = metrics or Metrics()
    serve_metrics(metrics, settings)
    outages = Outages(settings.kafka, "trainer", metrics, stop)

    def serve() -> None:
        try:
            TrainerProcess(settings, metrics, stop).run()
        except Fenced as error:
            if not outages.lately:
                raise
            raise BrokerError(f"a transaction did not outlive the broker's absence: {error}") from error

    try:
        with outages:
            outages.through(serve)
    except Cancelled:
        log.info("told to stop; the open retrain request is taken up again at the next start")
    except (DriftlineError, KafkaException):
        log.exception("the trainer cannot go on; open retrain requests are taken up again at the next start")
        return EXIT_UNEXPECTED
    return 0


class TrainerProcess:
    """Reads the topics into a plan and works it off, one request at a time."""

    def __init__(
        self,
        settings: TrainerSettings,
        metrics: Metrics,
        stop: threading.Event,
        connect: Callable[[], Client] | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._stop = stop
        trusted = list(settings.signing.trusted)
        self._verifier = Verifier(trusted) if trusted else None
        self._signer = Signer.load(settings.signing.key_file) if settings.signing.key_file else None
        registry = Registry(open_store(settings.trainer.registry, settings.s3), self._signer, self._verifier)
        connect = connect or (lambda: clickhouse_connect.get_client(**settings.clickhouse.client()))
        self._runner = Runner(settings, registry, connect, stop)
        self._plan = Plan(settings.kafka.input_partitions)

    def run(self) -> None:
        """Hear, and work on what is asked for, until told to stop."""
        outbox = Outbox(self._settings.kafka)
        try:
            with Broadcast(self._settings.kafka, ("models", "deployments", "control")) as broadcast:
                self._hear(broadcast, broadcast.read_to_end())
                log.info("trainer is ready", extra={"event": "ready"})
                while not self._stop.is_set():
                    self._look(outbox)
                    self._hear(broadcast, broadcast.poll(_LOOK_S))
        finally:
            outbox.close()

    def _look(self, outbox: Outbox) -> None:
        for asked in self._plan.due():
            log.info("retrain %s is due by its schedule", asked.request_id, extra={"model": asked.model})
            outbox.send([self._signed(asked)])
            self._plan.request(asked)
        for request, contract in self._plan.work():
            if self._stop.is_set():
                return
            self._work(request, contract, outbox)

    def _work(self, request: RetrainRequested, contract: ModelContract, outbox: Outbox) -> None:
        """Do what ``request`` asks and report what came of it, unless it is to be tried again later."""
        started = time.perf_counter()
        soon = self._plan.too_soon(request, contract)
        result = Result("refused", soon) if soon else self._runner.run(request, contract)
        if result is None:
            return
        if result.version is not None:
            publish_records(self._settings.kafka, [ModelRecord(version=result.version)])
            failpoint("training.announced")
        report = _report(request, contract, result)
        alerts = [] if soon else self._alerts(request, report, contract)
        outbox.send([self._signed(report)], alerts, lambda: failpoint("training.before-commit"))
        failpoint("training.after-commit")
        self._plan.finished(report)
        self._runner.forget(request.request_id)
        self._metrics.count("driftline_trainings_total", model=request.model, outcome=result.outcome)
        log.info(
            "retrain %s: %s in %.1f s: %s",
            request.request_id, result.outcome, time.perf_counter() - started, result.detail,
            extra={"model": request.model, "trace_id": request.trace_id},
        )  # fmt: skip

    def _alerts(
        self, request: RetrainRequested, report: TrainingFinished, contract: ModelContract
    ) -> list[Alert]:
        failures = self._plan.failures(request.model)
        if report.outcome != "registered" and not report.detail.startswith(NOT_BETTER):
            return [incident.raised(request, report, contract, failures + 1)]
        return [incident.resolved(request, report)] if failures else []

    def _hear(self, broadcast: Broadcast, records: list[Message]) -> None:
        for record in records:
            value, topic = record.value(), broadcast.name(record)
            if value is None:
                continue
            try:
                if topic == "models":
                    self._plan.record(ModelRecord.model_validate_json(value))
                elif topic == "deployments":
                    self._plan.deployment(Deployment.model_validate_json(value))
                else:
                    self._hear_command(COMMANDS.validate_json(value))
            except (ValidationError, SignatureError) as error:
                self._metrics.count("driftline_errors_total", where=topic)
                log.error("%s/%s/%s is not obeyed: %s", topic, record.partition(), record.offset(), error)

    def _hear_command(self, command: Any) -> None:
        if isinstance(command, ControlTick):
            self._plan.tick(command)
            return
        if not isinstance(command, RetrainRequested | TrainingFinished):
            return
        if self._verifier is not None:
            self._verifier.verify(command)
        if isinstance(command, RetrainRequested):
            self._plan.request(command)
        else:
            self._plan.finished(command)
            self._runner.forget(command.retrain_id)

    def _signed(self, command: RetrainRequested | TrainingFinished) -> RetrainRequested | TrainingFinished:
        return command if self._signer is None else self._signer.sign(command)


def _report(request: RetrainRequested, contract: ModelContract, result: Result) -> TrainingFinished:
    version = result.version
    return TrainingFinished(
        request_id=f"trained-{request.request_id}",
        model=request.model,
        deployment_revision=request.deployment_revision,
        cause=request.request_id,
        incident=request.incident,
        event_time_ms=request.event_time_ms,
        expires_ms=request.event_time_ms + contract.policy.command_ttl,
        issued_by="trainer",
        reason=result.detail[:_DETAIL_MAX],
        trace_id=request.trace_id,
        config_hash=contract.hash,
        retrain_id=request.request_id,
        version=None if version is None else version.version,
        outcome=result.outcome,
        detail=result.detail[:_DETAIL_MAX],
        metrics={} if version is None else version.metrics,
    )
