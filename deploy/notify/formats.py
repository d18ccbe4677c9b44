"""One alert in the words of each receiver. Pure: an Alert in, text or a JSON body out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from schemas.control import Alert, Because, Severity

#: PagerDuty's limits (Events API v2) and Slack's (section text).
_SUMMARY_CHARS_MAX = 1_024
_SECTION_CHARS_MAX = 2_900
_BECAUSE_MAX = 5
_PAGERDUTY_SEVERITY = {Severity.INFO: "info", Severity.TICKET: "warning", Severity.PAGE: "critical"}


def console(alert: Alert) -> str:
    """One line."""
    what = "RESOLVED" if alert.status == "resolve" else alert.severity.value.upper()
    return f"{_time(alert)} {what:8} {_subject(alert)}: {_flat(alert.title)} - {_flat(alert.summary)} [{alert.incident}]"


def webhook(alert: Alert) -> dict[str, Any]:
    """The alert as it is on the topic."""
    return alert.model_dump(mode="json")


def slack(alert: Alert) -> dict[str, Any]:
    """Blocks for an incoming webhook: heading, summary, facts, evidence, links."""
    resolved = alert.status == "resolve"
    heading = f"{'Resolved' if resolved else alert.severity.value.capitalize()}: {alert.title}"
    facts = {
        "Model": _subject(alert),
        "Severity": alert.severity.value,
        "Event time": _time(alert),
        "Cause": alert.cause,
        "Action": alert.action,
        "Incident": alert.incident,
    }
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": heading[:150]}},
        _section(_escape(alert.summary) or "(no summary)"),
        {
            "type": "section",
            "fields": [_markdown(f"*{name}*\n{_escape(value) or '-'}") for name, value in facts.items()],
        },
    ]
    if alert.because and not resolved:
        blocks.append(_section("\n".join(f"- {_escape(_evidence(b))}" for b in alert.because[:_BECAUSE_MAX])))
    links = [f"<{url}|{_escape(name)}>" for name, url in _links(alert)]
    if links:
        blocks.append({"type": "context", "elements": [_markdown(" | ".join(links))]})
    return {"text": heading, "blocks": blocks}


def pagerduty(alert: Alert, routing_key: str) -> dict[str, Any]:
    """An Events API v2 event; trigger and resolve meet in one incident by ``dedup_key``."""
    event: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": alert.status,
        "dedup_key": alert.dedup_key[:255],
    }
    if alert.status == "resolve":
        return event
    event["client"] = "Driftline"
    event["payload"] = {
        "summary": f"{_subject(alert)}: {alert.title}"[:_SUMMARY_CHARS_MAX],
        "source": alert.model,
        "severity": _PAGERDUTY_SEVERITY[alert.severity],
        "timestamp": _moment(alert).isoformat(),
        "component": alert.version or alert.model,
        "group": alert.incident,
        "class": alert.cause,
        "custom_details": {
            "summary": alert.summary,
            "action": alert.action,
            "alert_id": alert.alert_id,
            "incident": alert.incident,
            "trace_id": alert.trace_id,
            "evidence": [_evidence(b) for b in alert.because[:_BECAUSE_MAX]],
        },
    }
    event["links"] = [{"href": url, "text": name} for name, url in _links(alert)]
    return event


def _evidence(because: Because) -> str:
    found = because.evidence
    column = f" on {found.column}" if found.column else ""
    effect = f", {found.effect_name or 'effect'} {found.effect:.4g}" if found.effect is not None else ""
    return f"{because.detector}{column}: {because.score:.4g} against {because.threshold:.4g}{effect}, {found.rows} rows"


def _links(alert: Alert) -> list[tuple[str, str]]:
    runbook = [("runbook", alert.runbook)] if alert.runbook.startswith(("http://", "https://")) else []
    return [*runbook, *sorted(alert.links.items())]


def _subject(alert: Alert) -> str:
    return f"{alert.model}/{alert.version}" if alert.version else alert.model


def _moment(alert: Alert) -> datetime:
    return datetime.fromtimestamp(alert.event_time_ms / 1_000, UTC)


def _time(alert: Alert) -> str:
    return _moment(alert).strftime("%Y-%m-%d %H:%M:%SZ")


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _markdown(text[:_SECTION_CHARS_MAX])}


def _markdown(text: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": text}


def _escape(text: str) -> str:
    """Slack's three control characters: text from data must not become a link or a mention."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _flat(text: str) -> str:
    return " ".join(text.split())
