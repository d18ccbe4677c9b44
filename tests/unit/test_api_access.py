"""Who may call the API: tokens, sign-in, roles on every route, limits, and the line on record for each call."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.controller.view import View
from deploy.http.access import FAILURES_BURST, Access
from deploy.http.app import create_app
from deploy.http.bodies import VERBS
from deploy.http.callers import ApiRole, RoleName
from deploy.http.limits import CALLERS_MAX, Buckets
from deploy.http.openapi import openapi_document
from deploy.http.tokens import TokenFile
from schemas.contracts import ModelRecord
from schemas.control import Command
from schemas.errors import AccessError
from schemas.settings import ControllerSection
from tests.support_api import CONTRACT, ROLES, Guarded

VERSIONED = {"version": "2", "reason": "because"}


def body_of(verb: str) -> dict[str, Any]:
    return {name: value for name, value in VERSIONED.items() if name in VERBS[verb].body.model_fields}


# -- roles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [None, *ROLES])
def test_every_route_asks_for_its_role(role: RoleName | None, tmp_path: Path) -> None:
    """Each operation of the OpenAPI document, by each role and by nobody: allowed exactly where the table says."""
    api = Guarded(tmp_path)
    token = None if role is None else api.text[role]
    held = ApiRole.NONE if role is None else ApiRole.named(role)
    for path, operations in openapi_document()["paths"].items():
        for method in operations:
            verb = path.rpartition("/")[2]
            needed = VERBS[verb].role if method == "post" else ApiRole.VIEWER
            if path in ("/healthz", "/v1/me"):
                needed = ApiRole.NONE
            more = {"json": body_of(verb)} if method == "post" else {}
            answer = api(method.upper(), path.replace("{model}", "delay"), token, **more)
            denied = 401 if role is None else 403
            assert (answer.status_code == denied) == (held < needed), (path, answer.text)
            assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)
            api.now_s += 10
    assert len(api.published) == sum(held >= verb.role for verb in VERBS.values())


def test_who_has_shown_who_they_are_is_on_record_by_that_name(tmp_path: Path) -> None:
    """Whatever the body says; a body's name counts only where nobody has to show it."""
    api = Guarded(tmp_path, api_open="operator")
    api("POST", "/v1/deployments/delay/pause", api.text["operator"], json={"by": "somebody else"})
    api("POST", "/v1/deployments/delay/pause", json={"by": "ann"})
    assert [command.issued_by for command in api.published] == ["api/a-operator", "api/ann"]


def test_me_says_what_the_caller_may(tmp_path: Path) -> None:
    """So that a page can offer what will not be refused."""
    api = Guarded(tmp_path)
    assert api("GET", "/v1/me").json() == {"name": "anonymous", "role": "none", "via": "open", "may": []}
    assert api("GET", "/v1/me", api.text["viewer"]).json()["may"] == []
    assert "override" not in api("GET", "/v1/me", api.text["operator"]).json()["may"]
    assert set(api("GET", "/v1/me", api.text["admin"]).json()["may"]) == set(VERBS)


@pytest.mark.parametrize(
    ("section", "role"),
    [
        ({}, ApiRole.ADMIN),
        ({"api_host": "::1"}, ApiRole.ADMIN),
        ({"api_host": "localhost"}, ApiRole.ADMIN),
        ({"api_host": "0.0.0.0"}, ApiRole.VIEWER),
        ({"api_host": "controller.internal"}, ApiRole.VIEWER),
        ({"api_tokens": Path("tokens.json")}, ApiRole.VIEWER),
        ({"api_host": "0.0.0.0", "api_open": "operator"}, ApiRole.OPERATOR),
        ({"api_open": "none"}, ApiRole.NONE),
    ],
)
def test_the_door_is_open_to_this_machine_only(section: dict[str, Any], role: ApiRole) -> None:
    """Without tokens or sign-in whoever reaches the port may act only where that is this machine."""
    assert Access(ControllerSection(**section)).open_role is role


