"""``driftline audit`` on a real Kafka and a real ClickHouse engine: the same story from both, and tampering found in both."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from deploy.core.ledger import Ledger
from deploy.local.kafka import LocalKafka
from deploy.local.warehouse import LocalWarehouse
from schemas import migrations
from schemas.control import Because, Decision, Deployment, Phase
from schemas.hashing import key_hashes
from schemas.record import POLICY, Head, head_of, link
from schemas.rows import TABLES
from schemas.settings import ClickHouseSettings, KafkaSettings
from schemas.signing import Signer
from schemas.spans import Spans
from schemas.verdicts import Evidence, Family, SignalChanged, State, Verdict, Worst
from streams.core.archive import log_rows
from streams.core.records import Record
from streams.sink import ClickHouseSink
from tests.support_deploy import Wire

pytestmark = pytest.mark.integration

T0, HOUR = 1_370_000_000_000, 3_600_000
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer.create(tmp_path / "key.pem")


@pytest.fixture
def clickhouse(warehouse: LocalWarehouse, unique_name: str) -> Iterator[ClickHouseSettings]:
    """A migrated database of this test's own."""
    settings = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database=unique_name)
    with clickhouse_connect.get_client(**settings.client(database="default")) as admin:
        admin.command(f"CREATE DATABASE {unique_name}")
        with clickhouse_connect.get_client(**settings.client()) as client:
            migrations.apply(client)
        yield settings
        admin.command(f"DROP DATABASE {unique_name}")


@pytest.fixture
def wire(
    kafka: LocalKafka,
    topic_prefix: str,
    clickhouse: ClickHouseSettings,
    signer: Signer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Wire]:
    """Topics made, and an environment in which the command finds them, the warehouse and the key."""
    monkeypatch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", kafka.bootstrap)
    monkeypatch.setenv("DRIFTLINE_KAFKA__TOPIC_PREFIX", topic_prefix)
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__PORT", str(clickhouse.port))
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__DATABASE", clickhouse.database)
    public = base64.b64encode(signer.public).decode()
    monkeypatch.setenv("DRIFTLINE_SIGNING__TRUSTED", json.dumps([public]))
    made = Wire(KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, input_partitions=2))
    yield made
    made.close()


class Log:
    """Writes what the services write, to the topic and to its copy."""

    def __init__(self, wire: Wire, clickhouse: ClickHouseSettings, signer: Signer) -> None:
        self._wire, self._signer = wire, signer
        self._sink = ClickHouseSink(clickhouse)
        self._ledger = Ledger()
        self._offset = 0
        self.facts: list[Decision] = []

    def policy(self, number: int, **more: Any) -> None:
        head = self._ledger.head("delay", POLICY) if self.facts else Head()
        self._write(link(fact(number, actor="policy/harm", **more), POLICY, head))

    def controller(self, number: int, **more: Any) -> None:
        (linked,) = self._ledger.link([fact(number, **more)])
        self._write(linked)
        head = head_of(self.facts[-1])
        revision = Deployment(
            model="delay", revision=number, phase=Phase.STEADY, facts=head.sequence, facts_head=head.digest,
            event_time_ms=T0,
        )  # fmt: skip
        text = revision.model_dump_json().encode()
        self._wire.send("deployments", [("delay", text)])
        self.copy("deployments", number, text)

    def _write(self, linked: Decision) -> None:
        signed = self._signer.sign(linked)
        self._ledger.learn(signed)
        self.facts.append(signed)
        text = signed.model_dump_json().encode()
        self._wire.send("decisions", [("delay", text)])
        self.copy("decisions", self._offset, text)
        self._offset += 1

    def copy(self, topic: str, offset: int, text: bytes) -> None:
        """As the archive does."""
        table, found = log_rows(Record(topic, 0, offset, b"delay", text))
        times = {at for at, (_, kind) in enumerate(TABLES[table].columns) if kind.startswith("DateTime64")}
        self._sink.write(
            table, [tuple(_time(v) if at in times else v for at, v in enumerate(row)) for row in found]
        )

    def write(self, table: str, found: list[tuple[Any, ...]]) -> None:
        self._sink.write(table, found)


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def fact(number: int, **more: Any) -> Decision:
    plain = {
        "decision_id": f"d{number}", "model": "delay", "kind": f"kind-{number}", "actor": "controller",
        "event_time_ms": T0 - number * HOUR, "recorded_ms": T0,
    }  # fmt: skip
    return Decision.model_validate(plain | more)


@pytest.fixture
def log(wire: Wire, clickhouse: ClickHouseSettings, signer: Signer) -> Log:
    made = Log(wire, clickhouse, signer)
    for number in (1, 3):
        made.policy(number)
        made.controller(number + 1, weights={"1": 1.0}, deployment_revision=number)
    return made


def audit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments])


@pytest.mark.parametrize("source", ["kafka", "clickhouse"])
def test_the_story_is_told_and_verified(source: str, log: Log) -> None:
    """In event-time order (here the reverse of the log's), as a table and as JSON; the whole record is sound."""
    told = audit("delay", "--source", source)
    assert told.exit_code == 0, told.output
    kinds = [line.split()[2] for line in told.stdout.splitlines()[1:]]
    assert kinds == ["kind-4", "kind-3", "kind-2", "kind-1"]
    assert "1 100%" in told.stdout
    found = json.loads(audit("delay", "--json", "--source", source).stdout)
    assert [Decision.model_validate(document) for document in found[::-1]] == log.facts
    verified = audit("--verify", "--source", source)
    assert verified.exit_code == 0, verified.output
    assert "4 facts about 1 models" in verified.stdout
    assert audit("nobody", "--source", source).exit_code == 1


