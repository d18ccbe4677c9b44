"""Who asks, and what each role may: the one place where permission is decided.

viewer     reads
operator   also deploys, promotes, pauses, resumes, rolls back, retrains, and says yes or no at gates
admin      also overrides a gate or a pause
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

RoleName = Literal["viewer", "operator", "admin"]


class ApiRole(IntEnum):
    """Roles in order: each may what those below it may. ``NONE`` is who may nothing."""

    NONE = 0
    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @classmethod
    def named(cls, name: str) -> ApiRole:
        """The role of that name, in any case. Raises KeyError."""
        return cls[name.upper()]

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever made a call. ``name`` goes on record; ``via`` says how they are known (``token ID``, ``oidc``, ``open``);
    ``key`` is what their requests are counted under."""

    name: str
    role: ApiRole
    via: str
    key: str

    @property
    def known(self) -> bool:
        """Whether they have shown who they are."""
        return self.via != "open"
