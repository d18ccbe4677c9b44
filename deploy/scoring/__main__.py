"""``python -m deploy.scoring [--check]``."""

from __future__ import annotations

import sys

from deploy.scoring.service import check, run
from schemas.settings import ScorerSettings

if __name__ == "__main__":
    loaded = ScorerSettings.load()
    if "--check" in sys.argv[1:]:
        sys.stdout.write(check(loaded) + "\n")
    else:
        sys.exit(run(loaded))
