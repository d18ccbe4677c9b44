"""Why: what goes over the wire beside SQL: content encodings and ClickHouse's error vocabulary.

Pure. Encoders and decoders are incremental, and decoders accept MANY frames in one body: clickhouse-connect
compresses each block as a frame of its own, and a decoder that stops after the first loses all the others silently.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, Protocol

SUPPORTED_ENCODINGS = ("lz4", "zstd", "gzip", "deflate", "br")


class WireError(Exception):
    """A request refused with a ClickHouse error code; becomes an HTTP response, never leaves this server."""

    def __init__(self, code: int, name: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status if status is not None else http_status(code)
        self.text = f"Code: {code}. DB::Exception: {message} ({name})"


class Encoder(Protocol):
    """One response body's compressor."""

    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class _Frames:
    """Decodes any number of concatenated frames; ``make`` builds a decompressor for one frame."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._current: Any = None

    def feed(self, data: bytes) -> bytes:
        out = []
        while data:
            if self._current is None:
                self._current = self._make()
            out.append(self._current.decompress(data))
            if not self._current.eof:
                break
            data = self._current.unused_data or b""
            self._current = None
        return b"".join(out)

    def complete(self) -> bool:
        return self._current is None


class _Brotli:
    def __init__(self) -> None:
        self._current = _module("brotli").Decompressor()

    def feed(self, data: bytes) -> bytes:
        return bytes(self._current.process(data))

    def complete(self) -> bool:
        return bool(self._current.is_finished())


class Decoder:
    """A request body's decoder. Any damage is a 400 with code 271 (CANNOT_DECOMPRESS)."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._frames: _Frames | _Brotli | None
        match encoding:
            case "" | "identity":
                self._frames = None
            case "gzip" | "deflate":
                bits = 31 if encoding == "gzip" else 15
                self._frames = _Frames(lambda: zlib.decompressobj(bits))
            case "lz4":
                self._frames = _Frames(_module("lz4.frame").LZ4FrameDecompressor)
            case "zstd":
                self._frames = _Frames(_module("backports.zstd").ZstdDecompressor)
            case "br":
                self._frames = _Brotli()
            case _:
                raise WireError(
                    48, "NOT_IMPLEMENTED", f"Content-Encoding {encoding} is not one of {SUPPORTED_ENCODINGS}"
                )

    def feed(self, data: bytes) -> bytes:
        if self._frames is None:
            return data
        try:
            return self._frames.feed(data)
        except Exception as error:  # noqa: BLE001 - every codec has an exception type of its own
            raise self._damaged(str(error)) from None

    def finish(self) -> None:
        """Raise when the body ended inside a frame: a cut-off insert must store nothing."""
        if self._frames is not None and not self._frames.complete():
            raise self._damaged("the body ends inside a compressed frame")

    def _damaged(self, why: str) -> WireError:
        return WireError(
            271, "CANNOT_DECOMPRESS", f"Cannot decompress the {self._encoding} request body: {why}", 400
        )


class _Plain:
    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class _Zlib:
    def __init__(self, bits: int) -> None:
        self._compressor = zlib.compressobj(3, zlib.DEFLATED, bits)

    def feed(self, data: bytes) -> bytes:
        return self._compressor.compress(data)

    def finish(self) -> bytes:
        return self._compressor.flush()


class _Lz4:
    def __init__(self) -> None:
        self._compressor = _module("lz4.frame").LZ4FrameCompressor()
        self._head: bytes = self._compressor.begin()

    def feed(self, data: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + bytes(self._compressor.compress(data))

    def finish(self) -> bytes:
        return self._head + bytes(self._compressor.flush())


class _Zstd:
    def __init__(self) -> None:
        self._compressor = _module("backports.zstd").ZstdCompressor(level=1)

    def feed(self, data: bytes) -> bytes:
        return bytes(self._compressor.compress(data))

    def finish(self) -> bytes:
        return bytes(self._compressor.flush())


def choose_encoding(accept_encoding: str) -> str:
    """The first encoding in the client's own order that we can write; empty for none."""
    for item in accept_encoding.split(","):
        name, _, quality = item.strip().partition(";")
        if name in ("lz4", "zstd", "gzip", "deflate") and quality.replace(" ", "") not in ("q=0", "q=0.0"):
            return name
    return ""


def encoder(encoding: str) -> Encoder:
    """A compressor for one of the names :func:`choose_encoding` gives."""
    match encoding:
        case "lz4":
            return _Lz4()
        case "zstd":
            return _Zstd()
        case "gzip":
            return _Zlib(31)
        case "deflate":
            return _Zlib(15)
        case _:
            return _Plain()


_CODE = re.compile(r"Code: (\d+)\. DB::Exception")
_BAD_REQUEST = {6, 26, 27, 33, 38, 41, 53, 62, 69, 70, 72, 117, 130, 131, 271, 376, 456, 457}
_NOT_FOUND = {16, 46, 47, 50, 56, 60, 73, 81, 115, 372}


def http_status(code: int) -> int:
    """The HTTP status a ClickHouse server gives an error code."""
    if code in _BAD_REQUEST:
        return 400
    if code in _NOT_FOUND:
        return 404
    return {
        194: 401,
        192: 403,
        193: 403,
        516: 403,
        497: 403,
        164: 403,
        48: 501,
        209: 503,
        439: 503,
        373: 500,
    }.get(code, 500)


def engine_error(message: str, version: str) -> tuple[int, str]:
    """(code, text) of an engine's exception message, text as a server would word it; 1002 when it has no code."""
    found = _CODE.search(message)
    if found is None:
        return 1002, f"Code: 1002. DB::Exception: {message.strip()} (UNKNOWN_EXCEPTION) (version {version})\n"
    text = message[found.start() :].strip()
    if "(version " not in text:
        text += f" (version {version})"
    return int(found.group(1)), text + "\n"


def exception_trailer(tag: str, text: str) -> bytes:
    """What a server appends to a body already under way when the query fails, so that a client can tell."""
    body = text.encode()
    return b"\r\n__exception__\r\n%b\r\n%b\n%d %b\r\n__exception__\r\n" % (
        tag.encode(),
        body,
        len(body),
        tag.encode(),
    )


def _module(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise WireError(
            48, "NOT_IMPLEMENTED", f"this encoding needs the Python package {name.partition('.')[0]}"
        ) from None
