"""Where types meet: one type for both sides of a comparison, for the branches of `when`, for `coalesce`.

Here decision 13 is carried out: an integer with a float gives float64, a literal takes the column's family, and
what would lose values silently (uint64 with signed, decimal with float) is refused with the cast that says
what is meant. The hard part is literals: they adapt to the columns before the columns adapt to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from dataflow.compute.arithmetic import view_kernel
from dataflow.compute.calendar import TICKS_PER_SECOND
from dataflow.compute.casts import cast_kernel
from dataflow.compute.evaluate import ApplyNode, Bad, LiteralNode, Node
from dataflow.compute.literals import adapted
from dataflow.errors import DataflowError, TypeMismatchError
from dataflow.schema import is_text_type, type_name

t = pa.types

# ── building nodes ───────────────────────────────────────────────────────────────────────────────────────


def apply(type: pa.DataType, kernel: Callable[..., Any], *args: Node) -> Node:
    """The kernel on these nodes; computed now, where all of them are constant and none fails."""
    node = ApplyNode(type, kernel, args)
    if not node.constant:
        return node
    bad: list[Bad] = []
    values = node.run({}, 1, bad)
    return node if bad else LiteralNode(values[0])


def viewed(node: Node, type: pa.DataType) -> Node:
    """The same bits in another type."""
    return node if node.type == type else apply(type, view_kernel(type), node)


def converted(node: Node, type: pa.DataType, text: str) -> Node:
    """The node in this type; an open literal adapts itself."""
    if isinstance(node, LiteralNode) and node.is_open and (fitted := adapted(node, type)) is not None:
        return fitted
    if node.type == type:
        return node
    return apply(type, cast_kernel(node.type, type, text), node)


# ── where types meet ─────────────────────────────────────────────────────────────────────────────────────


def common(nodes: Sequence[Node], text: str) -> list[Node]:
    """The nodes in one type that holds the values of all; literals adapt to the columns where they can."""
    fixed = [node for node in nodes if not is_open(node)]
    target = fixed[0].type if fixed else pa.null()
    for node in fixed[1:]:
        target = common_type(target, node.type, text)
    for node in nodes:
        if isinstance(node, LiteralNode) and node.is_open and (t.is_null(target) or adapted(node, target) is None):
            target = _with_literal(target, node, text)
    return [converted(node, target, text) for node in nodes]


def is_open(node: Node) -> bool:
    """Whether the node is a literal that may still take another type."""
    return isinstance(node, LiteralNode) and node.is_open


def _with_literal(target: pa.DataType, node: LiteralNode, text: str) -> pa.DataType:
    """The type in which columns of type `target` meet a literal that does not fit into it."""
    us = pa.timestamp("us", tz=target.tz) if t.is_timestamp(target) else None
    if us is not None and adapted(node, us) is not None:
        return us  # finer than the column's unit, or further away than nanoseconds reach
    return common_type(target, node.type, text)


def common_type(left: pa.DataType, right: pa.DataType, text: str) -> pa.DataType:
    """The type that holds the values of both; raises TypeMismatchError where there is none."""
    if left == right or t.is_null(right):
        return left
    if t.is_null(left):
        return right
    for rule in (_common_number, _common_time, _common_text):
        if (type := rule(left, right, text)) is not None:
            return type
    raise _mismatch(left, right, text)


def _common_number(left: pa.DataType, right: pa.DataType, text: str) -> pa.DataType | None:
    kinds = {kind_of(left), kind_of(right)}
    if not kinds <= {"integer", "uint64", "floating", "decimal"}:
        return None
    if kinds == {"uint64", "integer"}:
        raise TypeMismatchError(
            f"`{text}`: uint64 and {type_name(left if t.is_uint64(right) else right)} have no common integer type",
            help='say what is meant: `.cast("int64")` on the uint64 side (rows beyond int64 become error rows), '
            'or `.cast("float64")`',
        )
    if kinds == {"decimal", "floating"}:
        raise TypeMismatchError(
            f"`{text}`: a decimal is exact, a float is not",
            help='say which is meant: `.cast("float64")` on the decimal, or `.cast("decimal(18, 2)")` on the float',
        )
    if "floating" in kinds:
        return pa.float64()
    if "decimal" in kinds:
        return _common_decimal(as_decimal(left), as_decimal(right), text)
    return pa.int64()


def as_decimal(type: pa.DataType) -> pa.DataType:
    return type if t.is_decimal(type) else pa.decimal128(20 if t.is_uint64(type) else 19, 0)


def _common_decimal(left: pa.DataType, right: pa.DataType, text: str) -> pa.DataType:
    scale = max(left.scale, right.scale)
    precision = max(left.precision - left.scale, right.precision - right.scale) + scale
    wide = t.is_decimal256(left) or t.is_decimal256(right)
    if precision > (76 if wide else 38):
        raise TypeMismatchError(
            f"`{text}`: {type_name(left)} and {type_name(right)} together need {precision} digits",
            help="cast one of them to fewer digits",
        )
    return (pa.decimal256 if wide else pa.decimal128)(precision, scale)


def _common_time(left: pa.DataType, right: pa.DataType, text: str) -> pa.DataType | None:
    if t.is_timestamp(left) and t.is_timestamp(right):
        if (left.tz is None) != (right.tz is None):
            raise TypeMismatchError(
                f"`{text}`: {type_name(left)} has {'no' if left.tz is None else 'a'} zone, "
                f"{type_name(right)} has {'no' if right.tz is None else 'one'}",
                help='give the other one a zone: `.cast("timestamp[us, UTC]")` takes its clock as UTC',
            )
        return pa.timestamp(finer(left.unit, right.unit), tz=left.tz)
    if t.is_duration(left) and t.is_duration(right):
        return pa.duration(finer(left.unit, right.unit))
    if t.is_date(left) and t.is_date(right):
        return pa.date32()
    if t.is_time(left) and t.is_time(right):
        return pa.time64("ns" if "ns" in (left.unit, right.unit) else "us")
    return None


def finer(one: str, other: str) -> str:
    return max(one, other, key=TICKS_PER_SECOND.__getitem__)


def _common_text(left: pa.DataType, right: pa.DataType, text: str) -> pa.DataType | None:
    if is_text_type(left) and is_text_type(right):
        return pa.large_string() if pa.large_string() in (left, right) else pa.string()
    if kind_of(left) == kind_of(right) == "bytes":
        return pa.large_binary() if pa.large_binary() in (left, right) else pa.binary()
    return None


def kind_of(type: pa.DataType) -> str:
    """The family of a type, as far as mixing goes."""
    if t.is_uint64(type):
        return "uint64"
    if t.is_integer(type):
        return "integer"
    if t.is_floating(type):
        return "floating"
    if t.is_decimal(type):
        return "decimal"
    if is_text_type(type):
        return "text"
    if t.is_binary(type) or t.is_large_binary(type) or t.is_fixed_size_binary(type) or t.is_binary_view(type):
        return "bytes"
    return type_name(type)


def _mismatch(left: pa.DataType, right: pa.DataType, text: str) -> DataflowError:
    names = f"{type_name(left)} and {type_name(right)}"
    if "text" in (kind_of(left), kind_of(right)):
        other = right if kind_of(left) == "text" else left
        help = f'cast one of them: `.cast("{type_name(other)}")` on the text, or `.cast("string")` on the other'
    elif t.is_boolean(left) or t.is_boolean(right):
        help = 'a condition becomes 0 or 1 with `.cast("int64")`'
    elif t.is_date(left) or t.is_date(right):
        help = 'cast the date: `.cast("timestamp[us]")` is its midnight'
    else:
        help = "cast one of them to the type of the other"
    return TypeMismatchError(f"`{text}`: {names} do not go together", help=help)
