"""The README is true: its commands exist, its snippets are accepted, its queries run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import confluent_kafka
import pytest
import yaml
from typer.testing import CliRunner

from deploy.cli import app
from deploy.http.bodies import VERBS
from deploy.http.openapi import openapi_document
from deploy.local.warehouse import LocalWarehouse
from schemas import arrow
from schemas.codecs import PredictionDecoder
from schemas.contracts import ModelContract
from schemas.events import HEADER_FORMAT
from schemas.labels import LabelDecoder
from schemas.messages import Messages
from schemas.migrations import apply
from schemas.settings import OTHER_KEYS, SERVICES, ClickHouseSettings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
INLINE: list[str] = re.findall(
    r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
)
#: Every line a reader could type.
LINES = [
    line.split(" #")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()
] + INLINE
COMMANDS = sorted({line for line in LINES if line.startswith("driftline ")})
TARGETS = sorted({line.split()[1] for line in LINES if re.fullmatch(r"make \w+", line)})
QUERIES = [
    query.strip() for kind, text in BLOCKS if kind == "sql" for query in text.split(";\n") if query.strip()
]


def block(kind: str, holding: str = "") -> str:
    """The README's one block of a language that holds a text."""
    (found,) = [text for its_kind, text in BLOCKS if its_kind == kind and holding in text]
    return found


CONTRACT = ModelContract.model_validate(yaml.safe_load(block("yaml", "features:")))


def calls(command: str) -> Iterator[list[str]]:
    """``driftline a | b --flag`` as argument lists: names that stand for a path or a number are dropped."""
    for part in command.removeprefix("driftline ").split(" | "):
        yield [word for word in shlex.split(part) if not word.isupper() and "." not in word]


def test_the_rollout_that_is_shown_is_one() -> None:
    """It fits the contract's section, and none of its metrics only decorates."""
    shown = yaml.safe_load(block("yaml", "strategy:"))["rollout"]
    contract = ModelContract.model_validate(CONTRACT.model_dump() | {"rollout": shown})
    assert all(metric.gates or metric.alert is not None for metric in contract.rollout.metrics)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists_with_its_options(command: str) -> None:
    """Each command has help, and the help names every option that the README gives it."""
    for words in calls(command):
        names = [word for word in words if not word.startswith("-")]
        status, output = helped(names)
        assert status == 0, output
        for option in set(words) - set(names):
            assert re.search(rf"(^|\s){re.escape(option)}\b", output), (option, output)


def helped(names: list[str]) -> tuple[int, str]:
    """Exit status and help of a command; detectors are another process, whose output no runner in this one sees."""
    if names[0] == "detectors":
        asked = subprocess.run(
            [sys.executable, "-m", *names, "--help"], capture_output=True, text=True, check=False, cwd=ROOT
        )
        return asked.returncode, asked.stdout + asked.stderr
    result = CliRunner().invoke(app, [*names, "--help"])
    return result.exit_code, result.output


def test_the_readme_names_commands_at_all() -> None:
    """Or the test above would pass over an empty list: every service, and what a first user needs."""
    named = {words[0] for command in COMMANDS for words in calls(command)}
    assert named >= {*SERVICES, "demo", "up", "contract", "topics", "migrate", "config", "schemas", "metrics"}
    assert len(QUERIES) == 10


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_exists(target: str) -> None:
    """Each ``make ...`` is a target of the Makefile."""
    assert re.search(rf"^{target}: .*##", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"DRIFTLINE_[A-Z_]*[A-Z]", README))))
def test_a_setting_exists(name: str) -> None:
    """Each environment variable is read by some service."""
    if name in OTHER_KEYS:
        return
    section, _, key = name.removeprefix("DRIFTLINE_").lower().partition("__")
    owners = [model for model in SERVICES.values() if section in model.model_fields]
    assert owners
    if key:
        annotation: Any = owners[0].model_fields[section].annotation
        assert key in annotation.model_fields


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_a_link_leads_to_a_file(link: str) -> None:
    """Nothing outside the repository is linked, and what is linked is there."""
    assert (ROOT / link).exists()


