"""The controller's HTTP API over a real ``View``: what it shows, what it asks for, what it refuses."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any

import httpx
import jsonschema
import pytest

from deploy.controller.view import View
from deploy.http.access import Access
from deploy.http.app import BODY_BYTES_MAX, create_app
from deploy.http.bodies import VERBS
from schemas.contracts import Feature, ModelContract, ModelRecord, ModelVersion
from schemas.control import (
    COMMANDS,
    Alert,
    Because,
    Command,
    Decision,
    Deployment,
    DeployRequested,
    Phase,
    RetrainRequested,
    RollbackRequested,
    Severity,
)
from schemas.errors import PlatformError
from schemas.settings import ControllerSection

NOW_MS = 1_370_000_000_000
CONTRACT = ModelContract(model="delay", features=(Feature(name="hour"),))
VERB = {
    "deploy": {"version": "2"},
    "promote": {},
    "pause": {},
    "resume": {},
    "rollback": {"version": "1"},
    "retrain": {},
    "approve": {"version": "2", "gate": "confirm-promotion"},
    "reject": {"version": "2"},
    "override": {"version": "2", "reason": "because"},
}


def view() -> View:
    """A model with a version, a deployment, a decision whose score has no bound, and an alert."""
    state = View()
    state.record(ModelRecord(contract=CONTRACT))
    state.record(
        ModelRecord(version=ModelVersion(model="delay", version="1", uri="delay/1", sha256="0" * 64))
    )
    state.deployed(
        Deployment(
            model="delay",
            revision=4,
            phase=Phase.STEADY,
            stable="1",
            weights={"1": 1.0},
            event_time_ms=NOW_MS,
        )
    )
    because = (Because(signal_id="s", detector="d", score=math.inf, threshold=1.0),)
    for number, model in enumerate(("delay", "other", "delay")):
        state.decided(
            Decision(
                decision_id=f"d{number}",
                model=model,
                kind="retrain-requested",
                actor="policy",
                because=because,
                event_time_ms=NOW_MS + number,
                recorded_ms=0,
            )
        )
    state.alerted(
        Alert(
            alert_id="a", dedup_key="k", status="trigger", severity=Severity.PAGE, model="delay", title="t",
            summary="s", cause="c", event_time_ms=NOW_MS, incident="i",
        )
    )  # fmt: skip
    state.reached(NOW_MS)
    return state


class Api:
    """The app without a socket, and the commands it published."""

    def __init__(
        self, section: ControllerSection | None = None, state: View | None = None, broken: bool = False
    ) -> None:
        self.published: list[Command] = []
        self._broken = broken
        access = Access(section or ControllerSection(), lambda: self.now_s)
        self.now_s = 0.0
        self._app = create_app(state or view(), self._publish, access)

    def _publish(self, command: Command) -> None:
        if self._broken:
            raise PlatformError("the broker is away")
        self.published.append(command)

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_verb_becomes_its_command(verb: str) -> None:
    """The command names who asked, when, what was known then, and ends when the contract's policy says."""
    api = Api()
    body = VERB[verb] | {"by": "ann", "reason": "because"}
    answer = api("POST", f"/v1/deployments/delay/{verb}", json=body)
    assert answer.status_code == 202
    (command,) = api.published
    assert COMMANDS.validate_json(command.model_dump_json()) == command
    assert getattr(command, "type") == verb  # noqa: B009
    said = {"request_id": command.request_id, "model": "delay", "type": verb, "trace_id": command.trace_id}
    assert answer.json() == said
    assert (command.issued_by, command.reason, command.deployment_revision) == ("api/ann", "because", 4)
    assert command.event_time_ms == NOW_MS
    assert command.expires_ms == NOW_MS + CONTRACT.policy.command_ttl


