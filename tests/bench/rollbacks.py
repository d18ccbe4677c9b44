"""How fast the controller answers a rollback: ``python -m tests.bench.rollbacks``. One JSON line.

Every one of ``ROLLBACKS`` canaries is rolled back while ticks keep the controller busy. A figure is the time from the
request's Kafka timestamp to that of the revision that answers it, so it holds everything between: the broker, reading,
the signature, the decision, its facts, the transaction. Scorers trip on the request itself and do not wait for this.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from pathlib import Path

import numpy as np

from deploy.broadcast import Broadcast
from deploy.controller.service import Controller
from deploy.local.kafka import LocalKafka
from deploy.models import publish_records
from deploy.registry import Lineage, Registry
from schemas.contracts import ModelRecord
from schemas.control import ControlTick, Deployment, DeployRequested, RollbackRequested
from schemas.observability import Metrics
from schemas.settings import ControllerSection, ControllerSettings, KafkaSettings
from tests.support_deploy import CONTRACT, Wire, artifact

ROLLBACKS = 200
#: Ticks of the four policy tasks of a monitor, some seconds' worth, before every request.
TICKS = 50


def main() -> None:
    """Register, roll out, roll back, print."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as root, LocalKafka() as broker:
        broker.start(Path(root) / "kafka")
        broker.wait_ready()
        registry = Registry(Path(root) / "registry")
        records = [ModelRecord(contract=CONTRACT)]
        records += [
            ModelRecord(version=registry.register(CONTRACT, artifact(), Lineage()))
            for _ in range(ROLLBACKS + 1)
        ]
        settings = ControllerSettings(
            kafka=KafkaSettings(bootstrap=broker.bootstrap, input_partitions=1),
            controller=ControllerSection(registry=Path(root) / "registry", api_port=0),
        )
        wire = Wire(settings.kafka)
        publish_records(settings.kafka, records)
        print(json.dumps(_measure(settings, wire)), flush=True)
        wire.close()


def _measure(settings: ControllerSettings, wire: Wire) -> dict[str, float | int | str]:
    controller = Controller(settings, Metrics())
    controller.open()
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            controller.turn()

    thread = threading.Thread(target=serve)
    thread.start()
    asked: dict[str, int] = {}
    answered: dict[str, int] = {}
    try:
        with Broadcast(settings.kafka, ("control", "deployments")) as heard:
            _send(wire, DeployRequested(version="1", steps=(), **_fields("d1")))
            for at in range(2, ROLLBACKS + 2):
                _send(wire, DeployRequested(version=str(at), **_fields(f"d{at}")))
                ticks = [ControlTick(event_time_ms=at * 1_000 + n, source="policy/0") for n in range(TICKS)]
                wire.send("control", [("delay", tick.model_dump_json().encode()) for tick in ticks])
                _send(wire, RollbackRequested(version=str(at), **_fields(f"r{at}")))
                while f"r{at}" not in answered:
                    for record in heard.poll(0.2):
                        value = json.loads(record.value() or b"{}")
                        if heard.name(record) == "control":
                            asked[value.get("request_id", "")] = record.timestamp()[1]
                            continue
                        newest = Deployment.model_validate(value).answers[-1].request_id
                        answered.setdefault(newest, record.timestamp()[1])
    finally:
        stop.set()
        thread.join(30)
        controller.close()
    took = np.array(
        [answered[name] - asked[name] for name in answered if name.startswith("r") and name in asked]
    )
    return {
        "figure": "rollback answered",
        "rollbacks": len(took),
        "p50_ms": float(np.quantile(took, 0.5)),
        "p99_ms": float(np.quantile(took, 0.99)),
        "max_ms": int(took.max()),
    }


def _fields(request_id: str) -> dict[str, str | int]:
    return {
        "request_id": request_id, "model": "delay", "cause": "c", "event_time_ms": 0, "expires_ms": 2**52,
        "issued_by": "bench",
    }  # fmt: skip


def _send(wire: Wire, command: DeployRequested | RollbackRequested) -> None:
    wire.send("control", [("delay", command.model_dump_json().encode())])


if __name__ == "__main__":
    main()
