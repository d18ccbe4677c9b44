"""The command line: quick help, one line for each error, documents that are written, secrets that are not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner, Result

from deploy.cli import app
from deploy.commands.local import parse_kill
from schemas.errors import ConfigurationError
from schemas.metrics import METRICS
from schemas.settings import SERVICES

CONTRACT = Path(__file__).parents[2] / "deploy" / "demo" / "flights.yaml"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("DRIFTLINE_")]:
        monkeypatch.delenv(key)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def error_of(result: Result) -> str:
    """The one line a failed command printed."""
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_it_does_not_need() -> None:
    """What takes long to import is imported by the command that uses it, so help is there at once."""
    code = (
        "import sys; from deploy.cli import app; from typer.testing import CliRunner; "
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0, result.output; "
        "heavy = {'rich', 'pydantic', 'confluent_kafka', 'numpy', 'pandas', 'httpx', 'starlette', 'psutil', 'streams'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_command_explains_itself() -> None:
    """Help lists each command with a sentence, and each command has help of its own."""
    top = run("--help")
    assert top.exit_code == 0
    for name in (*SERVICES, "up", "down", "status", "env", "logs", "demo", "topics", "migrate", "config", "schemas", "metrics",
                 "contract", "deployments", "deploy", "rollback", "promote", "pause", "resume", "retrain",
                 "gates", "approve", "reject", "override", "audit", "tokens", "detectors", "calibrate"):  # fmt: skip
        assert any(
            line.split()[:1] == [name] and len(line.split()) > 1 for line in top.stdout.splitlines()
        ), name
        assert run(name, "--help").exit_code == 0


def test_the_process_says_one_line_and_ends_with_1() -> None:
    """As a process too: no traceback, nothing on standard output."""
    environment = {"PATH": os.environ["PATH"], "DRIFTLINE_KAFKAS": "x"}
    ended = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "config"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (
        ended.stderr.startswith("error: unknown settings: DRIFTLINE_KAFKAS") and ended.stderr.count("\n") == 1
    )


# -- settings ---------------------------------------------------------------------------------------------------------


def test_config_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value from the environment is shown, a secret is not, in either format."""
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__PASSWORD", "hunter2")
    monkeypatch.setenv("DRIFTLINE_KAFKA__PASSWORD", "hunter2")
    monkeypatch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", "kafka:1")
    for arguments, read in (((), yaml.safe_load), (("--format", "json"), json.loads)):
        result = run("config", "controller", *arguments)
        assert result.exit_code == 0, result.output
        assert "hunter2" not in result.output
        shown = read(result.stdout)
        assert shown["kafka"]["bootstrap"] == "kafka:1"
        assert set(shown["clickhouse"]["password"]) == set(shown["kafka"]["password"]) == {"*"}


def test_config_of_all_services_can_be_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is printed is a settings file."""
    printed = run("config").stdout
    assert set(SERVICES) < set(yaml.safe_load(printed))
    (tmp_path / "settings.yaml").write_text(printed)
    monkeypatch.setenv("DRIFTLINE_CONFIG", str(tmp_path / "settings.yaml"))
    assert run("config").stdout == printed


def test_an_unknown_key_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the environment, in the file, and inside a section; the key is named."""
    monkeypatch.setenv("DRIFTLINE_KAFKAS__BOOTSTRAP", "x")
    assert "DRIFTLINE_KAFKAS__BOOTSTRAP" in error_of(run("config"))
    monkeypatch.delenv("DRIFTLINE_KAFKAS__BOOTSTRAP")
    monkeypatch.setenv("DRIFTLINE_CONFIG", str(tmp_path / "settings.yaml"))
    (tmp_path / "settings.yaml").write_text("kafkas: {}\n")
    assert "kafkas" in error_of(run("config", "monitor"))
    (tmp_path / "settings.yaml").write_text("kafka: {bootstraps: x}\n")
    assert "kafka.bootstraps" in error_of(run("config", "monitor"))


