"""One settings model for each service, read from the environment and a file; unknown keys are errors.

Environment variables start with ``DRIFTLINE_`` and use ``__`` between levels (``DRIFTLINE_KAFKA__BOOTSTRAP``). The file
is YAML, named by ``DRIFTLINE_CONFIG``; the environment wins. Secrets are masked wherever settings are printed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from schemas.contracts import DurationMs
from schemas.controller_settings import ControllerSection as ControllerSection
from schemas.controller_settings import OidcSection as OidcSection
from schemas.errors import ConfigurationError
from schemas.library_logs import LIBRDKAFKA
from schemas.retention import RETENTION_MS_MIN, TIME_COLUMNS
from schemas.section import Section
from schemas.stores import RegistryAddress, S3Settings

ENV_PREFIX = "DRIFTLINE_"
CONFIG_FILE = "DRIFTLINE_CONFIG"
#: Environment keys that are read outside the settings models (and so are no unknown keys).
OTHER_KEYS = frozenset(
    {
        CONFIG_FILE,
        "DRIFTLINE_CACHE",
        "DRIFTLINE_FAILPOINT",
        "DRIFTLINE_CLOCK_OFFSET_FILE",
        "DRIFTLINE_API",
        "DRIFTLINE_TOKEN",
    }
)


#: Of a producer that nobody polls while there is nothing to send: what it would log would wait in memory until then. The consumers
#: beside it say the same.
QUIET = {"log_level": 2}


class KafkaSettings(Section):
    """How to reach Kafka; every client of every service is built from this."""

    bootstrap: str = "127.0.0.1:9092"
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    key_password: SecretStr | None = None
    client_id: str = "driftline"
    topic_prefix: str = Field(
        default="", description="Put before every topic name, group and transactional id."
    )
    input_partitions: int = Field(default=4, ge=1, le=1024)
    replication: int = Field(default=1, ge=1)
    session_timeout: DurationMs = 10_000

    def topic(self, name: str) -> str:
        """The name on the broker of logical topic ``name``."""
        return self.topic_prefix + name

    def librdkafka(self, **extra: Any) -> dict[str, Any]:
        """Configuration of a confluent-kafka client."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap,
            "client.id": self.client_id,
            "security.protocol": self.security.lower(),
            "log.connection.close": False,
            "logger": LIBRDKAFKA,
            # After an outage the next attempt is near.
            "reconnect.backoff.max.ms": 2_000,
        }
        if self.sasl_mechanism:
            config["sasl.mechanism"] = self.sasl_mechanism
            config["sasl.username"] = self.username or ""
            config["sasl.password"] = self.password.get_secret_value() if self.password else ""
        for key, value in (
            ("ssl.ca.location", self.ca_file),
            ("ssl.certificate.location", self.certificate_file),
            ("ssl.key.location", self.key_file),
        ):
            if value is not None:
                config[key] = str(value)
        if self.key_password is not None:
            config["ssl.key.password"] = self.key_password.get_secret_value()
        return config | extra

    def producer(self, **extra: Any) -> dict[str, Any]:
        """Configuration of a producer: murmur2 as partitioner, acks from all, idempotent."""
        base = self.librdkafka(
            **{
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "compression.type": "lz4",
                "message.max.bytes": 4_194_304,
            }
        )
        return base | extra

    def consumer(self, group: str | None = None, **extra: Any) -> dict[str, Any]:
        """Configuration of a consumer that sees committed records only and commits nothing by itself."""
        base = self.librdkafka(
            **{
                "group.id": self.topic_prefix + (group or "driftline-assigned"),
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "session.timeout.ms": self.session_timeout,
                "enable.partition.eof": False,
                "fetch.wait.max.ms": 50,
                "allow.auto.create.topics": False,
            }
        )
        return base | extra


