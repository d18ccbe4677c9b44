"""Where alerts are delivered, and how hard it is tried: bounded, with growing pauses, never on anybody else's time."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import httpx

from deploy.notify import formats
from schemas.control import Alert, Severity
from schemas.settings import NotifierSection

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
RECENT_MAX = 1_000


class Undeliverable(Exception):
    """One try failed. ``again``: whether another may succeed. ``wait_s``: what the receiver asked us to wait."""

    def __init__(self, detail: str, again: bool, wait_s: float = 0.0) -> None:
        super().__init__(detail)
        self.again = again
        self.wait_s = wait_s


class Channel(Protocol):
    """One receiver."""

    name: str

    def wants(self, alert: Alert) -> bool:
        """Whether alerts like this go there at all."""

    def send(self, alert: Alert) -> None:
        """Try once. Raises Undeliverable."""


class Console:
    """Standard output, one line an alert; everything goes there."""

    name = "console"

    def __init__(self, write: Callable[[str], object] = sys.stdout.write) -> None:
        self._write = write

    def wants(self, alert: Alert) -> bool:
        return True

    def send(self, alert: Alert) -> None:
        self._write(formats.console(alert) + "\n")
        sys.stdout.flush()


class Http:
    """A JSON body to a URL. What is only for information stays on the console."""

    def __init__(self, name: str, url: str, body: Callable[[Alert], object], timeout_s: float) -> None:
        self.name = name
        self._url = url
        self._body = body
        self._client = httpx.Client(timeout=timeout_s)

    def wants(self, alert: Alert) -> bool:
        return alert.severity is not Severity.INFO

    def send(self, alert: Alert) -> None:
        try:
            response = self._client.post(self._url, json=self._body(alert))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The URL is a secret: errors name the channel, not where it leads.
            raise Undeliverable(f"{self.name}: {type(error).__name__}", again=True) from None
        if response.is_success:
            return
        again = response.status_code in (408, 425, 429) or response.status_code >= 500
        raise Undeliverable(f"{self.name}: HTTP {response.status_code}", again, _retry_after_s(response))


def channels_of(settings: NotifierSection) -> list[Channel]:
    """The channels the settings name."""
    timeout_s = settings.timeout / 1_000
    found: list[Channel] = [Console()] if settings.console else []
    if settings.webhook_url:
        found.append(Http("webhook", settings.webhook_url.get_secret_value(), formats.webhook, timeout_s))
    if settings.slack_url:
        found.append(Http("slack", settings.slack_url.get_secret_value(), formats.slack, timeout_s))
    if settings.pagerduty_key:
        key = settings.pagerduty_key.get_secret_value()
        found.append(
            Http("pagerduty", settings.pagerduty_url, lambda alert: formats.pagerduty(alert, key), timeout_s)
        )
    return found


def deliver(channel: Channel, alert: Alert, retries_max: int, pause: Callable[[float], bool]) -> str:
    """Try until delivered or ``retries_max`` tries after the first have failed; says which: ``sent`` or why not.

    ``pause(seconds)`` waits and returns True when there is no more time, which ends the trying with ``stopped``.
    """
    wait_s = BACKOFF_FIRST_S
    for tried in range(retries_max + 1):
        try:
            channel.send(alert)
            return "sent"
        except Undeliverable as error:
            if not error.again or tried == retries_max:
                return str(error)
            if pause(min(BACKOFF_MAX_S, max(wait_s, error.wait_s))):
                return "stopped"
            wait_s *= 2
    return "never tried"


class Recent:
    """The identities of alerts handled lately: a bounded set that forgets the oldest."""

    def __init__(self, size_max: int = RECENT_MAX) -> None:
        self._size_max = size_max
        self._seen: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def first_time(self, alert: Alert) -> bool:
        """Remember ``alert``; False when it was here already."""
        identity = (alert.dedup_key, alert.status, alert.alert_id)
        if identity in self._seen:
            return False
        self._seen[identity] = None
        if len(self._seen) > self._size_max:
            self._seen.popitem(last=False)
        return True


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
