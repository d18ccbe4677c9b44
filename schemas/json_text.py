"""The pieces JSON is made of, read from bytes by compiled code: blanks, texts, numbers, names looked up in a table.

Each gives up (``FAILED``) on what is rare or doubtful, such as escapes or twenty digits: whoever calls it then hands the
document to a full decoder. So these accept a part of JSON only, and what they accept means what it always means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, eight, leading_zeros, product, real_of
from schemas.spans import Spans

FAILED = -1

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
#: A number of the machine: int to Python, np.int64 to numpy.
Whole = Any

_EXACT_POWER = 22
#: In each byte a 1, and the highest bit.
_ONES, _HIGHS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_POWERS = np.array([10.0**q for q in range(_EXACT_POWER + 1)])
#: Powers of ten to 128 bits, cut off: 10**q lies in [high * 2**64 + low, ... + 1) * 2**(exponent - 127).
_Q_MIN, _Q_MAX = -300, 300


def _power(q: int) -> tuple[int, int, int]:
    top, bottom = (10**q, 1) if q >= 0 else (1, 10**-q)
    exponent = top.bit_length() - bottom.bit_length()
    if (top << max(-exponent, 0)) < (bottom << max(exponent, 0)):
        exponent -= 1
    shift = 127 - exponent
    whole = (top << max(shift, 0)) // (bottom << max(-shift, 0))
    return whole >> 64, whole & (2**64 - 1), exponent


_TABLE = [_power(q) for q in range(_Q_MIN, _Q_MAX + 1)]
_HIGH = np.array([high for high, _, _ in _TABLE], np.uint64)
_LOW = np.array([low for _, low, _ in _TABLE], np.uint64)
_EXPONENT = np.array([exponent for _, _, exponent in _TABLE], np.int64)


@compiled
def blank(buffer: Bytes, at: int, end: int) -> int:
    """The first place from ``at`` on that is no white space; ``end`` if there is none."""
    while at < end and (buffer[at] == 32 or buffer[at] == 10 or buffer[at] == 13 or buffer[at] == 9):
        at += 1
    return at


@compiled
def punctuation(buffer: Bytes, at: int, end: int, wanted: int) -> int:
    """After ``wanted``, which may have blanks around it. FAILED: something else is there."""
    if at < end and buffer[at] != wanted:
        at = blank(buffer, at, end)
    if at >= end or buffer[at] != wanted:
        return FAILED
    at += 1
    return blank(buffer, at, end) if at < end and buffer[at] <= 32 else at


@compiled
def text_end(buffer: Bytes, at: int, end: int) -> int:
    """Where the quote is that ends the text from ``at`` on. FAILED: it has escapes, or is not ASCII."""
    while at + 8 <= end:
        word = eight(buffer, at)
        quote, escape = word ^ (_ONES * np.uint64(34)), word ^ (_ONES * np.uint64(92))
        # The high bit of each byte that is a quote, an escape, below a blank, or no ASCII.
        odd = (quote - _ONES) | (escape - _ONES) | (word - _ONES * np.uint64(32)) | word
        if odd & _HIGHS:
            break
        at += 8
    while at < end:
        c = buffer[at]
        if c == 34:
            return at
        if c == 92 or c < 32 or c >= 128:
            return FAILED
        at += 1
    return FAILED


@compiled
def name_end(buffer: Bytes, at: int, end: int) -> int:
    """Like ``text_end``, of a text of any script: to be compared with known ones, for its coding is not checked."""
    while at < end:
        c = buffer[at]
        if c == 34:
            return at
        if c == 92 or c < 32:
            return FAILED
        at += 1
    return FAILED


@compiled
def text_size(buffer: Bytes, at: int, end: int) -> tuple[Whole, Whole]:
    """Where the quote is that ends the text from ``at`` on, and how many characters it has, of any script. The place is
    FAILED where it has escapes, or is no UTF-8."""
    stop = text_end(buffer, at, end)
    if stop >= 0:
        return stop, stop - at
    chars = 0
    while at < end:
        c = buffer[at]
        if c == 34:
            return at, chars
        if c == 92 or c < 32:
            break
        more = 0 if c < 128 else 1 if 194 <= c < 224 else 2 if 224 <= c < 240 else 3 if 240 <= c < 245 else -1
        if more < 0 or at + more >= end:
            break
        for i in range(1, more + 1):
            if buffer[at + i] & 192 != 128:
                more = -1
        second = buffer[at + 1] if more > 0 else 0
        overlong = (c == 224 and second < 160) or (c == 240 and second < 144)
        if more < 0 or overlong or (c == 237 and second > 159) or (c == 244 and second > 143):
            break
        at += 1 + more
        chars += 1
    return np.int64(FAILED), np.int64(0)


@compiled
def equal(a: Bytes, at: int, b: Bytes, start: int, length: int) -> bool:
    """Whether ``length`` bytes are the same."""
    i = 0
    while i + 8 <= length:
        if eight(a, at + i) != eight(b, start + i):
            return False
        i += 8
    while i < length:
        if a[at + i] != b[start + i]:
            return False
        i += 1
    return True


@compiled
def is_null(buffer: Bytes, at: int, end: int) -> bool:
    """Whether ``null`` begins here."""
    return (
        at + 4 <= end
        and buffer[at] == 110
        and buffer[at + 1] == 117
        and buffer[at + 2] == 108
        and buffer[at + 3] == 108
    )


@compiled
def _scaled(digits: np.uint64, q: int) -> float:
    """The double nearest to digits * 10**q, or -1.0 where 128 bits do not tell it from its neighbour.

    Lemire, Number parsing at a gigabyte per second, Software: Practice and Experience 51 (2021).
    """
    zeros = leading_zeros(digits)
    digits <<= np.uint64(zeros)
    high, low = product(digits, _HIGH[q - _Q_MIN])
    nine = np.uint64(0x1FF)
    if high & nine == nine and low + digits < low:
        more, rest = product(digits, _LOW[q - _Q_MIN])
        total = low + more
        if total < low:
            high += np.uint64(1)
        if high & nine == nine and total == np.uint64(0xFFFFFFFFFFFFFFFF) and rest + digits < rest:
            return -1.0
        low = total
    shift = np.int64(high >> np.uint64(63)) + 9
    kept = high >> np.uint64(shift)
    if low == np.uint64(0) and high & nine == np.uint64(0) and kept & np.uint64(3) == np.uint64(1):
        return -1.0
    kept = (kept + (kept & np.uint64(1))) >> np.uint64(1)
    # Times a power of two that is a double itself, for q is far from where there are none.
    power = _EXPONENT[q - _Q_MIN] + 2 - zeros + shift
    scale: float = real_of(np.uint64(power + 1023) << np.uint64(52))
    return float(kept) * scale


@compiled
def _eight_digits(word: np.uint64) -> bool:
    """Whether all eight bytes are digits."""
    high = np.uint64(0xF0F0F0F0F0F0F0F0)
    zeros = np.uint64(0x3030303030303030)
    others = ((word & high) ^ zeros) | (((word + np.uint64(0x0606060606060606)) & high) ^ zeros)
    return bool(others == np.uint64(0))


@compiled
def _value_of(word: np.uint64) -> np.uint64:
    """The number that eight bytes from 0 to 9 make, the first in the lowest: pairs, fours, all."""
    word = word * np.uint64(10) + (word >> np.uint64(8))
    pairs = word & np.uint64(0x000000FF000000FF)
    others = (word >> np.uint64(16)) & np.uint64(0x000000FF000000FF)
    first = pairs * np.uint64(0x000F424000000064)
    second = others * np.uint64(0x0000271000000001)
    return (first + second) >> np.uint64(32)


@compiled
def number(buffer: Bytes, at: int, end: int) -> tuple[Whole, float, Whole]:
    """(place after it, its value, its value as a whole number) of a JSON number.

    The place is FAILED where it is none or doubtful; ``-2**63`` stands for no whole number (it has a dot or an exponent,
    or more digits than 18).
    """
    none = np.int64(-(2**63))
    negative = at < end and buffer[at] == 45
    at += int(negative)
    first = at
    digits, significant = np.uint64(0), 0
    while at < end and 48 <= buffer[at] <= 57:
        digits = digits * np.uint64(10) + np.uint64(buffer[at] - 48)
        significant += significant > 0 or digits != np.uint64(0)
        at += 1
    if at == first or (buffer[first] == 48 and at > first + 1):
        return FAILED, 0.0, none
    whole, q = True, 0
    if at < end and buffer[at] == 46:
        whole, at = False, at + 1
        point = at
        # Zeros in front do not count as digits.
        while digits == np.uint64(0) and at < end and buffer[at] == 48:
            at += 1
        while at + 8 <= end and significant <= 11:
            word = eight(buffer, at)
            if not _eight_digits(word):
                break
            digits = digits * np.uint64(100_000_000) + _value_of(word - np.uint64(0x3030303030303030))
            significant += 8
            at += 8
        while at < end and 48 <= buffer[at] <= 57:
            digits = digits * np.uint64(10) + np.uint64(buffer[at] - 48)
            significant += significant > 0 or digits != np.uint64(0)
            at += 1
        q = point - at
        if q == 0:
            return FAILED, 0.0, none
    if significant > 19:
        return FAILED, 0.0, none
    if at < end and (buffer[at] == 101 or buffer[at] == 69):
        whole, at = False, at + 1
        down = at < end and buffer[at] == 45
        if at < end and (buffer[at] == 45 or buffer[at] == 43):
            at += 1
        first, exponent = at, 0
        while at < end and 48 <= buffer[at] <= 57 and at < first + 4:
            exponent = exponent * 10 + (buffer[at] - 48)
            at += 1
        if at == first or (at < end and 48 <= buffer[at] <= 57):
            return FAILED, 0.0, none
        q += -exponent if down else exponent
    if digits == np.uint64(0):
        # Of a whole negative zero decoders differ in what they make.
        if whole:
            return (FAILED if negative else at), 0.0, np.int64(0)
        return at, (-0.0 if negative else 0.0), none
    if q == 0:
        value = float(digits)
    elif digits <= np.uint64(2**53) and -22 <= q <= 22:
        value = float(digits) * _POWERS[q] if q >= 0 else float(digits) / _POWERS[-q]
    elif _Q_MIN + 20 <= q <= _Q_MAX - 20:
        value = _scaled(digits, q)
        if value < 0:
            return FAILED, 0.0, none
    else:
        return FAILED, 0.0, none
    exact = none
    if whole and significant <= 18:
        exact = -np.int64(digits) if negative else np.int64(digits)
    return at, (-value if negative else value), exact


@compiled
def _slot(buffer: Bytes, start: int, length: int, context: int, mask: int) -> Whole:
    h = np.uint64(context + 1) * np.uint64(0x9E3779B97F4A7C15)
    for i in range(length):
        h = (h ^ np.uint64(buffer[start + i])) * np.uint64(0x100000001B3)
    h ^= h >> np.uint64(29)
    return np.int64(h & np.uint64(mask))


@compiled
def _fill(slots: Integers, names: Bytes, start: Integers, length: Integers, context: Integers) -> None:
    mask = len(slots) - 1
    for i in range(len(start)):
        at = _slot(names, start[i], length[i], context[i], mask)
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at] = i


class Table(NamedTuple):
    """Names by their bytes and a context: open addressing, ``slots`` hold a name's number, or -1."""

    slots: Integers
    text: Bytes
    start: Integers
    length: Integers
    context: Integers


