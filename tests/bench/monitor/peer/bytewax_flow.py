"""Bytewax reads the topic and parses the JSON."""

from __future__ import annotations

import os
import sys

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from meter import Meter

meter = Meter(int(sys.argv[3]))


class _Look(StatelessSinkPartition):
    def write_batch(self, items):  # type: ignore[no-untyped-def]
        if meter.add(len(items)):
            meter.say()
            os._exit(0)


class _Sink(DynamicSink):
    def build(self, step_id, worker_index, worker_count):  # type: ignore[no-untyped-def]
        return _Look()


flow = Dataflow("peer")
read = op.input("read", flow, KafkaSource([sys.argv[1]], [sys.argv[2]], tail=True, batch_size=10_000))
parsed = op.map("parse", read, lambda message: orjson.loads(message.value))
op.output("look", parsed, _Sink())
run_main(flow)
