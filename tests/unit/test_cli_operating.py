"""An operator's commands: each verb as it leaves, what is asked back, gates, and tokens from their making to their end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deploy.http.bodies import VERBS
from deploy.http.tokens import TokenFile
from tests.unit.test_cli import controller, error_of, run

DAY_MS = 86_400_000
CUTTING = {
    "rollback": ("delay", "2"),
    "promote": ("delay",),
    "reject": ("delay", "2"),
    "override": ("delay", "2", "--reason", "because"),
    "deploy": ("delay", "2", "--at-once"),
}
OTHERS = {
    "deploy": ("delay", "2"),
    "pause": ("delay",),
    "resume": ("delay",),
    "retrain": ("delay",),
    "approve": ("delay", "2", "--gate", "confirm-promotion"),
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("DRIFTLINE_")]:
        monkeypatch.delenv(key)


def test_every_verb_of_the_api_is_a_command() -> None:
    """With a body that the API takes."""
    assert {*CUTTING, *OTHERS} == set(VERBS)
    with controller() as (api, posted):
        for verb, arguments in [*CUTTING.items(), *OTHERS.items()]:
            yes = ("--yes",) if (verb, arguments) in CUTTING.items() else ()
            result = run(verb, *arguments, *yes, "--by", "ann", "--api", api)
            assert result.exit_code == 0, result.output
            path, body, _ = posted[-1]
            assert path == f"/v1/deployments/delay/{verb}"
            assert VERBS[verb].body.model_validate(body).by == "ann"
    assert len(posted) == len(CUTTING) + len(OTHERS)


@pytest.mark.parametrize("verb", sorted(CUTTING))
def test_what_cuts_traffic_is_asked_back(verb: str) -> None:
    """Where nobody can answer it must be said beforehand; nothing is sent without."""
    with controller() as (api, posted):
        assert "--yes" in error_of(run(verb, *CUTTING[verb], "--api", api))
        assert posted == []
        assert run(verb, *CUTTING[verb], "-y", "--api", api).exit_code == 0
    assert len(posted) == 1


def test_an_override_says_why() -> None:
    """Without a reason it is no command."""
    assert run("override", "delay", "2", "--yes").exit_code == 2


def test_gates_are_shown() -> None:
    """Those that wait, with who has said yes; text from elsewhere is neither markup nor a terminal's command."""
    gate = {
        "gate_id": "g", "kind": "confirm-promotion", "version": "2", "since_ms": 0, "expires_ms": DAY_MS,
        "approvals_needed": 2, "approved_by": ["[red]ann\x1b[31m"], "webhook": "", "weight": 1.0,
    }  # fmt: skip
    with controller(gate=gate) as (api, _posted):
        shown = run("gates", "--api", api).stdout
        assert json.loads(run("gates", "--json", "--api", api).stdout) == [{"model": "delay"} | gate]
        assert "at confirm-promotion" in run("deployments", "--api", api).stdout
    assert "1 of 2" in shown and "[red]ann" in shown and "1970-01-02" in shown and "\x1b" not in shown
    with controller() as (api, _posted):
        assert json.loads(run("gates", "--json", "--api", api).stdout) == []


def test_a_token_from_its_making_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown once, on standard output alone; listed without what could be sent; revoked. In the file of the settings."""
    path = tmp_path / "tokens.json"
    monkeypatch.setenv("DRIFTLINE_CONTROLLER__API_TOKENS", str(path))
    made = run("tokens", "create", "ann", "--role", "operator", "--expires", "90d")
    assert made.exit_code == 0, made.output
    (text,) = made.stdout.split()
    (record,) = TokenFile(path).records()
    assert record.expires_ms == record.created_ms + 90 * DAY_MS
    assert TokenFile(path).caller(text, record.created_ms) is not None
    other = json.loads(run("tokens", "create", "ci", "--role", "viewer", "--json").stdout)
    assert TokenFile(path).caller(other["token"], 0) is not None
    listed = run("tokens", "list")
    assert "ann" in listed.stdout and record.token_id in listed.stdout and "operator" in listed.stdout
    for shown in (listed.stdout, run("tokens", "list", "--json").stdout):
        assert text.rpartition("_")[2] not in shown and record.sha256 not in shown
    assert "is revoked" in run("tokens", "revoke", record.token_id).stdout
    assert TokenFile(path).caller(text, record.created_ms) is None
    states = {r["name"]: r["state"] for r in json.loads(run("tokens", "list", "--json").stdout)}
    assert states == {"ann": "revoked", "ci": "active"}
    assert "tokens list" in error_of(run("tokens", "revoke", "nothing"))


def test_a_token_needs_a_file_and_a_time_that_is_one(tmp_path: Path) -> None:
    """Each said in one line."""
    assert "controller.api_tokens" in error_of(run("tokens", "list"))
    file = ("--file", str(tmp_path / "t.json"))
    wrong = run("tokens", "create", "a", "--role", "viewer", "--expires", "soon", *file)
    assert "--expires soon" in error_of(wrong)
    assert "characters" in error_of(run("tokens", "create", "", "--role", "viewer", *file))
    assert run("tokens", "create", "a", "--role", "king", *file).exit_code == 2
    (tmp_path / "folder").mkdir()
    assert "cannot be" in error_of(run("tokens", "list", "--file", str(tmp_path / "folder")))
