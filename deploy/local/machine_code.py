"""The machine code that the monitoring half needs, made before its processes start: each of them would make all of it, at the
same time and for longer than anybody waits for one to be ready."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from deploy.local.cache import cache_dir
from deploy.local.children import PROJECT_ROOT
from schemas.errors import PlatformError
from schemas.sources import sources

TIMEOUT_S = 600.0


def compile_once(say: Callable[[str], None]) -> None:
    """Compile unless that was done for these sources by this Python; whoever else does it now is waited for.

    Raises PlatformError with what the compiler said.
    """
    mark = f"compiled-{sources()}-{sys.version_info.major}.{sys.version_info.minor}"
    with _kept(mark) as stamp:
        fcntl.flock(stamp, fcntl.LOCK_EX)
        if not os.fstat(stamp.fileno()).st_size:
            _compile(say)
            stamp.write(b"done")


def _kept(mark: str) -> IO[bytes]:
    """A file beside the machine code, which goes when that goes; where nobody may write there, in the user's cache, as numba
    does it."""
    for place in (PROJECT_ROOT / "schemas" / "__pycache__", cache_dir()):
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            return (place / mark).open("a+b")
    return tempfile.TemporaryFile()


def _compile(say: Callable[[str], None]) -> None:
    say("making machine code, once for this version: about a minute")
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "streams", "compile"],
            cwd=PROJECT_ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PlatformError(f"the monitor's machine code is not made after {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise PlatformError(
            f"the monitor's machine code cannot be made (exit status {done.returncode}): {done.stderr[-2_000:]}"
        )
    say(f"machine code made after {time.monotonic() - began:.0f} s")
