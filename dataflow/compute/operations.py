"""The operators `== != < <= > >= + - * / // %` on typed nodes: which kernel, and of what type the result is.

Integers compute in int64, `/` gives a float, times go with durations. The hard part is time: two units meet in
the finer one, and whatever leaves the range of int64 on the way is a bad row, so times are added as checked
integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from dataflow.compute.arithmetic import (
    TIME_RANGE,
    checked_kernel,
    float_floor_kernel,
    floor_kernel,
    negate_kernel,
    plain_kernel,
)
from dataflow.compute.casts import cast_kernel
from dataflow.compute.coercion import apply, as_decimal, common, common_type, converted, finer, is_open, kind_of, viewed
from dataflow.compute.evaluate import LiteralNode, Node
from dataflow.compute.literals import adapted, exact_decimal
from dataflow.compute.number_functions import rounded
from dataflow.errors import DataflowError, TypeMismatchError
from dataflow.schema import is_text_type, type_name

t = pa.types

# ── comparisons ──────────────────────────────────────────────────────────────────────────────────────────

_COMPARE = {
    "==": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}


def compare(op: str, left: Node, right: Node, text: str) -> Node:
    """A comparison; both sides get one type first."""
    left, right = common([left, right], text)
    if t.is_null(left.type):
        return LiteralNode(pa.scalar(None, pa.bool_()))
    if t.is_nested(left.type):
        raise TypeMismatchError(f"`{text}`: {type_name(left.type)} cannot be compared", help="compare its parts")
    plain = _plain_type(left.type)
    left, right = converted(left, plain, text), converted(right, plain, text)
    return apply(pa.bool_(), plain_kernel(_COMPARE[op]), left, right)


def _plain_type(type: pa.DataType) -> pa.DataType:
    """The type in which Arrow has comparisons."""
    if t.is_float16(type):
        return pa.float64()
    if t.is_string_view(type):
        return pa.string()
    return pa.binary() if t.is_binary_view(type) else type


# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────────────


def arithmetic(op: str, left: Node, right: Node, text: str) -> Node:
    """`+ - * / // %` on numbers; `+` on texts; `+ - *` and `/` on times and durations."""
    if t.is_null(left.type) or t.is_null(right.type):
        left, right = common([left, right], text)
        if t.is_null(left.type):
            return left
    left, right = _beside_time(left, right), _beside_time(right, left)
    if t.is_temporal(left.type) or t.is_temporal(right.type):
        return _time_arithmetic(op, left, right, text)
    if op == "+" and is_text_type(left.type) and is_text_type(right.type):
        return _concatenate(left, right, text)
    _number(left, text), _number(right, text)
    left, right = _numbers(op, left, right, text)
    type = left.type
    if t.is_decimal(type) or t.is_decimal(right.type):
        return _decimal_arithmetic(op, left, right, text)
    if t.is_integer(type):
        kernel = floor_kernel(op, text) if op in ("//", "%") else checked_kernel(op, text)
    elif op in ("//", "%"):
        kernel = float_floor_kernel(op)
    else:
        kernel = plain_kernel({"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}[op])
    return apply(type, kernel, left, right)


def _number(node: Node, text: str) -> str:
    """The kind of a number, `integer`, `floating` or `decimal`; others are refused."""
    kind = kind_of(node.type)
    if kind in ("integer", "uint64", "floating", "decimal"):
        return "integer" if kind == "uint64" else kind
    if t.is_boolean(node.type):
        help = 'a condition becomes 0 or 1 with `.cast("int64")`'
    elif kind == "text":
        help = 'make it a number first: `.cast("int64")` or `.cast("float64")`'
    else:
        help = None
    raise TypeMismatchError(f"`{text}`: cannot compute with {type_name(node.type)}", help=help)


def _numbers(op: str, left: Node, right: Node, text: str) -> tuple[Node, Node]:
    """Both sides in the type in which the operation computes."""
    if op == "/":
        return converted(left, pa.float64(), text), converted(right, pa.float64(), text)
    left, right = _fixed_beside(left, right), _fixed_beside(right, left)
    type = common_type(left.type, right.type, text)
    if t.is_decimal(type):
        return converted(left, as_decimal(left.type), text), converted(right, as_decimal(right.type), text)
    target = pa.float64() if t.is_floating(type) else type if t.is_uint64(type) else pa.int64()
    return converted(left, target, text), converted(right, target, text)


def _fixed_beside(node: Node, other: Node) -> Node:
    """An open literal in the type of the other side, if it fits there."""
    if not isinstance(node, LiteralNode) or not node.is_open or is_open(other):
        return node
    target = other.type
    if t.is_decimal(target) and (exact := exact_decimal(node)) is not None:
        return exact
    if t.is_integer(target) and not t.is_uint64(target):
        target = pa.int64()
    return adapted(node, target) or node


def negative(node: Node, text: str) -> Node:
    """`-x`."""
    if t.is_null(node.type):
        return node
    if t.is_duration(node.type):
        return viewed(apply(pa.int64(), negate_kernel(text), viewed(node, pa.int64())), node.type)
    kind = _number(node, text)
    if t.is_uint64(node.type):
        raise TypeMismatchError(f"`{text}`: uint64 has no negative numbers", help='write `.cast("int64")` first')
    if kind == "integer":
        return apply(pa.int64(), negate_kernel(text), converted(node, pa.int64(), text))
    node = node if kind == "decimal" else converted(node, pa.float64(), text)
    return apply(node.type, plain_kernel("negate"), node)


def _decimal_arithmetic(op: str, left: Node, right: Node, text: str) -> Node:
    if op in ("//", "%"):
        raise TypeMismatchError(
            f"`{text}`: `{op}` does not compute with decimals", help='`.cast("int64")` or `.cast("float64")` first'
        )
    name = {"+": "add", "-": "subtract", "*": "multiply"}[op]
    kernel = plain_kernel(name)
    try:
        type = kernel([pa.array([], left.type), pa.array([], right.type)], 0, []).type
    except pa.ArrowInvalid as error:
        raise TypeMismatchError(
            f"`{text}`: the result needs more digits than a decimal has: {error}",
            help='cast to fewer digits first, as in `.cast("decimal(18, 2)")`, or to float64',
        ) from error
    return apply(type, kernel, left, right)


def _concatenate(left: Node, right: Node, text: str) -> Node:
    left, right = common([left, right], text)
    plain = _plain_type(left.type)
    join = plain_kernel("binary_join_element_wise")
    separator = pa.scalar("", plain)
    return apply(
        plain,
        lambda args, num_rows, bad: join([*args, separator], num_rows, bad),
        converted(left, plain, text),
        converted(right, plain, text),
    )


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────


def _beside_time(node: Node, other: Node) -> Node:
    """A text literal beside a time is a time; beside a duration, a duration."""
    if isinstance(node, LiteralNode) and node.is_open and isinstance(node.value, str) and t.is_temporal(other.type):
        return adapted(node, other.type) or node
    return node


def _time_checked(op: str, text: str) -> Callable[..., Any]:
    return checked_kernel(op, text, TIME_RANGE, f"`{text}`: the time or duration is out of range")


def _time_arithmetic(op: str, left: Node, right: Node, text: str) -> Node:
    if op in ("*", "/"):
        return _scale_duration(op, left, right, text)
    left, right = _midnight(left, text), _midnight(right, text)
    if (result := _sum_type(op, left.type, right.type, text)) is None:
        raise _no_time_arithmetic(op, left, right, text)
    return _add_ticks(op, left, right, result, text)


def _sum_type(op: str, left: pa.DataType, right: pa.DataType, text: str) -> pa.DataType | None:
    """The type of a sum or difference of times and durations, None where there is none."""
    lengths, times = (t.is_duration(left), t.is_duration(right)), (t.is_timestamp(left), t.is_timestamp(right))
    if op not in ("+", "-") or not all(a or b for a, b in zip(lengths, times, strict=True)):
        return None
    unit = finer(left.unit, right.unit)
    if all(lengths):
        return pa.duration(unit)
    if all(times) and op == "-":
        common_type(left, right, text)  # refuses a zone beside none
        return pa.duration(unit)
    if times[0] and lengths[1]:
        return pa.timestamp(unit, tz=left.tz)
    return pa.timestamp(unit, tz=right.tz) if lengths[0] and op == "+" else None


def _midnight(node: Node, text: str) -> Node:
    return converted(node, pa.timestamp("us"), text) if t.is_date(node.type) else node


def _add_ticks(op: str, left: Node, right: Node, result: pa.DataType, text: str) -> Node:
    """Add or subtract as int64 in the finer unit of both."""
    ticks = []
    for node in (left, right):
        unit = pa.duration(result.unit) if t.is_duration(node.type) else pa.timestamp(result.unit, tz=node.type.tz)
        ticks.append(viewed(converted(node, unit, text), pa.int64()))
    return viewed(apply(pa.int64(), _time_checked(op, text), *ticks), result)


def _scale_duration(op: str, left: Node, right: Node, text: str) -> Node:
    if op == "/" and t.is_duration(left.type) and t.is_duration(right.type):
        left, right = common([left, right], text)
        numbers = [converted(viewed(node, pa.int64()), pa.float64(), text) for node in (left, right)]
        return apply(pa.float64(), plain_kernel("divide"), *numbers)
    if op == "*":
        length, number = (left, right) if t.is_duration(left.type) else (right, left)
        if t.is_integer(number.type) and not t.is_uint64(number.type):
            factor = converted(number, pa.int64(), text)
            return viewed(apply(pa.int64(), _time_checked("*", text), viewed(length, pa.int64()), factor), length.type)
    raise _no_time_arithmetic(op, left, right, text)


def _no_time_arithmetic(op: str, left: Node, right: Node, text: str) -> DataflowError:
    return TypeMismatchError(
        f"`{text}`: there is no {type_name(left.type)} {op} {type_name(right.type)}",
        help="times go with durations: `time + duration(minutes=5)`, `time - time`, `duration * 2`",
    )


# ── durations ────────────────────────────────────────────────────────────────────────────────────────────

_PART_US = {
    "days": 86_400_000_000,
    "hours": 3_600_000_000,
    "minutes": 60_000_000,
    "seconds": 1_000_000,
    "milliseconds": 1_000,
    "microseconds": 1,
}


def duration(parts: Sequence[tuple[str, Node]], text: str) -> Node:
    """The sum of so many days, hours …, as duration[us]."""
    total, *others = (_part_us(node, _PART_US[unit], text) for unit, node in parts)
    for other in others:
        total = apply(pa.int64(), _time_checked("+", text), total, other)
    return viewed(total, pa.duration("us"))


def _part_us(node: Node, unit_us: int, text: str) -> Node:
    """So many units as int64 microseconds; floats are rounded to whole ones."""
    if t.is_null(node.type):
        return LiteralNode(pa.scalar(None, pa.int64()))
    if _number(node, text) == "integer":
        factor = LiteralNode(pa.scalar(unit_us, pa.int64()))
        return apply(pa.int64(), _time_checked("*", text), converted(node, pa.int64(), text), factor)
    scale = LiteralNode(pa.scalar(float(unit_us)))
    exact = apply(pa.float64(), plain_kernel("multiply"), converted(node, pa.float64(), text), scale)
    type, rounding = rounded(pa.float64(), (0,), text)
    return apply(pa.int64(), cast_kernel(type, pa.int64(), text), apply(type, rounding, exact))
