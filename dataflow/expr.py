"""Column expressions as users write them: `(col.price * col.count > 100) & col.kind.is_in(["a", "b"])`.

Here is what they start from: `col`, `lit`, `when`, `coalesce`, `duration`. What those make is a tree
(compute/tree.py) that knows no types; `bind(schema)` gives it types (compute/binding.py) and something that computes
whole columns (compute/evaluate.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from dataflow.compute.evaluate import Bad, BoundExpr, Evaluated
from dataflow.compute.tree import (
    Choice,
    Column,
    Duration,
    Expr,
    ExprLike,
    Identity,
    Literal,
    Method,
    argument_text,
    as_expr,
    python_value,
)
from dataflow.errors import TypeMismatchError

__all__ = [
    "Bad",
    "BoundExpr",
    "Column",
    "Evaluated",
    "Expr",
    "ExprLike",
    "Identity",
    "as_expr",
    "coalesce",
    "col",
    "duration",
    "lit",
    "when",
]


class _Col:
    """`col.price` and `col("price")`: a column by its name."""

    def __call__(self, name: str) -> Expr:
        if not isinstance(name, str):
            raise TypeMismatchError(f"`col` needs the name of a column, got {name!r}")
        return Column(name)

    def __getattr__(self, name: str) -> Expr:
        if name.startswith("__"):
            raise AttributeError(name)
        return Column(name)

    def __repr__(self) -> str:
        return "col"


col = _Col()


def lit(value: object) -> Expr:
    """A constant as an expression: `lit(0)`, `lit("n/a")`, `lit(None)`.

    >>> lit(1) / col.n
    1 / col.n
    """
    return value if isinstance(value, Expr) else Literal(python_value(value))


class Unfinished:
    """A `when` that does not end with `otherwise` is no expression yet."""

    __slots__ = ()

    def refuse_in_expression(self) -> NoReturn:
        """Raise: there is no value for the other rows."""
        raise TypeMismatchError(
            f"`{self!r}` is not finished", help="end it with `.otherwise(…)` (or `otherwise(None)`)"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class When(Unfinished):
    """`when(c)` that waits for its `then`."""

    done: tuple[tuple[Expr, Expr], ...]
    condition: Expr

    def then(self, value: ExprLike) -> Then:
        """The value where the condition is true (and none before it was)."""
        return Then((*self.done, (self.condition, as_expr(value))))

    def __repr__(self) -> str:
        return f"when({argument_text(self.condition)}) …"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Then(Unfinished):
    """`when(c).then(x)` that waits for another `when` or for `otherwise`."""

    done: tuple[tuple[Expr, Expr], ...]

    def when(self, condition: ExprLike) -> When:
        """A condition for the rows that no earlier one took."""
        return When(self.done, as_expr(condition))

    def otherwise(self, value: ExprLike) -> Expr:
        """The value of the rows that no condition took."""
        return Choice(self.done, as_expr(value))

    def __repr__(self) -> str:
        return f"{repr(Choice(self.done, Literal(None))).removesuffix('.otherwise(None)')} …"


def when(condition: ExprLike) -> When:
    """A choice between values, by conditions that are asked in order.

    >>> when(col.delay > 15).then("late").otherwise("on time")
    when(col.delay > 15).then('late').otherwise('on time')
    """
    return When((), as_expr(condition))


def coalesce(*values: ExprLike) -> Expr:
    """The first of the values that is not null."""
    if not values:
        raise TypeMismatchError("`coalesce` needs at least one value")
    return Method("coalesce", tuple(map(as_expr, values)))


def duration(
    *,
    days: ExprLike = None,
    hours: ExprLike = None,
    minutes: ExprLike = None,
    seconds: ExprLike = None,
    milliseconds: ExprLike = None,
    microseconds: ExprLike = None,
) -> Expr:
    """A duration in microseconds from numbers or number columns.

    >>> col.day + duration(hours=col.hour, minutes=30)
    col.day + duration(hours=col.hour, minutes=30)
    """
    units = {
        "days": days,
        "hours": hours,
        "minutes": minutes,
        "seconds": seconds,
        "milliseconds": milliseconds,
        "microseconds": microseconds,
    }
    parts = tuple((unit, as_expr(part)) for unit, part in units.items() if part is not None)
    if not parts:
        raise TypeMismatchError("`duration` needs at least one part", help="as in `duration(minutes=5)`")
    return Duration(parts)
