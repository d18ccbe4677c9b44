"""No container engine runs where this is developed: every name in docker-compose.yml is proven to exist instead."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import jsonschema
import pytest
import typer
import yaml
from pydantic import BaseModel

from deploy import keys
from deploy.local.children import free_port
from deploy.local.kafka import KafkaSpec, server_properties
from deploy.local.platform import SERVICES as LOCAL_SERVICES
from deploy.process import serve_metrics
from schemas.observability import Metrics
from schemas.settings import CONFIG_FILE, ENV_PREFIX, OTHER_KEYS, SERVICES, ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
STORES = {"kafka", "clickhouse"}
ONE_SHOTS = {"keys", "topics", "migrate"}
OURS = sorted(set(COMPOSE["services"]) - STORES)


def interpolated(text: str) -> str:
    """``text`` as compose reads it in an empty environment: every variable has its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def environment(service: str) -> dict[str, str]:
    return {k: interpolated(v) for k, v in COMPOSE["services"][service].get("environment", {}).items()}


def schema() -> Any:
    """The Compose Specification's own schema, which check-jsonschema carries; found without importing its tools."""
    spec = importlib.util.find_spec("check_jsonschema")
    assert spec is not None
    assert spec.origin is not None
    vendored = Path(spec.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    return json.loads(vendored.read_text())


def unknown_keys(names: Iterator[str] | dict[str, str], model: type[BaseModel]) -> list[str]:
    """Those DRIFTLINE_ names that lead to no field of ``model``."""
    return [
        name
        for name in names
        if name.startswith(ENV_PREFIX) and name not in OTHER_KEYS and not leads(name, model)
    ]


def leads(name: str, model: type[BaseModel]) -> bool:
    inner: Any = model
    for part in name.removeprefix(ENV_PREFIX).lower().split("__"):
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)) or part not in inner.model_fields:
            return False
        inner = inner.model_fields[part].annotation
    return True


def copied_sources(runtime: str) -> list[str]:
    """Paths of the checkout that the Dockerfile copies when built with ``RUNTIME=runtime``."""
    text = DOCKERFILE.replace("${RUNTIME}", runtime)
    lines = re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
    return [source for line in lines for source in shlex.split(line)[:-1]]


def ignored_by_docker(path: str) -> bool:
    """Whether .dockerignore keeps ``path`` out: it ignores all, then lets some in again."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    let_in = [line[1:].rstrip("/") for line in lines if line.startswith("!")]
    return not any(path.rstrip("/") == kept or path.startswith(kept + "/") for kept in let_in)


def test_the_file_follows_the_compose_specification() -> None:
    """The schema accepts the file and refuses a misspelt key and a wrong condition, so it does look."""
    jsonschema.validate(COMPOSE, schema())
    for service, spoil in (("monitor", {"restrat": "no"}), ("kafka", {"ports": "9092"})):
        spoilt = copy.deepcopy(COMPOSE)
        spoilt["services"][service] |= spoil
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, schema())


def test_the_services_are_those_of_the_local_platform() -> None:
    """`driftline up` and compose start the same services; nothing else but stores and preparations."""
    assert set(OURS) - ONE_SHOTS == set(LOCAL_SERVICES) == set(SERVICES)


@pytest.mark.parametrize("service", OURS)
def test_commands_exist(service: str) -> None:
    """A service's command is one of the command line's, or a module that can be run."""
    from deploy.cli import app

    match COMPOSE["services"][service]["command"]:
        case ["driftline", name, *_]:
            commands: Any = typer.main.get_command(app)
            assert name in commands.commands
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case other:
            pytest.fail(f"{other}: neither driftline nor python -m")


@pytest.mark.parametrize("service", OURS)
def test_environment_keys_are_settings_of_that_service(service: str) -> None:
    """Every DRIFTLINE_ key is a field of the settings model of the very service that gets it."""
    model = SERVICES.get(service, ServiceSettings)
    assert unknown_keys(environment(service), model) == []


def test_settings_in_comments_exist() -> None:
    """What the file proposes for a registry in a bucket are settings of the services that would get it."""
    proposed = re.findall(
        r"^ *#.*?\b(DRIFTLINE_\w+):", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE
    )
    assert {"DRIFTLINE_S3__ENDPOINT", "DRIFTLINE_TRAINER__JOURNAL"} < set(proposed)
    assert unknown_keys(dict.fromkeys(proposed, ""), SERVICES["trainer"]) == []


def test_a_wrong_environment_key_would_be_found() -> None:
    """Misspelt sections, misspelt fields and fields of another service are all unknown."""
    wrong = {
        "DRIFTLINE_KAFKAS__BOOTSTRAP",
        "DRIFTLINE_KAFKA__BOOTSTRAPS",
        "DRIFTLINE_SCORER__REGISTRY",
        "DRIFTLINE_X",
    }
    assert set(unknown_keys(dict.fromkeys(wrong, ""), SERVICES["trainer"])) == wrong


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_settings_load_from_the_environment_given(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the container's environment and the generated settings file, the service's settings load and arrive."""
    made = keys.make_keys(tmp_path)
    given = environment(service) | {CONFIG_FILE: str(made)}
    for name in list(given):
        monkeypatch.setenv(name, given[name])
    settings = SERVICES[service].load()
    assert settings.kafka.bootstrap == given["DRIFTLINE_KAFKA__BOOTSTRAP"]
    assert settings.clickhouse.host == "clickhouse"
    assert settings.signing.key_file == tmp_path / keys.KEY_FILE
    assert len(settings.signing.trusted) == 1
    registry = given.get(f"DRIFTLINE_{service.upper()}__REGISTRY")
    assert registry is None or str(getattr(settings, service).registry) == registry


