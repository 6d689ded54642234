"""Aggregates as users write them: `count()`, `col.delay.mean()`, `col.carrier.max_by(col.delay).alias("worst")`.

An aggregate is a frozen value: which function, of which expressions, over which rows (`filter`). What it keeps
and how it merges is `operators/accumulators.py`. The hard part is that one is *not* an expression: it has no
value in a row, so arithmetic on it is refused, with the place where it belongs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

from dataflow.errors import TypeMismatchError
from dataflow.expr import Column, Expr, ExprLike, Identity, as_expr

FUNCTIONS = ("count", "sum", "mean", "min", "max", "first", "last", "quantile", "max_by", "min_by")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Aggregate:
    """A function over the rows of a group. Made by `count()`, `col.x.sum()` and the like.

    >>> from dataflow.expr import col
    >>> col.delay.mean().filter(col.delay > 0).alias("late_mean")
    col.delay.mean().filter(col.delay > 0).alias('late_mean')
    """

    function: str
    inputs: tuple[Expr, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    filter_: Expr | None = None
    name: str | None = None

    __array_ufunc__: ClassVar[None] = None

    def alias(self, name: str) -> Aggregate:
        """The same aggregate as a column of this name."""
        return replace(self, name=name)

    def filter(self, condition: ExprLike) -> Aggregate:
        """The same aggregate over the rows where the condition (and any earlier one) is true."""
        both = as_expr(condition) if self.filter_ is None else self.filter_ & condition
        return replace(self, filter_=both)

    def option(self, name: str) -> Any:
        """The value of an option."""
        return dict(self.options)[name]

    def columns(self) -> frozenset[str]:
        """The columns it reads."""
        read = self.inputs if self.filter_ is None else (*self.inputs, self.filter_)
        return frozenset().union(*(one.columns() for one in read))

    def identity(self) -> Identity:
        """The same for equal aggregates, in every run; fit for JSON. The alias does not count."""
        inputs = tuple(one.identity() for one in self.inputs)
        condition = None if self.filter_ is None else self.filter_.identity()
        return ("agg", self.function, inputs, self.options, condition)

    def output_name(self) -> str | None:
        """The name given by `alias`."""
        return self.name

    def __repr__(self) -> str:
        text = self._call()
        if self.filter_ is not None:
            text += f".filter({self.filter_!r})"
        return text if self.name is None else f"{text}.alias({self.name!r})"

    def _call(self) -> str:
        if self.function == "count":
            return f"count({', '.join(map(repr, self.inputs))})"
        first, *others = self.inputs
        operand = repr(first) if first.level == Expr.level else f"({first!r})"
        options = [f"{key}={value!r}" for key, value in self.options if value is not False and key != "q"]
        quantile = [repr(value) for key, value in self.options if key == "q"]
        return f"{operand}.{self.function}({', '.join([*map(repr, others), *quantile, *options])})"

    def refuse_in_expression(self) -> NoReturn:
        """Raise: an aggregate has no value in a row."""
        raise TypeMismatchError(
            f"`{self!r}` is an aggregate: it has a value for a group, not for a row",
            code="DF0303",
            help="give it a name in `agg` and compute in a `derive` after it: "
            "`.agg(total=col.x.sum(), n=count()).derive(share=col.total / col.n)`",
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Aggregate):
            self.refuse_in_expression()
        return self.name == other.name and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(self.identity())

    def _refused(self, *_: object) -> NoReturn:
        self.refuse_in_expression()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refused
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __and__ = __rand__ = __or__ = __ror__ = _refused
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __invert__ = __abs__ = __bool__ = _refused


def aggregate(function: str, *inputs: ExprLike, **options: Any) -> Aggregate:
    """An aggregate whose options are checked."""
    if function == "quantile":
        _check_quantile(options["q"], options["exact"])
    return Aggregate(function, tuple(map(_input, inputs)), tuple(options.items()))


def _input(value: ExprLike) -> Expr:
    """An expression, with advice for a name in quotes that was meant as a column."""
    if isinstance(value, str):
        raise TypeMismatchError(
            f"an aggregate needs a column, got the text {value!r}", help=f"write `{Column(value)!r}`"
        )
    return as_expr(value)


def _check_quantile(q: object, exact: bool) -> None:
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0 <= q <= 1:
        raise TypeMismatchError(
            f"`quantile` needs a share between 0 and 1, got {q!r}", help="`quantile(0.95)` is the 95th percentile"
        )
    if not exact:
        raise TypeMismatchError(
            "an approximate `quantile` is not available yet",
            code="DF0304",
            help=f"use exact=True: `quantile({q!r}, exact=True)`; it keeps the values of the open windows in memory",
        )


# ── function forms ───────────────────────────────────────────────────────────────────────────────────────


def count(value: ExprLike = None) -> Aggregate:
    """The number of rows, or of the rows where `value` is not null.

    >>> from dataflow.expr import col
    >>> count(col.delay)
    count(col.delay)
    """
    return aggregate("count") if value is None else aggregate("count", value)


def sum(value: ExprLike) -> Aggregate:
    """The sum; null over no values. Integers give int64 (an overflow is an error row), floats float64."""
    return aggregate("sum", value)


def mean(value: ExprLike) -> Aggregate:
    """The arithmetic mean as float64; null over no values."""
    return aggregate("mean", value)


def min(value: ExprLike) -> Aggregate:
    """The least value."""
    return aggregate("min", value)


def max(value: ExprLike) -> Aggregate:
    """The greatest value."""
    return aggregate("max", value)


def first(value: ExprLike, ignore_nulls: bool = False) -> Aggregate:
    """The first value in event-time order."""
    return aggregate("first", value, ignore_nulls=ignore_nulls)


def last(value: ExprLike, ignore_nulls: bool = False) -> Aggregate:
    """The last value in event-time order."""
    return aggregate("last", value, ignore_nulls=ignore_nulls)


def quantile(value: ExprLike, q: float, exact: bool = False) -> Aggregate:
    """The value below which a share `q` of the values lies."""
    return aggregate("quantile", value, q=q, exact=exact)


def max_by(value: ExprLike, order: ExprLike) -> Aggregate:
    """The value in the row where `order` is greatest."""
    return aggregate("max_by", value, order)


def min_by(value: ExprLike, order: ExprLike) -> Aggregate:
    """The value in the row where `order` is least."""
    return aggregate("min_by", value, order)
