"""Steps that treat each row alone: filter, select, derive, drop, rename, and the columns a union lines up.

All but filter are one operation, `Project`: some columns pass under a name, some are computed. The hard part
is what happens to rows that cannot be computed: they leave through `.errors`, with the columns that they had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from dataflow.compute.evaluate import is_true
from dataflow.errors import NameNotFoundError, PlanError, TypeMismatchError, did_you_mean
from dataflow.expr import Bad, BoundExpr, Column, Expr
from dataflow.message import Batch
from dataflow.operators.base import (
    EventTime,
    Operator,
    OperatorContext,
    StatelessSpec,
    StreamType,
    send_errors,
)
from dataflow.schema import new_field


@dataclass(frozen=True)
class FilterSpec(StatelessSpec):
    """Keeps the rows for which every condition is true; null is not true."""

    conditions: tuple[Expr, ...]
    verb: ClassVar[str] = "filter"

    def output_type(self, inputs: Sequence[StreamType]) -> StreamType:
        for condition in self.conditions:
            bound = condition.bind(inputs[0].schema)
            if not pa.types.is_boolean(bound.type):
                raise TypeMismatchError(
                    f"filter needs a condition, but `{condition!r}` is {bound.type}",
                    help="compare it with something, as in `col.x > 0`",
                )
        return inputs[0]

    def columns_needed(self, wanted: frozenset[str], input_type: StreamType) -> frozenset[str]:
        return wanted.union(*(condition.columns() for condition in self.conditions))

    def leaves_alone(self, name: str) -> bool:
        return not any(name in condition.columns() for condition in self.conditions)

    def describe(self) -> str:
        return ", ".join(map(repr, self.conditions))

    def identity(self) -> tuple[object, ...]:
        return (self.verb, *(condition.identity() for condition in self.conditions))

    def build(self, input_type: StreamType, wanted: frozenset[str], context: OperatorContext) -> Operator:
        return Filter([condition.bind(input_type.schema) for condition in self.conditions], context)


class Filter(Operator):
    def __init__(self, conditions: Sequence[BoundExpr], context: OperatorContext) -> None:
        super().__init__(context)
        self.conditions = conditions

    def on_batch(self, batch: Batch) -> None:
        self.counts.rows_in += batch.num_rows
        kept = self._kept(batch)
        if kept is None:
            batch = self._without_bad(batch)
            kept = self._kept(batch)
            assert kept is not None
        self.counts.filtered += batch.num_rows - kept.num_rows
        self.counts.passed += kept.num_rows
        self.out.on_batch(kept)

    def _kept(self, batch: Batch) -> Batch | None:
        """The rows for which all conditions are true; None where one of them cannot be computed for a row."""
        for condition in self.conditions:
            evaluated = condition.evaluate(batch.columns, batch.num_rows)
            if any(one.mask.any() for one in evaluated.bad):
                return None
            kept = evaluated.values.true_count
            batch = batch if kept == batch.num_rows else batch.filter(evaluated.values, kept)
        return batch

    def _without_bad(self, batch: Batch) -> Batch:
        """Send away the rows that fail in a condition while those before it are true: all at once, for their order."""
        bad: list[Bad] = []
        true = np.ones(batch.num_rows, dtype=np.bool_)
        for condition in self.conditions:
            evaluated = condition.evaluate(batch.columns, batch.num_rows)
            bad += [Bad(one.mask & true, one.code, one.message) for one in evaluated.bad]
            true &= is_true(evaluated.values)
        rows = send_errors(batch, bad, self)
        return batch if rows is None else batch.without(rows)


@dataclass(frozen=True)
class ProjectSpec(StatelessSpec):
    """Makes new columns from old ones.

    `columns` maps each output name to its expression; `keep` says whether the input's other columns stay
    (derive, drop, rename) or not (select). Expressions of `derive` see the columns made before them.
    """

    verb: str  # type: ignore[misc]  # select, derive, drop and rename are one operation
    columns: tuple[tuple[str, Expr], ...]
    keep: bool
    dropped: tuple[str, ...] = ()

    def output_type(self, inputs: Sequence[StreamType]) -> StreamType:
        source = inputs[0]
        for name in self.dropped:
            require_column(name, source.schema, self.verb)
        self._refuse_twice()
        schema = self._output_schema(source.schema)
        moved = {expr.name: name for name, expr in self.columns if isinstance(expr, Column)}
        return StreamType(
            schema, self._event_time(source, moved), source.bounded, self._order_keys(source, schema, moved)
        )

    def _order_keys(self, source: StreamType, schema: pa.Schema, moved: Mapping[str, str]) -> tuple[str, ...] | None:
        """The columns that order derived rows of one time: their keys, as long as they are what they were."""
        if source.order_keys is None:
            return None
        renamed = [moved.get(key, key) for key in source.order_keys]
        pairs = zip(renamed, source.order_keys, strict=True)
        if all(new in schema.names and self.column_origin(new) == old for new, old in pairs):
            return tuple(renamed)
        return tuple(schema.names)  # without its keys, only a row's other columns can order it

    def _refuse_twice(self) -> None:
        names = [name for name, _ in self.columns]
        twice = {name for name in names if names.count(name) > 1}
        if twice and self.verb != "derive":
            raise NameNotFoundError(
                f"{self.verb} makes `{min(twice)}` twice", code="DF0203", help="give one of them another name"
            )

    def _output_schema(self, schema: pa.Schema) -> pa.Schema:
        fields = {f.name: f for f in schema}
        made: dict[str, pa.Field] = {}
        for name, expr in self.columns:
            scope = pa.schema(list((fields | made).values())) if self.verb == "derive" else schema
            made[name] = new_field(name, expr.bind(scope).type)
        if self.verb == "rename":
            return self._renamed_in_place(schema, made)
        kept = {name: f for name, f in fields.items() if self.keep and name not in self.dropped}
        return pa.schema(list((kept | made).values()))

    def _renamed_in_place(self, schema: pa.Schema, made: Mapping[str, pa.Field]) -> pa.Schema:
        new_of = {expr.name: new for new, expr in self.columns if isinstance(expr, Column)}
        if len(new_of) < len(self.columns):
            old = [expr.name for _, expr in self.columns if isinstance(expr, Column)]
            twice = next(name for name in old if old.count(name) > 1)
            raise NameNotFoundError(
                f"rename gives `{twice}` two names",
                code="DF0203",
                help=f"keep it and make a copy: `derive({new_of[twice]}=col.{twice})`",
            )
        fields = [made[new_of[f.name]] if f.name in new_of else f for f in schema]
        names = [f.name for f in fields]
        if clash := {name for name in names if names.count(name) > 1}:
            raise NameNotFoundError(
                f"rename makes a second column `{min(clash)}`", code="DF0203", help="drop or rename the other one too"
            )
        return pa.schema(fields)

    def _event_time(self, source: StreamType, moved: Mapping[str, str]) -> EventTime | None:
        """Event time follows its column: through a rename, but not when the column goes or is computed anew."""
        time = source.event_time
        if time is None:
            return None
        if self.verb == "rename":
            return EventTime(moved.get(time.column, time.column), time.minus_us)
        stays = self.keep and time.column not in self.dropped
        anew = any(name == time.column and not _is_same(name, expr) for name, expr in self.columns)
        if stays and anew:
            raise PlanError(
                f"`{time.column}` is the event time and cannot be computed anew",
                help="derive it under another name, or put the derive before the watermark",
            )
        if stays or any(name == time.column for name, expr in self.columns if _is_same(name, expr)):
            return time
        return EventTime(moved[time.column], time.minus_us) if time.column in moved else None

    def columns_needed(self, wanted: frozenset[str], input_type: StreamType) -> frozenset[str]:
        return self._used(wanted)[1]

    def column_origin(self, name: str) -> str | None:
        for made, expr in reversed(self.columns):
            if made == name:
                return expr.name if isinstance(expr, Column) else None
        return name

    def leaves_alone(self, name: str) -> bool:
        touched = any(name == made or name in expr.columns() for made, expr in self.columns)
        return self.keep and name not in self.dropped and not touched

    def _used(self, wanted: frozenset[str]) -> tuple[list[tuple[str, Expr]], frozenset[str]]:
        """The columns that must be computed for `wanted`, in order, and the input columns that they need.

        What is computed may fail, and then its row is an error row whether or not anybody reads the column.
        """
        if self.verb != "derive":
            used = [(name, expr) for name, expr in self.columns if name in wanted or not isinstance(expr, Column)]
            passed = wanted - {name for name, _ in self.columns} if self.keep else frozenset()
            return used, passed.union(*(expr.columns() for _, expr in used))
        used, needed = [], wanted
        for name, expr in reversed(self.columns):
            if name in needed or not isinstance(expr, Column):
                used.append((name, expr))
                needed = (needed - {name}) | expr.columns()
        return used[::-1], needed

    def describe(self) -> str:
        if self.verb == "drop":
            return ", ".join(self.dropped)
        return ", ".join(repr(e) if _is_same(n, e) else f"{n}={e!r}" for n, e in self.columns)

    def identity(self) -> tuple[object, ...]:
        return (self.verb, self.keep, self.dropped, *((name, expr.identity()) for name, expr in self.columns))

    def build(self, input_type: StreamType, wanted: frozenset[str], context: OperatorContext) -> Operator:
        fields = {f.name: f for f in input_type.schema}
        bound: list[tuple[str, BoundExpr]] = []
        for name, expr in self._used(wanted)[0]:
            one = expr.bind(pa.schema(list(fields.values())))
            bound.append((name, one))
            if self.verb == "derive":
                fields[name] = pa.field(name, one.type)
        renamed = (
            {expr.name for _, expr in self.columns if isinstance(expr, Column)} if self.verb == "rename" else set()
        )
        passed = (set(input_type.schema.names) - renamed - set(self.dropped)) if self.keep else set()
        return Project(bound, frozenset(passed), self.verb == "derive", context)


class Project(Operator):
    """Computes `columns`; `passed` are the input columns that stay. With `chained`, later ones see earlier ones."""

    def __init__(
        self,
        columns: Sequence[tuple[str, BoundExpr]],
        passed: frozenset[str],
        chained: bool,
        context: OperatorContext,
    ) -> None:
        super().__init__(context)
        self.columns, self.passed, self.chained = columns, passed, chained

    def on_batch(self, batch: Batch) -> None:
        self.counts.rows_in += batch.num_rows
        scope = dict(batch.columns) if self.chained else batch.columns
        made: dict[str, pa.Array] = {}
        bad: list[Bad] = []
        for name, bound in self.columns:
            evaluated = bound.evaluate(scope, batch.num_rows)
            made[name] = evaluated.values
            bad.extend(evaluated.bad)
            if self.chained:
                scope[name] = evaluated.values
        kept = {name: column for name, column in batch.columns.items() if name in self.passed}
        result = batch.with_columns(kept | made)
        if bad and (rows := send_errors(batch, bad, self)) is not None:
            result = result.without(rows)
        self.counts.passed += result.num_rows
        self.out.on_batch(result)


@dataclass(frozen=True)
class UnionSpec(StatelessSpec):
    """Rows of several streams in one, columns by name; a column that a stream lacks is null."""

    schema: pa.Schema
    verb: ClassVar[str] = "union"

    @classmethod
    def of(cls, inputs: Sequence[StreamType]) -> UnionSpec:
        """The union of streams with these types; equal names must have equal types."""
        fields: dict[str, pa.Field] = {}
        for f in (f for one in inputs for f in one.schema):
            known = fields.setdefault(f.name, f.with_nullable(True))
            if known.type != f.type:
                raise TypeMismatchError(
                    f"union: `{f.name}` is {known.type} in one stream and {f.type} in another",
                    help=f'cast one of them before: `.derive({f.name}=col.{f.name}.cast("{known.type}"))`',
                )
        return cls(pa.schema(list(fields.values())))

    def output_type(self, inputs: Sequence[StreamType]) -> StreamType:
        times = {one.event_time for one in inputs}
        orders = {one.order_keys for one in inputs}
        return StreamType(
            self.schema,
            times.pop() if len(times) == 1 else None,
            all(one.bounded for one in inputs),
            None if orders == {None} else tuple(self.schema.names),  # two streams may have rows of one time and key
        )

    def columns_needed(self, wanted: frozenset[str], input_type: StreamType) -> frozenset[str]:
        return wanted & frozenset(input_type.schema.names)

    def describe(self) -> str:
        return ""

    def build(self, input_type: StreamType, wanted: frozenset[str], context: OperatorContext) -> Operator:
        lacking = [f for f in self.schema if f.name in wanted and f.name not in input_type.schema.names]
        return Union(lacking, context)


class Union(Operator):
    """One branch of a union; adds the columns that it lacks, as nulls."""

    def __init__(self, lacking: Sequence[pa.Field], context: OperatorContext) -> None:
        super().__init__(context)
        self.lacking = lacking

    def on_batch(self, batch: Batch) -> None:
        self.counts.rows_in += batch.num_rows
        self.counts.passed += batch.num_rows
        if self.lacking:
            nulls = {f.name: pa.nulls(batch.num_rows, f.type) for f in self.lacking}
            batch = batch.with_columns(batch.columns | nulls)
        self.out.on_batch(batch)


def require_column(name: str, schema: pa.Schema, verb: str) -> pa.Field:
    """The field of that name, or the error that says which columns there are."""
    if name in schema.names:
        return schema.field(name)
    guess = did_you_mean(name, schema.names)
    hint = f"did you mean `{guess}`? " if guess else ""
    raise NameNotFoundError(f"{verb}: there is no column `{name}`", help=f"{hint}(columns: {', '.join(schema.names)})")


def _is_same(name: str, expr: Expr) -> bool:
    return isinstance(expr, Column) and expr.name == name
