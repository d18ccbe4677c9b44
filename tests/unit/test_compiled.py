"""Machine code that is kept is that of the sources as they are; the machine's own operations are what their names say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import schemas
from schemas.compiled import _Kept, compiled, leading_zeros, product, real_of

CALLED = """
from schemas.compiled import compiled

@compiled
def one(x):
    return x + {}
"""
CONSTANTS = "ONE = {}"
CALLING = """
from schemas.called import one
from schemas.compiled import compiled
from schemas.constants import ONE

@compiled
def two(x):
    return one(x) + ONE
"""
WORDS = st.integers(0, 2**64 - 1)
PROGRAM = "from schemas.calling import two; print(two(1), sum(two.stats.cache_hits.values()))"


def test_a_function_is_made_again_when_what_it_has_taken_in_has_changed(tmp_path: Path) -> None:
    """A function or a constant of another module, which is what numba does not look at."""
    package = tmp_path / "schemas"
    package.mkdir()
    for name in ("__init__", "compiled", "sources"):
        shutil.copy(Path(schemas.__file__).parent / f"{name}.py", package)
    (package / "calling.py").write_text(CALLING)

    def run(called: int, constant: int) -> str:
        (package / "called.py").write_text(CALLED.format(called))
        (package / "constants.py").write_text(CONSTANTS.format(constant))
        # A module that was written twice within a second looks unchanged to whoever has its bytecode.
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )  # fmt: skip
        return done.stdout.strip()

    assert run(1, 1) == "3 0"
    assert run(1, 1) == "3 1"
    assert run(5, 1) == "7 0"
    assert run(5, 2) == "8 0"


def test_machine_code_is_kept_under_what_it_was_made_from_and_for(tmp_path: Path) -> None:
    """So that processes which compile at once cannot hand each other code for other arguments; what is stale goes."""
    old, new, other = (_Kept(str(tmp_path), name, stamp) for name, stamp in (("f", 1), ("f", 2), ("g", 1)))
    for key in ("bytes", "reals"):
        old.save(key, key)
    other.save("bytes", "of g")
    assert [new.load("bytes"), old.load("bytes"), old.load("reals")] == [None, "bytes", "reals"]
    new.save("bytes", "new")
    assert [new.load("bytes"), old.load("bytes"), other.load("bytes")] == ["new", None, "of g"]
    assert len(list(tmp_path.iterdir())) == 2


@compiled
def _product(a: np.uint64, b: np.uint64) -> tuple[Any, Any]:
    return product(a, b)  # type: ignore[no-any-return]


@compiled
def _leading_zeros(word: np.uint64) -> Any:
    return leading_zeros(word)


@compiled
def _real_of(word: np.uint64) -> Any:
    return real_of(word)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_the_machines_operations_are_those_of_whole_numbers(a: int, b: int) -> None:
    """A product of 128 bits, the zeros in front, and the bits of a double."""
    high, low = _product(np.uint64(a), np.uint64(b))
    assert (int(high) << 64) + int(low) == a * b
    assert _leading_zeros(np.uint64(a)) == 64 - a.bit_length()
    assert np.array(_real_of(np.uint64(a))).tobytes() == np.array(a, np.uint64).view(np.float64).tobytes()
