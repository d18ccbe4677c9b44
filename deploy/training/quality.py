"""Is this snapshot fit to learn from? Refusals before a minute of training is spent, each with a name and its figures. Pure.

A retrain is asked for by a machine, so the data it would learn from gets the distrust a person would have: too few rows,
one class only, a source that sends the same rows again and again, values the contract does not know, one category or one
entity that is suddenly everywhere, labels that are not like they were (:mod:`deploy.training.label_checks`). The
thresholds are the contract's ``training.checks``. What stays below them can still be poison: a canary judges what comes of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.training.label_checks import Incumbent, label_refusals
from deploy.training.refusal import PARTS, Refusal, parts
from deploy.training.snapshot import Snapshot
from schemas.contracts import Feature, ModelContract
from schemas.reference import code_column


@dataclass(frozen=True, slots=True)
class Checked:
    """The rows that may be learnt from, and why none of them may; empty ``refusals`` when they may."""

    snapshot: Snapshot
    refusals: tuple[Refusal, ...]

    def reason(self) -> str:
        """All refusals in one line."""
        return "; ".join(f"{refusal.check}: {refusal.detail}" for refusal in self.refusals)


def check(snapshot: Snapshot, contract: ModelContract, incumbent: Incumbent | None = None) -> Checked:
    """Check ``snapshot``; rows with a value outside the contract are left out of what is handed back."""
    rows = len(snapshot)
    if rows < contract.training.rows_min:
        origin = snapshot.origin
        return Checked(
            snapshot,
            (
                Refusal(
                    "too-few-rows",
                    f"{rows} labelled rows, at least {contract.training.rows_min} are needed (training.rows_min); the span "
                    f"ended {origin.backed_off_ms} ms before the request, {origin.unlabelled} of {origin.predictions} "
                    "predictions had no label",
                ),
            ),
        )
    outside = outside_contract(snapshot, contract)
    found = [
        *_structure(snapshot, contract),
        *_values(snapshot, contract, float(outside.mean())),
        *_shifts(snapshot, contract),
    ]
    if not any(refusal.check == "one-class" for refusal in found):
        found += label_refusals(snapshot, contract, incumbent)
    kept = snapshot.take(~outside)
    origin = dataclasses.replace(snapshot.origin, left_out=int(outside.sum()))
    return Checked(dataclasses.replace(kept, origin=origin), tuple(found))


def outside_contract(snapshot: Snapshot, contract: ModelContract) -> NDArray[np.bool_]:
    """Rows with a number outside its feature's range, or infinite. A category that is not listed is new, not wrong."""
    wrong = np.zeros(len(snapshot), bool)
    for feature in contract.features:
        if feature.kind == "numeric":
            values = np.asarray(snapshot.table[feature.name], np.float64)
            wrong |= np.isinf(values)
            if feature.low is not None:
                wrong |= values < feature.low
            if feature.high is not None:
                wrong |= values > feature.high
    return wrong


def _structure(snapshot: Snapshot, contract: ModelContract) -> Iterator[Refusal]:
    rows, limits = len(snapshot), contract.training.checks
    positive = float(snapshot.labels.mean())
    if positive in (0.0, 1.0):
        yield Refusal("one-class", f"all {rows} labels are {int(positive)}: a classifier needs both")
    content = _content(snapshot)
    timed = list(zip(content, snapshot.event_ms.tolist(), strict=True))
    duplicates = 1.0 - len(set(timed)) / rows
    if duplicates > limits.duplicates_max:
        yield Refusal(
            "duplicated-rows",
            f"{duplicates:.1%} of rows equal another in features, label and time, at most {limits.duplicates_max:.0%} may",
        )
    else:
        yield from _repeats(content, limits.repeats_step_max)
    named = Counter(name for name in snapshot.entities.tolist() if name)
    for name, count in named.most_common(1):
        if count / rows > limits.entity_max:
            yield Refusal(
                "one-entity",
                f"{count / rows:.1%} of rows are about {name!r}, at most {limits.entity_max:.0%} may be about one entity",
            )


