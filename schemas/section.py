"""Why: every part of every service's settings is closed, so that a misspelt key is an error and not a default."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of the parts of settings: immutable; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
