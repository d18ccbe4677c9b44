"""Children of the local platform: what they inherit."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.children import free_port, spawn_module


@pytest.mark.parametrize("unwanted", [True, False])
def test_a_child_keeps_its_bytecode_in_the_cache_where_none_is_wanted_beside_the_code(
    unwanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each start of a service would compile what it imports."""
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.setenv("DRIFTLINE_CACHE", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1" if unwanted else "")
    child = spawn_module("deploy.local.launch", ["platform"], log=tmp_path / "log")
    assert child.wait(240) == 0
    assert bool(list(tmp_path.rglob("platform*.pyc"))) == unwanted


def test_ports_that_are_wanted_together_differ() -> None:
    """Although each is free again before the next is looked for."""
    assert len({free_port() for _ in range(900)}) == 900
