"""State that a monitor before this one has written is read: windows of schema 5, pieces of the join of schema 8."""

from __future__ import annotations

import base64

from streams.core.delivery import Manifest
from tests.support_join import Stream, blocks, join_core, prediction, truth
from tests.support_upserts import spread

#: What a join task had stored after three predictions, one of which had its label.
WRITTEN = {
    "window/flights/1699999200000/3600000": (
        "lwWTp2ZsaWdodHPPAAABi8/ZMwDOADbugJPOADbugAAAwsLCkpiidjGmc3RhYmxloMQMAwEAAQOQBAAPAwADgQAD3AAUAAEAAQAA"
        "AM4RJa4YzgO5rKCTzMiRzJaRAczImgAAAAAAAAABAACaAAAAAAAAAM4stBeAAACaAAAAAAAAAAEAAM4RJa4YzgO5rKCBzQE2AYDP"
        "AAABi9AQIYDPAAABi9AQIYCwZDg3NzUzYTYwYjhiOTQzYsQyAAAAAAAAAABAf0AAAAAAACCMQACA5v6JBwABAgEADwACAAAAAAAA"
        "AAxAAAAAAAADAAGWonYxpnN0YWJsZapvcmlnaW49SkZLxAwDAQABA5AEAA8DAAOBAAPcABQAAQABAAAAzhElrhjOA7msoJPMyJHM"
        "lpEBzMiaAAAAAAAAAAEAAJoAAAAAAAAAziy0F4AAAJoAAAAAAAAAAQAAzhElrhjOA7msoIHNATYBgM8AAAGL0BAhgM8AAAGL0BAh"
        "gA=="
    ),
    "edges/d87753a60b8b943b": (
        "k5OoZGlzdGFuY2XcABPLQG9AAAAAAADLQH9AAAAAAADLQIdwAAAAAADLQI9AAAAAAADLQJOIAAAAAADLQJdwAAAAAADLQJtYAAAA"
        "AADLQJ9AAAAAAADLQKGUAAAAAADLQKOIAAAAAADLQKV8AAAAAADLQKdwAAAAAADLQKlkAAAAAADLQKtYAAAAAADLQK1MAAAAAADL"
        "QK9AAAAAAADLQLCaAAAAAADLQLGUAAAAAADLQLKOAAAAAACQk6R3aW5kkJCTpm9yaWdpbpCUo0VXUqNKRkujTEdBpyhvdGhlcik="
    ),
    "join/rows/0": (
        "mwiSAwCSAAMAxDIotS/9IClJAQCRlJOnZmxpZ2h0c88AAAGLz9kzAM4ANu6AonYxAJGqb3JpZ2luPUpGS5IDAZqTAKN8aTHEAwAB"
        "ApMAozx1OMQYpDtwmV0Ulc9ysUmT1anJ/N8FDq5rv139kwCjPHU0xAxhtw83vabRqDG5IiaTAKN8aTHEAJPPAAABi8/ZMwCjfGkx"
        "xACTAKM8ZjjEGAAAAAAAAOg/AAAAAAAA6D8AAAAAAADoP5MAo3xpMcQDAAABkwCjfGkxxACTAKN8aTHEAwABApMAo3xpMcQAlJMA"
        "o3xpMcQAkwCjfGkxxACTAKM8ZjjECAAAAAAAAPA/k88AAAGL0BAhgKN8aTHEAJCQkA=="
    ),
    "meta": ("lgbTwAAAAAAAAADTwAAAAAAAAAAEAAA="),
    "models": ("koGnZmxpZ2h0c8CA"),
}


def test_an_update_goes_on_from_what_was_stored() -> None:
    """The warehouse is told the same, and a label finds its prediction, as if the code had always been this."""
    stream, always, updated = Stream(), join_core(), join_core()
    first = [
        stream.event(prediction("a")),
        stream.event(prediction("b", features={"distance": 900.0, "wind": 3.5, "origin": "JFK"})),
        stream.event(prediction("c", status="error")),
    ]
    always.apply(first, 0)
    always.apply([stream.event(truth("a"))], 0)
    always.outputs()
    always.changed_pieces()
    pieces = {name: base64.b64decode(data) for name, data in WRITTEN.items()}
    updated.restore(pieces, Manifest(task="join/0", sequence=7))
    told, later = [], [stream.event(truth("b", label=0.0)), stream.event(prediction("a"))]
    for core in (always, updated):
        core.committed(7)
        told.append([sorted(map(repr, spread(core.upserts())))])
        core.apply(later, 0)
        (block,) = blocks(core.outputs())
        told[-1].append([str((block.kind, block.loss.tolist(), block.offset.tolist()))])
        core.changed_pieces()
        core.committed(8)
        told[-1].append(sorted(map(repr, spread(core.upserts()))))
    assert told[0] == told[1]
    assert all(told[0])
