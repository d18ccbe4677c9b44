"""``python -m deploy.controller``."""

from __future__ import annotations

import sys

from deploy.controller.service import run
from schemas.settings import ControllerSettings

if __name__ == "__main__":
    sys.exit(run(ControllerSettings.load()))
