"""Binding: an expression meets the types of its columns and becomes nodes that compute.

One method for each kind of expression, chosen by its class. What types mean together is `coercion`, what
operators do is `operations`, functions are the table in `dataflow/functions.py`. The hard part is to refuse here,
with the user's own words and the fix, whatever could only go wrong an hour into the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from dataflow.compute import tree as e
from dataflow.compute.arithmetic import plain_kernel
from dataflow.compute.casts import cast_kernel
from dataflow.compute.coercion import apply, common
from dataflow.compute.evaluate import (
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
from dataflow.compute.literals import adapted, literal
from dataflow.compute.operations import arithmetic, compare, duration, negative
from dataflow.errors import TypeMismatchError
from dataflow.functions import bind_function
from dataflow.schema import column_not_found, is_text_type, to_type, type_name

t = pa.types
_NULL_BOOL = pa.scalar(None, pa.bool_())


def bind(expr: e.Expr, schema: pa.Schema) -> BoundExpr:
    """The expression with the types of these columns."""
    return BoundExpr(_Binder(schema).node(expr))


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
        return negative(operand, text)

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
        operand, text = self.node(expr.operand), repr(expr)
        if any(value is None for value in expr.values):
            raise TypeMismatchError(
                f"`{text}`: null is equal to nothing, so `is_in` cannot find it", help="write `| x.is_null()` beside it"
            )
        operand, *values = common([operand, *(literal(value) for value in expr.values)], text)
        wanted = [as_array(value.run({}, 1, []), 1) for value in values]
        return apply(pa.bool_(), _is_in_kernel(pa.concat_arrays([pa.array([], operand.type), *wanted])), operand)

    def call(self, expr: e.Call) -> Node:
        operand, text = self.node(expr.operand), repr(expr)
        type, kernel = bind_function(expr.name, operand.type, expr.options, text)
        return apply(type, kernel, operand)

    def duration(self, expr: e.Duration) -> Node:
        return duration([(unit, self.node(part)) for unit, part in expr.parts], repr(expr))

    def choice(self, expr: e.Choice) -> Node:
        text = repr(expr)
        conditions = [boolean(self.node(condition), condition, text) for condition, _ in expr.branches]
        *values, otherwise = common([*(self.node(value) for _, value in expr.branches), self.node(expr.default)], text)
        return ChooseNode(otherwise.type, tuple(zip(conditions, values, strict=True)), otherwise)


def _adapted_or_none(node: LiteralNode, type: pa.DataType) -> LiteralNode | None:
    """For an explicit cast: a text that is no number or time is a bad row there, as in a column."""
    if isinstance(node.value, str) and not is_text_type(type):
        return None
    return adapted(node, type)


def _is_in_kernel(wanted: pa.Array) -> Callable[[Sequence[Any], int, list[Bad]], pa.Array]:
    """Whether each value is a wanted one; null for null, as in a comparison."""
    import pyarrow.compute as pc

    is_in, if_else = plain_kernel("is_in", pc.SetLookupOptions(wanted)), plain_kernel("if_else")

    def kernel(args: Sequence[Any], num_rows: int, bad: list[Bad]) -> pa.Array:
        found, values = is_in(args, num_rows, bad), args[0]
        return if_else([values.is_valid(), found, _NULL_BOOL], num_rows, bad) if values.null_count else found

    return kernel


def boolean(node: Node, expr: e.Expr, text: str) -> Node:
    """A condition; null may stand for an unknown one."""
    if t.is_boolean(node.type):
        return node
    if t.is_null(node.type):
        return LiteralNode(_NULL_BOOL)
    help = "put each condition in brackets: `(a > 1) & (b < 2)`; `&` and `|` bind more tightly than `>`"
    if isinstance(expr, e.Column):
        help = f"compare it with something, as in `({expr!r} != 0)`"
    raise TypeMismatchError(f"`{text}`: `{expr!r}` is {type_name(node.type)}, not a condition", help=help)
