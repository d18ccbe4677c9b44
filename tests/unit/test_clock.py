"""The one wall clock, and the file that steps it."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.clock import ENVIRONMENT, offset_ms, wall_ms


def test_the_file_steps_the_clock_and_its_absence_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forth and back within one process, as soon as the file says so."""
    file = tmp_path / "offset"
    unstepped = wall_ms()
    monkeypatch.setenv(ENVIRONMENT, str(file))
    assert abs(wall_ms() - unstepped) < 5_000
    for step in (3_600_000, -3_600_000):
        file.write_text(str(step))
        assert abs(wall_ms() - step - unstepped) < 5_000


def test_a_half_written_file_is_no_step(tmp_path: Path) -> None:
    """Whoever reads in the middle of a write reads nothing, not nonsense."""
    file = tmp_path / "offset"
    for text in ("", "-", "12x"):
        file.write_text(text)
        assert offset_ms(file) == 0