def test_no_variable_is_needed_to_start() -> None:
    """Each ${VARIABLE} has a default, and none looks like a setting, which a shell would then refuse as unknown."""
    text = re.sub(r"^\s*#.*$", "", (ROOT / "docker-compose.yml").read_text(), flags=re.MULTILINE)
    variables = re.findall(r"\$\{([^}]*)\}", text)
    assert variables
    assert [v for v in variables if ":-" not in v or v.startswith(ENV_PREFIX)] == []


@pytest.mark.parametrize("service", sorted(set(OURS) - ONE_SHOTS))
def test_health_checks_ask_the_port_the_service_listens_on(service: str) -> None:
    """The health check, the exposed port and the metrics settings name the same port."""
    definition = COMPOSE["services"][service]
    port = environment(service)["DRIFTLINE_METRICS_PORT"]
    asked = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", definition["healthcheck"]["test"][-1])
    assert asked == [(port, "/healthz")]
    assert definition["expose"] == [port]
    assert f"EXPOSE {port}" in DOCKERFILE
    compile(definition["healthcheck"]["test"][-1], "healthcheck", "exec")


def test_both_scrape_endpoints_answer_the_health_check() -> None:
    """What the health check asks for exists on the monitor's side and on the acting side."""
    server = Metrics().serve("127.0.0.1", 0, lambda: True)
    port = free_port()
    acting = serve_metrics(Metrics(), ServiceSettings(metrics_port=port))
    assert acting is not None
    try:
        for asked in (server.server_address[1], port):
            with urlopen(f"http://127.0.0.1:{asked}/healthz", timeout=60) as answer:
                assert answer.status == 200
    finally:
        for endpoint in (server, acting):
            endpoint.shutdown()
            endpoint.server_close()


