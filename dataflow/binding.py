"""Binding: an expression meets the types of its columns and becomes nodes that compute.

Here decision 13 is carried out: integers compute in int64, an integer with a float gives float64, a literal
takes the column's family, and what would lose values silently (uint64 with signed, decimal with float) is
refused with the cast that says what is meant. The hard part is one rule for every place where two types meet:
`common` serves comparisons, `when`, `coalesce`, `fill_null`, `between` and `is_in` alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from dataflow import expr as e
from dataflow.arithmetic import (
    TIME_RANGE,
    checked_kernel,
    float_floor_kernel,
    floor_kernel,
    negate_kernel,
    plain_kernel,
    view_kernel,
)
from dataflow.casts import PER_SECOND, cast_kernel, is_text
from dataflow.errors import DataflowError, TypeMismatchError
from dataflow.evaluate import (
    ApplyNode,
    Bad,
    BoundExpr,
    ChooseNode,
    CoalesceNode,
    ColumnNode,
    IsNullNode,
    LiteralNode,
    LogicNode,
    Node,
    as_array,
)
from dataflow.functions import bind_function
from dataflow.literals import adapted, literal
from dataflow.schema import column_not_found, to_type, type_name

t = pa.types
US = pa.duration("us")
DURATION_PARTS = {
    "days": 86_400_000_000,
    "hours": 3_600_000_000,
    "minutes": 60_000_000,
    "seconds": 1_000_000,
    "milliseconds": 1_000,
    "microseconds": 1,
}


def bind(expr: e.Expr, schema: pa.Schema) -> BoundExpr:
    """The expression with the types of these columns."""
    return BoundExpr(_Binder(schema).node(expr), repr(expr))


class _Binder:
    """Binds the parts of one expression to one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        self.types = {field.name: field.type for field in schema}
        self.by_kind: dict[type[e.Expr], Callable[[Any], Node]] = {
            e.Column: self.column,
            e.Literal: lambda expr: literal(expr.value),
            e.Alias: lambda expr: self.node(expr.operand),
            e.Binary: self.binary,
            e.Unary: self.unary,
            e.Cast: self.cast,
            e.Method: self.method,
            e.IsIn: self.is_in,
            e.Call: self.call,
            e.Duration: self.duration,
            e.Choice: self.choice,
        }

    def node(self, expr: e.Expr) -> Node:
        return self.by_kind[type(expr)](expr)

    def column(self, expr: e.Column) -> Node:
        if expr.name not in self.types:
            raise column_not_found(expr.name, list(self.types))
        return ColumnNode(expr.name, self.types[expr.name])

    def binary(self, expr: e.Binary) -> Node:
        left, right = self.node(expr.left), self.node(expr.right)
        text = repr(expr)
        if expr.op in ("&", "|"):
            return LogicNode(expr.op == "&", boolean(left, expr.left, text), boolean(right, expr.right, text))
        if expr.op in e.COMPARISONS:
            return compare(expr.op, left, right, text)
        return arithmetic(expr.op, left, right, text)

    def unary(self, expr: e.Unary) -> Node:
        operand, text = self.node(expr.operand), repr(expr)
        if expr.op == "~":
            return apply(pa.bool_(), plain_kernel("invert"), boolean(operand, expr.operand, text))
        if t.is_null(operand.type):
            return operand
        if t.is_duration(operand.type):
            negative = apply(pa.int64(), negate_kernel(text), viewed(operand, pa.int64()))
            return viewed(negative, operand.type)
        if t.is_uint64(operand.type):
            raise TypeMismatchError(f"`{text}`: uint64 has no negative numbers", help='write `.cast("int64")` first')
        kind = _number(operand, text)
        if kind == "integer":
            return apply(pa.int64(), negate_kernel(text), converted(operand, pa.int64(), text))
        operand = operand if kind == "decimal" else converted(operand, pa.float64(), text)
        return apply(operand.type, plain_kernel("negate"), operand)

    def cast(self, expr: e.Cast) -> Node:
        operand = self.node(expr.operand)
        target = to_type(expr.type)
        if isinstance(operand, LiteralNode) and operand.is_open and (fitted := _adapted_or_none(operand, target)):
            return fitted
        if operand.type == target:
            return LiteralNode(operand.scalar) if isinstance(operand, LiteralNode) else operand
        return apply(target, cast_kernel(operand.type, target, repr(expr)), operand)

    def method(self, expr: e.Method) -> Node:
        args, text = [self.node(arg) for arg in expr.args], repr(expr)
        if expr.name in ("is_null", "is_not_null"):
            return IsNullNode(args[0], expr.name == "is_not_null")
        if expr.name == "between":
            value, low, high = args
            return LogicNode(True, compare(">=", value, low, text), compare("<=", value, high, text))
        args = common(args, text)
        return args[0] if len(args) == 1 else CoalesceNode(args[0].type, tuple(args))

    def is_in(self, expr: e.IsIn) -> Node:
        import pyarrow.compute as pc

        operand, text = self.node(expr.operand), repr(expr)
        if any(value is None for value in expr.values):
            raise TypeMismatchError(
                f"`{text}`: null is equal to nothing, so `is_in` cannot find it", help="write `| x.is_null()` beside it"
            )
        if not expr.values:
            return apply(pa.bool_(), _never, operand)
        operand, *values = common([operand, *(literal(value) for value in expr.values)], text, exact=True)
        scalars = [value.scalar for value in values if isinstance(value, LiteralNode)]
        options = pc.SetLookupOptions(
            pa.array([one.as_py() for one in scalars], operand.type)
            if not t.is_temporal(operand.type)
            else pa.concat_arrays([as_array(one, 1) for one in scalars])
        )
        call, is_valid = plain_kernel("is_in", options), plain_kernel("if_else")
        null = pa.scalar(None, pa.bool_())

        def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
            found = call(args, num_rows, bad)
            return is_valid([args[0].is_valid(), found, null], num_rows, bad) if args[0].null_count else found

        return apply(pa.bool_(), kernel, operand)

    def call(self, expr: e.Call) -> Node:
        operand, text = self.node(expr.operand), repr(expr)
        type, kernel = bind_function(expr.name, operand.type, expr.options, text)
        return apply(type, kernel, operand)

    def duration(self, expr: e.Duration) -> Node:
        text = repr(expr)
        total: Node | None = None
        for unit, part in expr.parts:
            node = _duration_part(self.node(part), DURATION_PARTS[unit], text)
            total = node if total is None else apply(pa.int64(), _time_checked("+", text), total, node)
        assert total is not None
        return viewed(total, US)

    def choice(self, expr: e.Choice) -> Node:
        text = repr(expr)
        conditions = [boolean(self.node(condition), condition, text) for condition, _ in expr.branches]
        *values, otherwise = common([*(self.node(value) for _, value in expr.branches), self.node(expr.default)], text)
        return ChooseNode(otherwise.type, tuple(zip(conditions, values, strict=True)), otherwise)


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