@pytest.mark.usefixtures("log")
def test_what_was_done_to_the_copy_is_found(clickhouse: ClickHouseSettings) -> None:
    """A row deleted in ClickHouse, then one edited: exit status 1, the first bad fact named; Kafka stays sound."""
    with clickhouse_connect.get_client(**clickhouse.client()) as client:
        client.command("ALTER TABLE decision_log DELETE WHERE decision_id = 'd2' SETTINGS mutations_sync = 1")
        ended = audit("--verify", "--source", "clickhouse")
        assert ended.exit_code == 1 and "the first: decisions/0/3 (delay, controller 2, d4)" in ended.stderr
        assert "fact 1 is missing" in ended.stderr
        client.command(
            "ALTER TABLE decision_log UPDATE document = replaceOne(document, 'kind-1', 'kind-x') "
            "WHERE decision_id = 'd1' SETTINGS mutations_sync = 1"
        )
        found = audit("--verify", "--source", "clickhouse", "--json")
        assert found.exit_code == 1
        assert [f["decision_id"] for f in json.loads(found.stdout)["faults"]] == ["d1", "d4"]
        client.command("TRUNCATE TABLE decision_log")
        assert "counted more" in audit("--verify", "--source", "clickhouse").stderr
    assert audit("--verify").exit_code == 0


def test_what_a_stranger_writes_to_the_topic_is_found(log: Log, wire: Wire, tmp_path: Path) -> None:
    """With another key, or a fact of ours once more; without a key to believe nothing is said to be sound."""
    stranger = Signer.create(tmp_path / "stranger.pem")
    foreign = stranger.sign(link(fact(9), "controller", head_of(log.facts[-1])))
    wire.send("decisions", [("delay", foreign.model_dump_json().encode())])
    ended = audit("--verify")
    assert ended.exit_code == 1 and "unknown key" in ended.stderr and "d9" in ended.stderr
    wire.send("decisions", [("delay", log.facts[0].model_dump_json().encode())])
    assert "a second time" in audit("--verify").stdout
    ours = str(tmp_path / "key.pem.pub")
    assert audit("--verify", "--key", ours, "--key", str(tmp_path / "stranger.pem.pub")).exit_code == 1
    runner = CliRunner(env={"DRIFTLINE_SIGNING__TRUSTED": "[]"})
    assert "signing.trusted" in runner.invoke(app, ["audit", "--verify"]).stderr


def test_from_a_prediction_to_its_decision_and_back(log: Log) -> None:
    """By the trace id a caller knows; and from a decision to how many predictions, which span, which were the worst."""
    ids = [f"flight-{at}" for at in range(50)]
    hashes = key_hashes(Spans.of([i.encode() for i in ids])).identity.tolist()
    evidence = Evidence(
        rows=30, since_ms=T0 + 10 * HOUR, worst=(Worst(identity=hashes[17], time_ms=T0, score=9.0),)
    )
    verdict = Verdict(state=State.DRIFT, score=4.0, threshold=3.0, evidence=evidence)
    signal = SignalChanged(
        signal_id="s1", model="delay", version="1", role="stable", detector="harm", kind="harm-e", family=Family.CONCEPT,
        previous=State.STABLE, event_time_ms=T0 + 40 * HOUR, row="predictions/0/1/0", verdict=verdict, trace_id=TRACE,
    )  # fmt: skip
    log.copy("signals", 0, signal.model_dump_json().encode())
    log.write(
        "prediction_log",
        [
            (
                "delay",
                "1",
                "stable",
                name,
                _time(T0 + at * HOUR),
                {},
                {},
                0.5,
                1.0,
                "ok",
                "",
                f"trace-{at}",
                "",
                0,
                at,
                0,
            )
            for at, name in enumerate(ids)
        ],
    )
    because = (Because(signal_id="s1", detector="harm", score=4.0, threshold=3.0, evidence=evidence),)
    late = T0 + 60 * HOUR
    log.policy(
        50, version="1", kind="rollback-requested", because=because, event_time_ms=late, trace_id=TRACE
    )
    inside = json.loads(audit("--trace", "trace-20", "--json").stdout)
    assert [p["prediction_id"] for p in inside["predictions"]] == ["flight-20"]
    assert [d["decision_id"] for d in inside["decisions"]] == ["d50"]
    outside = json.loads(audit("--trace", "flight-41", "--json").stdout)
    assert outside["predictions"] and not outside["decisions"]
    for name in (TRACE, "d50", "s1"):
        (found,) = json.loads(audit("--trace", name, "--json").stdout)["decisions"]
        assert (found["predictions"], found["since_ms"], found["until_ms"]) == (
            31,
            T0 + 10 * HOUR,
            T0 + 40 * HOUR,
        )
        assert found["worst"] == [{"prediction_id": "flight-17", "trace_id": "trace-17"}]
    table = audit("--trace", TRACE).stdout
    assert "31 predictions of v1" in table and "worst flight-17 (trace trace-17)" in table
    assert "no decision" in audit("--trace", "nothing").stderr
