"""Functions of numbers: `abs` and `round`.

The hard part is the far ends: the least int64 has no absolute value, and Arrow refuses to round a float so
large that there is nothing to round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflow.compute.arithmetic import abs_kernel, plain_kernel
from dataflow.compute.casts import cast_kernel
from dataflow.compute.evaluate import Bad, Kernel, arrow
from dataflow.errors import TypeMismatchError
from dataflow.schema import type_name

t = pa.types
Typed = tuple[pa.DataType, Kernel]
"""A function bound to its input's type: the type of the result, and the kernel."""
DIGITS_MAX = 15
"""A float has no more digits, and scaling by more could overflow where there is something to round."""
FLOAT_WHOLE_FROM = 2.0**52
"""From here on every float is a whole number."""
FLOAT_HUGE_FROM = 1e300
"""From here on rounding away digits before the point may overflow, so it is left alone."""


def absolute(source: pa.DataType, options: tuple[Any, ...], text: str) -> Typed:
    """`abs`: signed integers give int64, others keep their type."""
    if not t.is_signed_integer(source):
        return source, plain_kernel("abs")
    kernel = abs_kernel(text)
    if source == pa.int64():
        return source, kernel
    return pa.int64(), lambda args, num_rows, bad: kernel([args[0].cast(pa.int64())], num_rows, bad)


def rounded(source: pa.DataType, options: tuple[Any, ...], text: str) -> Typed:
    """`round`: halves go to the even neighbour."""
    import pyarrow.compute as pc

    (digits,) = options
    if not -DIGITS_MAX <= digits <= DIGITS_MAX:
        raise TypeMismatchError(f"`{text}`: numbers are rounded to at most {DIGITS_MAX} digits")
    if t.is_integer(source):
        if digits < 0:
            raise TypeMismatchError(f"`{text}`: integers are not rounded", help="use `x // 100 * 100`")
        return source, lambda args, num_rows, bad: args[0]
    rounding = pc.RoundOptions(digits, "half_to_even")
    if t.is_decimal(source):
        return source, _round_decimals(source, rounding, text)
    kernel = _round_floats(digits, rounding)
    if t.is_float16(source):
        return pa.float64(), lambda args, num_rows, bad: kernel([args[0].cast(pa.float64())], num_rows, bad)
    return source, kernel


def _round_floats(digits: int, rounding: object) -> Kernel:
    call = arrow("round")
    limit = FLOAT_WHOLE_FROM if digits >= 0 else FLOAT_HUGE_FROM

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        try:
            return call(args, rounding)
        except pa.ArrowInvalid:  # it overflows where there is nothing to round
            values = args[0]
            large = arrow("greater_equal")([arrow("abs")([values]), pa.scalar(limit, pa.float64())])
            rest = arrow("if_else")([large, pa.scalar(0.0, values.type), values])
            return arrow("if_else")([large, values, call([rest], rounding)])

    return kernel


def _round_decimals(source: pa.DataType, rounding: object, text: str) -> Kernel:
    """With a digit more, since 99.95 may round to 100.0 (which Arrow would wrap), and back with a check."""
    if source.precision >= 76:
        raise TypeMismatchError(f"`{text}`: {type_name(source)} has no digit left to round up into")
    make = pa.decimal128 if source.precision < 38 and t.is_decimal128(source) else pa.decimal256
    wide = make(source.precision + 1, source.scale)
    call, narrow = arrow("round"), cast_kernel(wide, source, text)
    return lambda args, num_rows, bad: narrow([call([args[0].cast(wide)], rounding)], num_rows, bad)
