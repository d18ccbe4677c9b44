"""Faust agents: one a topic, each as thin as can be. They hand chunks to the task that owns the partition."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import faust

from streams.batches import Chunk, RawSchema

Deliver = Callable[[str, Chunk], Awaitable[None]]


def add_agents(app: faust.App, topics: Iterable[tuple[str, str]], deliver: Deliver) -> None:
    """One agent for each (logical name, name on the broker).

    Faust's acks are off: what has been read is what manifests say, and ``deliver`` never raises (Faust would drop the
    chunk and restart the agent).
    """
    for logical, name in topics:
        app.agent(
            app.topic(name, schema=RawSchema(), acks=False), name=f"driftline.{logical}", concurrency=1
        )(_agent(logical, deliver))


def _agent(logical: str, deliver: Deliver) -> Callable[[Any], Awaitable[None]]:
    async def hand_over(stream: Any) -> None:
        async for event in stream.noack().events():
            await deliver(logical, event.value)

    return hand_over
