"""Why: the HTTP protocol carries a statement and its data in one body, and only a tokenizer can tell where data begins.

Pure. Bytes in, offsets out: what follows ``FORMAT Native`` is binary and is never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from schemas.errors import WarehouseError

HEAD_BYTES_MAX = 1 << 20
"""A statement's text before its data must fit in this many bytes."""


class Kind(StrEnum):
    """How a statement is carried out: streamed, read whole, fed with data, or run for its effect."""

    SELECT = "select"
    READ = "read"
    INSERT = "insert"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Statement:
    """``sql`` is what goes to the engine; for an insert with data, without FORMAT and data, which starts at ``data_at``."""

    kind: Kind
    keyword: str
    sql: str
    format: str | None = None
    data_at: int | None = None


class MalformedStatement(WarehouseError):
    """The statement cannot be split; carries ClickHouse's own code for a syntax error."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: bytes
    start: int
    end: int
    depth: int

    @property
    def word(self) -> str:
        return self.text.upper().decode("ascii", "replace")


_SKIP = re.compile(rb"(?:\s+|--[^\n]*|\#[ !][^\n]*)")
_QUOTED = {
    ord("'"): re.compile(rb"'(?:[^'\\]++|\\.|'')*+'", re.DOTALL),
    ord('"'): re.compile(rb'"(?:[^"\\]++|\\.|"")*+"', re.DOTALL),
    ord("`"): re.compile(rb"`(?:[^`\\]++|\\.|``)*+`", re.DOTALL),
}
_WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+")
_HEREDOC = re.compile(rb"\$[A-Za-z0-9_]*\$")
_OPEN, _CLOSE = b"([{", b")]}"
_SELECTS = {"SELECT", "WITH", "FROM"}
_READS = {"SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK"}


def parse(body: bytes) -> Statement:
    """Split one request body. Raises :class:`MalformedStatement` for an empty one or for several statements."""
    tokens = _tokens(body)
    first = next((token for token in tokens if token.text != b"("), None)
    if first is None:
        raise MalformedStatement("Empty query")
    if first.word == "INSERT":
        return _insert(body, tokens)
    kind = Kind.SELECT if first.word in _SELECTS else Kind.READ if first.word in _READS else Kind.COMMAND
    found: str | None = None
    candidate: str | None = None
    previous: _Token | None = None
    end = len(body)
    for token in tokens:
        if token.text == b";" and token.depth == 0:
            end = token.start
            if next(tokens, None) is not None:
                raise MalformedStatement("Multi-statements are not allowed")
            break
        if token.depth == 0:
            if candidate is not None and token.word != "SETTINGS":
                candidate = None  # something else follows: it was an expression, not the clause
            elif candidate is not None:
                found, candidate = candidate, None
            if previous is not None and previous.word == "FORMAT" and _WORD.fullmatch(token.text):
                candidate = token.text.decode("ascii", "replace")
        previous = token
    return Statement(kind, first.word, _text(body[:end]), candidate or found)


def _insert(body: bytes, tokens: Iterator[_Token]) -> Statement:
    in_name = False
    for token in tokens:
        if token.depth > 0:
            continue
        word = token.word
        if word in ("INTO", "TABLE", "FUNCTION") or token.text == b".":
            in_name = True
            continue
        if in_name:  # a table may be called format or values
            in_name = False
            continue
        if word in ("SELECT", "WITH", "FROM", "WATCH"):
            return Statement(Kind.COMMAND, "INSERT", _text(body))
        if word == "VALUES":
            return Statement(Kind.INSERT, "INSERT", _text(body[: token.start]), "Values", token.end)
        if word == "FORMAT":
            name = next(tokens, None)
            if name is None:
                break
            sql = _text(body[: token.start])
            return Statement(
                Kind.INSERT, "INSERT", sql, name.text.decode("ascii", "replace"), _data_start(body, name.end)
            )
    return Statement(Kind.COMMAND, "INSERT", _text(body))


def _data_start(body: bytes, at: int) -> int:
    """As ClickHouse does: data starts after the first newline, else after the blanks that follow the format's name."""
    while at < len(body) and body[at] in b" \t\f":
        at += 1
    if body[at : at + 1] == b";":  # `FORMAT CSV;` before a newline
        at += 1
    if body[at : at + 1] == b"\r":
        at += 1
    if body[at : at + 1] == b"\n":
        at += 1
    return at


def _text(sql: bytes) -> str:
    try:
        return sql.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedStatement(f"The statement is not UTF-8 at byte {error.start}") from None


def _tokens(body: bytes) -> Iterator[_Token]:
    at, depth = 0, 0
    while at < len(body):
        skipped = _SKIP.match(body, at)
        if skipped:
            at = skipped.end()
            continue
        if body.startswith(b"/*", at):
            at = _comment_end(body, at)
            continue
        end = _token_end(body, at)
        text = body[at:end]
        if text in (b")", b"]", b"}"):
            depth -= 1
        yield _Token(text, at, end, depth)
        if text in (b"(", b"[", b"{"):
            depth += 1
        at = end


def _token_end(body: bytes, at: int) -> int:
    quoted = _QUOTED.get(body[at])
    if quoted is not None:
        match = quoted.match(body, at)
        return match.end() if match else len(body)
    word = _WORD.match(body, at)
    if word:
        return word.end()
    heredoc = _HEREDOC.match(body, at)
    if heredoc:
        closing = body.find(heredoc.group(), heredoc.end())
        if closing >= 0:
            return closing + len(heredoc.group())
    return at + 1


def _comment_end(body: bytes, at: int) -> int:
    depth = 0
    for match in re.compile(rb"/\*|\*/").finditer(body, at):
        depth += 1 if match.group() == b"/*" else -1
        if depth == 0:
            return match.end()
    return len(body)
