"""Both stores keep one contract, and a registry on either hands out nothing that was not registered; SeaweedFS is the S3."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import obstore
import pytest
from support_s3 import BUCKET, READER, READER_SECRET, S3Server
from typer.testing import CliRunner

from deploy.cli import app
from deploy.registry import Lineage, Registry
from deploy.scoring.engine import Engine
from deploy.store.address import open_store
from deploy.store.base import MANIFEST, Absent, Store
from deploy.store.cache import Cache
from deploy.store.s3 import CLAIM, S3Store
from schemas.errors import ConfigurationError, RegistryError, SignatureError, StoreUnavailable
from schemas.ids import content_hash
from schemas.settings import ScorerSection
from schemas.signing import Signer, Verifier
from tests.support_deploy import CONTRACT, artifact
from tests.unit.test_models_commands import CONTRACT as TINY_CONTRACT
from tests.unit.test_models_commands import tiny

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One store for the module; every test has a prefix of its own."""
    running = S3Server(tmp_path_factory.mktemp("s3"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def address(unique_name: str) -> str:
    return f"s3://{BUCKET}/registries/{unique_name}"


@pytest.fixture
def s3(server: S3Server, address: str) -> S3Store:
    return S3Store(address, server.settings())


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of either kind."""
    if request.param == "directory":
        return open_store(tmp_path / "registry")
    made: Store = request.getfixturevalue("s3")
    return made


def spoil(store: Store, key: str, data: bytes) -> None:
    """Write past the seam, as a broken disk or a person would."""
    if isinstance(store, S3Store):
        obstore.put(store._client, key, data)
    else:
        (Path(store.address) / key).write_bytes(data)


def files(text: str) -> dict[str, bytes]:
    return {MANIFEST: f"manifest {text}".encode(), "a.bin": text.encode() * 1_000}


class TestContract:
    """What every store does."""

    def test_an_object_is_written_once(self, store: Store) -> None:
        """Again with the same bytes is no harm, with others it is refused, and the first ones stay."""
        assert store.put("m/1/approvals/x.json", b"one")
        assert store.put("m/1/approvals/x.json", b"one")
        assert not store.put("m/1/approvals/x.json", b"two")
        assert store.get("m/1/approvals/x.json") == b"one"
        assert store.put("m/.pruned/7", b"")
        assert store.get("m/.pruned/7") == b""

    def test_what_is_not_there_is_absent(self, store: Store) -> None:
        """An object, a group, and everything below a name nobody used."""
        with pytest.raises(Absent):
            store.get("m/1/a.bin")
        with pytest.raises(Absent):
            store.delete("m/1")
        assert store.entries("m") == []
        assert store.groups("m") == {}
        assert store.sweep("m", 10**15) == []

    def test_a_group_is_published_once_and_whole(self, store: Store) -> None:
        """It is listed and read; the name is taken then; neighbours with a longer name are not below it."""
        before_ms = time.time_ns() // 1_000_000 - 2_000  # noqa: TID251 - compared with the store's own clock
        assert store.publish("m/1", files("one"))
        assert not store.publish("m/1", files("two"))
        assert store.publish("m2/1", files("other"))
        assert store.groups("m") == {"1": True}
        assert {name: store.get(f"m/1/{name}") for name in files("")} == files("one")
        entries = {entry.key: entry for entry in store.entries("m")}
        assert entries.keys() == {"m/1/a.bin", f"m/1/{MANIFEST}"}
        assert entries["m/1/a.bin"].size == 3_000
        assert entries["m/1/a.bin"].modified_ms >= before_ms

    def test_of_writers_that_race_one_wins(self, store: Store) -> None:
        """Exactly one is told so, and every byte is that one's."""
        for turn in range(3):
            gate = threading.Barrier(4)

            def write(name: str, turn: int = turn, gate: threading.Barrier = gate) -> bool:
                gate.wait()
                return store.publish(f"m/{turn}", files(name))

            with ThreadPoolExecutor(4) as pool:
                won = dict(zip("abcd", pool.map(write, "abcd"), strict=True))
            assert sum(won.values()) == 1
            winner = next(name for name, one in won.items() if one)
            assert {name: store.get(f"m/{turn}/{name}") for name in files("")} == files(winner)

    def test_a_deleted_group_is_gone(self, store: Store) -> None:
        """With what was put below it later; others stay."""
        store.publish("m/1", files("one"))
        store.publish("m/2", files("two"))
        store.put("m/1/approvals/x.json", b"{}")
        store.delete("m/1")
        assert store.groups("m") == {"2": True}
        assert {entry.key for entry in store.entries("m")} == {"m/2/a.bin", f"m/2/{MANIFEST}"}
        with pytest.raises(Absent):
            store.get(f"m/1/{MANIFEST}")

    @pytest.mark.parametrize("key", ["", "/m", "m/../../x", "m//1", "..", "m/./1", "m\\1"])
    def test_a_key_stays_below_the_root(self, store: Store, key: str) -> None:
        """Names come from topics and command lines; none leads elsewhere."""
        with pytest.raises(RegistryError, match="is no name"):
            store.get(key)


class TestRegistry:
    """What a registry does on either store."""

    def test_versions_go_through_their_life(self, store: Store, tmp_path: Path) -> None:
        """Registered, read back, approved, removed; a number is never given again."""
        signer = Signer.create(tmp_path / "key.pem")
        trusted = Verifier([(tmp_path / "key.pem.pub").read_text().strip()])
        registry = Registry(store, signer, trusted)
        first = registry.register(CONTRACT, artifact(), Lineage(cause="r-1"))
        registry.register(CONTRACT, artifact(flip=True), Lineage(parent="1"))
        record, loaded = registry.load("delay", "1", first.sha256)
        assert (record, loaded) == (first, artifact())
        registry.approve("delay", "1", "ann", 1)
        assert [approval.by for approval in registry.approvals("delay", "1")] == ["ann"]
        assert registry.registered_ms("delay", "1") > 1_700_000_000_000
        found = registry.find_by_cause("delay", "r-1")
        assert found is not None
        assert found.version == "1"
        registry.remove("delay", "2")
        assert registry.versions("delay") == ["1"]
        assert registry.register(CONTRACT, artifact(), Lineage()).version == "3"
        with pytest.raises(RegistryError, match="pruned"):
            registry.register(CONTRACT, artifact(), Lineage(), version="2")
        with pytest.raises(RegistryError, match="registered already"):
            registry.register(CONTRACT, artifact(), Lineage(), version="3")
        Registry(store).register(CONTRACT, artifact(), Lineage())
        with pytest.raises(SignatureError, match="not signed"):
            registry.load("delay", "4")

    def test_registrations_that_race_get_different_numbers(self, store: Store) -> None:
        """Also when what they register is the same."""
        registry = Registry(store)
        gate = threading.Barrier(3)

        def register(_: int) -> str:
            gate.wait()
            return registry.register(CONTRACT, artifact(), Lineage()).version

        with ThreadPoolExecutor(3) as pool:
            assert len(set(pool.map(register, range(3)))) == 3
        assert len(registry.versions("delay")) == 3

    @pytest.mark.parametrize("name", ["model.onnx", "reference.json", MANIFEST])
    @pytest.mark.parametrize("how", ["flipped", "truncated"])
    def test_an_altered_object_is_found(self, store: Store, name: str, how: str) -> None:
        """One bit or the second half: it is the version that is wrong then, not the store."""
        registry = Registry(store)
        record = registry.register(CONTRACT, artifact(), Lineage())
        data = bytearray(store.get(f"delay/1/{name}"))
        data[len(data) // 2] ^= 1
        spoil(store, f"delay/1/{name}", bytes(data if how == "flipped" else data[: len(data) // 2]))
        with pytest.raises(RegistryError) as caught:
            registry.load("delay", "1", record.sha256)
        assert not isinstance(caught.value, StoreUnavailable)


class TestS3:
    """What is so of a bucket alone."""

    def test_a_directory_can_be_copied_there(self, s3: S3Store, tmp_path: Path) -> None:
        """The keys are the same: files copied as they are make the same registry."""
        record = Registry(tmp_path).register(CONTRACT, artifact(), Lineage())
        for path in (tmp_path / "delay" / "1").iterdir():
            spoil(s3, f"delay/1/{path.name}", path.read_bytes())
        assert Registry(s3).load("delay", "1", record.sha256)[0] == record

    def test_a_writer_that_died_leaves_no_version(self, s3: S3Store) -> None:
        """Neither listed nor loaded; its number is passed over until it is swept, by age."""
        s3.put(f"delay/1/{CLAIM}", b"of a writer that died")
        s3.put("delay/1/model.onnx", artifact().onnx)
        registry = Registry(s3)
        assert registry.versions("delay") == []
        with pytest.raises(RegistryError, match="not in the registry"):
            registry.load("delay", "1")
        assert registry.register(CONTRACT, artifact(), Lineage()).version == "2"
        assert registry.sweep("delay", 1_700_000_000_000) == []
        assert registry.sweep("delay", 10**15) == ["1"]
        assert s3.groups("delay") == {"2": True}

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"secret_key": "wrong"}, "SignatureDoesNotMatch"),
            ({"access_key": "nobody"}, "InvalidAccessKeyId"),
            ({"access_key": READER, "secret_key": READER_SECRET}, "AccessDenied"),
            ({"endpoint": "http://127.0.0.1:1"}, "does not answer.*Connection refused"),
        ],
    )
    def test_a_refusal_is_the_stores_and_says_why(
        self, server: S3Server, address: str, changes: dict[str, Any], said: str
    ) -> None:
        """Wrong keys, keys that may not write, nobody there: what and where, and never the secret."""
        registry = Registry(S3Store(address, server.settings(**changes)))
        with pytest.raises(StoreUnavailable, match=said) as caught:
            registry.register(CONTRACT, artifact(), Lineage(), version="1")
        assert "secret" not in str(caught.value)
        assert server.settings(**changes).endpoint in str(caught.value)

    def test_a_missing_bucket_is_named(self, server: S3Server) -> None:
        """For a reader and for a writer."""
        for call in (lambda r: r.versions("m"), lambda r: r.record("m", "1")):
            with pytest.raises(StoreUnavailable, match="there is no bucket no-such-bucket at http"):
                call(Registry(S3Store("s3://no-such-bucket/x", server.settings())))

    def test_keys_come_from_a_file_or_the_environment(
        self, server: S3Server, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A profile of a file as AWS's tools write it; else AWS_ variables; a file that lacks them is named."""
        given = server.settings()
        assert given.access_key is not None
        assert given.secret_key is not None
        secret = given.secret_key.get_secret_value()
        file = tmp_path / "credentials"
        file.write_text(
            f"[models]\naws_access_key_id = {given.access_key}\naws_secret_access_key = {secret}\n"
        )
        bare = {"access_key": None, "secret_key": None}
        kept = server.settings(**bare, credentials_file=file, profile="models")
        assert S3Store(address, kept).put("m/1", b"1")
        with pytest.raises(ConfigurationError, match="profile default"):
            S3Store(address, server.settings(**bare, credentials_file=file))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", given.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        assert S3Store(address, server.settings(**bare)).get("m/1") == b"1"
        # Keys that are given are not mixed with those of the environment.
        monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")
        assert S3Store(address, given).get("m/1") == b"1"

    def test_tls_with_an_authority_of_ones_own(self, server: S3Server, address: str, tmp_path: Path) -> None:
        """With its certificate named the store is spoken to; without, it is nobody we know."""
        secure = server.settings(endpoint=server.secure_endpoint, ca_file=server.ca_file)
        assert S3Store(address, secure).put("m/1", b"1")
        with pytest.raises(StoreUnavailable, match="InvalidCertificate, UnknownIssuer"):
            S3Store(address, server.settings(endpoint=server.secure_endpoint)).get("m/1")
        with pytest.raises(ConfigurationError, match=r"s3\.ca_file"):
            S3Store(address, server.settings(ca_file=tmp_path / "nothing"))

    def test_a_store_that_overwrites_is_refused(self) -> None:
        """One that does not know conditional writes says yes to everything; that is found out before the first file."""
        with ThreadingHTTPServer(("127.0.0.1", 0), _SaysYes) as heedless:
            threading.Thread(target=heedless.serve_forever, daemon=True).start()
            try:
                store = S3Store(
                    "s3://models",
                    S3Server(Path()).settings(endpoint=f"http://127.0.0.1:{heedless.server_port}"),
                )
                with pytest.raises(RegistryError, match="ignores `If-None-Match"):
                    store.publish("m/1", files("one"))
            finally:
                heedless.shutdown()

    def test_an_outage_costs_one_timeout_and_ends(self, server: S3Server, address: str) -> None:
        """The first call waits, the next ones do not ask; when the pause is over the store is asked again."""
        S3Store(address, server.settings()).put("m/1", b"1")
        now = 0.0
        store = S3Store(address, server.settings(timeout=2_000), clock=lambda: now)
        with server.away(), pytest.raises(StoreUnavailable, match="does not answer"):
            store.get("m/1")
        # It is there again, which somebody who asked would find out.
        assert S3Store(address, server.settings()).get("m/1") == b"1"
        with pytest.raises(StoreUnavailable, match="does not answer"):
            store.get("m/1")
        now = 1.5
        assert store.get("m/1") == b"1"

    def test_an_object_too_large_is_not_read(self, server: S3Server, address: str, s3: S3Store) -> None:
        """The bound is looked at before the bytes."""
        s3.put("m/1", b"x" * 1_000)
        with pytest.raises(RegistryError, match="1000 bytes"):
            S3Store(address, server.settings(object_bytes_max=999)).get("m/1")


class TestCache:
    """What a reader keeps near is as good as what is far, and never worse."""

    def test_a_version_is_loaded_from_the_cache_while_the_store_is_away(
        self, server: S3Server, address: str, tmp_path: Path
    ) -> None:
        """Under its announced digest, signature checked; never when the store itself is to be read."""
        signer = Signer.create(tmp_path / "key.pem")
        trusted = Verifier([(tmp_path / "key.pem.pub").read_text().strip()])
        record = Registry(open_store(address, server.settings()), signer).register(
            CONTRACT, artifact(), Lineage()
        )
        cache = Cache(tmp_path / "cache", 10_000_000)
        first = Registry(S3Store(address, server.settings()), None, trusted, cache).load(
            "delay", "1", record.sha256
        )
        near = Registry(S3Store(address, server.settings(timeout=300)), None, trusted, cache)
        with server.away():
            assert near.load("delay", "1", record.sha256) == first
            with pytest.raises(StoreUnavailable):
                near.load("delay", "1", record.sha256, fresh=True)
            with pytest.raises(StoreUnavailable):
                near.load("delay", "1")

    def test_an_altered_copy_is_fetched_again(self, s3: S3Store, tmp_path: Path) -> None:
        """Whichever file it is; the registry's own bytes come out."""
        record = Registry(s3).register(CONTRACT, artifact(), Lineage())
        near = Registry(s3, cache=Cache(tmp_path, 10_000_000))
        first = near.load("delay", "1", record.sha256)
        for path in list(tmp_path.iterdir()):
            path.write_bytes(path.read_bytes()[:-1] + b"!")
            assert near.load("delay", "1", record.sha256) == first
        with pytest.raises(RegistryError):
            near.load("delay", "1", "f" * 64)

    def test_it_is_bounded(self, tmp_path: Path) -> None:
        """What was used longest ago leaves first; what is larger than the bound is not kept."""
        cache = Cache(tmp_path, 250)
        data = [bytes([n]) * 100 for n in range(3)]
        names = []
        for n, one in enumerate(data):
            cache.put(content_hash(one), one)
            names = sorted((p for p in tmp_path.iterdir()), key=lambda p: p.stat().st_mtime_ns)
            if n == 1:
                assert cache.get(names[0].name) == data[0]
        held = {path.read_bytes() for path in tmp_path.iterdir()}
        assert held == {data[0], data[2]}
        cache.put("0" * 64, b"x" * 251)
        assert {path.read_bytes() for path in tmp_path.iterdir()} == held


def test_the_commands_work_on_a_bucket(
    server: S3Server, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Import, list, show, verify, approve, diff and card, told where by the environment."""
    (tmp_path / "c.yaml").write_text(TINY_CONTRACT)
    (tmp_path / "m.onnx").write_bytes(tiny())
    Signer.create(tmp_path / "key.pem")
    given = server.settings()
    assert given.secret_key is not None
    for name, value in {
        "SIGNING__KEY_FILE": str(tmp_path / "key.pem"),
        "SIGNING__TRUSTED": json.dumps([(tmp_path / "key.pem.pub").read_text().strip()]),
        "CONTROLLER__REGISTRY": address,
        "S3__ENDPOINT": server.endpoint,
        "S3__ACCESS_KEY": given.access_key or "",
        "S3__SECRET_KEY": given.secret_key.get_secret_value(),
    }.items():
        monkeypatch.setenv(f"DRIFTLINE_{name}", value)
    monkeypatch.chdir(tmp_path)

    def good(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["models", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "no version of tiny in s3://" in good("list", "tiny")
    good("import", "m.onnx", "--contract", "c.yaml")
    good("import", "m.onnx", "--contract", "c.yaml", "--parent", "1")
    assert [row["version"] for row in json.loads(good("list", "tiny", "--json"))] == ["1", "2"]
    good("approve", "tiny", "1", "--by", "ann")
    assert json.loads(good("show", "tiny", "1", "--json"))["approvals"][0]["by"] == "ann"
    assert "checksums fit, signed by" in good("verify", "tiny", "2", "--contract", "c.yaml")
    assert json.loads(good("diff", "tiny", "1", "2", "--json"))["lineage"]["parent"] == [None, "1"]
    assert "# tiny 1" in good("card", "tiny", "1")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    monkeypatch.setenv("DRIFTLINE_S3__ENDPOINT", "http://127.0.0.1:1")
    away = CliRunner().invoke(app, ["models", "list", "tiny"])
    assert away.exit_code == 1
    assert "error: http://127.0.0.1:1 does not answer" in away.stderr


def test_a_scorer_loads_from_a_bucket(server: S3Server, address: str, tmp_path: Path) -> None:
    """What answers has passed checksums, signature and golden set, as from a directory."""
    store = open_store(address, server.settings())
    record = Registry(store).register(CONTRACT, artifact(), Lineage())
    registry = Registry(store, cache=Cache(tmp_path, 10_000_000))
    engine = Engine(registry, ScorerSection(provider="cpu", registry=address))
    assert engine.load("delay", ["1"], {"1": record.sha256}) == {}
    loaded = engine.get("delay", "1")
    assert loaded is not None
    assert loaded.golden_agrees()


class _SaysYes(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("etag", '"x"')
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""
