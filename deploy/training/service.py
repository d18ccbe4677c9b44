"""The trainer process: retrain requests in, registered versions and reports out.

Everything it needs to know it reads from the topics again at each start, and what it makes is named by the request that
asked for it: killed anywhere, it ends where it would have ended. A training that fails is reported, not repeated.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaException, Message, Producer
from pydantic import ValidationError

from deploy.broadcast import Broadcast
from deploy.models import publish_records
from deploy.process import serve_metrics, stop_event
from deploy.registry import Lineage, Registry
from deploy.training.packing import describe, pack
from deploy.training.plan import Plan
from deploy.training.quality import refusals
from deploy.training.snapshot import Snapshot, archived_ms, take_snapshot
from deploy.training.trainers import trainer_for
from deploy.training.validation import compare
from schemas.contracts import ModelContract, ModelRecord, ModelVersion
from schemas.control import COMMANDS, Deployment, RetrainRequested, TrainingFinished
from schemas.errors import DriftlineError, PlatformError, SignatureError, TrainingError, WarehouseError
from schemas.observability import Metrics, configure_logs
from schemas.settings import TrainerSettings
from schemas.signing import Signer, Verifier

log = logging.getLogger(__name__)

EXIT_UNEXPECTED = 70
_LOOK_S = 0.25


class _Stopped(Exception):  # no error: the process was told to end, the request stays open
    pass


class _Refused(TrainingError):
    """The data or the result must not become a version; the reason is the message."""


def run(
    settings: TrainerSettings, stop: threading.Event | None = None, metrics: Metrics | None = None
) -> int:
    """Train whenever a deployment asks for it, until told to stop. Returns 0, or 70 after an error it cannot survive."""
    if stop is None:
        configure_logs(settings)
        stop = stop_event()
    metrics = metrics or Metrics()
    serve_metrics(metrics, settings)
    try:
        TrainerProcess(settings, metrics, stop).run()
    except _Stopped:
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
        self._connect = connect or (lambda: clickhouse_connect.get_client(**settings.clickhouse.client()))
        trusted = list(settings.signing.trusted)
        self._verifier = Verifier(trusted) if trusted else None
        self._signer = Signer.load(settings.signing.key_file) if settings.signing.key_file else None
        self._registry = Registry(settings.trainer.registry, self._signer, self._verifier)
        self._plan = Plan()

    def run(self) -> None:
        """Hear, and work on what is asked for, until told to stop."""
        with Broadcast(self._settings.kafka, ("models", "deployments", "control")) as broadcast:
            self._hear(broadcast, broadcast.read_to_end())
            log.info("trainer is ready", extra={"event": "ready"})
            while not self._stop.is_set():
                for request, contract in self._plan.work():
                    self._report(self.work(request, contract))
                self._hear(broadcast, broadcast.poll(_LOOK_S))

    def work(self, request: RetrainRequested, contract: ModelContract) -> TrainingFinished:
        """Do what ``request`` asks and say what came of it. Only being told to stop raises."""
        extra = {"model": request.model, "trace_id": request.trace_id}
        started = time.perf_counter()
        try:
            version = self._registry.find_by_cause(request.model, request.request_id)
            if version is None:
                version = self._train(request, contract)
            publish_records(self._settings.kafka, [ModelRecord(version=version)])
            detail, outcome = describe(version.metrics), "registered"
            metrics: dict[str, float] = version.metrics
        except (_Stopped, PlatformError):
            # Kafka itself is away: there is nobody to report to. The request is still open at the next start.
            raise
        except _Refused as error:
            detail, outcome, version, metrics = str(error), "refused", None, {}
        except Exception as error:  # a trainer plug-in may raise anything; it is reported, not repeated
            log.error("training failed", exc_info=error, extra=extra)
            detail, outcome, version, metrics = f"{type(error).__name__}: {error}", "failed", None, {}
        seconds = time.perf_counter() - started
        log.info("retrain %s: %s in %.1f s: %s", request.request_id, outcome, seconds, detail, extra=extra)
        self._metrics.count("driftline_trainings_total", model=request.model, outcome=outcome)
        return TrainingFinished.model_validate(
            {
                "request_id": f"trained-{request.request_id}",
                "model": request.model,
                "deployment_revision": request.deployment_revision,
                "cause": request.request_id,
                "incident": request.incident,
                "event_time_ms": request.event_time_ms,
                "expires_ms": request.event_time_ms + contract.policy.command_ttl,
                "issued_by": "trainer",
                "reason": detail[:1_000],
                "trace_id": request.trace_id,
                "config_hash": contract.hash,
                "retrain_id": request.request_id,
                "version": version.version if version is not None else None,
                "outcome": outcome,
                "detail": detail[:1_000],
                "metrics": metrics,
            }
        )

    def _train(self, request: RetrainRequested, contract: ModelContract) -> ModelVersion:
        client = self._await_archive(request)
        try:
            snapshot = take_snapshot(client, contract, request.event_time_ms)
        except ClickHouseError as error:
            raise WarehouseError(f"snapshot of {request.model} could not be taken: {error}") from error
        if reasons := refusals(snapshot, contract):
            raise _Refused("; ".join(reasons))
        trained = trainer_for(contract)(snapshot, contract)
        metrics = dict(trained.metrics)
        compared = compare(trained, snapshot, request.version)
        if compared is not None:
            metrics |= compared.metrics()
            if compared.worse:
                raise _Refused(
                    f"on {compared.rows} held-out rows the candidate's log loss is {compared.candidate_loss:.4f}, "
                    f"version {request.version} had {compared.incumbent_loss:.4f}: worse beyond chance"
                )
        trained = dataclasses.replace(trained, metrics=metrics)
        lineage = _lineage(request, snapshot)
        return self._registry.register(contract, pack(trained, contract), lineage, metrics=metrics)

    def _await_archive(self, request: RetrainRequested) -> Client:
        """A client, once the warehouse holds everything up to the request's event time. Raises WarehouseError."""
        timeout_s = self._settings.trainer.archive_timeout / 1_000
        deadline = time.monotonic() + timeout_s
        client: Client | None = None
        last = "it has not spoken yet"
        while True:
            try:
                client = client or self._connect()
                reached = archived_ms(client, self._settings.kafka.input_partitions)
                if reached is not None and reached >= request.event_time_ms:
                    return client
                last = (
                    f"it has reached {reached}"
                    if reached is not None
                    else "a partition has not been archived yet"
                )
            except (ClickHouseError, OSError) as error:
                client, last = None, f"the warehouse does not answer: {error}"
            if time.monotonic() > deadline:
                raise WarehouseError(
                    f"the archive did not reach event time {request.event_time_ms} within {timeout_s:g} s: {last}; "
                    "is the archive process running?"
                )
            if self._stop.wait(_LOOK_S):
                raise _Stopped

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
        if not isinstance(command, RetrainRequested | TrainingFinished):
            return
        if self._verifier is not None:
            self._verifier.verify(command)
        if isinstance(command, RetrainRequested):
            self._plan.request(command)
        else:
            self._plan.finished(command)

    def _report(self, report: TrainingFinished) -> None:
        if self._signer is not None:
            report = self._signer.sign(report)
        producer = Producer(self._settings.kafka.producer())
        producer.produce(
            self._settings.kafka.topic("control"), report.model_dump_json().encode(), report.model.encode()
        )
        if producer.flush(30):
            raise PlatformError(
                "the report of a training could not be written to `control`: is the broker up?"
            )
        producer.close()
        self._plan.finished(report)


def _lineage(request: RetrainRequested, snapshot: Snapshot) -> Lineage:
    return Lineage(
        parent=request.version,
        snapshot=snapshot.content_hash(),
        trained_from_ms=int(snapshot.event_ms[0]),
        trained_to_ms=int(snapshot.event_ms[-1]),
        cause=request.request_id,
        created_event_ms=request.event_time_ms,
    )
