"""Casts between types, on whole columns; a value that has no equal in the new type makes the row bad.

Arrow's safe casts raise when one value of a batch does not fit, and tell not which. The hard part is that the
answer must not depend on the batch: whatever finds the bad rows must agree with the fast path exactly. So
numbers and times are compared with exact bounds, and a text is refused only where Arrow itself refuses it:
texts of the wrong shape are set aside as a column, and only if that is not enough, the rest is tried in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.compute.arithmetic import BAD_CAST, TIME_RANGE, plain_kernel, view_kernel
from dataflow.compute.calendar import DAY_SECONDS, TICKS_PER_SECOND, within_calendar
from dataflow.compute.evaluate import Bad, Kernel, arrow, as_array, mask_of, null_where_bad, valid_mask
from dataflow.errors import TypeMismatchError
from dataflow.event_time import is_time_type, values_of
from dataflow.message import BoolArray
from dataflow.schema import is_number_type, is_text_type, type_name

t = pa.types

_SHAPES = {
    "integer": r"^-?[0-9]+$|^0[xX][0-9a-fA-F]+$",
    "floating": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$|^[+-]?(?i:nan(\([0-9a-z_]*\))?|inf|infinity)$",
    "boolean": r"^(?i:true|false)$|^[01]$",
    "date": r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$",
    "timestamp": r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])([ T]([01][0-9]|2[0-3]).*)?$",
    "decimal": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$",
}
"""What Arrow's parsers can accept, and perhaps a little more: they have the last word."""


def cast_kernel(source: pa.DataType, target: pa.DataType, text: str) -> Kernel:
    """The kernel for `text`, a cast from one type to another; raises TypeMismatchError where there is none."""
    if t.is_integer(source) and t.is_integer(target):
        return _guarded(target, text, lambda values: _integers_outside(values, target))
    if t.is_floating(source) and t.is_integer(target):
        return _float_to_integer(source, target, text)
    if is_number_type(source) and t.is_floating(target):
        return _unsafe(target)
    if t.is_integer(source) and t.is_decimal(target):
        return _integer_to_decimal(source, target, text)
    if (is_time_type(source) and is_time_type(target)) or (t.is_duration(source) and t.is_duration(target)):
        return _time_to_time(source, target, text)
    if is_time_type(source) and is_text_type(target):
        return within_calendar(source, plain_kernel("cast", _options(target)), text)
    if (kernel := _bits(source, target, text)) is not None:
        return kernel
    if is_text_type(source):
        return _parse(target, text)
    _check_cast_exists(source, target, text)
    return _guarded(target, text, lambda values: _refused_one_by_one(values, target))


def _check_cast_exists(source: pa.DataType, target: pa.DataType, text: str) -> None:
    try:
        pa.array([], source).cast(target)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TypeMismatchError(
            f"`{text}`: there is no cast from {type_name(source)} to {type_name(target)}",
            help='cast in two steps, as in `.cast("int64").cast("timestamp[ms]")`, if a type between them fits',
        ) from error


# ── the frame of every cast ──────────────────────────────────────────────────────────────────────────────


def _options(target: pa.DataType, **allow: bool) -> Any:
    import pyarrow.compute as pc

    return pc.CastOptions(target, **allow)


def _unsafe(target: pa.DataType) -> Kernel:
    """Numbers to floats: the nearest float, also where an integer has none of its own."""
    call, options = arrow("cast"), _options(target, allow_float_truncate=True, allow_decimal_truncate=True)
    return lambda args, num_rows, bad: call(args, options)


def _report(mask: BoolArray, target: pa.DataType, text: str, bad: list[Bad]) -> list[Bad]:
    is_time = t.is_temporal(target)
    code, why = (TIME_RANGE, "the time is out of the range of") if is_time else (BAD_CAST, "the value has no equal in")
    found = [Bad(mask, code, f"`{text}`: {why} {type_name(target)}")] if mask.any() else []
    bad.extend(found)
    return found


