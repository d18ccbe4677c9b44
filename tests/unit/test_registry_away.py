"""While the registry does not answer nobody calls a version bad, and nobody waits longer than said."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploy.controller.checks import Checks
from deploy.controller.patience import Patience
from deploy.core.machine import Away
from deploy.registry import Lineage, Registry
from deploy.scoring.engine import Engine
from deploy.store.base import Entry
from deploy.store.cache import Cache
from deploy.store.directory import DirectoryStore
from deploy.training.runner import Runner
from schemas.control import RetrainRequested
from schemas.errors import ConfigurationError, RegistryError, StoreUnavailable
from schemas.settings import ScorerSection, TrainerSection, TrainerSettings
from tests.support_deploy import CONTRACT, artifact


class Distant:
    """A directory far away: every call waits while ``slow`` is not set, and fails while it is ``away``."""

    def __init__(self, root: Path) -> None:
        self._near = DirectoryStore(root)
        self.away = False
        self.calls = 0
        self.quick = threading.Event()
        self.quick.set()

    @property
    def address(self) -> str:
        return f"distant:{self._near.address}"

    def _ask(self) -> DirectoryStore:
        self.calls += 1
        self.quick.wait(240)
        if self.away:
            raise StoreUnavailable("nobody answers")
        return self._near

    def get(self, key: str) -> bytes:
        return self._ask().get(key)

    def put(self, key: str, data: bytes) -> bool:
        return self._ask().put(key, data)

    def publish(self, group: str, files: Mapping[str, bytes]) -> bool:
        return self._ask().publish(group, files)

    def groups(self, prefix: str) -> dict[str, bool]:
        return self._ask().groups(prefix)

    def entries(self, prefix: str) -> list[Entry]:
        return self._ask().entries(prefix)

    def delete(self, group: str) -> None:
        self._ask().delete(group)

    def sweep(self, prefix: str, before_ms: int) -> list[str]:
        return self._ask().sweep(prefix, before_ms)


@pytest.fixture
def store(tmp_path: Path) -> Distant:
    """Version 1 is there."""
    made = Distant(tmp_path / "registry")
    Registry(made).register(CONTRACT, artifact(), Lineage(cause="r-1"))
    return made


def _checks(store: Distant, cache: Cache | None = None, patience: Patience | None = None) -> Checks:
    record = Registry(store).record("delay", "1")
    return Checks(Registry(store, cache=cache), lambda *_: record, lambda _: CONTRACT, patience)


def test_a_check_says_away_and_not_unfit(store: Distant) -> None:
    """Full and short; when the registry is back, both pass."""
    checks = _checks(store)
    store.away = True
    for look in (checks.verify, checks.intact):
        said = look("delay", "1")
        assert isinstance(said, Away) and "nobody answers" in said
    store.away = False
    assert (checks.verify("delay", "1"), checks.intact("delay", "1")) == (None, None)


def test_what_was_read_before_is_enough_while_it_is_away(store: Distant, tmp_path: Path) -> None:
    """From the cache, byte for byte; an altered copy is none."""
    checks = _checks(store, Cache(tmp_path / "cache", 10_000_000))
    assert checks.verify("delay", "1") is None
    store.away = True
    assert (checks.verify("delay", "1"), checks.intact("delay", "1")) == (None, None)
    largest = max((tmp_path / "cache").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert isinstance(checks.verify("delay", "1"), Away)


def test_a_full_check_reads_the_registry_itself(store: Distant, tmp_path: Path) -> None:
    """What lies in the cache does not hide what became of the original; the short check may live from it."""
    checks = _checks(store, Cache(tmp_path / "cache", 10_000_000))
    assert checks.verify("delay", "1") is None
    (tmp_path / "registry" / "delay" / "1" / "model.onnx").write_bytes(b"other")
    assert "altered or torn" in str(checks.verify("delay", "1"))
    before = store.calls
    assert checks.intact("delay", "1") is None
    assert store.calls == before


def test_a_slow_registry_holds_nobody_up(store: Distant) -> None:
    """The first look waits as long as it may, the next ones not at all; what was found meanwhile is taken."""
    checks = _checks(store, patience=Patience(0.05))
    store.quick.clear()
    for _ in range(3):
        assert isinstance(checks.verify("delay", "1"), Away)
    assert checks.approvals("delay", "1").by == ()
    store.quick.set()
    while isinstance(said := checks.verify("delay", "1"), Away):
        pass
    assert said is None


def test_an_answer_nobody_came_for_is_asked_for_anew() -> None:
    """Of two questions long after one another each has an answer of its own; an error is raised where it was asked."""
    now, answers = 0.0, iter(range(10))
    patience = Patience(0.0, clock=lambda: now)
    asked = threading.Event()

    def find() -> int:
        found = next(answers)
        asked.set()
        return found

    def get() -> int | None:
        try:
            return patience.ask("question", find)
        except StoreUnavailable:
            return None

    first = get()
    assert asked.wait(120)
    if first is None:
        now = 60.0
        while (first := get()) is None:
            pass
        assert first == 1

    def refuse() -> int:
        raise RegistryError("altered")

    with pytest.raises(RegistryError, match="altered"):
        Patience(10.0).ask("question", refuse)


def test_open_questions_are_bounded() -> None:
    """The ninth is refused at once."""
    gate, patience = threading.Event(), Patience(0.0)
    for number in range(8):
        with pytest.raises(StoreUnavailable, match="not answered yet"):
            patience.ask(number, lambda: gate.wait(240))
    with pytest.raises(StoreUnavailable, match="8 questions"):
        patience.ask("one more", lambda: gate.wait(240))
    gate.set()


def test_an_engine_waits_for_what_it_cannot_fetch(store: Distant) -> None:
    """It has not failed, what is loaded stays, and the next time it loads."""
    Registry(store).register(CONTRACT, artifact(flip=True), Lineage())
    engine = Engine(Registry(store), ScorerSection(provider="cpu"))
    assert engine.load("delay", ["1"], {}) == {}
    store.away = True
    assert engine.load("delay", ["1", "2"], {}) == {}
    assert (engine.failed("delay"), engine.awaited("delay")) == ({}, {"2": "nobody answers"})
    assert not engine.settled("delay", ["1", "2"])
    assert engine.get("delay", "1") is not None
    store.away = False
    assert engine.load("delay", ["1", "2"], {}) == {}
    assert engine.awaited("delay") == {}
    assert engine.settled("delay", ["1", "2"])


def test_a_retraining_waits_for_the_registry(store: Distant, tmp_path: Path) -> None:
    """Whether it was done already cannot be known, so it is neither begun nor failed; no attempt is counted."""
    settings = TrainerSettings(trainer=TrainerSection(registry=tmp_path / "registry"))
    runner = Runner(settings, Registry(store), lambda: pytest.fail("it was begun"), threading.Event())
    request = RetrainRequested(
        request_id="r-1", model="delay", cause="c", event_time_ms=0, expires_ms=1, issued_by="policy"
    )
    store.away = True
    assert runner.run(request, CONTRACT) is None
    assert not (tmp_path / "registry" / ".training").exists()
    store.away = False
    result = runner.run(request, CONTRACT)
    assert result is not None
    assert result.version is not None
    assert result.version.version == "1"


def test_a_trainer_needs_a_place_to_count_attempts() -> None:
    """A bucket is none; the setting is named."""
    settings = TrainerSettings(trainer=TrainerSection(registry="s3://models/driftline"))
    with pytest.raises(ConfigurationError, match=r"trainer\.journal"):
        Runner(settings, Registry("unused"), lambda: pytest.fail("no"), threading.Event())


@pytest.mark.parametrize("address", ["s3://", "s3://UPPER/x", "s3://models/../x", "gs://models", "s3://m"])
def test_an_address_that_is_none_is_named(address: str) -> None:
    """When settings are read, not when a version is wanted."""
    with pytest.raises(ValueError, match="neither a directory nor s3://bucket/prefix"):
        ScorerSection(registry=address)


def test_addresses_keep_their_kind() -> None:
    """Text without a scheme is a directory, also from a file of settings; a bucket stays as it was written."""
    assert ScorerSection(registry="registry").registry == Path("registry")
    assert ScorerSection.model_validate({"registry": "s3://models/a/b/"}).registry == "s3://models/a/b"
