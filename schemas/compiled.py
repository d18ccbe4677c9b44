"""Loops over bytes, compiled to machine code at their first use and kept for the next process.

What numpy cannot do at once (look at each byte of a JSON document, walk through a record batch) costs microseconds an
event in Python and tens of nanoseconds so. Nothing else is compiled. These functions know no types but numbers and arrays
and make no arrays, so that none is counted (which would be a third of their time); they hold no lock of the interpreter;
and nobody checks their bounds: each checks its own, against the end it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import caching, types
from numba.extending import intrinsic

from schemas.sources import sources

Function = TypeVar("Function", bound=Callable[..., Any])
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}


_own_stamp = caching._SourceFileBackedLocatorMixin.get_source_stamp


def _stamp(locator: Any) -> Any:
    """Kept code is of use as long as no module with such functions has changed: numba looks at the function's own only, and
    would go on with what that had taken in of another one's."""
    return (_own_stamp(locator), sources())


caching._SourceFileBackedLocatorMixin.get_source_stamp = _stamp


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
