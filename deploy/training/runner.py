"""One retrain request from beginning to end: archive, snapshot, checks, training, judgement, registration.

What it makes is named by the request, and every step is a function of the request and of what is registered, so a run
that was cut off is simply done again. What may come right by itself (a warehouse that is away, a command that ran out of
memory) is tried again after a wait that doubles; what will not (the data, the configuration) ends the request at once.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from deploy import importing
from deploy.registry import Lineage, Registry
from deploy.training.attempts import Attempts, Journal
from deploy.training.candidate import TrainedModel, train, with_report
from deploy.training.comparison import Comparison, Verdict, compare
from deploy.training.extract import archived_ms, take_snapshot
from deploy.training.features import Encoder
from deploy.training.label_checks import Incumbent
from deploy.training.packing import describe, pack
from deploy.training.plan import NOT_BETTER
from deploy.training.quality import check
from deploy.training.snapshot import Snapshot
from deploy.training.trainers import Cancelled, trainer_for
from schemas.clock import wall_ms
from schemas.contracts import ModelContract, ModelVersion
from schemas.control import RetrainRequested
from schemas.errors import (
    ConfigurationError,
    DriftlineError,
    RegistryError,
    SignatureError,
    StoreUnavailable,
    TrainerCommandError,
    TrainingError,
    WarehouseError,
)
from schemas.failpoints import failpoint
from schemas.settings import TrainerSettings

log = logging.getLogger(__name__)

Outcome = Literal["registered", "refused", "failed"]
TRAINING_NOTE, SNAPSHOT_NOTE = "training.json", "snapshot.json"
_LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a request. ``refused`` with a version: it is registered, and not handed to the controller."""

    outcome: Outcome
    detail: str
    version: ModelVersion | None = None


class Runner:
    """Works on one request at a time. ``connect`` opens the warehouse; ``stop`` says that the process must end."""

    def __init__(
        self,
        settings: TrainerSettings,
        registry: Registry,
        connect: Callable[[], Client],
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._connect = connect
        self._stop = stop
        #: Why the registry cannot be asked, so that it is said once.
        self._waits_for = ""
        self._journal = Journal(_journal(settings), settings.trainer.backoff)

    def run(self, request: RetrainRequested, contract: ModelContract) -> Result | None:
        """What came of ``request``; None when it is to be tried again later. Raises Cancelled when told to stop."""
        attempts = self._journal.read(request.request_id)
        if not attempts.due(wall_ms()):
            return None
        failpoint("training.taken-up")
        try:
            made = self._registry.find_by_cause(request.model, request.request_id)
            if made is not None:
                return self._result_of(made)
        except StoreUnavailable as error:
            if self._waits_for != str(error):
                self._waits_for = str(error)
                log.warning("retrain %s waits for the registry: %s", request.request_id, error)
            return None
        except (RegistryError, SignatureError) as error:
            return Result("failed", f"what was registered for it cannot be used: {error}")
        self._waits_for = ""
        limit = self._settings.trainer.attempts_max
        if attempts.begun >= limit:
            return Result("failed", f"given up after {attempts.begun} attempts: {attempts.describe()}")
        attempts = self._journal.begin(attempts, wall_ms())
        failpoint("training.attempt-noted")
        try:
            return self._train(request, contract)
        except Cancelled:
            self._journal.stopped(attempts)
            raise
        except _Refused as error:
            return Result("refused", str(error))
        except Exception as error:  # a plug-in may raise anything; it is noted, and the limit holds
            extra = {"model": request.model, "trace_id": request.trace_id}
            log.error("attempt %d of %d failed", attempts.begun, limit, exc_info=error, extra=extra)
            return self._failed(attempts, error)

    def forget(self, request_id: str) -> None:
        """The result is reported: its attempts are history."""
        self._journal.forget(request_id)

    def _failed(self, attempts: Attempts, error: Exception) -> Result | None:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, _PASSING) or not isinstance(error, _LASTING):
            attempts = self._journal.failed(attempts, reason, wall_ms())
            if attempts.begun < self._settings.trainer.attempts_max:
                return None
            if attempts.begun > 1:
                return Result("failed", f"given up after {attempts.begun} attempts: {attempts.describe()}")
        return Result("failed", reason)

    def _train(self, request: RetrainRequested, contract: ModelContract) -> Result:
        with closing(self._await_archive(request)) as client:
            try:
                taken = take_snapshot(client, contract, request.event_time_ms)
            except ClickHouseError as error:
                raise WarehouseError(f"snapshot of {request.model} could not be taken: {error}") from error
        failpoint("training.snapshot-taken")
        incumbent, taken = self._incumbent(request.model, request.version, taken)
        checked = check(taken, contract, incumbent)
        if checked.refusals:
            raise _Refused(checked.reason())
        snapshot = checked.snapshot
        trainer = trainer_for(contract, self._settings.trainer)
        trained = train(snapshot, contract, trainer, self._stop.is_set)
        failpoint("training.trained")
        compared = _compared(trained, snapshot, contract)
        handed_over, detail = _judge(trained, compared, contract, request.version)
        trained = with_report(
            trained,
            against_incumbent=None if compared is None else compared.document(),
            handed_over=handed_over,
            detail=detail,
        )
        version = self._register(request, contract, snapshot, trained, compared)
        failpoint("training.registered")
        return self._result_of(version)

    def _register(
        self,
        request: RetrainRequested,
        contract: ModelContract,
        snapshot: Snapshot,
        trained: TrainedModel,
        compared: Comparison | None,
    ) -> ModelVersion:
        metrics = dict(trained.metrics)
        if compared is not None:
            metrics |= {
                "incumbent_rows": float(compared.rows),
                "incumbent_log_loss": compared.other_loss,
                "log_loss_gain": -compared.difference,
            }
        content = snapshot.content_hash()
        origin = snapshot.origin.document() | {
            "content": content, "rows": len(snapshot), "model": contract.model, "contract": contract.hash,
            "trainer": contract.training.trainer,
        }  # fmt: skip
        notes = {
            SNAPSHOT_NOTE: json.dumps(origin, sort_keys=True, indent=1),
            TRAINING_NOTE: json.dumps(trained.report, sort_keys=True, indent=1),
        }
        lineage = Lineage(
            parent=request.version,
            snapshot=content,
            trained_from_ms=int(snapshot.event_ms[0]),
            trained_to_ms=int(snapshot.event_ms[-1]),
            cause=request.request_id,
            created_event_ms=request.event_time_ms,
        )
        return self._registry.register(
            contract, pack(trained, contract, notes=notes), lineage, metrics=metrics
        )

    def _result_of(self, version: ModelVersion) -> Result:
        """What a version's own notes say, so that a report that was lost is made again as it was."""
        _, artifact = self._registry.load(version.model, version.version)
        report: dict[str, Any] = json.loads(artifact.notes.get(TRAINING_NOTE, "{}"))
        detail = str(report.get("detail", ""))
        if report.get("handed_over", True):
            return Result("registered", "; ".join(filter(None, [detail, describe(version.metrics)])), version)
        return Result(
            "refused",
            f"{NOT_BETTER}: registered as {version.version}, not handed over: {detail}",
            version,
        )

    def _incumbent(
        self, model: str, version: str | None, taken: Snapshot
    ) -> tuple[Incumbent | None, Snapshot]:
        """The model in service, and the snapshot with its scores: what it answered then, else what it would have."""
        if version is None:
            return None, taken.said_by(None, None)
        try:
            record, artifact = self._registry.load(model, version)
            matrix = Encoder.from_json(artifact.encoder_json).encode(taken.table)
            answers = importing.run(importing.session_of(artifact.onnx), matrix) if len(taken) else None
        except StoreUnavailable:
            raise
        except DriftlineError as error:
            log.warning("version %s of %s is judged by what it answered alone: %s", version, model, error)
            return Incumbent(version), taken.said_by(version, None)
        return Incumbent(version, record.metrics.get("auc")), taken.said_by(version, answers)

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
                    else "of a partition nothing is in it yet"
                )
            except (ClickHouseError, OSError) as error:
                client, last = None, f"the warehouse does not answer: {error}"
            if time.monotonic() > deadline:
                raise WarehouseError(
                    f"the raw log did not reach event time {request.event_time_ms} within {timeout_s:g} s: {last}; does who "
                    "writes it run (the monitor; the archive, where clickhouse.raw_log says so)?"
                )
            if self._stop.wait(_LOOK_S):
                raise Cancelled


