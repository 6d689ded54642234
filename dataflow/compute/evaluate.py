"""Bound expressions: a tree of typed nodes that compute whole columns, and say which rows they could not.

A node's `run` returns an array, or a scalar where every row has the same value, and adds a `Bad` for rows that
failed (overflow, a text that is no number …). The hard part is that a row is an error only if its *result*
depends on what failed: `when`, `&`, `|` and `coalesce` look at their inputs' bad rows and keep those that
count. Two rules make it work: the value of a bad row is null, and kernels raise only to say "look closer".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from dataflow.message import BoolArray

Columns = Mapping[str, pa.Array]


@dataclass(frozen=True, slots=True, eq=False)
class Bad:
    """Rows that could not be computed for one reason."""

    mask: BoolArray
    code: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """An expression's values; the rows in any `bad` mask are null."""

    values: pa.Array
    bad: tuple[Bad, ...] = ()


class Node(Protocol):
    """A typed expression that computes. `constant`: the same value in every row."""

    @property
    def type(self) -> pa.DataType: ...
    @property
    def constant(self) -> bool: ...
    def run(self, columns: Columns, num_rows: int, bad: list[Bad]) -> pa.Array | pa.Scalar:
        """The values, null where a row failed; appends the rows that failed to `bad`."""
        ...


Kernel = Callable[[Sequence[Any], int, list[Bad]], Any]
"""Arguments (arrays; scalars where constant, but never all of them), number of rows, bad rows to add to."""


@cache
def arrow(name: str) -> Callable[..., Any]:
    """Arrow's function itself: its wrapper in pyarrow.compute costs as much again on small batches."""
    import pyarrow.compute as pc

    return pc.get_function(name).call  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, eq=False)
class BoundExpr:
    """An expression that knows its type; `evaluate` may be called from any thread."""

    node: Node

    @property
    def type(self) -> pa.DataType:
        return self.node.type

    @property
    def is_column(self) -> bool:
        """Whether it is a plain column, whose evaluation costs nothing."""
        return isinstance(self.node, ColumnNode)

    def evaluate(self, columns: Columns, num_rows: int) -> Evaluated:
        """The values for these rows. Wrong data gives bad rows, never an exception.

        The values have exactly `type`, except that a plain column is handed on as it came: it may be
        dictionary-encoded.
        """
        if isinstance(self.node, ColumnNode):
            return Evaluated(columns[self.node.name])
        bad: list[Bad] = []
        values = as_array(self.node.run(columns, num_rows, bad), num_rows)
        return Evaluated(null_where_bad(values, bad), tuple(bad)) if bad else Evaluated(values)


# ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────


# Plain dataclasses: frozen ones with slots take three times as long to make, and that is import time.


@dataclass(eq=False, repr=False)
class ColumnNode:
    """A column of the input, decoded."""

    name: str
    type: pa.DataType
    constant: bool = False

    def run(self, columns: Columns, num_rows: int, bad: list[Bad]) -> pa.Array:
        column = columns[self.name]
        return decoded(column, self.type) if isinstance(column, pa.DictionaryArray) else column


@dataclass(eq=False, repr=False)
class LiteralNode:
    """A constant as a prebuilt scalar. `value` is what the user wrote, while its type is still open."""

    scalar: pa.Scalar
    value: object = None
    is_open: bool = False
    constant: bool = True

    @property
    def type(self) -> pa.DataType:
        return self.scalar.type

    def run(self, columns: Columns, num_rows: int, bad: list[Bad]) -> pa.Scalar:
        return self.scalar