def _adapted_or_none(node: LiteralNode, type: pa.DataType) -> LiteralNode | None:
    """For an explicit cast: a text that is no time is a bad row there, as in a column."""
    if isinstance(node.value, str) and not is_text(type):
        return None
    return adapted(node, type)


def _never(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
    values = as_array(args[0], num_rows)
    false = pa.repeat(pa.scalar(False), num_rows)
    return plain_kernel("if_else")([values.is_valid(), false, pa.scalar(None, pa.bool_())], num_rows, bad)


def boolean(node: Node, expr: e.Expr, text: str) -> Node:
    """A condition; null may stand for an unknown one."""
    if t.is_boolean(node.type):
        return node
    if t.is_null(node.type):
        return LiteralNode(pa.scalar(None, pa.bool_()))
    help = "put each condition in brackets: `(a > 1) & (b < 2)`; `&` and `|` bind more tightly than `>`"
    if isinstance(expr, e.Column):
        help = f"compare it with something, as in `({expr!r} != 0)`"
    raise TypeMismatchError(f"`{text}`: `{expr!r}` is {type_name(node.type)}, not a condition", help=help)


# ── where types meet ─────────────────────────────────────────────────────────────────────────────────────


def common(nodes: Sequence[Node], text: str, exact: bool = False) -> list[Node]:
    """The nodes in one type that holds the values of all; literals adapt to the columns where they can."""
    fixed = [node for node in nodes if not _is_open(node)]
    target = fixed[0].type if fixed else pa.null()
    for node in fixed[1:]:
        target = common_type(target, node.type, text)
    for node in nodes:
        if isinstance(node, LiteralNode) and node.is_open and (t.is_null(target) or adapted(node, target) is None):
            target = common_type(target, _open_type(node, target), text)
    return [converted(node, target, text) for node in nodes]


def _is_open(node: Node) -> bool:
    return isinstance(node, LiteralNode) and node.is_open


def _open_type(node: LiteralNode, beside: pa.DataType) -> pa.DataType:
    """The type in which a literal meets a column that cannot hold it."""
    if t.is_timestamp(beside) and t.is_timestamp(node.type):
        return pa.timestamp("us", tz=beside.tz)
    if t.is_timestamp(beside) and is_text(node.type):
        return pa.timestamp("us", tz=beside.tz)
    return node.type


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
    kinds = {_kind(left), _kind(right)}
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
        return _common_decimal(_as_decimal(left), _as_decimal(right), text)
    return pa.int64()


def _as_decimal(type: pa.DataType) -> pa.DataType:
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
        return pa.timestamp(_finer(left.unit, right.unit), tz=left.tz)
    if t.is_duration(left) and t.is_duration(right):
        return pa.duration(_finer(left.unit, right.unit))
    if t.is_date(left) and t.is_date(right):
        return pa.date32()
    if t.is_time(left) and t.is_time(right):
        return pa.time64("ns" if "ns" in (left.unit, right.unit) else "us")
    return None


def _finer(one: str, other: str) -> str:
    return max(one, other, key=PER_SECOND.__getitem__)


def _common_text(left: pa.DataType, right: pa.DataType, text: str) -> pa.DataType | None:
    if is_text(left) and is_text(right):
        return pa.large_string() if pa.large_string() in (left, right) else pa.string()
    if _kind(left) == _kind(right) == "bytes":
        return pa.large_binary() if pa.large_binary() in (left, right) else pa.binary()
    return None


def _kind(type: pa.DataType) -> str:
    """The family of a type, as far as mixing goes."""
    if t.is_uint64(type):
        return "uint64"
    if t.is_integer(type):
        return "integer"
    if t.is_floating(type):
        return "floating"
    if t.is_decimal(type):
        return "decimal"
    if is_text(type):
        return "text"
    if t.is_binary(type) or t.is_large_binary(type) or t.is_fixed_size_binary(type) or t.is_binary_view(type):
        return "bytes"
    return type_name(type)


def _mismatch(left: pa.DataType, right: pa.DataType, text: str) -> DataflowError:
    names = f"{type_name(left)} and {type_name(right)}"
    if "text" in (_kind(left), _kind(right)):
        other = right if _kind(left) == "text" else left
        help = f'cast one of them: `.cast("{type_name(other)}")` on the text, or `.cast("string")` on the other'
    elif t.is_boolean(left) or t.is_boolean(right):
        help = 'a condition becomes 0 or 1 with `.cast("int64")`'
    elif t.is_date(left) or t.is_date(right):
        help = 'cast the date: `.cast("timestamp[us]")` is its midnight'
    else:
        help = "cast one of them to the type of the other"
    return TypeMismatchError(f"`{text}`: {names} do not go together", help=help)


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
    if op == "+" and is_text(left.type) and is_text(right.type):
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
    kind = _kind(node.type)
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
        return tuple(  # type: ignore[return-value]
            node if t.is_decimal(node.type) else converted(node, _as_decimal(node.type), text) for node in (left, right)
        )
    target = pa.float64() if t.is_floating(type) else type if t.is_uint64(type) else pa.int64()
    return converted(left, target, text), converted(right, target, text)


def _fixed_beside(node: Node, other: Node) -> Node:
    """An open literal in the type of the other side, if it fits there."""
    if not isinstance(node, LiteralNode) or not node.is_open or _is_open(other):
        return node
    target = other.type
    if t.is_decimal(target) and (exact := _exact_decimal(node)) is not None:
        return exact
    if t.is_integer(target) and not t.is_uint64(target):
        target = pa.int64()
    return adapted(node, target) or node


def _exact_decimal(node: LiteralNode) -> LiteralNode | None:
    """A number as a decimal of its own digits: `col.price * 1.19` needs two of them."""
    from decimal import Decimal

    if not isinstance(node.value, int | float | Decimal) or isinstance(node.value, bool):
        return None
    exact = Decimal(repr(node.value)) if isinstance(node.value, float) else Decimal(node.value)
    return LiteralNode(pa.scalar(exact)) if exact.is_finite() else None


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
    is_duration = t.is_duration(left.type), t.is_duration(right.type)
    if op in ("*", "/") and any(is_duration):
        return _scale_duration(op, left, right, text)
    if op in ("+", "-"):
        left, right = _midnight(left, text), _midnight(right, text)
        times = t.is_timestamp(left.type), t.is_timestamp(right.type)
        is_duration = t.is_duration(left.type), t.is_duration(right.type)
        if all(is_duration):
            result = pa.duration(_finer(left.type.unit, right.type.unit))
            return _add_ticks(op, left, right, result, text)
        if times[0] and is_duration[1]:
            return _add_ticks(
                op, left, right, pa.timestamp(_finer(left.type.unit, right.type.unit), tz=left.type.tz), text
            )
        if is_duration[0] and times[1] and op == "+":
            return _add_ticks(
                op, left, right, pa.timestamp(_finer(left.type.unit, right.type.unit), tz=right.type.tz), text
            )
        if all(times) and op == "-":
            common_type(left.type, right.type, text)  # refuses a zone beside none
            return _add_ticks(op, left, right, pa.duration(_finer(left.type.unit, right.type.unit)), text)
    raise _no_time_arithmetic(op, left, right, text)


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


def _duration_part(node: Node, unit_us: int, text: str) -> Node:
    """So many units as int64 microseconds; floats are rounded to whole ones."""
    if t.is_null(node.type):
        return LiteralNode(pa.scalar(None, pa.int64()))
    kind = _number(node, text)
    if kind == "integer":
        factor = LiteralNode(pa.scalar(unit_us, pa.int64()))
        return apply(pa.int64(), _time_checked("*", text), converted(node, pa.int64(), text), factor)
    scale = LiteralNode(pa.scalar(float(unit_us)))
    scaled = apply(pa.float64(), plain_kernel("multiply"), converted(node, pa.float64(), text), scale)
    whole_type, rounding = bind_function("round", pa.float64(), (), text)
    whole = apply(whole_type, rounding, scaled)
    return apply(pa.int64(), cast_kernel(pa.float64(), pa.int64(), text), whole)
