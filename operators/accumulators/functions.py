"""The aggregate functions: the primitive that each needs, its result's type, and how the one becomes the other.

One entry a function in `MEANINGS`; a new aggregate is a function here and its test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa

from dataflow.aggregates import Aggregate
from dataflow.errors import TypeMismatchError
from dataflow.message import BoolArray, Int64Array
from dataflow.operators.accumulators import has_numbers
from dataflow.operators.accumulators.base import Accumulator, Taken
from dataflow.operators.accumulators.numbers import Count, Extreme, FloatExtreme, FloatSum, IntSum, floats_of
from dataflow.operators.accumulators.quantile import Values, interpolated
from dataflow.operators.accumulators.winners import ArrowWinner, Winner

Finish = Callable[[Accumulator, Taken], tuple[pa.Array, BoolArray | None]]


@dataclass(frozen=True)
class Meaning:
    """What a function of inputs of some types is. Equal keys share one primitive."""

    key: tuple[object, ...]
    make: Callable[[], Accumulator]
    type: pa.DataType
    finish: Finish
    takes_nulls: bool = False
    compares_in_arrow: bool = False


def meaning_of(aggregate: Aggregate, kinds: Sequence[pa.DataType]) -> Meaning:
    """The meaning of an aggregate over inputs of these types; raises TypeMismatchError when it has none."""
    return MEANINGS[aggregate.function](aggregate, kinds)


def _count(aggregate: Aggregate, kinds: Sequence[pa.DataType]) -> Meaning:
    return Meaning(
        ("count",),
        Count,
        pa.int64(),
        finish_count,
    )


def finish_count(one: Accumulator, taken: Taken) -> tuple[pa.Array, None]:
    """The rows that were counted; sums and extremes of numbers count them too."""
    return pa.array(cast(Count | FloatSum | IntSum | Extreme, one).rows(taken)), None


def _sum_primitive(aggregate: Aggregate, kind: pa.DataType) -> tuple[tuple[object, ...], Callable[[], Accumulator]]:
    if pa.types.is_floating(kind):
        return ("float sum",), FloatSum
    if (pa.types.is_integer(kind) and not pa.types.is_uint64(kind)) or pa.types.is_boolean(kind):
        return ("int sum",), IntSum
    if pa.types.is_uint64(kind):
        raise TypeMismatchError(
            f"`{aggregate!r}`: sums are int64, which cannot hold every uint64", help='cast it: `.cast("int64")`'
        )
    hint = f'cast it: `.cast("{"float64" if pa.types.is_decimal(kind) else "int64"}")`'
    raise TypeMismatchError(f"`{aggregate!r}` needs numbers, but its input is {kind}", help=hint)


def _sum(aggregate: Aggregate, kinds: Sequence[pa.DataType]) -> Meaning:
    key, make = _sum_primitive(aggregate, kinds[0])
    if make is FloatSum:
        return Meaning(key, make, pa.float64(), _finish_float_sum)
    return Meaning(key, make, pa.int64(), _finish_int_sum)


def _finish_float_sum(one: Accumulator, taken: Taken) -> tuple[pa.Array, None]:
    sums = cast(FloatSum, one)
    return _where_any(sums.total(taken), sums.number(taken)), None


def _finish_int_sum(one: Accumulator, taken: Taken) -> tuple[pa.Array, BoolArray]:
    sums = cast(IntSum, one)
    bad = sums.too_large(taken)
    return pa.array(sums.low(taken), mask=(sums.number(taken) == 0) | bad), bad


def _mean(aggregate: Aggregate, kinds: Sequence[pa.DataType]) -> Meaning:
    key, make = _sum_primitive(aggregate, kinds[0])

    def finish(one: Accumulator, taken: Taken) -> tuple[pa.Array, None]:
        sums = cast(FloatSum | IntSum, one)
        number = sums.number(taken)
        return _where_any(sums.total(taken) / np.maximum(number, 1), number), None

    return Meaning(key, make, pa.float64(), finish)


def _where_any(values: np.ndarray, number: Int64Array) -> pa.Array:
    """The values, null where there were none to make them of."""
    empty = number == 0
    return pa.array(values, mask=empty) if empty.any() else pa.array(values)


def _extreme(largest: bool) -> Callable[[Aggregate, Sequence[pa.DataType]], Meaning]:
    def meaning(aggregate: Aggregate, kinds: Sequence[pa.DataType]) -> Meaning:
        kind = kinds[0]
        if pa.types.is_floating(kind):
            return Meaning(("extreme", largest), lambda: FloatExtreme(largest), kind, _finish_float_extreme(kind))
        if has_numbers(kind) and not pa.types.is_uint64(kind):
            return Meaning(("extreme", largest), lambda: Extreme(largest), kind, _finish_int_extreme(kind))
        if not _is_comparable(kind):
            raise TypeMismatchError(f"`{aggregate!r}`: values of type {kind} have no order", help="use a field of it")
        return Meaning(
            ("extreme", largest),
            lambda: ArrowWinner(kind, kind, largest=largest, ordered=False),
            kind,
            lambda one, taken: (cast(ArrowWinner, one).value(taken), None),
            compares_in_arrow=True,
        )

    return meaning


def _finish_float_extreme(kind: pa.DataType) -> Finish:
    def finish(one: Accumulator, taken: Taken) -> tuple[pa.Array, None]:
        extreme = cast(Extreme, one)
        return _where_any(floats_of(extreme.best(taken)), extreme.number(taken)).cast(kind), None

    return finish


def _finish_int_extreme(kind: pa.DataType) -> Finish:
    def finish(one: Accumulator, taken: Taken) -> tuple[pa.Array, None]:
        extreme = cast(Extreme, one)
        found = _where_any(extreme.best(taken), extreme.number(taken))
        return of_ints(found, kind), None

    return finish


def of_ints(found: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values of an integer-like type from the int64 that stand for them."""
    if pa.types.is_temporal(kind):
        return found.view(kind) if kind.bit_width == 64 else found.cast(pa.int32()).view(kind)
    return found.cast(kind)


