"""The tree of an expression: what users wrote, immutable and without types.

It prints itself as it was written, lists its columns, and has an identity that is equal in another run. The hard
part is Python's own syntax: `==` must build an expression, so expressions compare by identity(), and `and`, `or`,
`not`, `in`, which cannot be caught, raise with advice.
"""

from __future__ import annotations

import datetime as dt
import keyword
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from dataflow.compute.evaluate import BoundExpr
from dataflow.errors import TypeMismatchError

if TYPE_CHECKING:
    from dataflow.aggregates import Aggregate
    from dataflow.functions import Namespace

ExprLike = Any
"""An expression, or a Python value that becomes a literal."""
Identity = tuple[Any, ...]
"""Nested tuples of str, int, bool and None."""

_CALL, _UNARY, _TIMES, _PLUS, _AND, _OR, _COMPARE = range(7)  # how tightly Python binds, tightest first
_LEVELS = {"*": _TIMES, "/": _TIMES, "//": _TIMES, "%": _TIMES, "+": _PLUS, "-": _PLUS, "&": _AND, "|": _OR}
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


class Expr:
    """A column expression. Made by `col`, `lit`, `when`, `coalesce`, and operators on those.

    >>> from dataflow.expr import col
    >>> col.price * 2 > 10
    col.price * 2 > 10
    """

    __slots__ = ()
    __array_ufunc__: ClassVar[None] = None  # numpy values on the left leave the operator to us
    level: ClassVar[int] = _CALL

    # what it is

    def inputs(self) -> tuple[Expr, ...]:
        """The expressions it is made of."""
        return ()

    def identity(self) -> Identity:
        """The same for equal expressions, in every run; fit for JSON."""
        raise NotImplementedError

    def columns(self) -> frozenset[str]:
        """The columns it reads."""
        return frozenset().union(*(one.columns() for one in self.inputs()))

    def output_name(self) -> str | None:
        """The column's name in `select` and `derive`: given by `alias`, or by a column that keeps its meaning."""
        return None

    def bind(self, schema: pa.Schema) -> BoundExpr:
        """Give it the types of these columns; raises NameNotFoundError or TypeMismatchError."""
        from dataflow.compute.binding import bind

        return bind(self, schema)

    def __bool__(self) -> bool:
        raise TypeMismatchError(
            f"`{self!r}` is an expression: it is true or false for each row, not as a whole",
            help="combine conditions with `&`, `|` and `~` (in brackets) instead of `and`, `or` and `not`; "
            "write `.is_in([…])` instead of `in`, `.between(a, b)` instead of `a < x < b`, `when(…)` instead of `if`",
        )

    def __iter__(self) -> Any:
        raise TypeMismatchError(f"`{self!r}` is an expression and cannot be iterated over")

    def __contains__(self, item: object) -> bool:
        raise TypeMismatchError(f"`in {self!r}` cannot be asked", help="write `.str.contains(…)` or `.is_in([…])`")

    __hash__ = object.__hash__

    # operators

    def __add__(self, other: ExprLike) -> Expr:
        return Binary("+", self, as_expr(other))

    def __radd__(self, other: ExprLike) -> Expr:
        return Binary("+", as_expr(other), self)

    def __sub__(self, other: ExprLike) -> Expr:
        return Binary("-", self, as_expr(other))

    def __rsub__(self, other: ExprLike) -> Expr:
        return Binary("-", as_expr(other), self)

    def __mul__(self, other: ExprLike) -> Expr:
        return Binary("*", self, as_expr(other))

    def __rmul__(self, other: ExprLike) -> Expr:
        return Binary("*", as_expr(other), self)

    def __truediv__(self, other: ExprLike) -> Expr:
        return Binary("/", self, as_expr(other))

    def __rtruediv__(self, other: ExprLike) -> Expr:
        return Binary("/", as_expr(other), self)

    def __floordiv__(self, other: ExprLike) -> Expr:
        return Binary("//", self, as_expr(other))

    def __rfloordiv__(self, other: ExprLike) -> Expr:
        return Binary("//", as_expr(other), self)

    def __mod__(self, other: ExprLike) -> Expr:
        return Binary("%", self, as_expr(other))

    def __rmod__(self, other: ExprLike) -> Expr:
        return Binary("%", as_expr(other), self)

    def __and__(self, other: ExprLike) -> Expr:
        return Binary("&", self, as_expr(other))

    def __rand__(self, other: ExprLike) -> Expr:
        return Binary("&", as_expr(other), self)

    def __or__(self, other: ExprLike) -> Expr:
        return Binary("|", self, as_expr(other))

    def __ror__(self, other: ExprLike) -> Expr:
        return Binary("|", as_expr(other), self)

    def __eq__(self, other: ExprLike) -> Expr:  # type: ignore[override]
        return Binary("==", self, as_expr(other))

    def __ne__(self, other: ExprLike) -> Expr:  # type: ignore[override]
        return Binary("!=", self, as_expr(other))

    def __lt__(self, other: ExprLike) -> Expr:
        return Binary("<", self, as_expr(other))

    def __le__(self, other: ExprLike) -> Expr:
        return Binary("<=", self, as_expr(other))

    def __gt__(self, other: ExprLike) -> Expr:
        return Binary(">", self, as_expr(other))

    def __ge__(self, other: ExprLike) -> Expr:
        return Binary(">=", self, as_expr(other))

    def __neg__(self) -> Expr:
        return Unary("-", self)

    def __invert__(self) -> Expr:
        return Unary("~", self)

    # methods

    def is_null(self) -> Expr:
        """True where the value is null."""
        return Method("is_null", (self,))

    def is_not_null(self) -> Expr:
        """True where the value is not null."""
        return Method("is_not_null", (self,))

    def is_in(self, values: Iterable[object]) -> Expr:
        """True where the value is one of these constants; null where it is null."""
        if isinstance(values, str | bytes | Expr):
            raise TypeMismatchError(f"`is_in` needs a list of values, got {values!r}", help=f"write `[{values!r}]`")
        return IsIn(self, tuple(python_value(value) for value in values))

    def between(self, low: ExprLike, high: ExprLike) -> Expr:
        """True where `low <= value <= high`."""
        return Method("between", (self, as_expr(low), as_expr(high)))

    def fill_null(self, value: ExprLike) -> Expr:
        """The value, or the other one where it is null."""
        return Method("fill_null", (self, as_expr(value)))

    def abs(self) -> Expr:
        """The distance from zero."""
        return self._call("abs")

    def round(self, digits: int = 0) -> Expr:
        """The nearest number with so many digits after the point; halves go to the even neighbour."""
        return self._call("round", digits)

    def cast(self, type: object) -> Expr:
        """The value in another type; a value that has no equal there makes the row an error row."""
        from dataflow.schema import to_type, type_name

        return Cast(self, type_name(to_type(type)))

    def alias(self, name: str) -> Expr:
        """The same values under another name."""
        return Alias(self, name)

    def _call(self, name: str, *options: object) -> Expr:
        from dataflow.functions import checked_options, find_function

        return Call(name, self, checked_options(find_function(name), options, {}))

    # aggregates

    def sum(self) -> Aggregate:
        """The sum over a group; null over no values."""
        return self._aggregate("sum")

    def mean(self) -> Aggregate:
        """The mean over a group; null over no values."""
        return self._aggregate("mean")

    def min(self) -> Aggregate:
        """The least value of a group."""
        return self._aggregate("min")

    def max(self) -> Aggregate:
        """The greatest value of a group."""
        return self._aggregate("max")

    def first(self, ignore_nulls: bool = False) -> Aggregate:
        """The first value of a group, in event-time order."""
        return self._aggregate("first", ignore_nulls=ignore_nulls)

    def last(self, ignore_nulls: bool = False) -> Aggregate:
        """The last value of a group, in event-time order."""
        return self._aggregate("last", ignore_nulls=ignore_nulls)

    def quantile(self, q: float, exact: bool = False) -> Aggregate:
        """The value below which a share `q` of the group lies; linear interpolation when exact."""
        return self._aggregate("quantile", q=q, exact=exact)

    def max_by(self, order: ExprLike) -> Aggregate:
        """The value in the row where `order` is greatest; the first such row wins."""
        return self._aggregate("max_by", order)

    def min_by(self, order: ExprLike) -> Aggregate:
        """The value in the row where `order` is least; the first such row wins."""
        return self._aggregate("min_by", order)

    def _aggregate(self, function: str, *others: ExprLike, **options: object) -> Aggregate:
        from dataflow.aggregates import aggregate

        return aggregate(function, self, *others, **options)

    # functions of the library; last in the class, since `str` means this property from here on

    @property
    def dt(self) -> Namespace:
        """Functions of timestamps and dates: `.dt.hour()`."""
        from dataflow.functions import Namespace

        return Namespace("dt", lambda name, options: Call(name, self, options))

    @property
    def str(self) -> Namespace:
        """Functions of texts: `.str.lower()`."""
        from dataflow.functions import Namespace

        return Namespace("str", lambda name, options: Call(name, self, options))