def table_of(names: Sequence[bytes], contexts: Sequence[int]) -> Table:
    """A table of these; a name's number is its place."""
    spans = Spans.of(names)
    table = Table(
        np.full(1 << (2 * len(names)).bit_length(), -1, np.int64), spans.buffer, spans.start, spans.length,
        np.array(contexts, np.int64),
    )  # fmt: skip
    _fill(*table)
    return table


@compiled
def find(table: Table, buffer: Bytes, start: int, length: int, context: int) -> Whole:
    """The number of this name within its context, or -1."""
    mask = len(table.slots) - 1
    at = _slot(buffer, start, length, context, mask)
    while table.slots[at] >= 0:
        i = table.slots[at]
        known = table.context[i] == context and table.length[i] == length
        if known and equal(table.text, table.start[i], buffer, start, length):
            return i
        at = (at + 1) & mask
    return -1


@compiled
def is_name(table: Table, buffer: Bytes, at: int, end: int, name: int) -> bool:
    """Whether the text that begins here is this name; its quote follows."""
    stop = at + table.length[name]
    if stop >= end or buffer[stop] != 34:
        return False
    return equal(buffer, at, table.text, table.start[name], stop - at)


@compiled
def name_number(table: Table, buffer: Bytes, at: int, end: int, context: int) -> Whole:
    """The number of the name that begins here. FAILED: it is none of the context's."""
    stop = name_end(buffer, at, end)
    return find(table, buffer, at, stop - at, context) if stop >= 0 else FAILED
