"""Loops over bytes, compiled to machine code at their first use and kept for the next process.

What numpy cannot do at once (look at each byte of a JSON document, walk through a record batch) costs microseconds an
event in Python and tens of nanoseconds so. Nothing else is compiled. These functions know no types but numbers and arrays
and make no arrays, so that none is counted (which would be a third of their time); they hold no lock of the interpreter;
and nobody checks their bounds: each checks its own, against the end it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from glob import escape
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import caching, cgutils, types
from numba.extending import intrinsic

from schemas.sources import sources

Function = TypeVar("Function", bound=Callable[..., Any])
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}


class _Kept(caching.IndexDataCacheFile):  # type: ignore[misc]
    """A compiled function's files, each under the digest of what it was made from and for.

    numba numbers them, and an index says which is which; of two processes that compile at the same moment one writes the
    file and the other the index, and whoever comes later is handed machine code for other arguments, for good. Nor does it
    look at the modules of which a function has taken something in: here no file is of use that was not made from all
    :func:`sources`.
    """

    def __init__(self, cache_path: str, filename_base: str, source_stamp: Any) -> None:
        super().__init__(cache_path, filename_base, source_stamp)
        self._base = filename_base
        self._made_from = _digest((self._version, source_stamp, sources()))

    def save(self, key: Any, data: Any) -> None:
        for path in Path(self._cache_path).glob(f"{escape(self._base)}.*"):
            if not path.name.startswith(f"{self._base}.{self._made_from}."):
                path.unlink(missing_ok=True)
        self._save_data(self._name(key), data)

    def load(self, key: Any) -> Any:
        try:
            return self._load_data(self._name(key))
        except FileNotFoundError:
            return None

    def _name(self, key: Any) -> str:
        return f"{self._base}.{self._made_from}.{_digest(key)}.nbc"


def _digest(value: Any) -> str:
    return blake2b(repr(value).encode(), digest_size=8).hexdigest()


def compiled(function: Function) -> Function:
    """``function`` as machine code, made at its first call with each kind of arguments."""
    return _made(function, **_OPTIONS)


def inlined(function: Function) -> Function:
    """As :func:`compiled`, and part of whatever compiled function calls it: an array costs seven words at each call. For a
    function with many arguments that is called from one place, in a loop."""
    return _made(function, forceinline=True, **_OPTIONS)


def _made(function: Function, **options: Any) -> Function:
    try:
        made = numba.njit(cache=True, **options)(function)
        kept = made._cache
        kept._cache_file = _Kept(
            kept.cache_path, kept._impl.filename_base, kept._impl.locator.get_source_stamp()
        )
    except RuntimeError:  # neither the code's folder nor the user's cache can be written
        made = numba.njit(**options)(function)
    return cast(Function, made)


@intrinsic  # type: ignore[untyped-decorator]
def four(_context: Any, buffer: Any, _at: Any) -> Any:
    """Four bytes of ``buffer`` from ``at`` on as one uint32, the first byte lowest. All four must be there."""
    return types.uint32(buffer, types.int64), _load(32)


@intrinsic  # type: ignore[untyped-decorator]
def eight(_context: Any, buffer: Any, _at: Any) -> Any:
    """Eight bytes of ``buffer`` from ``at`` on as one uint64, the first byte lowest. All eight must be there."""
    return types.uint64(buffer, types.int64), _load(64)


def _load(bits: int) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        word = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(bits).as_pointer())
        return builder.load(word, align=1)

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def put_eight(_context: Any, buffer: Any, _at: Any, _word: Any) -> Any:
    """Write one uint64 to ``buffer`` from ``at`` on, the lowest byte first. There must be room for all eight."""
    return types.void(buffer, types.int64, types.uint64), _store(64)


@intrinsic  # type: ignore[untyped-decorator]
def put_real(_context: Any, buffer: Any, _at: Any, _value: Any) -> Any:
    """Write one double to ``buffer`` from ``at`` on as eight bytes, the lowest first. There must be room for all."""
    return types.void(buffer, types.int64, types.float64), _store(0)


def _store(bits: int) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        kind = ir.IntType(bits) if bits else ir.DoubleType()
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), kind.as_pointer())
        builder.store(arguments[2], place, align=1)
        return context.get_dummy_value()

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def product(_context: Any, _a: Any, _b: Any) -> Any:
    """High and low half of the product of two uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        whole = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        high = builder.trunc(builder.lshr(whole, wide(64)), word)
        return context.make_tuple(builder, signature.return_type, [high, builder.trunc(whole, word)])

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def leading_zeros(_context: Any, _word: Any) -> Any:
    """Bits above the highest that is set in a uint64; 64 of zero."""
    return types.int64(types.uint64), lambda _, builder, __, arguments: builder.ctlz(
        arguments[0], ir.IntType(1)(0)
    )


@intrinsic  # type: ignore[untyped-decorator]
def real_of(_context: Any, _word: Any) -> Any:
    """The double whose bits are those of a uint64."""
    return types.float64(types.uint64), lambda _, builder, __, arguments: builder.bitcast(
        arguments[0], ir.DoubleType()
    )


@intrinsic  # type: ignore[untyped-decorator]
def fetch_early(_context: Any, array: Any, _at: Any) -> Any:
    """Have the machine bring the item at ``at``, which need not be there, while something else is done: from places all over a
    large array nothing comes by itself."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(builder.gep(made.data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # To be read, to stay in all caches, data.
        builder.call(fetch, [place, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def word_of(_context: Any, _address: Any) -> Any:
    """The int64 at an address of memory, which somebody else keeps."""
    return types.int64(types.int64), _load_of(64)


@intrinsic  # type: ignore[untyped-decorator]
def half_of(_context: Any, _address: Any) -> Any:
    """The int32 at an address of memory, which somebody else keeps."""
    return types.int32(types.int64), _load_of(32)


@intrinsic  # type: ignore[untyped-decorator]
def byte_of(_context: Any, _address: Any) -> Any:
    """The byte at an address of memory, which somebody else keeps."""
    return types.uint8(types.int64), _load_of(8)


def _load_of(bits: int) -> Callable[..., Any]:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
        return builder.load(place, align=1)

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def copy_of(_context: Any, into: Any, _at: Any, _address: Any, _items: Any) -> Any:
    """Copy so many items from an address of memory to ``into``, from ``at`` on. There must be room."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        size = context.get_abi_sizeof(array.data.type.pointee)
        source = builder.inttoptr(arguments[2], ir.IntType(8).as_pointer())
        cgutils.raw_memcpy(builder, builder.gep(array.data, [arguments[1]]), source, arguments[3], size)
        return context.get_dummy_value()

    return types.void(into, types.int64, types.int64, types.int64), generate
