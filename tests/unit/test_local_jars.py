"""The jar cache: only what the committed list says, whole, fetched once."""

from __future__ import annotations

import hashlib
import uuid
from http.client import IncompleteRead
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.jars import COORDINATES, LOCK_FILE, Jar, kafka_classpath, read_lock
from deploy.local.kafka import KafkaSpec, cluster_id, server_properties
from schemas.errors import PlatformError

CONTENT = {"one-1.jar": b"first jar", "two-2.jar": b"second jar, a little longer"}
JARS = [
    Jar(hashlib.sha256(content).hexdigest(), len(content), "org.example", name[:3], name[4:-4])
    for name, content in CONTENT.items()
]


class Repository:
    """A repository in memory that remembers what it was asked for and can misbehave."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken: dict[str, list[bytes | Exception]] = {}

    def __call__(self, jar: Jar, target: Path) -> None:
        self.asked.append(jar.name)
        answers = self.broken.get(jar.name)
        answer = answers.pop(0) if answers else CONTENT[jar.name]
        if isinstance(answer, Exception):
            raise answer
        target.write_bytes(answer)


def _folder(root: Path) -> Path:
    return next(path for path in root.iterdir() if path.is_dir())


def test_fetches_once_then_needs_nothing(tmp_path: Path) -> None:
    """The first start fetches every jar in list order; the second asks for none."""
    repository = Repository()
    paths = kafka_classpath(root=tmp_path, jars=JARS, fetch=repository)
    assert [path.name for path in paths] == list(CONTENT)
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert sorted(repository.asked) == sorted(CONTENT)
    again = Repository()
    assert kafka_classpath(root=tmp_path, jars=JARS, fetch=again) == paths
    assert again.asked == []


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_download_is_fetched_anew(tmp_path: Path, damage: str) -> None:
    """A jar that is missing or cut short is fetched again, the others are kept."""
    _, second = kafka_classpath(root=tmp_path, jars=JARS, fetch=Repository())
    second.unlink() if damage == "missing" else second.write_bytes(second.read_bytes()[:5])
    repository = Repository()
    kafka_classpath(root=tmp_path, jars=JARS, fetch=repository)
    assert repository.asked == [second.name]
    assert second.read_bytes() == CONTENT[second.name]


def test_a_broken_connection_is_retried(tmp_path: Path) -> None:
    """Errors and wrong bytes on the way are tried again a few times."""
    repository = Repository()
    repository.broken = {"one-1.jar": [OSError("reset"), IncompleteRead(b""), b"half"]}
    kafka_classpath(root=tmp_path, jars=JARS, fetch=repository)
    assert repository.asked.count("one-1.jar") == 4


def test_giving_up_names_the_jar_and_keeps_the_rest(tmp_path: Path) -> None:
    """After the last attempt the error names the jar and what to do; what came is not fetched again."""
    repository = Repository()
    repository.broken = {"two-2.jar": [OSError("no route")] * 9}
    with pytest.raises(PlatformError, match=r"two-2\.jar.*no route.*network"):
        kafka_classpath(root=tmp_path, jars=JARS, fetch=repository)
    assert [path.name for path in _folder(tmp_path).iterdir()] == ["one-1.jar"]
    resumed = Repository()
    kafka_classpath(root=tmp_path, jars=JARS, fetch=resumed)
    assert resumed.asked == ["two-2.jar"]


def test_an_altered_jar_is_refused(tmp_path: Path) -> None:
    """Other content of the same or a greater length is an error that names the file, and is not replaced."""
    _, second = kafka_classpath(root=tmp_path, jars=JARS, fetch=Repository())
    second.write_bytes(CONTENT[second.name].replace(b"second", b"sekond"))
    repository = Repository()
    with pytest.raises(PlatformError, match=r"altered jar .*two-2\.jar"):
        kafka_classpath(root=tmp_path, jars=JARS, fetch=repository)
    assert repository.asked == []


def test_an_unexpected_jar_is_refused(tmp_path: Path) -> None:
    """A jar the list does not name is an error, even after a verified start."""
    first, _ = kafka_classpath(root=tmp_path, jars=JARS, fetch=Repository())
    (first.parent / "extra-9.jar").write_bytes(b"x")
    with pytest.raises(PlatformError, match=r"unexpected jar .*extra-9\.jar"):
        kafka_classpath(root=tmp_path, jars=JARS, fetch=Repository())


def test_a_new_list_is_checked_again(tmp_path: Path) -> None:
    """The stamp of one list does not vouch for another."""
    kafka_classpath(root=tmp_path, jars=JARS, fetch=Repository())
    other = [JARS[0], Jar("0" * 64, JARS[1].size_bytes, "org.example", "two", "2")]
    with pytest.raises(PlatformError, match="altered jar"):
        kafka_classpath(root=tmp_path, jars=other, fetch=Repository())


def test_the_committed_list() -> None:
    """The list in the repository can be read and holds every coordinate we ask for."""
    jars = read_lock(LOCK_FILE.read_text(encoding="utf-8"))
    assert {f"{jar.group}:{jar.artifact}:{jar.version}" for jar in jars} >= set(COORDINATES)
    clients = [jar.version for jar in jars if jar.artifact == "kafka-clients"]
    assert clients == [COORDINATES[1].rpartition(":")[2]]


@pytest.mark.parametrize("line", ["abc", "ab 1 g:a:v", f"{'0' * 64} 0 g:a:v", f"{'0' * 64} 1 g:a"])
def test_a_malformed_list_is_refused(line: str) -> None:
    """A damaged list is an error that says which file to restore."""
    with pytest.raises(PlatformError, match=r"jars\.sha256"):
        read_lock(line)


@given(st.uuids())
def test_cluster_ids_are_no_options(identity: uuid.UUID) -> None:
    """A cluster id never begins with a dash and has Kafka's 22 characters."""
    text = cluster_id(identity)
    assert len(text) == 22
    assert not text.startswith("-")


def test_server_properties_bind_the_loopback_address_only(tmp_path: Path) -> None:
    """Every listener is on 127.0.0.1 and every internal topic fits one node."""
    lines = server_properties(KafkaSpec(tmp_path, 9092, 9093)).splitlines()
    settings = dict(line.split("=", 1) for line in lines)
    assert settings["listeners"] == "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
    factors = {
        key: value for key, value in settings.items() if key.endswith(("replication.factor", "min.isr"))
    }
    assert set(factors.values()) == {"1"}
    assert {"offsets.topic.replication.factor", "transaction.state.log.min.isr"} <= set(factors)
