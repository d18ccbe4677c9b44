"""Why: a service knows nothing of the platform that starts it, yet must not outlive it.

``python -m deploy.local.launch --parent-pid N -- streams monitor`` binds this process to its parent, then becomes
``python -m streams monitor``: the wish to die with the parent survives ``exec``.
"""

from __future__ import annotations

import os
import sys

from deploy.local.children import bind_to_parent


def main(arguments: list[str]) -> None:
    """Does not return. ``arguments``: ``MODULE [ARG ...] --parent-pid N``."""
    at = arguments.index("--parent-pid")
    bind_to_parent(int(arguments[at + 1]))
    module, *rest = arguments[:at] + arguments[at + 2 :]
    os.execv(sys.executable, [sys.executable, "-m", module, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
