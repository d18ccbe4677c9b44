"""The traffic of one region while a version is rolled out region after region.

Outside such a rollout no region is named and all instances route alike. Readers older than regions see only the
deployment's own weights, which send nothing to the candidate then.
"""

from __future__ import annotations

from pydantic import Field

from schemas.base import Message


class RegionTraffic(Message):
    """One region of the rollout under way; ``weights`` sum to 1 and name who has a share, ``shadow`` is scored beside.

    All times are event times. A region whose turn has not come has the stable version only.
    """

    region: str
    weights: dict[str, float]
    shadow: tuple[str, ...] = ()
    since_ms: int | None = Field(
        default=None, description="Start of its first stage; None: its turn has not come."
    )
    until_ms: int | None = Field(
        default=None, description="When it had baked and the next region's turn came; None before that."
    )
    baseline: dict[str, float] = Field(
        default_factory=dict,
        description="The stable version's value of each metric here, as last measured before it lost its share.",
    )