class Recorder:
    """Stands for the Kafka client of a user's service: keeps what it is given."""

    sent: list[tuple[str, str, str]]

    def __init__(self, configuration: dict[str, str]) -> None:
        self.configuration = configuration
        Recorder.sent = []

    def produce(self, topic: str, key: str, value: str) -> None:
        self.sent.append((topic, key, value))


def usable(sent: list[tuple[str, str, str]]) -> tuple[int, int]:
    """How many predictions and labels the monitor would take; fails on any that it would not."""
    messages: dict[str, list[tuple[bytes, bytes, bool]]] = {"predictions": [], "feedback": []}
    for topic, key, value in sent:
        messages[topic].append((key.encode(), value.encode(), False))
    taken, bad = PredictionDecoder([CONTRACT]).decode(Messages.of(messages["predictions"]))
    labels, worse = LabelDecoder({CONTRACT.model: CONTRACT}).decode(Messages.of(messages["feedback"]))
    assert not bad
    assert not worse
    return sum(len(columns) for columns in taken), len(labels)


def test_the_python_snippet_sends_what_the_monitor_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as it stands against the README's own contract: one prediction, one label, joined by their key."""
    monkeypatch.setattr(confluent_kafka, "Producer", Recorder)
    names: dict[str, Any] = {}
    exec(compile(block("python"), "README.md", "exec"), names)
    log_prediction: Callable[..., str] = names["log_prediction"]
    prediction_id = log_prediction({"x": 0.3, "country": "de"}, 0.8, "1", 2.5)
    names["log_outcome"](prediction_id, 1.0)
    assert usable(Recorder.sent) == (1, 1)
    assert {key for _, key, _ in Recorder.sent} == {prediction_id}


def test_the_shell_snippet_sends_what_the_monitor_takes() -> None:
    """The console producer's line, cut at its separator."""
    line = re.search(r"echo '(.*)' \|", block("sh", "kafka-console-producer"))
    assert line is not None
    key, value = line[1].split("|", 1)
    assert usable([("predictions", key, value)]) == (1, 0)


def test_the_http_snippets_are_requests_the_controller_knows() -> None:
    """Paths and body against the controller's own description."""
    text = block("sh", "curl")
    paths = re.findall(r"http://127\.0\.0\.1:8080(/\S+)", text)
    known = [re.sub(r"\{\w+\}", "[^/]+", path) for path in openapi_document()["paths"]]
    assert len(paths) == 2
    assert all(any(re.fullmatch(pattern, path) for pattern in known) for path in paths)
    body = re.search(r"-d '(.*)'", text)
    assert body is not None
    assert VERBS[paths[1].rpartition("/")[2]].body.model_validate(json.loads(body[1])).reason


def test_names_from_the_code_exist() -> None:
    """The batch encoders and the header it goes with."""
    assert f"`{HEADER_FORMAT}: arrow`" in README
    (name,) = re.findall(r"`schemas\.arrow\.(\w+)`; ground truths", README)
    (of_labels,) = re.findall(r"; ground truths: `(\w+)`", README)
    assert callable(getattr(arrow, name)) and callable(getattr(arrow, of_labels))


@pytest.fixture(scope="module")
def client(warehouse: LocalWarehouse) -> Iterator[Any]:
    """A reader of an empty migrated database."""
    settings = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database="readme")
    with clickhouse_connect.get_client(**settings.client(database="default")) as admin:
        admin.command("CREATE DATABASE readme")
        with clickhouse_connect.get_client(**settings.client()) as reader:
            apply(reader)
            yield reader
        admin.command("DROP DATABASE readme")


@pytest.mark.integration
@pytest.mark.parametrize("query", QUERIES, ids=[query.splitlines()[0].lstrip("- ") for query in QUERIES])
def test_a_query_runs(query: str, client: Any) -> None:
    """Each of the ten queries on an empty warehouse: no row, no error, and it asks a view, not a table of ours."""
    assert client.query(query).result_rows == []
    asked = re.findall(r"FROM (\w+)", query)
    views = {
        name
        for (name,) in client.query(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View'"
        ).result_rows
    }
    assert set(asked) <= views
