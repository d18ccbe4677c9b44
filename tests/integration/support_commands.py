"""Runs ``driftline`` as its users do, in a process of its own: one that dies in native code says so by its status, and takes
no other test with it."""

from __future__ import annotations

import signal
import subprocess
import sys


def driftline(*arguments: str, timeout_s: float) -> tuple[int, str]:
    """(exit status, everything it printed). Fails the test when a signal ended it, or time did."""
    command = [sys.executable, "-X", "faulthandler", "-m", "deploy.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            printed, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            # In order first: a platform that it started goes with it.
            process.terminate()
            try:
                printed, _ = process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                printed, _ = process.communicate()
            raise AssertionError(
                f"{arguments} took longer than {timeout_s:g} s: {printed[-4_000:]}"
            ) from None
    status = process.returncode
    assert status >= 0, f"{arguments} was ended by {signal.Signals(-status).name}: {printed[-4_000:]}"
    return status, printed
