"""How often a property is tried. `make test` says the same each time, so more of the same examples tell nobody more: it takes few.
`make search` looks for those that nobody has seen yet, ten times as many.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def times(few: int) -> int:
    """``few``, or ten times as many in a search."""
    profile = settings.default
    assert profile is not None
    return few if profile.derandomize else 10 * few


def examples(few: int, **more: Any) -> settings:
    """To decorate a property with: :func:`times` ``few`` examples. ``more``: as ``hypothesis.settings`` has it."""
    return settings(max_examples=times(few), **more)
