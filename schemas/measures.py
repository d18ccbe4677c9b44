"""What was measured of a version, and where each metric stands: what the analysis of a rollout reads and writes."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.base import Message


class Measurement(Message):
    """One metric of one version over ``from_ms`` to ``to_ms`` (event time), beside the stable version's if there is one.

    ``value`` None: there was nothing to measure, and ``error`` says why if something broke. Judged metrics carry what
    the judge reads: counts (``events`` among ``rows``, and the stable version's), or ``rows`` pairs whose differences,
    candidate minus stable, have mean ``value`` and standard deviation ``sd``. Pairs of one block of event time are like
    each other: ``rows`` in so many ``blocks`` are evidence of ``counts_for`` only; None: all are counted.
    """

    metric: str
    value: float | None = None
    reference: float | None = None
    rows: int = Field(default=0, ge=0)
    reference_rows: int = Field(default=0, ge=0)
    events: int | None = Field(default=None, ge=0)
    reference_events: int | None = Field(default=None, ge=0)
    sd: float | None = Field(default=None, ge=0)
    blocks: int | None = Field(default=None, ge=0)
    counts_for: int | None = Field(default=None, ge=0)
    from_ms: int = 0
    to_ms: int = 0
    error: str = ""


class Standing(StrEnum):
    """What one measurement, or the judge, says of a metric."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    MISSING = "missing"
    ERROR = "error"


class MetricState(Message):
    """Where a metric of the running step stands; counts begin anew with every step."""

    standing: Standing
    value: float | None = Field(default=None, description="What is compared with the metric's limits.")
    reference: float | None = None
    rows: int = 0
    interval: tuple[float, float] | None = Field(
        default=None, description="The judge's confidence sequence for the difference to the stable version."
    )
    better: bool = Field(default=False, description="The judge has shown the candidate to be better.")
    failures: int = 0
    inconclusive: int = 0
    errors_running: int = 0
    successes_running: int = 0
    event_time_ms: int
    detail: str = ""