def test_an_open_door_is_none_for_pages_of_other_names(tmp_path: Path) -> None:
    """A page whose name was pointed at this machine (DNS rebinding) gets nothing, not even to look."""
    api = Guarded(tmp_path, api_tokens=None, api_open=None)
    for host in ("localhost", "127.0.0.1"):
        assert api("POST", "/v1/deployments/delay/pause", host=host, json={}).status_code == 202
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert api("POST", "/v1/deployments/delay/pause", host=host, json={}).status_code == 403
        assert api("GET", "/v1/deployments", host=host).status_code == 403
    assert len(api.published) == 2


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_kept_as_its_hash_only(tmp_path: Path) -> None:
    """The file holds nothing that could be sent, and nobody else on the machine can read it."""
    tokens = TokenFile(tmp_path / "deep" / "tokens.json")
    text, record = tokens.create("ann", "operator", 5, expires_ms=9)
    kept = tokens.path.read_text()
    assert text.rpartition("_")[2] not in kept and record.sha256 in kept
    assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
    assert len({tokens.create("ann", "viewer", 5)[0] for _ in range(20)}) == 20
    assert len(tokens.records()) == 21


def test_only_the_very_token_counts(tmp_path: Path) -> None:
    """Another's secret, another id, more or less of it, another scheme, an ended one: nobody."""
    tokens = TokenFile(tmp_path / "tokens.json")
    text, record = tokens.create("ann", "operator", 0, expires_ms=100)
    other, _ = tokens.create("bob", "admin", 0)
    found = tokens.caller(text, 99)
    assert found is not None and (found.name, found.role) == ("ann", ApiRole.OPERATOR)
    mixed = text[: text.rindex("_")] + other[other.rindex("_") :]
    for wrong in (
        "",
        "x",
        text[:-1],
        text + "A",
        text.upper(),
        mixed,
        record.sha256,
        f"dlt_{record.token_id}_",
    ):
        assert tokens.caller(wrong, 99) is None, wrong
    assert tokens.caller(text, 100) is None


def test_a_revoked_token_is_refused_at_the_next_call(tmp_path: Path) -> None:
    """By the server that is running, without a restart; a new one works as soon as it is made."""
    api = Guarded(tmp_path)
    assert api("GET", "/v1/time", api.text["viewer"]).status_code == 200
    (first, *_) = api.tokens.records()
    api.tokens.revoke(first.token_id, 7)
    assert api("GET", "/v1/time", api.text["viewer"]).status_code == 401
    assert api("GET", "/v1/time", api.tokens.create("new", "viewer", 8)[0]).status_code == 200
    assert api.tokens.revoke(first.token_id, 9).revoked_ms == 7
    with pytest.raises(AccessError, match="tokens list"):
        api.tokens.revoke("nothing", 7)


def test_a_file_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    """And makes no new token over what is in it; mended, it works again."""
    api = Guarded(tmp_path)
    kept = api.tokens.path.read_text()
    for broken in ("", "{", "[{}]", json.dumps([{"role": "admin"}])):
        api.tokens.path.write_text(broken)
        assert api("GET", "/v1/time", api.text["admin"]).status_code == 401
        with pytest.raises(AccessError, match="cannot be read"):
            api.tokens.create("x", "admin", 0)
        assert api.tokens.path.read_text() == broken
    api.tokens.path.write_text(kept)
    assert api("GET", "/v1/time", api.text["admin"]).status_code == 200
    api.tokens.path.unlink()
    assert api("GET", "/v1/time", api.text["admin"]).status_code == 401


@pytest.mark.parametrize("header", ["Basic {}", "{}", "Bearer", "Bearer  ", "Bearer " + "x" * 9_000])
def test_other_ways_to_send_a_token_do_not_count(header: str, tmp_path: Path) -> None:
    """401 and not what an anonymous caller would get: who sends something wrong is told."""
    api = Guarded(tmp_path, api_open="viewer")
    headers = {"authorization": header.format(api.text["admin"])}
    assert api("GET", "/v1/time", headers=headers).status_code == 401


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    """Half a call a second, three at once; another caller has a bucket of their own; a clock that goes back is no gift."""
    buckets = Buckets(0.5, 3)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [0, 0, 0, 2]
    assert buckets.take("b", 0.0) == 0
    assert buckets.take("a", 1.0) == 1
    assert [buckets.take("a", 2.0), buckets.take("a", 2.0)] == [0, 2]
    assert buckets.take("a", 1.0) == 2
    for number in range(CALLERS_MAX + 5):
        buckets.take(f"c{number}", 3.0)
    assert len(buckets._buckets) <= CALLERS_MAX