def _is_comparable(kind: pa.DataType) -> bool:
    nested = pa.types.is_nested(kind) or pa.types.is_null(kind)
    return not nested and not pa.types.is_binary_view(kind) and not pa.types.is_string_view(kind)


def _edge(latest: bool) -> Callable[[Aggregate, Sequence[pa.DataType]], Meaning]:
    def meaning(aggregate: Aggregate, kinds: Sequence[pa.DataType]) -> Meaning:
        kind = kinds[0]
        nulls = not aggregate.option("ignore_nulls")
        return Meaning(
            ("edge", latest, nulls),
            lambda: Winner(kind, by_rank=False, largest=True, latest=latest),
            kind,
            lambda one, taken: (cast(Winner, one).value(taken), None),
            takes_nulls=nulls,
        )

    return meaning


def _by(largest: bool) -> Callable[[Aggregate, Sequence[pa.DataType]], Meaning]:
    def meaning(aggregate: Aggregate, kinds: Sequence[pa.DataType]) -> Meaning:
        kind, order = kinds
        if has_numbers(order) and not pa.types.is_uint64(order):
            return Meaning(
                ("by", largest),
                lambda: Winner(kind, by_rank=True, largest=largest, latest=False),
                kind,
                lambda one, taken: (cast(Winner, one).value(taken), None),
                takes_nulls=True,
            )
        if not _is_comparable(order):
            raise TypeMismatchError(f"`{aggregate!r}`: values of type {order} have no order", help="use a field of it")
        return Meaning(
            ("by", largest),
            lambda: ArrowWinner(kind, order, largest=largest, ordered=True),
            kind,
            lambda one, taken: (cast(ArrowWinner, one).value(taken), None),
            compares_in_arrow=True,
        )

    return meaning


def _quantile(aggregate: Aggregate, kinds: Sequence[pa.DataType]) -> Meaning:
    kind, q = kinds[0], float(aggregate.option("q"))
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise TypeMismatchError(
            f"`{aggregate!r}` needs numbers, but its input is {kind}", help='cast it: `.cast("float64")`'
        )

    def finish(one: Accumulator, taken: Taken) -> tuple[pa.Array, None]:
        values, bounds = cast(Values, one).take(taken.slots)
        return _where_any(*interpolated(values, bounds, q)), None

    return Meaning(("values",), lambda: Values(pa.types.is_uint64(kind)), pa.float64(), finish)


MEANINGS: dict[str, Callable[[Aggregate, Sequence[pa.DataType]], Meaning]] = {
    "count": _count,
    "sum": _sum,
    "mean": _mean,
    "min": _extreme(largest=False),
    "max": _extreme(largest=True),
    "first": _edge(latest=False),
    "last": _edge(latest=True),
    "max_by": _by(largest=True),
    "min_by": _by(largest=False),
    "quantile": _quantile,
}
