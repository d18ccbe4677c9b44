"""How state is compressed (zstd): at the one level that pays, and never unpacked to more than the reader is ready for."""

from __future__ import annotations

from functools import lru_cache

import zstandard

#: Higher ones save little, and cost a multiple.
_LEVEL = 1
#: With what compressed bytes begin.
MARK = zstandard.FRAME_HEADER
CompressionError = zstandard.ZstdError
#: What may be said to be in there: nothing is larger than twice what a task has, which is bounded in memory.
BYTES_MAX = 2**31


def compressed(data: bytes | memoryview) -> bytes:
    """All of it. Called by one thread at a time, the core's."""
    return _compressor().compress(data)


def compressed_numbers(data: bytes | memoryview) -> bytes:
    """The same of one byte of each of many numbers, which hardly repeat what came before but come in unequal numbers: to look for
    only the longest repetitions takes a third of the time, and the rest is the smaller for it."""
    return _of_numbers().compress(data)


def expanded(data: bytes, most: int = BYTES_MAX) -> bytes:
    """Inverse of :func:`compressed`. Raises CompressionError, also where it would be more than ``most`` bytes."""
    size = zstandard.frame_content_size(data)
    if size > most:
        raise CompressionError(f"{size} bytes, more than {most}")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(most, 1) if size < 0 else 0)


@lru_cache(maxsize=1)
def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_LEVEL)


@lru_cache(maxsize=1)
def _of_numbers() -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, min_match=6, hash_log=6)
    return zstandard.ZstdCompressor(compression_params=parameters)