def test_ports_are_those_the_processes_bind() -> None:
    """Published ports reach a listener, stay on this machine, and clients are pointed at the same ones."""
    services = COMPOSE["services"]
    for name, inside in (("kafka", "9092"), ("clickhouse", "8123"), ("controller", "8080")):
        assert services[name]["ports"] == [f"127.0.0.1:{inside}:{inside}"]
    assert environment("controller")["DRIFTLINE_CONTROLLER__API_PORT"] == "8080"
    assert re.search(r"^EXPOSE .*\b8080\b", DOCKERFILE, re.MULTILINE)
    assert environment("monitor")["DRIFTLINE_CLICKHOUSE__PORT"] == "8123"
    advertised = dict(
        part.split("://") for part in environment("kafka")["KAFKA_ADVERTISED_LISTENERS"].split(",")
    )
    assert advertised["INSIDE"] == environment("monitor")["DRIFTLINE_KAFKA__BOOTSTRAP"]
    assert advertised["INSIDE"] == services["kafka"]["healthcheck"]["test"][-1]
    assert advertised["OUTSIDE"] == "127.0.0.1:9092"
    bound = dict(part.split("://") for part in environment("kafka")["KAFKA_LISTENERS"].split(","))
    assert {name: address.split(":")[1] for name, address in advertised.items()} == {
        name: address.strip(":") for name, address in bound.items() if name != "CONTROLLER"
    }
    assert environment("kafka")["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"1@kafka{bound['CONTROLLER']}"
    mapped = environment("kafka")["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    assert {part.split(":")[0] for part in mapped} == set(bound)


def test_kafka_is_configured_as_the_local_one() -> None:
    """Each KAFKA_ variable is a property the local broker knows; those that shape the data have the same value."""
    rendered = server_properties(KafkaSpec(Path("/data"), 1, 2))
    local = dict(line.split("=", 1) for line in rendered.splitlines() if "=" in line)
    given = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment("kafka").items()
        if name.startswith("KAFKA_")
    }
    # The local broker has one listener and needs not say which one brokers use among themselves.
    assert set(given) - set(local) == {"inter.broker.listener.name"}
    placed = {
        name for name in given if "listener" in name or name in {"log.dirs", "controller.quorum.voters"}
    }
    shaping = sorted(set(given) - placed)
    assert "auto.create.topics.enable" in shaping
    assert {name: given[name] for name in shaping} == {name: local[name] for name in shaping}


def test_clickhouse_lets_the_services_in() -> None:
    """User, password and database that the services use are those the server is started with."""
    server, client = environment("clickhouse"), environment("monitor")
    for key, name in (("USERNAME", "USER"), ("PASSWORD", "PASSWORD"), ("DATABASE", "DB")):
        assert client[f"DRIFTLINE_CLICKHOUSE__{key}"] == server[f"CLICKHOUSE_{name}"]


def test_every_dependency_can_be_met() -> None:
    """What must be healthy has a health check, what must complete is not restarted, and all of it exists."""
    services = COMPOSE["services"]
    for definition in services.values():
        for name, wish in definition.get("depends_on", {}).items():
            match wish["condition"]:
                case "service_healthy":
                    assert "healthcheck" in services[name]
                case "service_completed_successfully":
                    assert services[name]["restart"] == "no"
                case other:
                    pytest.fail(f"{other}: says nothing about readiness")
    for name in set(services) - ONE_SHOTS:
        assert services[name]["restart"] == "unless-stopped"


def test_volumes_are_declared_used_and_lead_to_what_is_read() -> None:
    """Named volumes and mounts agree; registry and settings lie on a mount that the image's user owns."""
    mounts = {
        name: dict(mount.split(":")[:2] for mount in definition.get("volumes", []))
        for name, definition in COMPOSE["services"].items()
    }
    assert {volume for mounted in mounts.values() for volume in mounted} == set(COMPOSE["volumes"])
    owned = re.findall(r"/var/lib/driftline/\w+", DOCKERFILE.split("mkdir -p")[1].split("chown")[0])
    for name in OURS:
        assert set(mounts[name].values()) <= set(owned)
        registry = environment(name).get(f"DRIFTLINE_{name.upper()}__REGISTRY")
        assert registry == mounts[name].get("registry")
    assert environment("monitor")[CONFIG_FILE] == f"{mounts['monitor']['settings']}/{keys.SETTINGS_FILE}"
    assert COMPOSE["services"]["keys"]["command"][-1] == mounts["keys"]["settings"]
    assert environment("kafka")["KAFKA_LOG_DIRS"] == mounts["kafka"]["kafka"]


@pytest.mark.parametrize("runtime", ["cpu", "gpu"])
def test_the_image_copies_what_exists(runtime: str) -> None:
    """Sources of COPY are in the checkout and not ignored; the packages are those of the distribution."""
    build = COMPOSE["services"]["monitor"]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    sources = copied_sources(runtime)
    assert f"requirements/runtime-{runtime}.txt" in sources
    assert [path for path in sources if not (ROOT / path).exists()] == []
    assert [path for path in sources if ignored_by_docker(path)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {path.rstrip("/") for path in sources if path.endswith("/")} == set(packages)


def test_the_image_is_lean_and_unprivileged() -> None:
    """The final stage installs nothing, runs as a user of its own, and its tag is the version of the project."""
    final = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert not re.search(r"\b(pip|uv|apt-get|hatchling|gcc)\b", final)
    assert re.search(r"^USER driftline$", final, re.MULTILINE)
    assert DOCKERFILE.count("--require-hashes") == 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert COMPOSE["services"]["monitor"]["image"] == f"driftline:{project['version']}"
    version = re.search(r"^ARG PYTHON_VERSION=3\.(\d+)$", DOCKERFILE, re.MULTILINE)
    assert version is not None
    assert int(version[1]) in (11, 12)
    assert "driftline" in project["scripts"]
