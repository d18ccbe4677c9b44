"""``python -m deploy.notify``."""

from __future__ import annotations

import sys

from deploy.notify.service import run
from schemas.settings import NotifierSettings

if __name__ == "__main__":
    sys.exit(run(NotifierSettings.load()))
