"""``deploy/README.md`` is true: its commands exist, its files are accepted, its API calls and settings are there."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deploy.cli import app
from deploy.demo.trials import QUALITIES, STRATEGIES
from deploy.http.bodies import VERBS
from deploy.http.callers import ApiRole
from deploy.http.openapi import openapi_document
from schemas.contracts import load_contract
from schemas.rollout import Rollout
from schemas.settings import OTHER_KEYS, SERVICES, ControllerSettings
from tests.support_readme import ROOT, Page

PAGE = Page(ROOT / "deploy" / "README.md")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("DRIFTLINE_")]:
        monkeypatch.delenv(key)


def helped(words: list[str]) -> tuple[list[str], str]:
    """The words that name a command, and its help; what follows are its arguments."""
    for length in (2, 1):
        result = CliRunner().invoke(app, [*words[:length], "--help"])
        if result.exit_code == 0:
            return words[:length], result.output
    raise AssertionError(words)


@pytest.mark.parametrize("command", PAGE.commands)
def test_a_command_exists_with_its_options(command: str) -> None:
    """Each has help, and the help names every option that the page gives it."""
    words = shlex.split(command)[1:]
    names, text = helped([word for word in words if not word.startswith("-")])
    assert names[0] == words[0]
    for option in [word for word in words if word.startswith("--")]:
        assert re.search(rf"(^|\s){re.escape(option)}\b", text), (option, text)


def test_every_trial_of_a_strategy_has_its_command() -> None:
    """Each strategy with each candidate; the integration test of the strategies plays what they start."""
    listed = {line for line in PAGE.commands if line.startswith("driftline demo ")}
    assert listed == {
        f"driftline demo --strategy {strategy} --candidate {quality}"
        for strategy in STRATEGIES
        for quality in QUALITIES
    }


def test_every_verb_stands_in_the_table_with_its_role() -> None:
    """The roles people read are those that are enforced."""
    rows = re.findall(r"^\| (`driftline .*?) \| .*? \| (\w+) \|$", PAGE.text, re.MULTILINE)
    roles = {verb: role for commands, role in rows for verb in re.findall(r"`driftline (\w+)", commands)}
    assert {verb: ApiRole.named(role) for verb, role in roles.items() if verb in VERBS} == {
        name: verb.role for name, verb in VERBS.items()
    }


def test_the_contract_is_accepted_and_the_models_fit_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own three versions are made by its own program and imported by its own commands."""
    monkeypatch.chdir(tmp_path)
    Path("fraud.yaml").write_text(PAGE.block("yaml", "model: fraud"))
    Path("train.py").write_text(PAGE.block("python", "def payments"))
    assert load_contract(Path("fraud.yaml")).model == "fraud"
    runpy.run_path("train.py", run_name="__main__")
    commands = [
        line
        for line in PAGE.lines
        if line.startswith(("driftline models import", "driftline contract check"))
    ]
    assert len(commands) == 4
    for command in commands:
        words = [word for word in shlex.split(command)[1:] if word != "--publish"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    listed = CliRunner().invoke(app, ["models", "list", "fraud", "--json"])
    assert [row["version"] for row in json.loads(listed.stdout)] == ["1", "2", "3"]


def test_what_is_asked_over_http_is_there() -> None:
    """Each address and body of the page's curl lines."""
    paths = [re.sub(r"\{\w+\}", "[^/]+", path) for path in openapi_document()["paths"]]
    asked = [line for line in PAGE.lines if line.startswith("curl")]
    assert len(asked) == 3
    for line in asked:
        url = re.search(r"http://127\.0\.0\.1:8080(/[^\s?]+)", line)
        assert url is not None and any(re.fullmatch(path, url[1]) for path in paths), line
        if "POST" in line:
            body = shlex.split(line)[-1]
            VERBS[url[1].rpartition("/")[2]].body.model_validate_json(body)


def test_the_rollout_by_regions_is_one() -> None:
    """The page's example of regions, as the part of a contract it is."""
    rollout = Rollout.model_validate(yaml.safe_load(PAGE.block("yaml", "regions:"))["rollout"])
    assert [region.name for region in rollout.regions] == ["eu", "us"]


def test_the_settings_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file with an identity provider; every variable named."""
    (tmp_path / "settings.yaml").write_text(PAGE.block("yaml", "api_oidc"))
    monkeypatch.setenv("DRIFTLINE_CONFIG", str(tmp_path / "settings.yaml"))
    oidc = ControllerSettings.load().controller.api_oidc
    assert oidc is not None and oidc.roles["operator"] == ("sre",)
    for name in set(re.findall(r"DRIFTLINE_[A-Z_]*[A-Z]", PAGE.text)) - OTHER_KEYS:
        section, _, key = name.removeprefix("DRIFTLINE_").lower().partition("__")
        owner, *_ = [model for model in SERVICES.values() if section in model.model_fields]
        annotation: Any = owner.model_fields[section].annotation
        assert key in annotation.model_fields
    for key in re.findall(r"`controller\.(\w+)`", PAGE.text):
        assert key in type(ControllerSettings.load().controller).model_fields


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", PAGE.text))))
def test_a_link_leads_to_a_file(link: str) -> None:
    """Seen from where the page is."""
    assert (PAGE.folder / link).exists()


def test_the_compose_line_names_a_service_and_the_file_the_controller_reads() -> None:
    """A token made that way is one that counts."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    (line,) = [line for line in PAGE.lines if line.startswith("docker compose")]
    words = shlex.split(line)
    environment = compose["services"]["controller"]["environment"]
    assert words[3] == "--rm" and words[4] in compose["services"]
    assert words[-1] == environment["DRIFTLINE_CONTROLLER__API_TOKENS"]