@dataclass(eq=False, repr=False)
class ApplyNode:
    """A kernel on the values of other nodes; null in gives null out."""

    type: pa.DataType
    kernel: Kernel
    args: tuple[Node, ...]
    constant: bool = field(init=False)
    encoded: int | None = field(init=False)
    """Which argument may stay dictionary-encoded: a column beside which all is constant."""

    def __post_init__(self) -> None:
        self.constant = all(arg.constant for arg in self.args)
        varying = [i for i, arg in enumerate(self.args) if not arg.constant]
        single = len(varying) == 1 and isinstance(self.args[varying[0]], ColumnNode)
        self.encoded = varying[0] if single else None

    def run(self, columns: Columns, num_rows: int, bad: list[Bad]) -> pa.Array:
        if self.constant:
            return self._run_constant(num_rows, bad)
        if self.encoded is not None:
            column = columns[self.args[self.encoded].name]  # type: ignore[attr-defined]
            if isinstance(column, pa.DictionaryArray) and len(column.dictionary) <= num_rows:
                return self._run_on_dictionary(column, bad)
        return self.kernel([arg.run(columns, num_rows, bad) for arg in self.args], num_rows, bad)

    def _run_on_dictionary(self, column: pa.DictionaryArray, bad: list[Bad]) -> pa.Array:
        own_bad: list[Bad] = []
        values, rows = column.dictionary, len(column.dictionary)
        if values.type != self.args[self.encoded].type:  # type: ignore[index]
            values = values.cast(self.args[self.encoded].type)  # type: ignore[index]
        args = [values if i == self.encoded else arg.run({}, rows, own_bad) for i, arg in enumerate(self.args)]
        result = as_array(self.kernel(args, rows, own_bad), rows)
        keep_bad(own_bad, bad, lambda mask: is_true(pa.array(mask).take(column.indices)))
        if pa.types.is_boolean(self.type) and result.null_count == 0 and result.true_count == 1:
            # The usual case of `==`: to compare the codes is five times as fast as to take bits.
            return arrow("equal")([column.indices, pa.scalar(result.index(True).as_py(), column.indices.type)])
        return result.take(column.indices)

    def _run_constant(self, num_rows: int, bad: list[Bad]) -> pa.Array:
        own_bad: list[Bad] = []
        args = [as_array(arg.run({}, 1, own_bad), 1) for arg in self.args]
        result = as_array(self.kernel(args, 1, own_bad), 1)
        bad.extend(Bad(np.full(num_rows, one.mask[0]), one.code, one.message) for one in own_bad if one.mask[0])
        return pa.repeat(result[0], num_rows)


@dataclass(eq=False, repr=False)
class IsNullNode:
    """Whether a value is (not) null: an error if the value is one."""

    arg: Node
    negated: bool
    type: pa.DataType = field(default_factory=pa.bool_)
    constant: bool = field(init=False)

    def __post_init__(self) -> None:
        self.constant = self.arg.constant

    def run(self, columns: Columns, num_rows: int, bad: list[Bad]) -> pa.Array:
        function = arrow("is_valid" if self.negated else "is_null")
        if isinstance(self.arg, ColumnNode):
            column = columns[self.arg.name]
            if isinstance(column, pa.DictionaryArray):
                column = decoded(column, self.arg.type) if column.dictionary.null_count else column.indices
            return function([column])
        own_bad: list[Bad] = []
        values = as_array(self.arg.run(columns, num_rows, own_bad), num_rows)
        bad.extend(own_bad)
        return null_where_bad(function([values]), own_bad)


@dataclass(eq=False, repr=False)
class LogicNode:
    """`&` and `|` with three values: false & null is false, and so is false & an error."""

    is_and: bool
    left: Node
    right: Node
    type: pa.DataType = field(default_factory=pa.bool_)
    constant: bool = field(init=False)

    def __post_init__(self) -> None:
        self.constant = self.left.constant and self.right.constant

    def run(self, columns: Columns, num_rows: int, bad: list[Bad]) -> pa.Array | pa.Scalar:
        left_bad: list[Bad] = []
        right_bad: list[Bad] = []
        left = self.left.run(columns, num_rows, left_bad)
        right = self.right.run(columns, num_rows, right_bad)
        if left_bad:
            settled = self._settled_by(right, num_rows)
            keep_bad(left_bad, bad, lambda mask: mask & ~settled)
        if right_bad:
            settled = self._settled_by(left, num_rows)
            keep_bad(right_bad, bad, lambda mask: mask & ~settled)
        return arrow("and_kleene" if self.is_and else "or_kleene")([left, right])

    def _settled_by(self, side: pa.Array | pa.Scalar, num_rows: int) -> BoolArray:
        """Where this side alone tells the answer: false for `&`, true for `|`."""
        values = as_array(side, num_rows)
        return is_true(arrow("invert")([values]) if self.is_and else values)