# ── the kinds of expression ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Column(Expr):
    """A column of the stream."""

    name: str

    def columns(self) -> frozenset[str]:
        return frozenset((self.name,))

    def identity(self) -> Identity:
        return ("col", self.name)

    def output_name(self) -> str:
        return self.name

    def __repr__(self) -> str:
        plain = self.name.isidentifier() and not keyword.iskeyword(self.name) and not self.name.startswith("__")
        return f"col.{self.name}" if plain else f"col({self.name!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Literal(Expr):
    """A constant; its exact type comes from what it is combined with."""

    value: object

    def identity(self) -> Identity:
        return ("lit", *_value_identity(self.value))

    def __repr__(self) -> str:
        return f"lit({value_text(self.value)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Binary(Expr):
    """An operator between two expressions."""

    op: str
    left: Expr
    right: Expr

    @property
    def level(self) -> int:  # type: ignore[override]
        return _LEVELS.get(self.op, _COMPARE)

    def inputs(self) -> tuple[Expr, ...]:
        return (self.left, self.right)

    def identity(self) -> Identity:
        return (self.op, self.left.identity(), self.right.identity())

    def __repr__(self) -> str:
        # Python's comparisons form chains, so a comparison inside another one needs brackets on either side.
        left_level = self.level - 1 if self.level == _COMPARE else self.level
        left = _operand(self.left, left_level, beside=self.right)
        return f"{left} {self.op} {_operand(self.right, self.level - 1, beside=self.left)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Unary(Expr):
    """`-x` or `~x`."""

    op: str
    operand: Expr
    level: ClassVar[int] = _UNARY

    def inputs(self) -> tuple[Expr, ...]:
        return (self.operand,)

    def identity(self) -> Identity:
        return (f"unary {self.op}", self.operand.identity())

    def __repr__(self) -> str:
        return f"{self.op}{_operand(self.operand, _UNARY)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cast(Expr):
    """A change of type; `type` is its canonical name."""

    operand: Expr
    type: str

    def inputs(self) -> tuple[Expr, ...]:
        return (self.operand,)

    def identity(self) -> Identity:
        return ("cast", self.operand.identity(), self.type)

    def output_name(self) -> str | None:
        return self.operand.output_name()

    def __repr__(self) -> str:
        return f'{_operand(self.operand, _CALL)}.cast("{self.type}")'


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Alias(Expr):
    """An expression with a name of its own."""

    operand: Expr
    name: str

    def inputs(self) -> tuple[Expr, ...]:
        return (self.operand,)

    def identity(self) -> Identity:
        return ("alias", self.operand.identity(), self.name)

    def output_name(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"{_operand(self.operand, _CALL)}.alias({value_text(self.name)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Method(Expr):
    """`is_null is_not_null between fill_null`, or `coalesce`, whose inputs are all expressions."""

    name: str
    args: tuple[Expr, ...]

    def inputs(self) -> tuple[Expr, ...]:
        return self.args

    def identity(self) -> Identity:
        return (self.name, *(arg.identity() for arg in self.args))

    def output_name(self) -> str | None:
        return self.args[0].output_name() if self.name == "fill_null" else None

    def __repr__(self) -> str:
        if self.name == "coalesce":
            return f"coalesce({', '.join(map(argument_text, self.args))})"
        return f"{_operand(self.args[0], _CALL)}.{self.name}({', '.join(map(argument_text, self.args[1:]))})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IsIn(Expr):
    """Whether a value is one of some constants."""

    operand: Expr
    values: tuple[object, ...]

    def inputs(self) -> tuple[Expr, ...]:
        return (self.operand,)

    def identity(self) -> Identity:
        return ("is_in", self.operand.identity(), *(_value_identity(value) for value in self.values))

    def __repr__(self) -> str:
        return f"{_operand(self.operand, _CALL)}.is_in([{', '.join(map(value_text, self.values))}])"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Call(Expr):
    """A function of the library (functions.py) on one expression, with constant options."""

    name: str
    operand: Expr
    options: tuple[object, ...] = ()

    def inputs(self) -> tuple[Expr, ...]:
        return (self.operand,)

    def identity(self) -> Identity:
        return ("call", self.name, self.operand.identity(), *(_value_identity(value) for value in self.options))

    def __repr__(self) -> str:
        return f"{_operand(self.operand, _CALL)}.{self.name}({', '.join(map(value_text, self.options))})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Duration(Expr):
    """A duration put together from parts, such as `duration(hours=col.h, minutes=30)`."""

    parts: tuple[tuple[str, Expr], ...]

    def inputs(self) -> tuple[Expr, ...]:
        return tuple(part for _, part in self.parts)

    def identity(self) -> Identity:
        return ("duration", *((unit, part.identity()) for unit, part in self.parts))

    def __repr__(self) -> str:
        return f"duration({', '.join(f'{unit}={argument_text(part)}' for unit, part in self.parts)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Choice(Expr):
    """`when(c).then(x).when(d).then(y).otherwise(z)`."""

    branches: tuple[tuple[Expr, Expr], ...]
    default: Expr

    def inputs(self) -> tuple[Expr, ...]:
        return (*(one for branch in self.branches for one in branch), self.default)

    def identity(self) -> Identity:
        return ("when", *((c.identity(), x.identity()) for c, x in self.branches), self.default.identity())

    def __repr__(self) -> str:
        text = "".join(f".when({argument_text(c)}).then({argument_text(x)})" for c, x in self.branches)
        return f"{text[1:]}.otherwise({argument_text(self.default)})"


def as_expr(value: ExprLike) -> Expr:
    """The expression itself, or a literal; an aggregate is refused with advice."""
    return value if isinstance(value, Expr) else Literal(python_value(value))


# ── values and texts ─────────────────────────────────────────────────────────────────────────────────────

_VALUES = (bool, int, float, str, bytes, dt.date, dt.time, dt.timedelta, Decimal)  # a datetime is a date


def python_value(value: object) -> object:
    """The value as a literal may hold it."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    if value is None or isinstance(value, _VALUES):
        return value
    refuse = getattr(value, "refuse_in_expression", None)
    if refuse is not None:
        refuse()
    raise TypeMismatchError(
        f"a {type(value).__name__} cannot be a value in an expression: {value!r:.80}",
        help="use numbers, text, bytes, bool, None, or values of datetime and decimal",
    )


def _value_identity(value: object) -> Identity:
    if value is None or isinstance(value, bool | int | str):
        return (type(value).__name__, value)
    if isinstance(value, bytes):
        return ("bytes", value.hex())
    return (type(value).__name__, repr(value))


def value_text(value: object) -> str:
    if isinstance(value, dt.date | dt.time | dt.timedelta):
        return repr(value).removeprefix("datetime.")
    return repr(value)


def argument_text(expr: Expr) -> str:
    """An expression inside the brackets of a call: a literal needs no `lit`."""
    return value_text(expr.value) if isinstance(expr, Literal) else repr(expr)


def _operand(expr: Expr, level: int, beside: Expr | None = None) -> str:
    """An operand, in brackets unless it binds at least as tightly as `level`."""
    if isinstance(expr, Literal) and beside is not None and not isinstance(beside, Literal):
        return value_text(expr.value)
    return repr(expr) if expr.level <= level else f"({expr!r})"
