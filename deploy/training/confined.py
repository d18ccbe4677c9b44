"""Becomes a trainer's command line, after tying it to its parent's life and bounding its files.

It runs as a program of its own (no import of this project, no environment of ours), because between fork and exec no
Python may run in a parent that has threads.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
#: As shells say it.
EXIT_NOT_RUN = 127


def main(parent_pid: int, file_bytes_max: int, argv: list[str]) -> None:
    """Replace this process by ``argv``; exits with 127 and a line on standard error when that cannot be run."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit("the trainer that started this is gone")
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"{argv[0]} cannot be run: {error}", file=sys.stderr)  # noqa: T201 - standard error is its report
        sys.exit(EXIT_NOT_RUN)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