class ClickHouseSettings(Section):
    """How to reach ClickHouse over HTTP(S)."""

    host: str = "127.0.0.1"
    port: int = 8123
    username: str = "default"
    password: SecretStr = SecretStr("")
    database: str = "driftline"
    secure: bool = False
    verify: bool = True
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    timeout: DurationMs = 30_000
    raw_log: Literal["monitor", "archive"] = Field(
        default="monitor",
        description="Who copies predictions and ground truths: the monitor's workers, who have read them anyway, or the archive "
        "process, which reads them once more.",
    )
    retention: dict[str, DurationMs] = Field(
        default={},
        description="By table, how long its rows are kept (by event time; 0 or not named: for ever, but label_index and "
        "label_states: 100 days from when they were copied; longer than the longest late_label_horizon). `driftline "
        "migrate` applies it.",
    )

    @field_validator("retention")
    @classmethod
    def _of_known_tables(cls, value: dict[str, int]) -> dict[str, int]:
        for table, kept_ms in value.items():
            if table not in TIME_COLUMNS:
                raise ValueError(
                    f"no table {table!r} with an age; there are {', '.join(sorted(TIME_COLUMNS))}"
                )
            if 0 < kept_ms < RETENTION_MS_MIN:
                raise ValueError(
                    f"{table}: rows are kept for an hour at least, or for ever (0), not {kept_ms} ms"
                )
        return value

    def client(self, **extra: Any) -> dict[str, Any]:
        """Keyword arguments of ``clickhouse_connect.get_client``."""
        arguments: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "username": self.username,
            "password": self.password.get_secret_value(),
            "database": self.database,
            "secure": self.secure,
            "verify": self.verify,
            "connect_timeout": max(1, self.timeout // 1000),
            "send_receive_timeout": max(1, self.timeout // 1000),
            "autogenerate_session_id": False,
        }
        if self.ca_file:
            arguments["ca_cert"] = str(self.ca_file)
        if self.certificate_file:
            arguments["client_cert"] = str(self.certificate_file)
        if self.key_file:
            arguments["client_cert_key"] = str(self.key_file)
        return arguments | extra


class SigningSettings(Section):
    """The key this service signs with and the public keys (base64) it believes."""

    key_file: Path | None = None
    trusted: tuple[str, ...] = ()


class ServiceSettings(BaseSettings):
    """What every service has. Each service subclasses it with its own section."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        env_parse_none_str="null",
    )

    kafka: KafkaSettings = KafkaSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    signing: SigningSettings = SigningSettings()
    s3: S3Settings = S3Settings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = True
    metrics_port: int = Field(default=0, ge=0, le=65535, description="Scrape endpoint; 0 turns it off.")
    metrics_host: str = "127.0.0.1"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read file and environment. Raises ConfigurationError that names every wrong or unknown key.

        One file and one environment serve all services: sections of other services are allowed and ignored here, names
        that no service knows are errors.
        """
        path = os.environ.get(CONFIG_FILE)
        data: dict[str, Any] = {}
        if path:
            try:
                data = yaml.safe_load(Path(path).read_text()) or {}
            except (OSError, yaml.YAMLError) as error:
                raise ConfigurationError(f"{CONFIG_FILE}={path}: {error}") from error
        known = known_sections()
        unknown = sorted(set(data) - known)
        unknown += sorted(
            key
            for key in os.environ
            if key.startswith(ENV_PREFIX)
            and key not in OTHER_KEYS
            and key.removeprefix(ENV_PREFIX).split("__")[0].lower() not in known
        )
        if unknown:
            raise ConfigurationError(
                f"unknown settings: {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        mine = {key: value for key, value in data.items() if key in cls.model_fields}
        try:
            return cls(**_below_environment(mine), **overrides)
        except ValidationError as error:
            raise ConfigurationError(f"settings of {cls.__name__}: {error}") from error

    def shown(self) -> dict[str, Any]:
        """All values as JSON types, secrets masked."""
        return self.model_dump(mode="json")


def _below_environment(data: dict[str, Any]) -> dict[str, Any]:
    """File values minus those the environment sets, because constructor arguments would win over it."""
    kept: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            name = ENV_PREFIX + key.upper()
            if name in os.environ:
                continue
            inner: dict[str, Any] = dict(value)
            for field in list(inner):
                if f"{name}__{field.upper()}" in os.environ:
                    del inner[field]
            kept[key] = inner
        elif ENV_PREFIX + key.upper() not in os.environ:
            kept[key] = value
    return kept


class MonitorSection(Section):
    """The monitor: how often it commits, how much it holds."""

    instance: str = Field(
        default="",
        description="Static name of this worker in its group: restarted under the same name, it has its partitions "
        "back at once instead of after the session timeout. Unique among running workers; empty: none.",
    )
    commit_rows_max: int = Field(default=50_000, ge=1, description="Records in one transaction of a task.")
    commit_interval: DurationMs = Field(
        default=500,
        description="How long what a task has applied waits for its transaction; longer while the task is behind.",
    )
    chunk_records: int = Field(default=10_000, ge=1, description="Records in one batch handed to an agent.")
    ticker: Literal["wall", "off"] = "wall"
    tick_interval: DurationMs = 1_000
    tick_delay: DurationMs = Field(default=2_000, description="How far behind the clock a tick's time is.")
    hot_index_bytes_max: int = Field(default=1_073_741_824, ge=1_000_000)
    held_bytes_max: int = Field(
        default=134_217_728,
        ge=0,
        description="Rows of models that have few are held until a detector could speak, or so many bytes have come since; "
        "so many are read again after a restart.",
    )
    raw_log_bytes_max: int = Field(
        default=268_435_456,
        ge=0,
        description="Events that wait to be written to the raw log; what does not fit is read again when there is room.",
    )
    early_labels_max: int = Field(
        default=1_000_000,
        ge=0,
        description="Labels of one partition that wait: for their prediction, or to be looked up. Further ones are dead-lettered.",
    )
    label_lookup_interval: DurationMs = Field(
        default=1_000,
        description="How often labels whose prediction has left memory are looked up in ClickHouse; 0: never.",
    )
    label_lookup_rows_max: int = Field(
        default=4_000, ge=1, le=10_000, description="Labels of one partition looked up at once."
    )
    ready_timeout: DurationMs = 60_000
    queue_batches_max: int = Field(default=4, ge=1)
    warehouse: bool = Field(default=True, description="Write aggregates to ClickHouse.")
    seed: int = 7


class ArchiveSection(Section):
    """The archive: copies logs to ClickHouse on its own cursor."""

    instance: str = Field(
        default="",
        description="Static name of this archive in its group, as of the monitor's workers; empty: none.",
    )
    batch_rows_max: int = Field(
        default=100_000, ge=1, description="Rows of one insert. Larger ones cost the warehouse less."
    )
    flush_interval: DurationMs = 500
    label_index: bool = Field(
        default=True,
        description="Keep the index in which labels find predictions that have left the monitor's memory.",
    )


class RateLimit(Section):
    """A bound on what one scorer instance takes from the callers of a model; beyond it they get an error that says so."""

    per_s: float = Field(gt=0, description="Requests a second on average.")
    burst: int = Field(default=1_000, ge=1, description="Requests that may come at once.")


class ScorerSection(Section):
    """The scoring consumer."""

    instance: str = "scorer-0"
    region: str = Field(
        default="",
        max_length=100,
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="Which region of a contract's `rollout.regions` this instance is of; it goes on its predictions. Where a "
        "rollout by regions does not name it, the instance serves the stable version alone.",
    )
    batch_rows_max: int = Field(default=512, ge=1)
    batch_deadline: DurationMs = 5
    in_flight_rows_max: int = Field(
        default=8_192,
        ge=1,
        description="Requests read and not yet committed; at the bound the scorer stops reading.",
    )
    provider: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    memory_bytes_max: int = Field(
        default=2_147_483_648,
        ge=1,
        description="Estimated memory of loaded versions, on the device if it runs there. What nothing routes to leaves "
        "first; what is routed or warm never does.",
    )
    feature_cache_rows: int = Field(
        default=8_192,
        ge=0,
        description="Different rows of features kept for each model, checked and encoded; 0: none.",
    )
    rate_limits: dict[str, RateLimit] = Field(
        default_factory=dict, description="By model; `*` for each model that is not named."
    )
    shadow_rows_max: int = Field(
        default=16_384,
        ge=1,
        description="Requests that wait for their shadow; further ones are dropped and counted.",
    )
    shadow: Literal["after", "with"] = Field(
        default="after",
        description="Shadows are scored after the answers are out. `with` them: for replays, whose event time does not "
        "wait for the clock.",
    )
    registry: RegistryAddress = Path("registry")
    trip_answer_timeout: DurationMs = 30_000
    event_age_max: DurationMs = Field(
        default=0, description="Requests older than this are refused; 0: no limit."
    )


class TrainerCommand(Section):
    """A command line that trains. It is the operator's to name, never a contract's: contracts come over the wire."""

    argv: tuple[str, ...] = Field(min_length=1, description="Program and arguments; no shell is involved.")
    data: Literal["parquet", "arrow", "csv"] = "parquet"
    time_limit: DurationMs = 3_600_000
    output_bytes_max: int = Field(default=268_435_456, ge=1, description="Of all files it writes, together.")
    environment: tuple[str, ...] = Field(
        default=("PATH", "HOME", "LANG", "TMPDIR"),
        description="Variables it may see; all others are kept from it.",
    )


class TrainerSection(Section):
    """The trainer."""

    registry: RegistryAddress = Path("registry")
    journal: Path | None = Field(
        default=None,
        description="Directory that outlives the process, where attempts are counted; not given: `.training` in the "
        "registry's directory. An s3:// registry needs it.",
    )
    archive_timeout: DurationMs = Field(
        default=120_000, description="Longest wait for the archive to catch up."
    )
    attempts_max: int = Field(
        default=3, ge=1, description="Times a request is tried, dying over it included, before it has failed."
    )
    backoff: DurationMs = Field(
        default=5_000, description="Wall-clock time before the second attempt; doubled for each further one."
    )
    commands: dict[str, TrainerCommand] = Field(
        default_factory=dict, description="By the name that a contract's training.options.command gives."
    )


class NotifierSection(Section):
    """Where alerts go. Console is on by default."""

    console: bool = True
    webhook_url: SecretStr | None = None
    slack_url: SecretStr | None = None
    pagerduty_key: SecretStr | None = None
    pagerduty_url: str = "https://events.pagerduty.com/v2/enqueue"
    retries_max: int = Field(default=5, ge=0)
    timeout: DurationMs = 5_000


class MonitorSettings(ServiceSettings):
    monitor: MonitorSection = MonitorSection()


class ArchiveSettings(ServiceSettings):
    archive: ArchiveSection = ArchiveSection()


class ScorerSettings(ServiceSettings):
    scorer: ScorerSection = ScorerSection()


class ControllerSettings(ServiceSettings):
    controller: ControllerSection = ControllerSection()


class TrainerSettings(ServiceSettings):
    trainer: TrainerSection = TrainerSection()


class NotifierSettings(ServiceSettings):
    notifier: NotifierSection = NotifierSection()


#: Service name (as in ``driftline SERVICE``) to its settings model.
SERVICES: dict[str, type[ServiceSettings]] = {
    "monitor": MonitorSettings,
    "archive": ArchiveSettings,
    "scorer": ScorerSettings,
    "controller": ControllerSettings,
    "trainer": TrainerSettings,
    "notifier": NotifierSettings,
}


def known_sections() -> set[str]:
    """Top-level names that some service knows."""
    return {name for model in SERVICES.values() for name in model.model_fields}
