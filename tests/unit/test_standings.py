"""What is known of a detector's false alarms is worked out once for equal content."""

from __future__ import annotations

from typing import ClassVar

from detectors.base import Context, Standing
from detectors.registry import spec_class
from streams.core.standings import fitted, reference_hash, standing_key


class _Slow(spec_class("adwin")):  # type: ignore[misc]
    """Counts how often it is asked for its standing."""

    knob: ClassVar[str | None] = None
    asked: ClassVar[int] = 0

    def standing(self, context: Context) -> Standing:
        type(self).asked += 1
        if context.seed == 9:
            raise RuntimeError("boom")
        return Standing("resampled", pages=True, note=f"seed {context.seed}")


def test_a_standing_is_worked_out_once_for_equal_content() -> None:
    """Kept under what it depends on; a kind that breaks there does not page."""
    cache: dict[str, bytes] = {}
    spec = _Slow()
    found = []
    for seed in (1, 1, 2, 9, 9):
        context = Context(("x",), (0,), "features", seed=seed)
        found.append(
            fitted(spec, context, standing_key(spec, context, reference_hash(context.reference)), cache)[1]
        )
    assert _Slow.asked == 3
    assert [s.note for s in found[:3]] == ["seed 1", "seed 1", "seed 2"]
    assert found[0] == Standing("resampled", pages=True, note="seed 1")
    assert not found[3].pages
    assert "boom" in found[4].note
