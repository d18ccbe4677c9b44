"""What every integration test shares: one real Kafka and one real ClickHouse engine a session, and names of one's own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from deploy.local.kafka import LocalKafka
from deploy.local.machine_code import compile_once
from deploy.local.warehouse import LocalWarehouse

# Models of tests are small: threads that spin beside each other cost them more time than they save, much more where the
# machine is shared. It must stand before the first import of whatever brings OpenMP.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What decides whether a change may land says the same thing each time it is asked, on a machine of any speed: the same
# examples, none kept from the last run, no limit of time on one of them. Whoever looks for new ones has `make search`.
AT_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", AT_ANY_SPEED, max_examples=50, derandomize=True, database=None)
settings.register_profile("search", AT_ANY_SPEED, max_examples=500, derandomize=False, print_blob=True)
settings.load_profile("repeatable")

#: Scripts that run in an environment of their own.
collect_ignore_glob = ["bench/monitor/peer/*.py"]
_counter = itertools.count(1)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A running, empty Kafka; ``kafka.bootstrap`` is its address. Topics are not created by use."""
    compile_once(print)
    with LocalKafka() as broker:
        broker.start(tmp_path_factory.mktemp("kafka"))
        broker.wait_ready()
        yield broker


@pytest.fixture(scope="session")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWarehouse]:
    """A running, empty warehouse; ``warehouse.url``, ``.host`` and ``.port`` are its address."""
    with LocalWarehouse() as server:
        server.start(tmp_path_factory.mktemp("warehouse"))
        server.wait_ready()
        yield server


@pytest.fixture
def unique_name() -> str:
    """A name no other test of this run uses: letters, digits, underscores; for databases, tables, groups."""
    return f"t{os.getpid()}_{next(_counter)}"


@pytest.fixture
def topic_prefix(unique_name: str) -> str:
    """A prefix for this test's topics and consumer groups."""
    return f"{unique_name}-"
