"""What people read about versions: the card, the difference of two, and why a version is kept or may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.registry import APPROVALS_NEEDED, Approval, ContractLink, feature_difference
from schemas.contracts import ModelVersion


def card(
    record: ModelVersion,
    link: ContractLink | None,
    approvals: Sequence[Approval],
    notes: Mapping[str, Any] | None = None,
) -> str:
    """A model card in Markdown, from what is on record alone. ``notes``: the registry's, of a version trained here."""
    reference = record.reference
    lines = [f"# {record.model} {record.version}", "", (link and link.purpose) or "(no purpose given)", ""]
    lines += [
        f"- Owner: {(link and link.owner) or '(none)'}",
        f"- Risk tier: {record.risk}",
        f"- Digest: {record.sha256}",
        "",
        "## Data",
        "",
        f"- Trained on event times {record.trained_from_ms} to {record.trained_to_ms} (ms since 1970)",
        f"- Reference: {reference.rows} rows, {reference.from_ms} to {reference.to_ms}, mean loss {reference.loss_mean}",
        "",
        *_making(notes or {}),
        "## Metrics",
        "",
        *([f"- {name}: {value:.6g}" for name, value in sorted(record.metrics.items())] or ["- (none)"]),
        "",
        "## Features",
        "",
        *([f"- {name} ({kind})" for name, kind in link.features] if link else ["- (not recorded)"]),
        "",
        "## Lineage",
        "",
        f"- Parent: {record.parent or '(none)'}",
        f"- Data snapshot: {record.snapshot or '(none)'}",
        f"- Code: {link.code if link else '(not recorded)'}",
        f"- Contract: revision {record.contract_revision}, hash {link.hash if link else '(not recorded)'}",
        f"- Asked for by: {record.cause or '(nobody on record)'}",
        "",
        "## Approvals",
        "",
        f"{len({approval.by for approval in approvals})} of {APPROVALS_NEEDED[record.risk]} needed.",
        "",
        *[f"- {a.by} at {a.at_ms} (key {a.key_id}){': ' if a.reason else ''}{a.reason}" for a in approvals],
        "",
        "## Limits",
        "",
        "- Metrics and reference are of the held-out rows of that span; they promise nothing for other data.",
    ]
    if not reference.columns:
        lines.append("- It has no reference: detectors that need one stay inconclusive.")
    return "\n".join(lines) + "\n"


def _making(notes: Mapping[str, Any]) -> list[str]:
    """How a version trained here came about: which rows, which weighting, judged against whom."""
    origin, judged = notes.get("snapshot.json"), notes.get("training.json")
    if not isinstance(origin, Mapping) or not isinstance(judged, Mapping):
        return []
    hours = origin.get("backed_off_ms", 0) / 3_600_000
    unused = f"{origin.get('unlabelled')} had no label, {origin.get('left_out')} were outside the contract"
    return [
        "## How it was made",
        "",
        f"- Rows: {origin.get('rows')} of {origin.get('predictions')} predictions; {unused}",
        f"- Labels: the span ends {hours:.1f} h before the request ({origin.get('backed_off_by')})",
        f"- Trainer: {origin.get('trainer')}; rows weighted: {judged.get('weighting')}",
        f"- Judged: {judged.get('detail') or 'there was no version before it'}",
        f"- Handed to the controller: {'yes' if judged.get('handed_over') else 'no'}",
        "",
    ]


def difference(
    a: ModelVersion, b: ModelVersion, link_a: ContractLink | None, link_b: ContractLink | None
) -> dict[str, Any]:
    """How ``b`` differs from ``a``: metrics (both values), shift of the reference in sd, features, lineage."""
    names = sorted(a.metrics.keys() | b.metrics.keys())
    lineage = ("parent", "snapshot", "trained_from_ms", "trained_to_ms", "contract_revision", "risk", "cause")
    pairs: dict[str, Any] = {name: (getattr(a, name), getattr(b, name)) for name in lineage}
    pairs["code"] = (link_a and link_a.code, link_b and link_b.code)
    pairs["contract"] = (link_a and link_a.hash, link_b and link_b.hash)
    features = feature_difference(link_b.features, link_a.features) if link_a and link_b else "not recorded"
    return {
        "metrics": {name: [a.metrics.get(name), b.metrics.get(name)] for name in names},
        "reference": _shifts(a, b),
        "features": features,
        "lineage": {name: list(pair) for name, pair in pairs.items() if pair[0] != pair[1]},
    }


def _shifts(a: ModelVersion, b: ModelVersion) -> dict[str, float]:
    """By column: mean shift in sd of ``a``, or for a category half the sum of the differences of shares (0 to 1)."""
    found = {}
    for name, was in a.reference.columns.items():
        now = b.reference.columns.get(name)
        if now is None:
            continue
        if was.shares and len(was.shares) == len(now.shares):
            found[name] = 0.5 * sum(abs(x - y) for x, y in zip(was.shares, now.shares, strict=True))
        elif was.mean is not None and now.mean is not None and was.sd:
            found[name] = (now.mean - was.mean) / was.sd
    return found


@dataclass(frozen=True, slots=True)
class Kept:
    """What retention says of one version; ``why`` is empty when it may go."""

    version: str
    why: str


def retention(
    versions: Sequence[str],
    created_ms: Mapping[str, int],
    in_use: Mapping[str, str],
    *,
    keep: int,
    young_since_ms: int,
) -> list[Kept]:
    """For each of ``versions`` (oldest first) why it stays: in use (the reason by version), among the ``keep`` newest, or
    created at or after ``young_since_ms``. One of which the creation is not known stays: it cannot be read."""
    newest = set(versions[len(versions) - keep :] if keep else ())
    found = []
    for version in versions:
        if version in in_use:
            why = in_use[version]
        elif version in newest:
            why = f"one of the {keep} newest"
        elif version not in created_ms:
            why = "it cannot be read, so nothing is known about it"
        elif created_ms[version] >= young_since_ms:
            why = "younger than the age limit"
        else:
            why = ""
        found.append(Kept(version, why))
    return found
