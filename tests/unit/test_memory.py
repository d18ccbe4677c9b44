"""Room of large buffers is used again instead of being mapped and cleared for each."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
# Pages of one size, whatever the machine's kernel would give: PR_SET_THP_DISABLE.
assert sys.platform != "linux" or ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0
import numpy as np
if sys.argv[1] == "kept":
    from streams.memory import keep_large_buffers
    keep_large_buffers()
if sys.argv[2] == "untouched":
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    part = np.empty(64_000_000, np.uint8)
    part[::8_000_000] = 1
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    sys.exit()
np.ones(1_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(1_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def measured(how: str, what: str) -> int:
    """Pages that the kernel cleared for 20 buffers of 8 MB; kilobytes that one has of which little is ``untouched``."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, what], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_large_buffers_are_not_cleared_again() -> None:
    """After the first one there is hardly a fault; by default there are some for each."""
    assert measured("kept", "cleared") * 5 < measured("default", "cleared")


def test_what_is_not_touched_of_a_buffer_is_no_memory() -> None:
    """A buffer for the most that may come costs what does come."""
    assert measured("kept", "untouched") < 1_000
