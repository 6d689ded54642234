"""Aggregates: what each function keeps of a group's rows, how that merges, and what it becomes.

An `AggregateSet` is the checked meaning of one `agg`: it splits its aggregates into primitives and shares them (sum and
mean of one column are one pass over it). An `AggregateState` holds the words of the groups of one task.
Everything here is independent of how the rows came in batches and of who had which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dataflow.aggregates import Aggregate
from dataflow.errors import TypeMismatchError
from dataflow.expr import Bad, Expr
from dataflow.kernels.accumulate import clear
from dataflow.kernels.gateway import ALL_VALID, validity_of, values_of
from dataflow.message import BoolArray, Int64Array, SlotArray, plain
from dataflow.operators.accumulators.base import Accumulator, Finished, RowOrder, Rows, Taken
from dataflow.schema import new_field

__all__ = ["AggregateSet", "AggregateState", "Finished", "RowOrder"]

_COUNT = (("count",), (), None)
"""The key of `count()`: no inputs, no condition."""


@dataclass(frozen=True)
class _Primitive:
    """One accumulator of a set: what makes it, and the inputs (their numbers) that it reads."""

    make: Callable[[], Accumulator]
    value: int | None
    condition: int | None
    rank: int | None = None
    takes_nulls: bool = False
    compares_in_arrow: bool = False


@dataclass(frozen=True)
class _Result:
    """How one aggregate is made of a primitive."""

    field: pa.Field
    primitive: int
    finish: Callable[[Accumulator, Taken], tuple[pa.Array, BoolArray | None]]
    told: str


class AggregateSet:
    """The aggregates of one `agg`, bound to the columns of its input; raises TypeMismatchError for wrong types."""

    def __init__(self, aggregates: Mapping[str, Aggregate], schema: pa.Schema) -> None:
        self._schema = schema
        self._inputs: dict[object, tuple[int, Expr, pa.DataType]] = {}
        self._primitives: dict[object, tuple[int, _Primitive]] = {}
        self._results = [self._bound(name, aggregate) for name, aggregate in aggregates.items()]
        self._share_count()
        self.inputs: tuple[Expr, ...] = tuple(expr for _, expr, _ in self._inputs.values())
        self.fields: list[pa.Field] = [result.field for result in self._results]
        functions = {aggregate.function for aggregate in aggregates.values()}
        self.mergeable = "quantile" not in functions
        self.needs_order = not functions.isdisjoint({"first", "last", "max_by", "min_by"})
        made = [primitive.make() for _, primitive in self._primitives.values()]
        width = sum(one.width for one in made)
        values = [kind for one in made for kind in one.value_types]
        self.partial_fields: list[pa.Field] = [
            pa.field("#words", pa.binary(8 * width)),
            *(pa.field(f"#value{number}", kind) for number, kind in enumerate(values)),
        ]

    def build(self) -> AggregateState:
        """Empty state for the groups of one task."""
        types = [kind for _, _, kind in self._inputs.values()]
        return AggregateState([primitive for _, primitive in self._primitives.values()], self._results, types)

    def _share_count(self) -> None:
        """Let `count()` be told by an aggregate that counts all rows anyway."""
        from dataflow.operators.accumulators.functions import finish_count

        own = self._primitives.get(_COUNT)
        others = [one for one in self._primitives.values() if one[1].condition is None and one[1].make().counts_rows]
        if own is None or not others:
            return
        del self._primitives[_COUNT]
        place_of = {place: new for new, (place, _) in enumerate(self._primitives.values())}
        self._primitives = {key: (place_of[place], one) for key, (place, one) in self._primitives.items()}
        self._results = [
            replace(result, primitive=place_of[others[0][0]], finish=finish_count)
            if result.primitive == own[0]
            else replace(result, primitive=place_of[result.primitive])
            for result in self._results
        ]

    def _input(self, expr: Expr) -> tuple[int, pa.DataType]:
        """The number and type of an input expression; equal ones are evaluated once."""
        key = expr.identity()
        if key not in self._inputs:
            self._inputs[key] = (len(self._inputs), expr, expr.bind(self._schema).type)
        number, _, kind = self._inputs[key]
        return number, kind

    def _shared(self, key: tuple[object, ...], primitive: _Primitive) -> int:
        return self._primitives.setdefault(key, (len(self._primitives), primitive))[0]

    def _bound(self, name: str, aggregate: Aggregate) -> _Result:
        from dataflow.operators.accumulators import functions

        condition = None
        if aggregate.filter_ is not None:
            condition, kind = self._input(aggregate.filter_)
            if not pa.types.is_boolean(kind):
                raise TypeMismatchError(
                    f"`{aggregate!r}`: filter needs a condition, but `{aggregate.filter_!r}` is {kind}",
                    help="compare it with something, as in `col.x > 0`",
                )
        inputs = [self._input(expr) for expr in aggregate.inputs]
        meaning = functions.meaning_of(aggregate, [kind for _, kind in inputs])
        numbers = [number for number, _ in inputs]
        primitive = _Primitive(
            meaning.make,
            numbers[0] if numbers else None,
            condition,
            numbers[1] if len(numbers) > 1 else None,
            meaning.takes_nulls,
            meaning.compares_in_arrow,
        )
        place = self._shared((meaning.key, tuple(numbers), condition), primitive)
        return _Result(new_field(name, meaning.type), place, meaning.finish, repr(aggregate))


class AggregateState:
    """What the groups of one task have gathered. Used by one task."""

    def __init__(
        self, primitives: Sequence[_Primitive], results: Sequence[_Result], types: Sequence[pa.DataType]
    ) -> None:
        self._primitives, self._results, self._types = primitives, results, types
        self._accumulators = [primitive.make() for primitive in primitives]
        width = 0
        for one in self._accumulators:
            one.at = width
            width += one.width
        self._words: Int64Array = np.zeros((0, width), dtype=np.int64)

    def grow(self, room: int) -> None:
        """Make room for slots below `room`; new ones are empty groups."""
        known = self._words
        if room > len(known):
            self._words = np.zeros((room, known.shape[1]), dtype=np.int64)
            self._words[: len(known)] = known

    def clear(self, slots: SlotArray) -> None:
        """Make these empty groups."""
        clear(slots, self._words)

    def update(self, slots: SlotArray, arrays: Sequence[pa.Array], order: RowOrder | None) -> None:
        """Take in rows: their slots, and the set's inputs of each."""
        seen: dict[int, tuple[np.ndarray, BoolArray]] = {}
        for primitive, accumulator in zip(self._primitives, self._accumulators, strict=True):
            if primitive.compares_in_arrow:
                self._offer(primitive, accumulator, slots, arrays, order)
            else:
                accumulator.update(self._words, self._rows(primitive, slots, arrays, order, seen))

    def _rows(
        self,
        primitive: _Primitive,
        slots: SlotArray,
        arrays: Sequence[pa.Array],
        order: RowOrder | None,
        seen: dict[int, tuple[np.ndarray, BoolArray]],
    ) -> Rows:
        values: pa.Array | None = None
        numbers, valid, ranks = _NO_NUMBERS, ALL_VALID, _NO_RANKS
        if primitive.rank is not None:
            values = self._plain(arrays, primitive.value)
            ranks, valid = self._ranks(arrays, primitive.rank, seen)
        elif primitive.value is not None:
            values = arrays[primitive.value]
            if primitive.takes_nulls:
                values = self._plain(arrays, primitive.value)
            else:
                numbers, valid = self._numbers(arrays, primitive.value, seen)
        if primitive.condition is not None:
            valid = _and(valid, _is_true(arrays[primitive.condition]))
        if primitive.value is not None and not primitive.takes_nulls and primitive.rank is None:
            values = self._plain(arrays, primitive.value)
        return Rows(slots, values, numbers, valid, ranks, order)

    def _plain(self, arrays: Sequence[pa.Array], number: int | None) -> pa.Array:
        assert number is not None
        return plain(arrays[number], self._types[number])

    def _numbers(
        self, arrays: Sequence[pa.Array], number: int, seen: dict[int, tuple[np.ndarray, BoolArray]]
    ) -> tuple[np.ndarray, BoolArray]:
        """The plain values of an input, made once a batch; only validity where a type has no plain values."""
        if number not in seen:
            array = arrays[number]
            is_plain = not pa.types.is_dictionary(array.type) and has_numbers(array.type)
            seen[number] = values_of(array) if is_plain else (_NO_NUMBERS, validity_of(array))
        return seen[number]

    def _ranks(
        self, arrays: Sequence[pa.Array], number: int, seen: dict[int, tuple[np.ndarray, BoolArray]]
    ) -> tuple[Int64Array, BoolArray]:
        from dataflow.operators.accumulators.numbers import ranks_of

        values, valid = self._numbers(arrays, number, seen)
        return ranks_of(values), valid

    def _offer(
        self,
        primitive: _Primitive,
        accumulator: Accumulator,
        slots: SlotArray,
        arrays: Sequence[pa.Array],
        order: RowOrder | None,
    ) -> None:
        from dataflow.operators.accumulators.winners import ArrowWinner

        assert isinstance(accumulator, ArrowWinner)
        values = self._plain(arrays, primitive.value)
        ranks = values if primitive.rank is None else self._plain(arrays, primitive.rank)
        valid = validity_of(ranks)
        if primitive.condition is not None:
            valid = _and(valid, _is_true(arrays[primitive.condition]))
        if len(valid):
            mask = pa.array(valid)
            slots, values, ranks = slots[valid], values.filter(mask), ranks.filter(mask)
            order = order and RowOrder(order.time_us[valid], order.positions[valid])
        if len(slots):
            accumulator.offer(self._words, slots, values, ranks, order)

    def partial(self, slots: SlotArray) -> list[pa.Array]:
        """All that is known of these groups, in the set's `partial_fields`."""
        taken = self._taken(slots)
        values = [column for one in self._accumulators for column in one.values(taken)]
        kind = pa.binary(8 * taken.words.shape[1])
        return [pa.Array.from_buffers(kind, len(slots), [None, pa.py_buffer(taken.words)]), *values]

    def merge(self, slots: SlotArray, arrays: Sequence[pa.Array]) -> None:
        """Take in what another task knows of these groups."""
        packed, *values = arrays
        width = self._words.shape[1]
        start = packed.offset * width
        words = np.frombuffer(packed.buffers()[1], dtype=np.int64)[start : start + len(slots) * width]
        given = Taken(slots, words.reshape(len(slots), width))
        at = 0
        for one in self._accumulators:
            end = at + len(one.value_types)
            one.merge(self._words, given, values[at:end])
            at = end

    def finish(self, slots: SlotArray) -> Finished:
        """The results of these groups; each group is asked once."""
        columns, bad = [], []
        taken = self._taken(slots)
        for result in self._results:
            column, failed = result.finish(self._accumulators[result.primitive], taken)
            columns.append(column)
            if failed is not None and failed.any():
                bad.append(Bad(failed, "DF0310", f"the sum `{result.told}` does not fit into 64 bits"))
        return Finished(columns, tuple(bad))

    def _taken(self, slots: SlotArray) -> Taken:
        return Taken(slots, np.take(self._words, slots, axis=0))

    def keep(self, kept: Int64Array, room: int) -> None:
        """Slot i is from now on what slot kept[i] was, and all are below `room`. `kept` ascends."""
        words = np.zeros((room, self._words.shape[1]), dtype=np.int64)
        words[: len(kept)] = self._words[kept]
        self._words = words
        for one in self._accumulators:
            one.keep(kept)

    @property
    def nbytes(self) -> int:
        return self._words.nbytes + sum(one.nbytes for one in self._accumulators)


_NO_NUMBERS: np.ndarray = np.empty(0, dtype=np.int64)
_NO_RANKS: Int64Array = np.empty(0, dtype=np.int64)


def has_numbers(kind: pa.DataType) -> bool:
    """Whether values of the type have a plain form as int64 or float64."""
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(numbers or pa.types.is_boolean(kind) or pa.types.is_temporal(kind))


def _is_true(condition: pa.BooleanArray) -> BoolArray:
    mask: BoolArray = condition.fill_null(False).to_numpy(zero_copy_only=False)
    return mask


def _and(valid: BoolArray, mask: BoolArray) -> BoolArray:
    return valid & mask if len(valid) else mask
