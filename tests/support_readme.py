"""A page of documentation taken apart, so that tests can run what it tells its readers to type."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Page:
    """``blocks``: (language, text) of its fenced blocks, in order; ``lines``: every line a reader could type."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()
        self.folder = path.parent
        fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
        self.blocks: list[tuple[str, str]] = fenced.findall(self.text)
        inline: list[str] = re.findall(r"`([^`\n]+)`", fenced.sub("", self.text))
        typed = [line for kind, text in self.blocks if kind == "sh" for line in text.splitlines()]
        self.lines = [line.split(" #")[0].strip() for line in typed] + inline

    def block(self, kind: str, holding: str = "") -> str:
        """The one block of a language that holds a text."""
        (found,) = [text for its_kind, text in self.blocks if its_kind == kind and holding in text]
        return found

    @property
    def commands(self) -> list[str]:
        """Every ``driftline ...``."""
        return sorted({line for line in self.lines if line.startswith("driftline ")})

    @property
    def queries(self) -> list[str]:
        """Every SQL statement."""
        blocks = [text for kind, text in self.blocks if kind == "sql"]
        return [query.strip() for text in blocks for query in text.split(";\n") if query.strip()]
