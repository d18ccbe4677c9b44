"""Is the candidate worse than the stable version? Both score the same requests, so the comparison is paired.

Per request whose label is known, ``d = Brier(candidate) - Brier(stable)``, clipped to ``+-clip``. Null of harm: the
conditional mean of d is at most ``margin``. Each row bets ``1 + L (d - margin)`` on several sizes of L; within a block of
time (a day) the logarithms are summed and scaled down to at most ``rows_block_max`` rows' worth, because rows of one day
share their weather and are less evidence than they are rows (a power in (0, 1] of an e-value's expectation stays at most
1 by Jensen's inequality). The average over L of the running product is a test martingale, so by Ville's inequality it
reaches ``1 / alpha`` with probability at most ``alpha``, whenever one looks (Ville 1939; Ramdas et al., "Game-theoretic
statistics and safe anytime-valid inference", 2023). Harm needs a size that matters too: a mean of at least ``effect``.
The mirrored test, that d is below ``margin_pass``, says when the candidate is shown to be no worse.

Verdicts: drift = harm, stable = shown to be no worse, inconclusive = neither yet. Revised outcomes are left out.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> judge = PairedJudgeSpec().build(Context(("score", "label"), stream="comparison"))
>>> n = 400
>>> label = np.zeros(2 * n); score = np.tile([0.1, 0.4], n)  # the candidate says 40 % where 10 % would do
>>> rows = Rows.of(np.column_stack([score, label]), np.repeat(np.arange(n), 2) * 864_000,
...                identity=np.repeat(np.arange(n, dtype=np.uint64), 2), group=np.tile([0, 1], n).astype(np.int8))
>>> _ = judge.update(rows)
>>> [str(change.verdict.state) for change in judge.advance(4 * 86_400_000)]
['inconclusive', 'drift', 'drift', 'drift']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from detectors.base import (
    DAY_MS,
    FIXED_POINT,
    Change,
    Context,
    Detector,
    Rows,
    Spec,
    Stream,
    pack,
    undecided,
    unpack,
)
from detectors.blocks import BlockState, BlockSums
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

#: Bets as parts of the largest that cannot lose all.
BETS = (0.05, 0.1, 0.2, 0.4, 0.7, 0.95)
PENDING_MAX = 200_000
_SCHEMA = 1


class PairedJudgeSpec(Spec):
    """Options of ``paired-judge``."""

    kind: ClassVar[str] = "paired-judge"
    streams: ClassVar[Mapping[Stream, Family]] = {"comparison": Family.COMPARISON}
    cost_ns: ClassVar[int] = 3_000
    state_size: ClassVar[str] = "a few dozen numbers, and one for each request whose other score is awaited"
    sees: ClassVar[str] = "a candidate whose Brier loss is above the stable version's on the same requests"
    blind_to: ClassVar[str] = "harm below the margin; harm on requests that never get a label"
    pages: ClassVar[bool] = True
    announces_blocks: ClassVar[bool] = True

    clip: float = Field(default=0.25, gt=0, le=1)
    margin: float = Field(default=0.005, ge=0)
    effect: float = Field(default=0.01, ge=0, description="Smallest mean difference that counts as harm.")
    margin_pass: float = Field(default=0.01, gt=0, description="Shown to be below it: no worse.")
    alpha: float = Field(default=0.01, gt=0, lt=1)
    alpha_pass: float = Field(default=0.05, gt=0, lt=1)
    block_ms: DurationMs = DAY_MS
    block_offset_ms: DurationMs = 0
    blocks_min: int = Field(default=2, ge=1, description="No verdict of harm before so many blocks.")
    rows_block_max: int = Field(default=100, ge=1)
    pair_timeout_ms: DurationMs = 7 * DAY_MS

    @model_validator(mode="after")
    def _fits(self) -> PairedJudgeSpec:
        if self.block_ms <= 0:
            raise ValueError("block_ms must be positive")
        return self

    @property
    def spends_budget(self) -> bool:
        return False  # ``alpha`` bounds its errors, for each rollout

    def build(self, context: Context) -> Detector:
        return PairedJudge(self)


class _State(msgspec.Struct):
    blocks: BlockState
    pending: list[tuple[int, int, int, float]]
    revised: list[tuple[int, int]]
    harm: list[int]
    passed: list[int]
    pairs: int
    sum_d: int
    sum_d2: int
    closed: int
    since_ms: int | None
    state: str


class PairedJudge:
    """The running comparison; see the module. Logarithms are held as integers of 1e-9, so cuts cannot show."""

    def __init__(self, spec: PairedJudgeSpec) -> None:
        self._spec = spec
        bets = np.array(BETS)
        self._harm_bets = bets / (spec.clip + spec.margin)
        self._pass_bets = bets / (spec.clip + spec.margin_pass)
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._blocks = BlockSums(self._spec.block_ms, self._spec.block_offset_ms, 2 * len(BETS) + 2)
        self._pending: dict[int, tuple[int, int, float]] = {}
        self._revised: dict[int, int] = {}
        self._harm = np.zeros(len(BETS), np.int64)
        self._pass = np.zeros(len(BETS), np.int64)
        self._pairs = self._sum_d = self._sum_d2 = self._closed = 0
        self._since_ms: int | None = None
        self._verdict = undecided(1 / self._spec.alpha, "no block with pairs yet")

    def update(self, rows: Rows) -> list[Change]:
        score, label = rows.values[:, 0], rows.values[:, 1]
        valid = (score >= 0) & (score <= 1) & ((label == 0) | (label == 1))
        times: list[int] = []
        differences: list[float] = []
        brier = (np.where(valid, score, 0.0) - np.where(valid, label, 0.0)) ** 2
        for at in np.flatnonzero(valid).tolist():
            identity, time_ms = int(rows.identity[at]), int(rows.time_ms[at])
            if rows.sign[at] < 0:
                self._pending.pop(identity, None)
                self._revised.pop(identity, None)
                self._revised[identity] = time_ms
                _limit(self._revised)
                continue
            # Age is judged here by the rows' own times, so when ``advance`` clears the old away cannot show.
            oldest = time_ms - self._spec.pair_timeout_ms
            if self._revised.get(identity, oldest - 1) >= oldest:
                continue
            group = int(rows.group[at])
            held = self._pending.pop(identity, None)
            if held is None or held[0] == group or held[1] < oldest:
                self._pending[identity] = (group, time_ms, float(brier[at]))
                _limit(self._pending)
                continue
            mine, theirs = (float(brier[at]), held[2]) if group == 1 else (held[2], float(brier[at]))
            times.append(time_ms)
            differences.append(mine - theirs)
        if times:
            self._add(np.array(times, np.int64), np.array(differences))
        return []

    def _add(self, time_ms: NDArray[np.int64], raw: NDArray[np.float64]) -> None:
        spec = self._spec
        d = np.clip(raw, -spec.clip, spec.clip)
        columns = [
            np.log1p((d - spec.margin)[:, None] * self._harm_bets),
            np.log1p((spec.margin_pass - d)[:, None] * self._pass_bets),
            d[:, None],
            (d * d)[:, None],
        ]
        units = np.rint(np.concatenate(columns, axis=1) * FIXED_POINT).astype(np.int64)
        self._blocks.add(time_ms, np.ones(len(d), np.int8), units)

    def advance(self, time_ms: int) -> list[Change]:
        oldest = time_ms - self._spec.pair_timeout_ms
        if self._pending:
            self._pending = {i: held for i, held in self._pending.items() if held[1] >= oldest}
        if self._revised:
            self._revised = {i: at for i, at in self._revised.items() if at >= oldest}
        changes = []
        for start, (count, *sums) in self._blocks.close(time_ms):
            if count > 0:
                self._take(start, count, sums)
                changes.append(Change(-1, start + self._spec.block_ms, self._verdict))
        return changes

    def _take(self, start_ms: int, count: int, sums: list[int]) -> None:
        if self._since_ms is None:
            self._since_ms = start_ms
        most, k = self._spec.rows_block_max, len(BETS)
        scaled = np.array([s * most // count if count > most else s for s in sums[: 2 * k]], np.int64)
        self._harm += scaled[:k]
        self._pass += scaled[k:]
        self._pairs += count
        self._sum_d += sums[2 * k]
        self._sum_d2 += sums[2 * k + 1]
        self._closed += 1
        self._verdict = self._judge()

    def _judge(self) -> Verdict:
        spec = self._spec
        mean = self._sum_d / FIXED_POINT / self._pairs
        variance = max(0.0, self._sum_d2 / FIXED_POINT / self._pairs - mean * mean)
        harm, passed = _evidence(self._harm), _evidence(self._pass)
        if harm >= 1 / spec.alpha and mean >= spec.effect and self._closed >= spec.blocks_min:
            state, threshold, score = State.DRIFT, 1 / spec.alpha, harm
        elif passed >= 1 / spec.alpha_pass and self._closed >= spec.blocks_min:
            state, threshold, score = State.STABLE, 1 / spec.alpha, min(harm, 1 / spec.alpha)
        else:
            state, threshold, score = State.INCONCLUSIVE, 1 / spec.alpha, min(harm, 1 / spec.alpha)
        half = 2.6 * (variance / self._pairs) ** 0.5
        evidence = Evidence(
            column="brier",
            statistic="e-value of harm",
            effect=mean,
            effect_name="Brier loss, candidate minus stable",
            rows=self._pairs,
            since_ms=self._since_ms,
            interval=(mean - half, mean + half),
            note=f"{self._closed} blocks; e-value of harm {harm:.3g}, of no harm {passed:.3g}; the interval is 99 % normal",
        )
        return Verdict(state=state, score=score, threshold=threshold, evidence=evidence)

    def snapshot(self) -> bytes:
        state = _State(
            self._blocks.state,
            [(i, *held) for i, held in self._pending.items()],
            list(self._revised.items()),
            self._harm.tolist(),
            self._pass.tolist(),
            self._pairs,
            self._sum_d,
            self._sum_d2,
            self._closed,
            self._since_ms,
            self._verdict.state.value,
        )
        return pack(PairedJudgeSpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(PairedJudgeSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._blocks.state = state.blocks
        self._pending = {i: (group, time_ms, brier) for i, group, time_ms, brier in state.pending}
        self._revised = dict(state.revised)
        self._harm, self._pass = np.array(state.harm, np.int64), np.array(state.passed, np.int64)
        self._pairs, self._sum_d, self._sum_d2 = state.pairs, state.sum_d, state.sum_d2
        self._closed, self._since_ms = state.closed, state.since_ms
        if self._closed:
            self._verdict = self._judge()


def _evidence(logs: NDArray[np.int64]) -> float:
    """Mean over the bets of the product so far; capped where a float would overflow."""
    return float(np.exp(np.minimum(logs / FIXED_POINT, 600.0)).mean())


def _limit(held: dict[int, Any]) -> None:
    """Forget the oldest when there are more than ``PENDING_MAX``; dicts keep the order of insertion."""
    if len(held) > PENDING_MAX:
        del held[next(iter(held))]
