"""Machine code that is kept is that of the sources as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import schemas

CALLED = """
from schemas.compiled import compiled

@compiled
def one(x):
    return x + {}
"""
CALLING = """
from schemas.called import one
from schemas.compiled import compiled

@compiled
def two(x):
    return one(x)
"""
PROGRAM = "from schemas.calling import two; print(two(1), sum(two.stats.cache_hits.values()))"


def test_a_function_is_made_again_when_one_that_it_calls_has_changed(tmp_path: Path) -> None:
    """In another module, which is what numba does not look at."""
    package = tmp_path / "schemas"
    package.mkdir()
    for name in ("__init__", "compiled", "sources"):
        shutil.copy(Path(schemas.__file__).parent / f"{name}.py", package)
    (package / "calling.py").write_text(CALLING)

    def run(added: int) -> str:
        (package / "called.py").write_text(CALLED.format(added))
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )  # fmt: skip
        return done.stdout.strip()

    assert run(1) == "2 0"
    assert run(1) == "2 1"
    assert run(5) == "6 0"
