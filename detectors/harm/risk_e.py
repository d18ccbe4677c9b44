"""Does the model lose more than it did when it was validated? A sequential test of its risk, for labels that come late.

Podkopaev and Ramdas ("Tracking the risk of a deployed model and detecting harmful distribution shifts", ICLR 2022) bound
the source's risk from above once and the target's from below at every time, and alarm when the bounds part: a shift that
does no harm is no alarm. Here the loss is the log loss, as in the reference, and the unit is a block of time, because the
rows of one day share their weather. Null: given the past, a block's expected mean loss is at most

    bound = mean + max(tolerance, zone_sd * sd) + error

with mean and standard deviation of the reference's loss blocks (a season of the reference's own size is no harm) and the
error of their mean: Student's bound at ``delta``, widened for blocks that resemble the one before. The target's side is
betting: losses are never below 0, which is all that the e-values of ``block_evidence`` need,

    R <- (R + 1) (1 + f (m / bound - 1)),    drift when the mean of R over the fractions f >= threshold,

(large fractions only: means of blocks are steady, and restarts alone carry a small bet's R to ``1 / (f gap)``, which is
near the threshold where a budget of a few dozen blocks sets it)

so, unless the reference misleads (probability ``delta``, for block means that are about normal), the expected number of
blocks to a false alarm is at least ``threshold``. Blocks are those of the labels' own times, so a late label is
evidence when it comes. It may page only if the reference's second half raised no alarm against its first half.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import Reference
>>> day = 86_400_000
>>> reference = Reference(loss_mean=0.33, loss_blocks=tuple(0.33 + 0.02 * np.sin(np.arange(60))))
>>> detector = RiskSpec(threshold=50).build(Context(("score", "label", "loss"), (0, 0, 0), "loss", reference))
>>> label = (np.arange(2_000) % np.where(np.arange(2_000) < 1_000, 10, 3) == 0).astype(float)
>>> rows = np.column_stack([np.full(2_000, 0.1), label, np.zeros(2_000)])
>>> _ = detector.update(Rows.of(rows, np.arange(2_000) // 50 * day))
>>> [(change.time_ms // day, str(change.verdict.state)) for change in detector.advance(41 * day)]
[(1, 'stable'), (22, 'drift')]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import stdtrit

from detectors.base import DAY_MS, Context, Detector, Rows, Spec, Standing, Stream
from detectors.blocks import blocks_to_alarm
from detectors.harm.block_evidence import BlockEvidenceDetector, BlocksAbove
from detectors.harm.loss import answered, log_loss, score_and_label
from schemas.contracts import DurationMs, Reference
from schemas.verdicts import Evidence, Family, State

Floats = NDArray[np.float64]
#: Fewer reference blocks than this say nothing about how blocks vary.
BLOCKS_MIN = 10
#: Blocks that resemble the one before more than this are counted as if by this much.
_CORRELATION_MAX = 0.9


class RiskSpec(Spec):
    """Options of ``risk-e``. ``threshold``: expected blocks to a false alarm; the default is the model's budget."""

    kind: ClassVar[str] = "risk-e"
    streams: ClassVar[Mapping[Stream, Family]] = {"loss": Family.CONCEPT}
    cost_ns: ClassVar[int] = 60
    state_size: ClassVar[str] = "a dozen numbers, and two for each open block"
    sees: ClassVar[str] = "a lasting rise of the loss above the reference's, whatever caused it"
    blind_to: ClassVar[str] = (
        "rises within the reference's own variation or shorter than a few blocks; shifts that do no harm; "
        "a segment's harm that the others outweigh"
    )
    pages: ClassVar[bool] = True

    tolerance: float = Field(
        default=0.01, ge=0, description="A rise of the mean loss by so many nats is none."
    )
    zone_sd: float = Field(
        default=1.0, ge=0, description="Standard deviations of the reference's blocks in the zone."
    )
    delta: float = Field(
        default=0.05, gt=0, lt=0.5, description="Probability that the reference misleads the promise."
    )
    threshold: float | None = Field(default=None, gt=1)
    warning_share: float = Field(default=0.5, gt=0, le=1, description="Of the threshold; above it: warning.")
    fractions: tuple[float, ...] = Field(
        default=(0.5, 0.95), description="Bets, as parts of the largest that cannot lose all."
    )
    block_offset_ms: DurationMs = Field(default=0, description="Blocks begin this long after UTC midnight.")
    rows_min: int = Field(default=20, ge=1, description="Blocks with fewer outcomes are skipped.")

    @model_validator(mode="after")
    def _bets_fit(self) -> RiskSpec:
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(
                "fractions must lie in (0, 1]: they are parts of the largest bet that cannot lose all"
            )
        return self

    def build(self, context: Context) -> Detector:
        return RiskDetector(self, context)

    def standing(self, context: Context) -> Standing:
        return _verified(self, context)

    def blocks_promised(self, context: Context) -> float:
        """Blocks to a false alarm, at least."""
        block_ms = DAY_MS if context.reference is None else context.reference.loss_block_ms
        return blocks_to_alarm(self.threshold, context.false_pages, context.share, block_ms)