def test_what_a_body_may_say() -> None:
    """Version, steps, idempotency key and event time reach the command; a first retrain names no version."""
    api = Api()
    body = {"version": "2", "steps": [[0.1, 1000], [0.5, 0]], "request_id": "mine", "event_time_ms": 5}
    assert api("POST", "/v1/deployments/delay/deploy", json=body).json()["request_id"] == "mine"
    api("POST", "/v1/deployments/delay/deploy", json={"version": "2", "steps": []})
    api("POST", "/v1/deployments/delay/retrain", json={})
    api("POST", "/v1/deployments/delay/rollback", json={"version": "1"})
    stepped, at_once, retrain, rollback = api.published
    assert isinstance(stepped, DeployRequested) and stepped.steps == ((0.1, 1000), (0.5, 0))
    assert stepped.event_time_ms == 5
    assert isinstance(at_once, DeployRequested) and at_once.steps == ()
    assert isinstance(retrain, RetrainRequested) and retrain.version is None
    assert isinstance(rollback, RollbackRequested) and rollback.version == "1"
    assert len({c.request_id for c in api.published}) == 4


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("deploy", {}, "version"),
        ("deploy", {"version": ""}, "version"),
        ("deploy", {"version": "2", "steps": [[0, 1]]}, "steps.0.0"),
        ("deploy", {"version": "2", "steps": [[0.5, -1]]}, "steps.0.1"),
        ("rollback", {"version": 7}, "version"),
        ("promote", {"verison": "2"}, "verison"),
        ("retrain", {"event_time_ms": -1}, "event_time_ms"),
        ("retrain", {"event_time_ms": 10**18}, "event_time_ms"),
        ("pause", [], "body"),
    ],
)
def test_a_wrong_body_is_refused_with_the_field_named(verb: str, body: Any, field: str) -> None:
    """422, nothing published."""
    api = Api()
    answer = api("POST", f"/v1/deployments/delay/{verb}", json=body)
    assert answer.status_code == 422
    assert [f["field"] for f in answer.json()["fields"]] == [field]
    assert field in answer.json()["detail"]
    assert api.published == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 60_000, 400),
        (b'{"reason": "' + b"x" * BODY_BYTES_MAX + b'"}', 413),
    ],
)
def test_bytes_that_are_no_body(content: bytes, status: int) -> None:
    """Broken, deep or endless JSON is an answer, not a crash."""
    api = Api()
    headers = {"content-type": "application/json"}
    assert (
        api("POST", "/v1/deployments/delay/promote", content=content, headers=headers).status_code == status
    )
    assert api.published == []


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
def test_only_json_is_taken(headers: dict[str, str]) -> None:
    """What any web page can post without being asked (a form, text) changes nothing here."""
    api = Api()
    answer = api("POST", "/v1/deployments/delay/promote", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert api.published == []


def test_what_is_not_there_is_said() -> None:
    """404 and 405 are problems with a detail; a broker that is away is 503."""
    api = Api()
    for method, path, status in (
        ("POST", "/v1/deployments/nobody/promote", 404),
        ("POST", "/v1/deployments/delay/explode", 404),
        ("GET", "/v1/deployments/nobody", 404),
        ("GET", "/v1/models/nobody/versions", 404),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/deployments", 405),
    ):
        answer = api(method, path, json={})
        assert (path, answer.status_code) == (path, status)
        assert answer.json()["detail"]
        assert answer.headers["content-type"] == "application/problem+json"
    assert api.published == []
    assert Api(broken=True)("POST", "/v1/deployments/delay/promote", json={}).status_code == 503


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "²", "1" * 5000, ""])
def test_limits_are_bounded(limit: str) -> None:
    """Whatever is asked, the answer is bounded."""
    assert Api()("GET", "/v1/decisions", params={"limit": limit}).status_code == 422


def test_what_is_shown() -> None:
    """Deployments, versions without their samples, decisions and alerts newest first, event time."""
    api = Api()
    assert api("GET", "/v1/deployments").json()["delay"] == api("GET", "/v1/deployments/delay").json()
    assert Deployment.model_validate(api("GET", "/v1/deployments/delay").json()).revision == 4
    (version,) = api("GET", "/v1/models/delay/versions").json()
    assert version["version"] == "1" and "reference" not in version
    assert [d["decision_id"] for d in api("GET", "/v1/decisions").json()] == ["d2", "d1", "d0"]
    (decision,) = api("GET", "/v1/decisions", params={"model": "delay", "limit": 1}).json()
    assert decision["decision_id"] == "d2" and Decision.model_validate(decision).because[0].score > 1e308
    assert [a["alert_id"] for a in api("GET", "/v1/alerts").json()] == ["a"]
    assert api("GET", "/v1/time").json()["event_time_ms"] == NOW_MS
    assert api("GET", "/healthz").json() == {"status": "ok"}


def test_without_event_time_the_clock_is_taken() -> None:
    """Before anything has ticked a command must not be born expired."""
    state = View()
    state.record(ModelRecord(contract=CONTRACT))
    api = Api(state=state)
    assert api("POST", "/v1/deployments/delay/retrain", json={}).status_code == 202
    wall = api("GET", "/v1/time").json()
    assert wall["event_time_ms"] is None
    assert 0 <= wall["wall_ms"] - api.published[0].event_time_ms < 60_000
    assert api.published[0].deployment_revision == 0


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [r for value in node.values() for r in _references(value)]
    return [r for value in node for r in _references(value)] if isinstance(node, list) else []


def test_the_openapi_document_is_true() -> None:
    """References resolve; every route is there; answers and bodies fit the schemas they are said to have."""
    api = Api()
    document = api("GET", "/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    for reference in _references(document):
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            url = path.replace("{model}", "delay")
            verb = url.rpartition("/")[2]
            answer = api(method.upper(), url, **({"json": VERB[verb]} if method == "post" else {}))
            said = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
            api.now_s += 60
            jsonschema.validate(answer.json(), said | {"components": document["components"]})
            if method == "post":
                body = operation["requestBody"]["content"]["application/json"]["schema"]
                whole = body | {"components": document["components"]}
                jsonschema.validate(VERB[verb], whole)
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.validate(VERB[verb] | {"colour": "red"}, whole)


def test_the_pages_stand_alone() -> None:
    """They load nothing from anywhere else, and say so to the browser; what they name of ours is there."""
    api = Api()
    for page in ("/", "/models/delay"):
        answer = api("GET", page)
        assert answer.headers["content-type"].startswith("text/html")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy
        assert "unsafe" not in policy
        parts = [api("GET", path) for path in re.findall(r'(?:src|href)="(/pages/[^"]+)"', answer.text)]
        assert parts and all(part.status_code == 200 for part in parts)
        for text in (answer.text, *(part.text for part in parts)):
            for foreign in ("http://", "https://", "//cdn", "@import", "innerHTML", "style="):
                assert foreign not in text.replace("http://www.w3.org/2000/svg", "")