@dataclass(eq=False, repr=False)
class ChooseNode:
    """`when(c).then(x) … otherwise(y)`: the value of the first condition that is true."""

    type: pa.DataType
    branches: tuple[tuple[Node, Node], ...]
    otherwise: Node
    constant: bool = False

    def run(self, columns: Columns, num_rows: int, bad: list[Bad]) -> pa.Array:
        found: list[tuple[list[Bad], list[Bad]]] = []  # of each condition, of its value
        conditions, values = [], []
        for condition, value in self.branches:
            condition_bad: list[Bad] = []
            value_bad: list[Bad] = []
            holds = as_array(condition.run(columns, num_rows, condition_bad), num_rows)
            conditions.append(arrow("coalesce")([holds, _FALSE]) if holds.null_count else holds)
            values.append(value.run(columns, num_rows, value_bad))
            found.append((condition_bad, value_bad))
        otherwise_bad: list[Bad] = []
        result = self.otherwise.run(columns, num_rows, otherwise_bad)
        for holds, value in zip(reversed(conditions), reversed(values), strict=True):
            result = arrow("if_else")([holds, value, result])
        own_bad = _bad_of_branches(conditions, found, otherwise_bad, num_rows)
        bad.extend(own_bad)
        return null_where_bad(result, own_bad)


def _bad_of_branches(
    conditions: list[pa.BooleanArray], found: list[tuple[list[Bad], list[Bad]]], otherwise: list[Bad], num_rows: int
) -> list[Bad]:
    """The failures that count: of conditions that were asked, of values that were chosen."""
    bad: list[Bad] = []
    if not otherwise and not any(ours or theirs for ours, theirs in found):
        return bad
    open_ = np.ones(num_rows, dtype=np.bool_)  # rows that no condition has taken yet
    for condition, (condition_bad, value_bad) in zip(conditions, found, strict=True):
        asked, holds = open_, mask_of(condition)
        keep_bad(condition_bad, bad, asked.__and__)
        keep_bad(value_bad, bad, (asked & holds).__and__)
        open_ = asked & ~holds
    keep_bad(otherwise, bad, open_.__and__)
    return bad


@dataclass(eq=False, repr=False)
class CoalesceNode:
    """The first value that is not null."""

    type: pa.DataType
    args: tuple[Node, ...]
    constant: bool = False

    def run(self, columns: Columns, num_rows: int, bad: list[Bad]) -> pa.Array:
        own_bad: list[Bad] = []
        result = as_array(self.args[0].run(columns, num_rows, own_bad), num_rows)
        for arg in self.args[1:]:
            if not result.null_count:
                break  # every row has its value, so later failures do not count
            arg_bad: list[Bad] = []
            values = arg.run(columns, num_rows, arg_bad)
            if arg_bad:
                missing = mask_of(result.is_null())
                keep_bad(arg_bad, own_bad, lambda mask, missing=missing: mask & missing)  # type: ignore[misc]
            result = arrow("coalesce")([result, values])
        bad.extend(own_bad)
        return null_where_bad(result, own_bad)


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────────────

_FALSE = pa.scalar(False)


def as_array(values: pa.Array | pa.Scalar, num_rows: int) -> pa.Array:
    """The values as an array: a constant is repeated."""
    return pa.repeat(values, num_rows) if isinstance(values, pa.Scalar) else values


def decoded(column: pa.DictionaryArray, type: pa.DataType) -> pa.Array:
    """The plain values of a dictionary-encoded column."""
    values = column.dictionary_decode()
    return values if values.type == type else values.cast(type)


def mask_of(mask: pa.BooleanArray) -> BoolArray:
    """A boolean column without nulls as a numpy mask."""
    return np.asarray(mask.to_numpy(zero_copy_only=False), dtype=np.bool_)


def is_true(values: pa.BooleanArray) -> BoolArray:
    """Where the values are true: neither false nor null."""
    return mask_of(arrow("coalesce")([values, _FALSE]) if values.null_count else values)


def valid_mask(values: pa.Array | pa.Scalar) -> BoolArray | bool:
    """Where the values are not null (one answer for a constant)."""
    if isinstance(values, pa.Scalar):
        return bool(values.is_valid)
    return mask_of(values.is_valid()) if values.null_count else True


def keep_bad(found: list[Bad], bad: list[Bad], narrow: Callable[[BoolArray], BoolArray]) -> None:
    """Add the bad rows that still count after `narrow`."""
    for one in found:
        mask = narrow(one.mask)
        if mask.any():
            bad.append(Bad(mask, one.code, one.message))


def null_where_bad(values: pa.Array, bad: Sequence[Bad]) -> pa.Array:
    """The values with null in the bad rows."""
    if not bad:
        return values
    mask = np.logical_or.reduce([one.mask for one in bad])
    return arrow("if_else")([pa.array(mask), pa.scalar(None, values.type), values])
