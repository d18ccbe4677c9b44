"""``deploy/README.md`` as a reader follows it: a model of one's own rolled out, a bad one rolled back, the record whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest

from deploy.local.platform import Platform, read_state
from deploy.local.warehouse import LocalWarehouse
from schemas.migrations import apply
from schemas.settings import ClickHouseSettings
from tests.support_readme import ROOT, Page

pytestmark = pytest.mark.integration
PAGE = Page(ROOT / "deploy" / "README.md")


@pytest.fixture(scope="module")
def client(warehouse: LocalWarehouse) -> Iterator[Any]:
    """A migrated, empty database."""
    settings = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database="deploy_readme")
    with clickhouse_connect.get_client(**settings.client(database="default")) as admin:
        admin.command("CREATE DATABASE deploy_readme")
        with clickhouse_connect.get_client(**settings.client()) as reader:
            apply(reader)
            yield reader
        admin.command("DROP DATABASE deploy_readme")


@pytest.mark.parametrize("query", PAGE.queries, ids=[q.splitlines()[0].lstrip("- ") for q in PAGE.queries])
def test_a_query_runs(query: str, client: Any) -> None:
    """On an empty warehouse: no row, no error."""
    assert client.query(query).result_rows == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tour(tmp_path: Path) -> None:
    """Every command of the tour in its order, with bakes of seconds: v2 takes all traffic, v3 is rolled back by the
    monitor's word, the story tells it, and the record is whole in both places."""
    place = tmp_path / "work"
    place.mkdir()
    contract = PAGE.block("yaml", "model: fraud")
    assert contract.count("bake: 30s") == 2
    (place / "fraud.yaml").write_text(
        contract.replace("bake: 30s", "bake: 12s").replace("block_ms: 5s", "block_ms: 3s")
    )
    (place / "train.py").write_text(PAGE.block("python", "def payments"))
    (place / "traffic.py").write_text(PAGE.block("python", "scoring-requests"))
    tour = PAGE.text.split("## What an operator can ask for")[0]
    typed = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", tour, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if not line.startswith(("driftline up", "eval", "driftline down"))
    ]
    assert len(typed) == 17
    typed = [line.replace("traffic.py 90", "traffic.py 50") for line in typed]
    with Platform(tmp_path / "data", input_partitions=1):
        state = read_state(tmp_path / "data")
        assert state is not None
        environment = dict(os.environ) | state["environment"]
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        said = {line: _run(line, place, environment) for line in typed}
        audited = _run("driftline audit --verify --source clickhouse", place, environment)
    assert "v1 takes all traffic" in said['driftline deploy fraud 1 --reason "the first"']
    story = said["driftline audit fraud"]
    kinds = re.findall(r"^ \S+ \S+  (\S+) +(\d) ", story, re.MULTILINE)
    # On a machine that is slow the outcomes of a step come after its bake: it pauses for them, and goes on.
    second = [what for what, version in kinds if version == "2" and what != "paused"]
    assert second[:3] == ["canary-started", "step-passed", "promoted"], story
    assert ("rollback-requested", "3") in kinds and ("rolled-back", "3") in kinds, story
    assert "signed, and none is missing" in said["driftline audit fraud --verify"]
    assert "signed, and none is missing" in audited


def _run(line: str, place: Path, environment: dict[str, str]) -> str:
    """What a command said; the test fails with it when the command does."""
    ended = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"
    return ended.stdout
