"""The one place that states each topic's key, payload, partitions and retention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. ``partitions`` is a rule: ``input`` (the deployment's input partition count), ``state`` (one a task),
    or a fixed number."""

    name: str
    key: str
    payload: str
    partitions: Literal["input", "state"] | int
    retention_ms: int | None
    compacted: bool = False
    config: dict[str, str] = field(default_factory=dict)
    summary: str = ""


#: Stages of the monitor that own tasks, in the order in which their state partitions are laid out.
STAGES = ("join", "detect", "policy")

TOPICS: dict[str, Topic] = {
    t.name: t
    for t in (
        Topic("predictions", "prediction_id", "PredictionMade | Arrow batch | Tick", "input", 7 * _DAY_MS,
              summary="One event, or a batch (told apart by a header)."),
        Topic("feedback", "prediction_id", "GroundTruth | Tick", "input", 30 * _DAY_MS,
              summary="Ground truth; may come before, long after, or again."),
        Topic("observations", "model", "ObservationBlock | Tick", "input", 12 * 3_600_000,
              summary="Columnar blocks cut from predictions and joined labels; what detectors read."),
        Topic("signals", "model", "SignalChanged | Tick", "input", 28 * _DAY_MS,
              summary="Changes of a detector's verdict, with evidence."),
        Topic("alerts", "dedup_key", "Alert", 1, 28 * _DAY_MS, summary="What an SRE subscribes to."),
        Topic("control", "model", "AnyCommand", 1, 28 * _DAY_MS, summary="Requests, and event time for the actors."),
        Topic("deployments", "model", "Deployment", 1, None, compacted=True, summary="The routing state."),
        Topic("decisions", "model", "Decision", 1, None, summary="Append-only facts, signed."),
        Topic("models", "model | model/version", "ModelRecord", 1, None, compacted=True,
              summary="Contracts, monitoring configuration, versions."),
        Topic("scoring-requests", "request_id", "ScoringRequest", "input", 6 * 3_600_000,
              summary="Feature rows to score."),
        Topic("scores", "request_id", "Score", "input", 6 * 3_600_000, summary="Exactly one answer a request."),
        Topic("dead-letters", "source partition", "DeadLetter", 1, 28 * _DAY_MS,
              summary="Bad messages as they came, with address and reason."),
        Topic("state", "task/piece", "manifest or piece of a task's state", "state", None, compacted=True,
              config={"max.compaction.lag.ms": "3600000"}, summary="Snapshots of joins, windows and detectors."),
    )
}  # fmt: skip


def partitions_of_topic(topic: Topic, input_partitions: int) -> int:
    """How many partitions ``topic`` has in a deployment with ``input_partitions``."""
    match topic.partitions:
        case "input":
            return input_partitions
        case "state":
            return input_partitions * len(STAGES)
        case count:
            return count


def state_partition(stage: str, partition: int, input_partitions: int) -> int:
    """The one partition of ``state`` that holds all of a task's pieces."""
    return STAGES.index(stage) * input_partitions + partition


def topic_config(topic: Topic) -> dict[str, str]:
    """Broker-side configuration of ``topic``."""
    config = dict(topic.config)
    config["cleanup.policy"] = "compact" if topic.compacted else "delete"
    if not topic.compacted:
        config["retention.ms"] = str(topic.retention_ms) if topic.retention_ms is not None else "-1"
    config.setdefault("max.message.bytes", "4194304")
    return config