def risk_bound(spec: RiskSpec, blocks: Floats) -> float | None:
    """Upper bound of a block's expected mean loss, nats, from the reference's blocks ``(b,)``; None: too few of them."""
    blocks = blocks[np.isfinite(blocks)]
    n = len(blocks)
    if n < BLOCKS_MIN:
        return None
    mean, sd = float(blocks.mean()), float(blocks.std(ddof=1))
    moves = blocks - mean
    squares = float((moves * moves).sum())
    alike = float((moves[1:] * moves[:-1]).sum()) / squares if squares > 0 else 0.0
    alike = min(max(alike, 0.0), _CORRELATION_MAX)
    error = float(stdtrit(n - 1, 1 - spec.delta)) * sd * ((1 + alike) / (1 - alike) / n) ** 0.5
    bound = mean + max(spec.tolerance, spec.zone_sd * sd) + error
    return bound if bound > 0 else None


def _blocks(reference: Reference | None) -> Floats:
    return np.array(() if reference is None else reference.loss_blocks, np.float64)


class RiskDetector(BlockEvidenceDetector):
    """The running test; see the module."""

    kind = RiskSpec.kind
    schema = 2

    def __init__(self, spec: RiskSpec, context: Context) -> None:
        self._score, self._label = score_and_label(context)
        blocks = _blocks(context.reference)
        bound = risk_bound(spec, blocks)
        self._reference = float(blocks.mean()) if bound is not None else 0.0
        self._limit = bound or 0.0
        super().__init__(
            bound=bound,
            floor=0.0,
            fractions=spec.fractions,
            threshold=spec.blocks_promised(context),
            warning_share=spec.warning_share,
            block_ms=DAY_MS if context.reference is None else context.reference.loss_block_ms,
            block_offset_ms=spec.block_offset_ms,
            rows_min=spec.rows_min,
            missing=f"the version's reference has {len(blocks)} blocks of its loss; {BLOCKS_MIN} are needed",
        )

    def values(self, rows: Rows) -> tuple[NDArray[np.bool_], Floats]:
        score, label = rows.values[:, self._score], rows.values[:, self._label]
        valid = answered(score, label)
        return valid, log_loss(score[valid], label[valid])

    def describe(self, above: BlocksAbove) -> Evidence:
        return Evidence(
            column="loss",
            statistic="e-detector of risk above the reference's",
            effect=above.mean - self._reference,
            effect_name="log loss above the reference's, nats",
            reference=self._reference,
            current=above.mean,
            rows=above.rows,
            since_ms=above.since_ms,
            note=f"{above.closed} blocks; a mean loss of up to {self._limit:.4g} is no harm; one false alarm in "
            f"{self.threshold:.0f} blocks at most",
        )


def _verified(spec: RiskSpec, context: Context) -> Standing:
    """Bounded by the first half of the reference's blocks, played over the second: an alarm there forbids paging."""
    blocks, promised = _blocks(context.reference), spec.blocks_promised(context)
    block_ms = DAY_MS if context.reference is None else context.reference.loss_block_ms
    half = len(blocks) // 2
    bound = risk_bound(spec, blocks[:half])
    if bound is None:
        note = f"{len(blocks)} reference blocks are too few to check it on; it does not page"
        return Standing("proved", promised * block_ms, note=note)
    above, alarms, state = BlocksAbove(bound, 0.0, spec.fractions, promised, 1), 0, State.STABLE
    for mean in blocks[half:].tolist():
        above.add(mean)
        before, state = state, above.state()
        alarms += state is State.DRIFT and before is not State.DRIFT
    checked = len(blocks) - half
    note = f"one false alarm in {promised:.0f} blocks at most; {alarms or 'none'} on {checked} of held-out reference"
    if alarms:
        note += ": it does not page"
    elif checked < promised:
        note += ", unverified beyond"
    return Standing(
        "proved", promised * block_ms, float(checked * block_ms), alarms, pages=not alarms, note=note
    )
