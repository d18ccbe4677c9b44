"""Why: signatures are on from the first start, so something must make the key before the first service reads it.

``python -m deploy.keys DIRECTORY`` makes ``DIRECTORY/driftline.pem`` and, beside it, ``driftline.yaml``: the settings
file that signs with this key and believes it. What exists stays as it is, so running it before every start is safe.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import yaml

from schemas.signing import Signer

KEY_FILE = "driftline.pem"
SETTINGS_FILE = "driftline.yaml"


def make_keys(directory: Path) -> Path:
    """Make key and settings file where they are missing; returns the settings file. Raises SignatureError."""
    key = directory / KEY_FILE
    signer = Signer.create(key)
    settings = directory / SETTINGS_FILE
    if not settings.exists():
        trusted = [base64.b64encode(signer.public).decode()]
        settings.write_text(yaml.safe_dump({"signing": {"key_file": str(key), "trusted": trusted}}))
    return settings


if __name__ == "__main__":
    sys.stdout.write(f"{make_keys(Path(sys.argv[1]).resolve())}\n")