def test_each_caller_has_their_own_limit(tmp_path: Path) -> None:
    """Beyond it 429 with the time to wait; nothing is published meanwhile; others go on."""
    api = Guarded(tmp_path, api_changes_per_s=0.5)
    path = "/v1/deployments/delay/pause"
    asked = [api("POST", path, api.text["operator"], json={}) for _ in range(6)]
    assert [answer.status_code for answer in asked] == [202] * 5 + [429]
    assert asked[-1].headers["retry-after"] == "2" and len(api.published) == 5
    assert api("POST", path, api.text["admin"], json={}).status_code == 202
    assert api("GET", "/v1/time", api.text["operator"]).status_code == 200
    api.now_s += 2
    assert api("POST", path, api.text["operator"], json={}).status_code == 202


def test_tokens_cannot_be_tried_out(tmp_path: Path) -> None:
    """After some wrong ones the address has to wait, whichever token it tries next; a right one is still heard."""
    api = Guarded(tmp_path)
    tried = [
        api("GET", "/v1/time", f"dlt_{n:012x}_{'A' * 43}").status_code for n in range(FAILURES_BURST + 2)
    ]
    assert tried == [401] * FAILURES_BURST + [429, 429]
    assert api("GET", "/v1/time", api.text["viewer"]).status_code == 200


# -- on record --------------------------------------------------------------------------------------------------------


def test_every_call_is_a_line_with_who_and_what_came_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that change something or are denied at info, reads at debug; with the trace that the command carries."""
    caplog.set_level(logging.DEBUG, "deploy.http.audit")
    api = Guarded(tmp_path)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    api("POST", "/v1/deployments/delay/pause", api.text["operator"], json={}, headers=headers)
    api("POST", "/v1/deployments/delay/pause", api.text["viewer"], json={})
    api("POST", "/v1/deployments/delay/pause", api.text["admin"], json={"colour": "red"})
    api("GET", "/v1/time", api.text["viewer"])
    api("GET", "/v1/time", "wrong")
    (command,) = api.published
    lines = [record for record in caplog.records if record.name == "deploy.http.audit"]
    fields = ("levelname", "status", "caller", "role", "request_id", "trace_id")
    seen = [tuple(getattr(line, field) for field in fields) for line in lines]
    assert seen[0] == ("INFO", 202, "a-operator", "operator", command.request_id, trace)
    assert command.trace_id == trace
    assert [line[:4] for line in seen[1:]] == [
        ("INFO", 403, "a-viewer", "viewer"),
        ("INFO", 422, "a-admin", "admin"),
        ("DEBUG", 200, "a-viewer", "viewer"),
        ("INFO", 401, None, None),
    ]
    assert len({line[5] for line in seen}) == 5
    assert not any(secret in record.getMessage() for secret in api.text.values() for record in lines)


@pytest.mark.parametrize("given", ["", "x", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "00-ABC-1-01"])
def test_a_trace_that_is_none_is_replaced(given: str, tmp_path: Path) -> None:
    """A malformed header breaks nothing."""
    api = Guarded(tmp_path)
    path = "/v1/deployments/delay/pause"
    answer = api("POST", path, api.text["admin"], json={}, headers={"traceparent": given})
    assert answer.status_code == 202 and len(answer.json()["trace_id"]) == 32
    assert answer.json()["trace_id"] == api.published[0].trace_id != "0" * 32


def test_an_unexpected_failure_is_a_problem_without_a_traceback(tmp_path: Path) -> None:
    """What nobody thought of is 500 in the same form, and tells a caller nothing of the inside."""
    api = Guarded(tmp_path)

    def crash(_command: Command) -> None:
        raise RuntimeError("a secret of the inside")

    state = View()
    state.record(ModelRecord(contract=CONTRACT))
    section = ControllerSection(api_tokens=api.tokens.path)
    app = create_app(state, crash, Access(section))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"authorization": f"Bearer {api.text['admin']}"}
            return await client.post("/v1/deployments/delay/pause", json={}, headers=headers)

    answer = asyncio.run(ask())
    assert answer.status_code == 500 and "secret" not in answer.text
    assert answer.headers["content-type"] == "application/problem+json"
