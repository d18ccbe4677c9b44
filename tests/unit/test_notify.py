"""Alerts in each receiver's words, tried a bounded number of times, each only once."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from deploy.notify.channels import BACKOFF_MAX_S, Console, Http, Recent, Undeliverable, channels_of, deliver
from deploy.notify.formats import console, pagerduty, slack, webhook
from schemas.control import Alert, Because, Severity
from schemas.settings import NotifierSection
from schemas.verdicts import Evidence

ALERT = Alert(
    alert_id="a1",
    dedup_key="delay/2/concept",
    status="trigger",
    severity=Severity.PAGE,
    model="delay",
    version="2",
    role="canary",
    title="Log loss is rising",
    summary="Loss <script> up\nby 0.1 & more",
    cause="concept",
    runbook="https://runbooks.example/drift",
    action="rollback",
    because=(
        Because(
            signal_id="s", detector="loss-e", score=16.0, threshold=13.8,
            evidence=Evidence(column="loss", effect=0.1234, effect_name="mean difference", rows=420),
        ),
    ),
    event_time_ms=1_370_000_000_000,
    incident="inc-7",
    links={"deployment": "https://driftline.example/delay"},
    trace_id="f" * 32,
)  # fmt: skip
RESOLVED = ALERT.model_copy(update={"alert_id": "a2", "status": "resolve"})


def test_console_is_one_line() -> None:
    """Severity, subject, event time and incident; line breaks in data stay inside."""
    line = console(ALERT)
    assert line == (
        "2013-05-31 11:33:20Z PAGE     delay/2: Log loss is rising - Loss <script> up by 0.1 & more [inc-7]"
    )
    assert "RESOLVED" in console(RESOLVED)


def test_webhook_is_the_alert_itself() -> None:
    """What a program gets can be read back as the same alert."""
    assert Alert.model_validate(webhook(ALERT)) == ALERT


def test_slack_blocks_hold_the_facts_and_escape_data() -> None:
    """Header, summary, fields, evidence and links; control characters of data cannot become links or mentions."""
    body = slack(ALERT)
    assert [block["type"] for block in body["blocks"]] == [
        "header",
        "section",
        "section",
        "section",
        "context",
    ]
    assert body["blocks"][0]["text"]["text"] == "Page: Log loss is rising"
    assert body["blocks"][1]["text"]["text"] == "Loss &lt;script&gt; up\nby 0.1 &amp; more"
    assert "*Incident*\ninc-7" in [field["text"] for field in body["blocks"][2]["fields"]]
    assert (
        body["blocks"][3]["text"]["text"]
        == "- loss-e on loss: 16 against 13.8, mean difference 0.1234, 420 rows"
    )
    assert "<https://runbooks.example/drift|runbook>" in body["blocks"][4]["elements"][0]["text"]
    assert all(len(block["text"]["text"]) <= 3_000 for block in slack(_long())["blocks"] if "text" in block)
    assert slack(RESOLVED)["text"] == "Resolved: Log loss is rising"


def _long() -> Alert:
    return ALERT.model_copy(update={"title": "t" * 5_000, "summary": "s" * 10_000})


@pytest.mark.parametrize(
    ("severity", "expected"),
    [(Severity.INFO, "info"), (Severity.TICKET, "warning"), (Severity.PAGE, "critical")],
)
def test_pagerduty_trigger(severity: Severity, expected: str) -> None:
    """Severity is mapped; dedup key, details and links are there; the summary keeps within the limit."""
    event = pagerduty(_long().model_copy(update={"severity": severity}), "key")
    assert (event["routing_key"], event["event_action"], event["dedup_key"]) == (
        "key",
        "trigger",
        "delay/2/concept",
    )
    assert event["payload"]["severity"] == expected
    assert len(event["payload"]["summary"]) == 1_024
    assert event["payload"]["timestamp"] == "2013-05-31T11:33:20+00:00"
    assert event["payload"]["custom_details"]["incident"] == "inc-7"
    assert {"href": "https://driftline.example/delay", "text": "deployment"} in event["links"]


def test_pagerduty_resolve_names_the_same_incident() -> None:
    """A resolve needs the key of its trigger and nothing else."""
    assert pagerduty(RESOLVED, "key") == {
        "routing_key": "key", "event_action": "resolve", "dedup_key": pagerduty(ALERT, "key")["dedup_key"],
    }  # fmt: skip


class _Flaky:
    """A receiver that answers from a script: None is success."""

    name = "flaky"

    def __init__(self, *script: Undeliverable | None) -> None:
        self.script = list(script)

    def wants(self, alert: Alert) -> bool:
        return True

    def send(self, alert: Alert) -> None:
        answer = self.script.pop(0)
        if answer is not None:
            raise answer


def _down(**changes: Any) -> Undeliverable:
    return Undeliverable("down", **({"again": True} | changes))


@pytest.mark.parametrize(
    ("script", "retries", "outcome", "pauses"),
    [
        ([None], 5, "sent", []),
        ([_down(), _down(), None], 5, "sent", [0.5, 1.0]),
        ([_down(), _down(), _down()], 2, "down", [0.5, 1.0]),
        ([_down(again=False)], 5, "down", []),
        ([_down(wait_s=7.0), None], 5, "sent", [7.0]),
        ([_down(wait_s=900.0), None], 5, "sent", [BACKOFF_MAX_S]),
        ([_down()], 0, "down", []),
    ],
)
def test_tries_are_bounded_and_pauses_grow(
    script: list[Undeliverable | None], retries: int, outcome: str, pauses: list[float]
) -> None:
    """Retry what may pass, as often as allowed, at least as late as the receiver asks, within a limit."""
    waited: list[float] = []
    channel = _Flaky(*script)
    assert deliver(channel, ALERT, retries, lambda s: bool(waited.append(s))) == outcome
    assert (waited, channel.script) == (pauses, [])


def test_stopping_ends_the_trying() -> None:
    """A process that is told to end does not sit out a pause."""
    assert deliver(_Flaky(_down(), None), ALERT, 5, lambda _s: True) == "stopped"


def test_recent_knows_repeats_and_forgets_the_oldest() -> None:
    """Trigger and resolve are two; the same again is none; the memory is bounded."""
    recent = Recent(size_max=2)
    assert [recent.first_time(a) for a in (ALERT, RESOLVED, ALERT)] == [True, True, False]
    other = ALERT.model_copy(update={"alert_id": "a3"})
    assert [recent.first_time(a) for a in (other, RESOLVED, ALERT)] == [True, False, True]


def test_channels_follow_the_settings() -> None:
    """Each named receiver is one channel; what is only for information stays on the console."""
    url = SecretStr("http://127.0.0.1:9/hook")
    found = channels_of(NotifierSection(webhook_url=url, slack_url=url, pagerduty_key=SecretStr("k")))
    assert [channel.name for channel in found] == ["console", "webhook", "slack", "pagerduty"]
    info = ALERT.model_copy(update={"severity": Severity.INFO})
    assert [channel.name for channel in found if channel.wants(info)] == ["console"]
    assert channels_of(NotifierSection(console=False)) == []


def test_a_dead_receiver_is_named_but_its_url_is_not() -> None:
    """Webhook addresses are secrets; errors reach logs."""
    channel = Http("webhook", "http://127.0.0.1:9/secret-token", webhook, timeout_s=1)
    with pytest.raises(Undeliverable) as caught:
        channel.send(ALERT)
    assert caught.value.again
    assert "secret" not in str(caught.value)
    assert str(caught.value).startswith("webhook")


def test_console_writes_a_line() -> None:
    """And the line ends."""
    lines: list[str] = []
    Console(lines.append).send(ALERT)
    assert lines == [console(ALERT) + "\n"]
