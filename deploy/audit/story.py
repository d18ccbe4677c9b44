"""A model's facts as people read them: in the order of event time, each with who, what, why and what it led to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deploy.audit.facts import LoggedFact


def in_event_time(facts: Sequence[LoggedFact]) -> list[LoggedFact]:
    """By event time; facts of one time in the order in which they were recorded."""
    return sorted(facts, key=lambda fact: fact.number("event_time_ms"))


def columns(fact: LoggedFact) -> tuple[str, ...]:
    """When, what, version, who, why, on which evidence, the traffic after."""
    weights, regions = fact.document.get("weights"), fact.document.get("regions")
    traffic = "" if not isinstance(weights, dict) else traffic_text(weights, regions)
    detail = fact.text("detail")
    evidence = "; ".join(evidence_of(fact))
    why = detail + (f" [{evidence}]" if evidence else "")
    return (
        when(fact.number("event_time_ms")), fact.text("kind"), fact.text("version") or "-", fact.text("actor"),
        why, traffic,
    )  # fmt: skip


def evidence_of(fact: LoggedFact) -> list[str]:
    """``detector score/threshold over rows`` for each signal the fact rests on."""
    found = []
    for because in fact.document.get("because") or ():
        if not isinstance(because, dict):
            continue
        evidence = because.get("evidence") or {}
        text = (
            f"{because.get('detector')} {_number(because.get('score'))}/{_number(because.get('threshold'))}"
        )
        if evidence.get("column"):
            text += f" on {evidence['column']}"
        if evidence.get("rows"):
            text += f", {evidence['rows']} rows"
        found.append(text)
    return found


def when(time_ms: int) -> str:
    """UTC, to the second."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(time_ms)


def shown(fact: LoggedFact) -> dict[str, Any]:
    """The fact itself with its address."""
    return {"address": fact.address, **fact.document}


def traffic_text(weights: Mapping[str, Any], regions: object = None) -> str:
    """``1 95%  2 5%``; in a rollout by regions, of each: ``eu: 1 95%  2 5%; us: 1 100%``."""
    if isinstance(regions, dict) and regions:
        return "; ".join(f"{name}: {traffic_text(shares)}" for name, shares in regions.items())
    return "  ".join(f"{version} {weight:.0%}" for version, weight in weights.items()) or "fallback"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "?"