class _Refused(TrainingError):
    """The data or the result must not become a version; the reason is the message."""


def _journal(settings: TrainerSettings) -> Path:
    where = settings.trainer.registry
    if settings.trainer.journal is not None:
        return settings.trainer.journal
    if isinstance(where, Path):
        return where / ".training"
    raise ConfigurationError(
        f"trainer.journal must name a directory that outlives the process: {where} cannot keep count of attempts"
    )


#: These may come right by themselves, whatever they are kinds of.
_PASSING = (TrainerCommandError, StoreUnavailable)
#: The same request would end the same way.
_LASTING = (ConfigurationError, TrainingError, RegistryError, SignatureError)


def _compared(trained: TrainedModel, snapshot: Snapshot, contract: ModelContract) -> Comparison | None:
    held_out = trained.reference
    rows = len(held_out["score"])
    return compare(
        held_out["label"], held_out["score"], snapshot.scores[-rows:], held_out["event_ms"], contract.training
    )


def _judge(
    trained: TrainedModel, compared: Comparison | None, contract: ModelContract, incumbent: str | None
) -> tuple[bool, str]:
    """Whether the candidate goes to the controller, and why. Raises _Refused when it must not even be registered."""
    if trained.skill.verdict is Verdict.WORSE:
        raise _Refused(
            f"no-skill: always answering the share of positives does better: {trained.skill.describe()}"
        )
    if incumbent is None:
        return True, ""
    detail = f"against version {incumbent}: "
    detail += "none of its scores is known" if compared is None else compared.describe()
    policy = contract.training.not_better
    match Verdict.UNDECIDED if compared is None else compared.verdict:
        case Verdict.BETTER:
            return True, detail
        case Verdict.UNDECIDED if policy == "hand-over":
            return True, detail
        case _ if policy == "register":
            return False, detail
        case _:
            raise _Refused(f"{NOT_BETTER}: {detail}")
