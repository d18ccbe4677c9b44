"""From a request to its caller, and whether they may: tokens, sign-in, or the open door of a machine nobody else reaches."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from deploy.http.callers import ApiRole, Caller
from deploy.http.limits import Buckets
from deploy.http.problems import Problem
from deploy.http.tokens import TokenFile
from deploy.process import wall_ms
from schemas.settings import ControllerSection

if TYPE_CHECKING:
    from deploy.http.oidc import Oidc

#: What a browser calls this machine. Another name with our address is a page that rebinds its own.
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
#: Wrong tokens one address may send: enough for a slip, too few to try any out.
FAILURES_PER_S, FAILURES_BURST = 0.2, 10
BURST_S = 4


class Access:
    """Knows callers and counts their calls. Used on the event loop only."""

    def __init__(self, section: ControllerSection, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._tokens = None if section.api_tokens is None else TokenFile(section.api_tokens)
        self._oidc = _oidc(section, monotonic_s)
        self._monotonic_s = monotonic_s
        self.open_role = _open_role(section)
        #: Where whoever reaches the port may change something, only pages of this very machine may ask a browser to.
        self.local_only = self.open_role > ApiRole.VIEWER and is_local(section.api_host)
        self._reads = Buckets(section.api_reads_per_s, max(1, int(section.api_reads_per_s * BURST_S)))
        self._changes = Buckets(section.api_changes_per_s, max(1, int(section.api_changes_per_s * 10)))
        self._failures = Buckets(FAILURES_PER_S, FAILURES_BURST)

    async def caller(self, request: Request) -> Caller:
        """Who asks. Raises Problem 401 when a token is no good, 429 when there were too many such, 403 for foreign names."""
        if self.local_only and _host_of(request) not in LOCAL_HOSTS:
            raise Problem(403, f"this API is open to this machine only: call it as {LOCAL_HOSTS[0]}")
        address = "unknown" if request.client is None else request.client.host
        header = request.headers.get("authorization")
        if header is None:
            return Caller("anonymous", self.open_role, "open", f"open {address}")
        scheme, _, text = header.partition(" ")
        found = None
        if scheme.lower() == "bearer" and len(text) <= 8_192:
            text = text.strip()
            if self._tokens is not None:
                found = self._tokens.caller(text, wall_ms())
            if found is None and self._oidc is not None and text.count(".") == 2:
                found = await run_in_threadpool(self._oidc.caller, text)
        if found is None:
            self._wait(self._failures, f"open {address}")
            raise Problem(
                401,
                "the token is not known, has ended or was revoked: send `Authorization: Bearer TOKEN`",
                headers={"www-authenticate": 'Bearer error="invalid_token"'},
            )
        return found

    def admit(self, caller: Caller, needed: ApiRole) -> None:
        """Let ``caller`` do what ``needed`` may do. Raises Problem 401, 403 or 429."""
        if caller.role < needed:
            if caller.known:
                raise Problem(403, f"{caller.name} is {caller.role}, this needs {needed}")
            raise Problem(
                401,
                f"this needs the role {needed}: send `Authorization: Bearer TOKEN`; "
                "`driftline tokens create NAME --role ROLE` makes one",
                headers={"www-authenticate": "Bearer"},
            )
        self._wait(self._reads if needed <= ApiRole.VIEWER else self._changes, caller.key)

    def _wait(self, buckets: Buckets, key: str) -> None:
        seconds = buckets.take(key, self._monotonic_s())
        if seconds:
            raise Problem(
                429, f"too many calls; try again in {seconds} s", headers={"retry-after": str(seconds)}
            )


def _oidc(section: ControllerSection, monotonic_s: Callable[[], float]) -> Oidc | None:
    """Checks sign-ins, where that is set up; the library for it is loaded only then."""
    if section.api_oidc is None:
        return None
    from deploy.http.oidc import Oidc

    return Oidc(section.api_oidc, monotonic_s)


def is_local(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _open_role(section: ControllerSection) -> ApiRole:
    if section.api_open is not None:
        return ApiRole.named(section.api_open)
    if section.api_tokens is None and section.api_oidc is None and is_local(section.api_host):
        return ApiRole.ADMIN
    return ApiRole.VIEWER


def _host_of(request: Request) -> str:
    """The name by which the caller called us, without the port."""
    return request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
