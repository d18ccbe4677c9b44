"""What machine code is made from: whoever keeps it has to know whether it is still that of these sources."""

from __future__ import annotations

import re
from functools import cache
from hashlib import blake2b
from pathlib import Path

#: Where functions are that are compiled, and what a module with some says.
_PACKAGES = ("schemas", "streams", "detectors")
_MARK = b"schemas.compiled import"
_IMPORTED = re.compile(rb"^from ((?:schemas|streams|detectors)(?:\.\w+)+) import", re.MULTILINE)


@cache
def sources() -> str:
    """All modules with compiled functions, and those from which they have their constants, in a word of 16 letters."""
    root = Path(__file__).parents[1]
    found: dict[Path, bytes] = {}
    for module in (path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        text = module.read_bytes()
        if _MARK in text:
            found[module] = text
    for name in {name.decode() for text in found.values() for name in _IMPORTED.findall(text)}:
        module = root.joinpath(*name.split(".")).with_suffix(".py")
        if module.exists():
            found[module] = module.read_bytes()
    digest = blake2b(digest_size=8)
    for module in sorted(found):
        digest.update(found[module])
    return digest.hexdigest()
