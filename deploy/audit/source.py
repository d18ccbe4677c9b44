"""Where the record is read from: the topics themselves, or their copy in ClickHouse. Both give the same bytes."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError

from deploy.audit.facts import LoggedFact, Record, anchors_of
from deploy.broadcast import Broadcast
from schemas.control import Deployment
from schemas.errors import WarehouseError
from schemas.settings import ClickHouseSettings, KafkaSettings

log = logging.getLogger(__name__)


def from_kafka(kafka: KafkaSettings) -> Record:
    """Every committed fact, and the deployments' word on them. Raises PlatformError."""
    facts: list[LoggedFact] = []
    deployments: list[Deployment] = []
    # The deployments first: what they count is on the other topic by the time that is read.
    with Broadcast(kafka, ["deployments"]) as topic:
        for message in topic.read_to_end():
            deployments += _deployment(message.value())
    with Broadcast(kafka, ["decisions"]) as topic:
        for message in topic.read_to_end():
            address = f"decisions/{message.partition()}/{message.offset()}"
            facts.append(LoggedFact(address, message.value() or b"", message.key() or b""))
    return Record(facts, anchors_of(deployments))


def from_clickhouse(clickhouse: ClickHouseSettings) -> Record:
    """The archive's copy. It trails the topics, deployments and facts each at its own pace. Raises WarehouseError."""
    deployments: list[Deployment] = []
    for (document,) in rows(clickhouse, "SELECT argMax(document, revision) FROM deployments GROUP BY model"):
        deployments += _deployment(document.encode())
    found = rows(
        clickhouse,
        "SELECT source_partition, source_offset, document FROM decisions ORDER BY source_partition, source_offset",
    )
    facts = [LoggedFact(f"decisions/{p}/{offset}", document.encode()) for p, offset, document in found]
    return Record(facts, anchors_of(deployments))


def rows(clickhouse: ClickHouseSettings, query: str, parameters: dict[str, Any] | None = None) -> list[Any]:
    """A query's rows. Raises WarehouseError."""
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        with clickhouse_connect.get_client(**clickhouse.client()) as client:
            return list(client.query(query, parameters=parameters).result_rows)
    except ClickHouseError as error:
        raise WarehouseError(f"ClickHouse at {clickhouse.host}:{clickhouse.port}: {error}") from error


def _deployment(value: bytes | None) -> list[Deployment]:
    try:
        return [] if value is None else [Deployment.model_validate_json(value)]
    except ValidationError as error:
        log.warning("a deployment cannot be read: %s", error)
        return []
