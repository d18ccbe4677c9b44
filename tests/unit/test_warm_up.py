"""No event waits for a compiler: what a worker compiles it compiles before the first one."""

from __future__ import annotations

import subprocess
import sys


def test_whatever_a_fetch_may_bring_finds_its_machine_code_made() -> None:
    """JSON and Arrow, compressed and not, in memory of the client's or our own; state that is taken up again."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support_warm_up"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2_000:]