def _repeats(content: list[int], step_max: float) -> Iterator[Refusal]:
    """Rows that come again with another time are natural where features are few, so only their growth is judged."""
    shares = [1.0 - len(set(content[part])) / (part.stop - part.start) for part in parts(len(content))]
    for at, share in enumerate(shares):
        usual = float(np.median(shares[:at] + shares[at + 1 :]))
        if share - usual > step_max:
            yield Refusal(
                "repeated-rows",
                f"in part {at + 1} of {PARTS}, {share:.1%} of rows repeat another's features and label, elsewhere "
                f"{usual:.1%}; at most {step_max:.0%} more may",
            )
            return


def _values(snapshot: Snapshot, contract: ModelContract, outside: float) -> Iterator[Refusal]:
    limits = contract.training.checks
    if outside > limits.out_of_contract_max:
        worst = max(
            (f for f in contract.features if f.kind == "numeric"),
            key=lambda f: float(
                outside_contract(snapshot, contract.model_copy(update={"features": (f,)})).mean()
            ),
        )
        yield Refusal(
            "out-of-contract",
            f"{outside:.1%} of rows have a value outside the contract, most of them feature {worst.name}; at most "
            f"{limits.out_of_contract_max:.0%} may",
        )
    for feature in contract.features:
        unknown, missing = _unknown(feature, snapshot.table[feature.name])
        if unknown > limits.unknown_max:
            yield Refusal(
                "unknown-categories",
                f"feature {feature.name}: {unknown:.1%} of values are not in the contract, at most "
                f"{limits.unknown_max:.0%} may be new",
            )
        if missing > limits.missing_max and not feature.nullable:
            yield Refusal("missing-values", f"feature {feature.name}: {missing:.1%} of values are missing")


def _shifts(snapshot: Snapshot, contract: ModelContract) -> Iterator[Refusal]:
    limits, rows = contract.training.checks, len(snapshot)
    cuts = parts(rows)
    for feature in contract.features:
        if feature.kind != "categorical":
            continue
        names, code_of = np.unique(snapshot.table[feature.name].astype("U"), return_inverse=True)
        counts = np.array([np.bincount(code_of[cut], minlength=len(names)) for cut in cuts])
        sizes = counts.sum(axis=1, keepdims=True)
        steps = counts / sizes - (counts.sum(axis=0) - counts) / (rows - sizes)
        at, code = np.unravel_index(np.argmax(np.abs(steps)), steps.shape)
        if abs(steps[at, code]) > limits.segment_step_max:
            yield Refusal(
                "segment-share",
                f"the share of {feature.name} = {str(names[code])!r} in part {at + 1} of {PARTS} differs from the rest by "
                f"{steps[at, code]:+.1%}, at most {limits.segment_step_max:.0%} may be real",
            )
    shares = [float(snapshot.labels[cut].mean()) for cut in cuts]
    step = max(abs(b - a) for a, b in itertools.pairwise(shares))
    if step > limits.label_step_max:
        yield Refusal(
            "label-share",
            f"the share of positive labels jumps by {step:.2f} from a fifth of the snapshot to the next, at most "
            f"{limits.label_step_max:g} may be real: are labels flipped?",
        )


def _unknown(feature: Feature, column: NDArray[Any]) -> tuple[float, float]:
    """Shares of values that are not listed, and of missing ones."""
    if feature.kind == "numeric":
        return 0.0, float(np.isnan(np.asarray(column, np.float64)).mean())
    empty = np.array([value is None or value == "" for value in column])
    if not feature.categories:
        return 0.0, float(empty.mean())
    return float(((code_column(feature, column) == len(feature.categories)) & ~empty).mean()), float(
        empty.mean()
    )


def _content(snapshot: Snapshot) -> list[int]:
    """A number for each row that equal features and label share."""
    columns = [snapshot.labels.tolist()]
    columns += [
        np.where(np.isnan(c), np.inf, c).tolist() if c.dtype.kind == "f" else c.tolist()
        for c in snapshot.table.values()
    ]
    seen: dict[tuple[Any, ...], int] = {}
    return [seen.setdefault(row, len(seen)) for row in zip(*columns, strict=True)]
