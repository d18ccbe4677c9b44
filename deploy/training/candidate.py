"""From a snapshot to a candidate that can be judged: the same for every trainer. Pure but for the trainer's own doing.

The rows are cut by time, because a model is judged on the future and not on its neighbours. How much age should count is
chosen on the span before the last one, and the last one judges: whoever chooses on the rows he is judged by, flatters
himself. Of several weightings the simplest wins unless another is better by more than the difference's standard error
(the one-standard-error rule: Breiman et al. 1984). The shipped model is fitted on all rows, so the judged one is not
quite the shipped one; what is on record is the judged one's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.training.comparison import Comparison, compare
from deploy.training.features import Encoder
from deploy.training.scores import auc, brier, log_loss, score
from deploy.training.snapshot import Snapshot
from deploy.training.trainers import Cancelled, Fitted, Job, Trainer
from deploy.training.weighting import Weighting
from schemas.contracts import ModelContract
from schemas.errors import TrainingError

ROWS_MIN = 200


@dataclass(frozen=True)
class TrainedModel:
    """One trained version, ready to be packed.

    ``metrics``: plain numbers for the model card, from the held-out span unless the name says otherwise. ``reference``:
    raw columns of the held-out rows plus ``score`` (of a model that had not seen them), ``label`` and ``event_ms``, in
    time order: what monitoring compares with. ``skill``: against always answering the share of positives. ``report``:
    what was tried and chosen, as JSON types.
    """

    onnx: bytes
    encoder: Encoder
    metrics: Mapping[str, float]
    reference: Mapping[str, NDArray[Any]]
    skill: Comparison
    report: Mapping[str, Any] = field(default_factory=dict)


def train(
    snapshot: Snapshot,
    contract: ModelContract,
    trainer: Trainer,
    cancelled: Callable[[], bool] = lambda: False,
) -> TrainedModel:
    """Choose a weighting, judge it on the latest rows, and fit on all of them.

    Raises TrainingError when there are too few rows, only one label in a span, or whatever the trainer raises.
    """
    rules = contract.training
    if absent := [name for name in contract.feature_names if name not in snapshot.table]:
        raise TrainingError(f"the snapshot lacks {', '.join(absent)}")
    rows = len(snapshot)
    held_out = max(1, round(rows * rules.holdout))
    earlier = snapshot.take(np.arange(rows - held_out))
    late = snapshot.take(np.arange(rows - held_out, rows))
    _check(earlier)
    offered = [Weighting.parse(text) for text in rules.weightings]
    tried: list[dict[str, Any]] = []
    weighting, text = offered[0], rules.weightings[0]
    if len(offered) > 1:
        at, tried = _choose(earlier, contract, trainer, offered, cancelled)
        weighting, text = offered[at], rules.weightings[at]
    judged = _fit(earlier, contract, trainer, weighting, cancelled)
    scores = score(judged.onnx, judged.encoder.encode(late.table))
    base_rate = float(earlier.labels.mean())
    skill = compare(late.labels, scores, np.full(len(late), base_rate), late.event_ms, rules)
    assert skill is not None
    shipped = _fit(snapshot, contract, trainer, weighting, cancelled)
    score(shipped.onnx, shipped.encoder.encode(late.table))
    days = weighting.length_ms / 86_400_000
    metrics = {
        **shipped.metrics,
        "rows": float(rows),
        "holdout_rows": float(len(late)),
        "log_loss": log_loss(late.labels, scores),
        "log_loss_base_rate": skill.other_loss,
        "brier": brier(late.labels, scores),
        "auc": auc(late.labels, scores),
        "positive_share_train": float(snapshot.labels.mean()),
        "positive_share_holdout": float(late.labels.mean()),
        **({"half_life_days": days} if weighting.kind == "half-life" else {}),
        **({"recent_days": days} if weighting.kind == "recent" else {}),
    }
    report = {
        "weighting": text,
        "weightings_tried": tried,
        "fitted_rows": len(earlier),
        "holdout_from_ms": int(late.event_ms[0]),
        "against_base_rate": skill.document(),
    }
    return TrainedModel(
        shipped.onnx,
        shipped.encoder,
        metrics,
        {**late.table, "score": scores, "label": late.labels, "event_ms": late.event_ms},
        skill,
        report,
    )


def _choose(
    rows: Snapshot,
    contract: ModelContract,
    trainer: Trainer,
    offered: list[Weighting],
    cancelled: Callable[[], bool],
) -> tuple[int, list[dict[str, Any]]]:
    """The position of the weighting to use, and what each came to on the latest of ``rows``."""
    rules = contract.training
    cut = len(rows) - max(1, round(len(rows) * rules.holdout))
    early, late = rows.take(np.arange(cut)), rows.take(np.arange(cut, len(rows)))
    tried: list[dict[str, Any]] = []
    answers: dict[int, NDArray[np.float32]] = {}
    for at, weighting in enumerate(offered):
        try:
            fitted = _fit(early, contract, trainer, weighting, cancelled)
        except _TooFew as error:
            tried.append({"weighting": rules.weightings[at], "left_out": str(error)})
            continue
        answers[at] = score(fitted.onnx, fitted.encoder.encode(late.table))
        tried.append(
            {"weighting": rules.weightings[at], "log_loss": log_loss(late.labels, answers[at]), "rows": len(late)}
        )  # fmt: skip
    if not answers:
        raise TrainingError(
            f"no weighting leaves enough rows to fit on: {'; '.join(t['left_out'] for t in tried)}"
        )
    simplest = min(answers)
    best = min(answers, key=lambda at: (log_loss(late.labels, answers[at]), at))
    # 68.3 % of a normal distribution lies within one standard error.
    one_error = rules.model_copy(update={"confidence": math.erf(math.sqrt(0.5)), "effect_min": 0.0})
    gain = compare(late.labels, answers[best], answers[simplest], late.event_ms, one_error)
    assert gain is not None
    return (best if gain.high < 0 else simplest), tried


class _TooFew(TrainingError):
    """The rows that a weighting leaves cannot be fitted."""


def _fit(
    rows: Snapshot,
    contract: ModelContract,
    trainer: Trainer,
    weighting: Weighting,
    cancelled: Callable[[], bool],
) -> Fitted:
    if cancelled():
        raise Cancelled
    weights = weighting.weights(rows.event_ms, int(rows.event_ms[-1]))
    used = rows.take(weights > 0)
    _check(used)
    job = Job(contract, used.table, used.labels, weights[weights > 0], used.event_ms, cancelled)
    return trainer(job)


def _check(rows: Snapshot) -> None:
    seen = sorted(set(rows.labels.tolist()))
    if len(rows) < ROWS_MIN or seen != [0, 1]:
        raise _TooFew(
            f"training rows have labels {seen} over {len(rows)} rows: at least {ROWS_MIN} rows with both 0 and 1 are "
            "needed; take a longer span"
        )


def with_report(trained: TrainedModel, **more: Any) -> TrainedModel:
    """The same with further entries of the report."""
    return dataclasses.replace(trained, report={**trained.report, **more})