def _guarded(target: pa.DataType, text: str, refused: Callable[[pa.Array], BoolArray]) -> Kernel:
    """Arrow's safe cast; when it raises, `refused` tells the rows and the others are cast again."""
    call, options = arrow("cast"), _options(target)

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        try:
            return call(args, options)
        except pa.ArrowInvalid:
            values = as_array(args[0], num_rows)
            mask = refused(values) & valid_mask(values)
            return call([null_where_bad(values, _report(mask, target, text, bad))], options)

    return kernel


def _refused_one_by_one(values: pa.Array, target: pa.DataType) -> BoolArray:
    """Where Arrow refuses a value, asked for each distinct one; the way of last resort."""
    distinct = values.dictionary_encode()
    refused = []
    for one in distinct.dictionary:
        try:
            pa.array([one], values.type).cast(target)
            refused.append(False)
        except pa.ArrowInvalid:
            refused.append(True)
    return mask_of(pa.array(refused, pa.bool_()).take(distinct.indices).fill_null(False))


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────


def _integers_outside(values: pa.Array, target: pa.DataType) -> BoolArray:
    numbers = values_of(values, values.type.to_pandas_dtype())
    own, limits = np.iinfo(numbers.dtype), np.iinfo(target.to_pandas_dtype())
    outside = np.zeros(len(numbers), dtype=np.bool_)
    if limits.min > own.min:
        outside |= numbers < limits.min
    if limits.max < own.max:
        outside |= numbers > limits.max
    return outside


def _float_to_integer(source: pa.DataType, target: pa.DataType, text: str) -> Kernel:
    """Towards zero, as Python's int(); NaN, infinities and what lies outside are bad."""
    call, options = arrow("cast"), _options(target, allow_float_truncate=True)
    limits = np.iinfo(target.to_pandas_dtype())
    # Both bounds are exact floats: a whole number beyond the last that truncates into the range.
    below, above = float(limits.min) - 1, float(limits.max + 1)
    at_least = float(limits.min) if below == float(limits.min) else None

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        values = as_array(args[0], num_rows)
        if source != pa.float64():
            values = values.cast(pa.float64())
        numbers = values_of(values, np.float64)
        with np.errstate(invalid="ignore"):
            fits = (numbers >= at_least if at_least is not None else numbers > below) & (numbers < above)
        if not fits.all():
            values = null_where_bad(values, _report(~fits & valid_mask(values), target, text, bad))
        return call([values], options)

    return kernel


def _integer_to_decimal(source: pa.DataType, target: pa.DataType, text: str) -> Kernel:
    """Through the widest decimal of that scale, since Arrow asks for room for any integer."""
    width = 38 if t.is_decimal128(target) else 76
    if target.scale < 0 or target.scale + 20 > width:
        raise TypeMismatchError(f"`{text}`: a decimal made from integers has a scale from 0 to {width - 20}")
    wide = (pa.decimal128 if width == 38 else pa.decimal256)(width, target.scale)
    narrow = _guarded(target, text, lambda values: _refused_one_by_one(values, target))
    return lambda args, num_rows, bad: narrow([as_array(args[0], num_rows).cast(wide)], num_rows, bad)


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────


def _ticks_per_second(type: pa.DataType) -> tuple[int, int]:
    """How long a type's unit is: so many ticks in so many seconds."""
    if t.is_date32(type):
        return 1, DAY_SECONDS
    return (TICKS_PER_SECOND["ms"] if t.is_date64(type) else TICKS_PER_SECOND[type.unit]), 1


