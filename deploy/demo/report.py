"""Why: a demo that only looks right proves nothing; this says in numbers what happened and what failed.

``build_report`` gathers, from the topics, the scored log and ClickHouse, what the story was and whether anything was
lost; ``failures`` is empty only if every flight is accounted for and the loop closed as the data demanded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import clickhouse_connect
from rich.console import Console
from rich.table import Table

from deploy.demo.flights import Flights
from deploy.demo.replay import Replay
from deploy.demo.terminal import day
from deploy.demo.verify import Checked
from deploy.demo.watch import LoopWatch, Stamped
from schemas.contracts import ModelContract
from schemas.control import Phase, RetrainRequested, RollbackRequested
from schemas.settings import ClickHouseSettings

ROLLBACK_S_MAX = 1.0
FIRST_CAUSE = "operator"

#: What an analyst would ask first; printed with its results. More of the kind stand in the README.
QUERIES: dict[str, str] = {
    "Live accuracy by month and version": """
        SELECT toStartOfMonth(window_start) AS month, model_version AS version, sum(predictions) AS scored,
               round(100 * sum(labelled) / sum(predictions), 1) AS labelled_pct,
               round(sum(log_loss * labelled) / sum(labelled), 3) AS mean_log_loss,
               round(sum(brier * labelled) / sum(labelled), 3) AS mean_brier
        FROM accuracy WHERE segment = '' AND role != 'shadow' AND labelled > 0
        GROUP BY month, version ORDER BY month, version""",
    "Worst carriers by log loss": """
        SELECT segment, sum(labelled) AS labels, round(sum(log_loss * labelled) / sum(labelled), 3) AS loss
        FROM accuracy WHERE startsWith(segment, 'carrier=') AND role != 'shadow' AND labelled > 0
        GROUP BY segment HAVING labels > 100 ORDER BY loss DESC LIMIT 5""",
    "Decisions and who made them": """
        SELECT event_time, kind, version, actor, detail FROM decisions
        WHERE kind NOT LIKE 'alert%' ORDER BY event_time LIMIT 20""",
}


@dataclass(slots=True)
class Report:
    """Everything the demo found out. ``document()`` is what ``demo-report.json`` holds."""

    figures: dict[str, Any] = field(default_factory=dict)
    detections: list[dict[str, Any]] = field(default_factory=list)
    retrains: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    queries: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return self.figures | {
            "detections": self.detections,
            "retrains": self.retrains,
            "rollbacks": self.rollbacks,
            "queries": self.queries,
            "verify_examples": self.mismatches,
            "failures": self.failures,
        }


def build_report(
    *,
    options: Any,
    clickhouse: ClickHouseSettings,
    flights: Flights,
    replay: Replay,
    watch: LoopWatch,
    contract: ModelContract,
    checked: Checked | None,
    seconds: dict[str, float],
    restarted: dict[str, int],
) -> Report:
    """Gather the report; the platform must still be up."""
    report = Report()
    answers = replay.answers
    joined, windows, dead = _warehouse_figures(clickhouse, contract.model, report)
    report.retrains = [_retrain(r, watch) for r in watch.retrains() if r.record.cause != FIRST_CAUSE]
    report.rollbacks = [_rollback(r, watch, checked) for r in watch.rollbacks()]
    report.detections = _detections(watch)
    promoted = [r["promoted_s"] for r in report.retrains if r["promoted_s"] is not None]
    rolled = [r["seconds"] for r in report.rollbacks if r["seconds"] is not None]
    report.figures = {
        "flights": len(flights),
        "flights_sent": replay.sent,
        "scored": sum(answers.by_version.values()),
        "scored_by_version": dict(sorted(answers.by_version.items())),
        "rejected": answers.rejected,
        "answered_twice": answers.doubled,
        "labels_sent": replay.labels,
        "labels_joined": joined,
        "windows": windows,
        "dead_letters": dead,
        "verify_compared": checked.compared if checked else None,
        "verify_mismatches": checked.count if checked else None,
        "retrain_promoted_s": promoted[0] if promoted else None,
        "rollback_s": max(rolled) if rolled else None,
        "events_per_s": round((replay.sent + replay.labels) / seconds["replay_s"], 1),
        "restarted": {name: times for name, times in restarted.items() if times},
        **{name: round(value, 1) for name, value in seconds.items()},
        "options": {
            "sample": options.sample,
            "no_drift": options.no_drift,
            "healthy_v3": options.healthy_v3,
            "seed": options.seed,
        },
    }
    if checked:
        report.mismatches = checked.mismatches
    report.failures = _failures(options, report, watch, contract.model, len(flights))
    return report


def _warehouse_figures(clickhouse: ClickHouseSettings, model: str, report: Report) -> tuple[int, int, int]:
    with clickhouse_connect.get_client(**clickhouse.client()) as client:
        name = {"model": model}
        joined = client.query(
            "SELECT sum(labelled) FROM accuracy WHERE model = {model:String} AND segment = '' AND role != 'shadow'",
            parameters=name,
        ).result_rows[0][0]
        windows = client.query(
            "SELECT count() FROM windows WHERE model = {model:String}", parameters=name
        ).result_rows[0][0]
        dead = client.query("SELECT count() FROM dead_letters").result_rows[0][0]
        for title, text in QUERIES.items():
            result = client.query(text)
            report.queries[title] = {
                "sql": "\n".join(line.strip() for line in text.strip().splitlines()),
                "columns": list(result.column_names),
                "rows": [[_shown(value) for value in row] for row in result.result_rows],
            }
    return int(joined or 0), int(windows or 0), int(dead or 0)


def _detections(watch: LoopWatch) -> list[dict[str, Any]]:
    found = []
    for stamped in watch.alerts:
        alert = stamped.record
        if alert.status != "trigger":
            continue
        because = alert.because[0] if alert.because else None
        since = because.evidence.since_ms if because else None
        found.append(
            {
                "event_time": day(alert.event_time_ms),
                "severity": alert.severity.value,
                "model_version": alert.version,
                "detector": because.detector if because else None,
                "column": because.evidence.column if because else None,
                "title": alert.title,
                "evidence_since": day(since) if since is not None else None,
                "delay_h": round((alert.event_time_ms - since) / 3_600_000, 1) if since is not None else None,
                "action": alert.action,
            }
        )
    return found


def _retrain(request: Stamped[RetrainRequested], watch: LoopWatch) -> dict[str, Any]:
    record = request.record
    version = None
    promoted_s = None
    promoted_at = None
    revisions = watch.deployments.get(record.model, [])
    for command in watch.commands:
        if getattr(command.record, "retrain_id", None) == record.request_id:
            version = getattr(command.record, "version", None)
    for revision in revisions:
        if (
            version is not None
            and revision.record.stable == version
            and revision.kafka_ms >= request.kafka_ms
        ):
            promoted_s = round((revision.kafka_ms - request.kafka_ms) / 1000, 2)
            promoted_at = day(revision.record.event_time_ms)
            break
    return {
        "request_id": record.request_id,
        "event_time": day(record.event_time_ms),
        "of_version": record.version,
        "cause": record.cause,
        "detectors": [because.detector for because in record.because],
        "new_version": version,
        "promoted_event_time": promoted_at,
        "promoted_s": promoted_s,
    }


def _rollback(
    request: Stamped[RollbackRequested], watch: LoopWatch, checked: Checked | None
) -> dict[str, Any]:
    record = request.record
    revisions = watch.deployments.get(record.model, [])
    answer = next(
        ((r, a) for r in revisions for a in r.record.answers if a.request_id == record.request_id), None
    )
    seconds = None
    if checked is not None:
        bad = checked.log[(checked.log["version"] == record.version) & (checked.log["role"] != "shadow")]
        if len(bad):
            seconds = round(max(0.0, (int(bad["kafka_ms"].max()) - request.kafka_ms) / 1000), 3)
    started = next((r.record for r in revisions if r.record.candidate == record.version), None)
    golden = [
        command.record.golden
        for command in watch.commands
        if command.record.type == "scorer" and command.record.golden and command.kafka_ms >= request.kafka_ms
    ]
    return {
        "request_id": record.request_id,
        "version": record.version,
        "event_time": day(record.event_time_ms),
        "canary_since": day(started.effective_ms) if started else None,
        "harm_delay_h": round((record.event_time_ms - started.effective_ms) / 3_600_000, 1)
        if started
        else None,
        "cause": record.cause,
        "outcome": answer[1].outcome.value if answer else None,
        "answered_s": round((answer[0].kafka_ms - request.kafka_ms) / 1000, 3) if answer else None,
        "seconds": seconds,
        "outputs_unchanged": all(all(g.values()) for g in golden) if golden else None,
    }


def _failures(options: Any, report: Report, watch: LoopWatch, model: str, flights: int) -> list[str]:
    figures = report.figures
    bad = []
    if figures["flights_sent"] != flights:
        bad.append(f"{flights} flights, but {figures['flights_sent']} were sent")
    if figures["scored"] + figures["rejected"] != figures["flights_sent"]:
        bad.append(
            f"scored {figures['scored']} + rejected {figures['rejected']} != sent {figures['flights_sent']}"
        )
    if figures["answered_twice"]:
        bad.append(f"{figures['answered_twice']} requests were answered twice")
    if figures["labels_joined"] != figures["labels_sent"]:
        bad.append(f"labels joined {figures['labels_joined']} != labels sent {figures['labels_sent']}")
    if figures["verify_mismatches"]:
        bad.append(
            f"{figures['verify_mismatches']} figures in ClickHouse differ from the offline computation"
        )
    if options.no_drift and report.retrains:
        bad.append("a retrain was asked for although the flights do not drift")
    if not options.no_drift and not any(r["promoted_s"] is not None for r in report.retrains):
        bad.append("no retrain led to a promoted version")
    if options.healthy_v3 and report.rollbacks:
        bad.append("a healthy version was rolled back")
    # On shuffled flights the defect costs too little to be shown as harm; whether it is, is the data's business.
    if not options.healthy_v3 and not options.no_drift:
        done = [r for r in report.rollbacks if r["outcome"] in ("accepted", "done")]
        if not done:
            bad.append("the defective version was not rolled back")
        for rollback in done:
            if rollback["outputs_unchanged"] is not True:
                bad.append("after the rollback the stable version's outputs were not proven unchanged")
            if rollback["seconds"] is not None and rollback["seconds"] >= ROLLBACK_S_MAX:
                bad.append(f"the bad version answered for {rollback['seconds']} s after the rollback request")
    newest = watch.newest(model)
    if newest is None or newest.phase is Phase.INITIALIZING:
        bad.append("no version was ever deployed")
    return bad


def print_report(report: Report, console: Console) -> None:
    """The summary a person reads."""
    figures = report.figures
    table = Table(title="What went through the loop", show_header=False, title_justify="left")
    rows = [
        ("flights sent", f"{figures['flights_sent']:,}"),
        ("scored / rejected", f"{figures['scored']:,} / {figures['rejected']:,}"),
        ("by version", ", ".join(f"{v}: {n:,}" for v, n in figures["scored_by_version"].items())),
        ("labels sent / joined", f"{figures['labels_sent']:,} / {figures['labels_joined']:,}"),
        ("windows in ClickHouse", f"{figures['windows']:,}"),
        ("figures compared / different", f"{figures['verify_compared']:,} / {figures['verify_mismatches']}")
        if figures["verify_compared"] is not None
        else ("verification", "not run"),
        ("retrain request to promotion", _seconds(figures["retrain_promoted_s"])),
        ("rollback request to last bad answer", _seconds(figures["rollback_s"])),
        ("events a second", f"{figures['events_per_s']:,.0f}"),
        ("seconds: start, replay, all", f"{figures['start_s']}, {figures['replay_s']}, {figures['total_s']}"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if report.detections:
        found = Table(title="Detections", title_justify="left")
        for column in ("event time", "severity", "version", "detector", "column", "delay (h)", "action"):
            found.add_column(column)
        for one in report.detections:
            found.add_row(
                one["event_time"], one["severity"], str(one["model_version"]), str(one["detector"]),
                str(one["column"] or ""), str(one["delay_h"] if one["delay_h"] is not None else ""), one["action"],
            )  # fmt: skip
        console.print(found)
    for title, query in report.queries.items():
        shown = Table(title=title, title_justify="left")
        for column in query["columns"]:
            shown.add_column(column)
        for row in query["rows"]:
            shown.add_row(*(str(value) for value in row))
        console.print(shown)
        console.print(query["sql"], style="dim", highlight=False)


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f} s"


def _shown(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) or value is None else str(value)