def test_a_wrong_secret_is_not_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The complaint names the key and leaves the value out."""
    (tmp_path / "settings.yaml").write_text("kafka: {password: [hunter2]}\n")
    monkeypatch.setenv("DRIFTLINE_CONFIG", str(tmp_path / "settings.yaml"))
    line = error_of(run("config", "monitor"))
    assert "kafka.password" in line and "hunter2" not in line


def test_an_unknown_service_is_named() -> None:
    """And what there is, too."""
    assert "monitor" in error_of(run("config", "moniter"))


# -- documents --------------------------------------------------------------------------------------------------------


def test_schemas_writes_files(tmp_path: Path) -> None:
    """Each document is valid JSON Schema; the AsyncAPI document is beside them; without --out all is printed."""
    out = tmp_path / "a" / "b"
    assert run("schemas", "--out", str(out)).exit_code == 0
    written = {path.stem: json.loads(path.read_text()) for path in out.iterdir()}
    assert written == json.loads(run("schemas").stdout)
    assert written.pop("asyncapi")["asyncapi"] == "3.0.0"
    assert {"PredictionMade", "GroundTruth", "ModelContract", "AnyCommand"} <= set(written)
    for schema in written.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    (tmp_path / "file").write_text("")
    assert "file" in error_of(run("schemas", "--out", str(tmp_path / "file")))


def test_metrics_prints_the_whole_list() -> None:
    """A Markdown table, one row a metric."""
    rows = run("metrics").stdout.splitlines()
    assert len(rows) == len(METRICS) + 2
    assert all(row.count("|") == rows[0].count("|") for row in rows)


def test_detectors_are_asked_of_the_package_that_has_them() -> None:
    """All arguments go on to it: a name shows one kind, its exit status is the command's."""
    command = [sys.executable, "-m", "deploy.cli", "detectors"]
    shown = subprocess.run([*command, "psi", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["kind"] == "psi"
    wrong = subprocess.run([*command, "nothing"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: no detector of kind 'nothing'")


def test_calibrate_needs_something_to_measure(tmp_path: Path) -> None:
    """A contract file has no version, so a history is asked for; a missing contract is named."""
    assert "--file names a CSV" in error_of(run("calibrate", str(CONTRACT)))
    assert "missing.yaml" in error_of(run("calibrate", str(tmp_path / "missing.yaml")))


def test_contract_check(tmp_path: Path) -> None:
    """A sound contract is summed up, a wrong one is one line that names file and key."""
    assert "model flights" in run("contract", "check", str(CONTRACT)).stdout
    broken = yaml.safe_load(CONTRACT.read_text()) | {"colour": "red"}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(broken))
    line = error_of(run("contract", "check", str(tmp_path / "broken.yaml")))
    assert "broken.yaml" in line and "colour" in line
    assert "missing.yaml" in error_of(run("contract", "check", str(tmp_path / "missing.yaml")))


# -- the local platform -----------------------------------------------------------------------------------------------


def test_nothing_runs(tmp_path: Path) -> None:
    """Status of nothing is an error, stopping nothing is none, and a log that never was is named."""
    assert "driftline up" in error_of(run("status", "--data-dir", str(tmp_path)))
    assert "driftline up" in error_of(run("env", "--data-dir", str(tmp_path)))
    assert run("down", "--data-dir", str(tmp_path)).exit_code == 0
    assert "monitor" in error_of(run("logs", "monitor", "--data-dir", str(tmp_path)))
    assert "monitor" in error_of(run("logs", "../../etc/passwd", "--data-dir", str(tmp_path)))


def test_logs_prints_the_last_lines(tmp_path: Path) -> None:
    """As many as asked for, of a platform that is gone too, whatever bytes are in it."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "scorer.log").write_bytes(b"one\ntwo \xff\nthree\n")
    result = run("logs", "scorer", "-n", "2", "--data-dir", str(tmp_path))
    assert result.stdout == "two \N{REPLACEMENT CHARACTER}\nthree\n"


def test_kills_are_days_of_2013() -> None:
    """A day is its first UTC millisecond; another service or day is refused before anything starts."""
    at = int(datetime(2013, 7, 15, tzinfo=UTC).timestamp() * 1000)
    assert parse_kill("monitor@07-15") == ("monitor", at)
    for wrong in ("monitor@13-01", "monitor@02-29", "monitor", "kafkaa@07-15", ""):
        with pytest.raises(ConfigurationError, match="--kill"):
            parse_kill(wrong)
    assert "--kill" in error_of(run("demo", "--kill", "monitor@7/15"))
    assert "--sample" in error_of(run("demo", "--sample", "0"))


# -- the controller's API ---------------------------------------------------------------------------------------------


class _Controller(BaseHTTPRequestHandler):
    """Answers every request as a controller whose answer to request ``r`` is ``outcome``."""

    outcome = "done"
    gate: dict[str, Any] | None = None
    posted: list[tuple[str, Any, str | None]]

    def do_GET(self) -> None:
        answers = [{"request_id": "r", "outcome": self.outcome, "detail": "so it is"}]
        deployment = {
            "model": "delay", "revision": 3, "phase": "steady", "pause": None, "weights": {"1": 0.95, "2": 0.05},
            "previous": None, "reason": "canary", "answers": answers, "gate": self.gate,
        }  # fmt: skip
        self._send(200, deployment if self.path.endswith("/delay") else {"delay": deployment})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.posted.append((self.path, body, self.headers["authorization"]))
        unknown = "/nobody/" in self.path
        self._send(404 if unknown else 202, {"detail": "no contract"} if unknown else {"request_id": "r"})

    def _send(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def controller(
    answer: str = "done", gate: dict[str, Any] | None = None
) -> Iterator[tuple[str, list[tuple[str, Any, str | None]]]]:
    """A controller's address, and what was posted to it."""
    posted: list[tuple[str, Any, str | None]] = []
    handler = type("Handler", (_Controller,), {"outcome": answer, "posted": posted, "gate": gate})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", posted
        finally:
            server.shutdown()
            thread.join()


def test_requests_reach_the_controller_and_its_answer_is_printed() -> None:
    """Path, body and token go out; the outcome comes back."""
    with controller() as (api, posted):
        result = run(
            "deploy",
            "delay",
            "2",
            "--step",
            "0.1:12h",
            "--by",
            "ann",
            "--reason",
            "new",
            "--token",
            "t",
            "--api",
            api,
        )
        assert result.exit_code == 0, result.output
        assert result.stdout == "deploy delay: done: so it is\n"
        rolled = run("rollback", "delay", "2", "--by", "ann", "--yes", "--json", "--api", api)
        assert json.loads(rolled.stdout)["answer"]["outcome"] == "done"
        assert run("retrain", "delay", "--by", "ann", "--wait", "0", "--api", api).stdout.startswith(
            "retrain delay: asked"
        )
    steps = [[0.1, 43_200_000]]
    body = {"version": "2", "reason": "new", "by": "ann"}
    assert posted == [
        ("/v1/deployments/delay/deploy", body | {"steps": steps}, "Bearer t"),
        ("/v1/deployments/delay/rollback", body | {"reason": ""}, None),
        ("/v1/deployments/delay/retrain", {"version": None, "reason": "", "by": "ann"}, None),
    ]


def test_a_refusal_is_an_error() -> None:
    """The controller's and the API's alike: one line, exit status 1."""
    with controller("refused") as (api, _posted):
        assert "refused: so it is" in error_of(run("promote", "delay", "--yes", "--api", api))
        assert "404: no contract" in error_of(run("pause", "nobody", "--api", api))


def test_deployments_are_shown() -> None:
    """As a table for people and as JSON for programs."""
    with controller() as (api, _posted):
        assert "95%" in run("deployments", "--api", api).stdout
        assert (
            json.loads(run("deployments", "delay", "--json", "--api", api).stdout)["delay"]["revision"] == 3
        )


def test_nobody_listens() -> None:
    """The address is named; so is what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        line = error_of(run("promote", "delay", "--yes", "--api", address))
    assert address in line and "--api" in line
    assert "WEIGHT:BAKE" in error_of(run("deploy", "delay", "2", "--step", "much"))