def _time_to_time(source: pa.DataType, target: pa.DataType, text: str) -> Kernel:
    """Between timestamps and dates, or durations: finer units are checked, coarser ones floored; a zone is a label."""
    (ticks, seconds), (to_ticks, to_seconds) = _ticks_per_second(source), _ticks_per_second(target)
    scale_up, scale_down = to_ticks * seconds, ticks * to_seconds
    common = np.gcd(scale_up, scale_down)
    factor, divisor = int(scale_up // common), int(scale_down // common)
    whole_days = DAY_SECONDS * 1000 if t.is_date64(target) else 1

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        values = as_array(args[0], num_rows)
        numbers = values_of(values, np.int32 if t.is_date32(source) else np.int64).astype(np.int64, copy=False)
        valid = valid_mask(values)
        if divisor > 1:
            numbers = numbers // divisor
        limits = np.iinfo(np.int32 if t.is_date32(target) else np.int64)
        low, high = -(-limits.min // factor), limits.max // factor
        if len(numbers) and (numbers.min() < low or numbers.max() > high):
            outside = ((numbers < low) | (numbers > high)) & valid
            _report(outside, target, text, bad)
            numbers, valid = np.clip(numbers, low, high), valid & ~outside
        if factor > 1:
            numbers = numbers * factor
        if whole_days > 1:
            numbers = numbers - numbers % whole_days
        numbers = numbers.astype(limits.dtype, copy=False)
        mask = None if valid is True else np.logical_not(valid)
        return pa.array(numbers, mask=mask).view(target)

    return kernel


def _bits(source: pa.DataType, target: pa.DataType, text: str) -> Kernel | None:
    """Between times and the integers that they are stored as."""
    if t.is_integer(target) and _storage(source) is not None:
        storage = _storage(source)
        return _then(view_kernel(storage), storage, target, text)
    if t.is_integer(source) and _storage(target) is not None:
        storage = _storage(target)
        narrowed = None if source == storage else cast_kernel(source, storage, text)
        view = view_kernel(target)
        if narrowed is None:
            return view
        return lambda args, num_rows, bad: view([narrowed(args, num_rows, bad)], num_rows, bad)
    return None


def _storage(type: pa.DataType) -> pa.DataType | None:
    if not t.is_temporal(type) or t.is_interval(type):
        return None
    return pa.int32() if t.is_date32(type) or t.is_time32(type) else pa.int64()


def _then(first: Kernel, between: pa.DataType, target: pa.DataType, text: str) -> Kernel:
    if between == target:
        return first
    second = cast_kernel(between, target, text)
    return lambda args, num_rows, bad: second([first(args, num_rows, bad)], num_rows, bad)


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────


def _parse(target: pa.DataType, text: str) -> Kernel:
    """A text read as another type."""
    if is_text_type(target):
        return _guarded(target, text, lambda values: _refused_one_by_one(values, target))
    _check_cast_exists(pa.string(), target, text)
    import pyarrow.compute as pc

    shape = _SHAPES.get(_family_of_shape(target))
    matches = None if shape is None else pc.MatchSubstringOptions(shape)
    call, options = arrow("cast"), _options(target)

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        values = as_array(args[0], num_rows)
        if t.is_string_view(values.type):
            values = values.cast(pa.string())
        try:
            return call([values], options)
        except pa.ArrowInvalid:
            pass
        found: list[Bad] = []
        why = f"`{text}`: the text is no {type_name(target)}"
        if matches is not None:
            shaped = arrow("match_substring_regex")([values], matches)
            found.append(Bad(mask_of(arrow("invert")([shaped]).fill_null(False)), BAD_CAST, why))
        try:
            result = call([null_where_bad(values, found)], options)
        except pa.ArrowInvalid:
            found = [Bad(_refused_one_by_one(values, target), BAD_CAST, why)]
            result = call([null_where_bad(values, found)], options)
        bad.extend(found)
        return result

    return kernel


def _family_of_shape(target: pa.DataType) -> str:
    for name, test in (
        ("integer", t.is_integer),
        ("floating", t.is_floating),
        ("boolean", t.is_boolean),
        ("date", t.is_date),
        ("timestamp", t.is_timestamp),
        ("decimal", t.is_decimal),
    ):
        if test(target):
            return name
    return ""
