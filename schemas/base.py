"""Why: commands, facts and what they are made of are read by older and newer processes than the one that wrote them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """Base of commands and facts: immutable; unknown fields are ignored, so an older reader survives a newer writer."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
