"""``python -m deploy.training``."""

from __future__ import annotations

import sys

from deploy.training.service import run
from schemas.settings import TrainerSettings

if __name__ == "__main__":
    sys.exit(run(TrainerSettings.load()))
