"""The fluent API: `Stream`, `WindowedStream` and the readers. Each verb adds one node to the graph.

Nothing is read or computed here, but everything is checked: a wrong column, type or time fails at the user's
line. A stream is a value; using one twice reads its common part once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from dataflow.aggregates import Aggregate
from dataflow.errors import DataflowError, NameNotFoundError, PlanError, TypeMismatchError, caller_origin
from dataflow.event_time import duration_us
from dataflow.expr import Column, Expr, col
from dataflow.graph.delivery import check_delivery, known_delivery
from dataflow.graph.nodes import Node, Port, make_node
from dataflow.operators import base
from dataflow.operators.base import AT_LEAST_ONCE, EXACTLY_ONCE, SinkContext, SinkSpec, SourceSpec, SplitSource
from dataflow.operators.stateless import FilterSpec, ProjectSpec, UnionSpec, require_column
from dataflow.operators.watermark import WatermarkSpec
from dataflow.operators.windows.base import Window
from dataflow.operators.windows.tumbling import TumblingWindow
from dataflow.operators.windows.window_operator import WindowAggregateSpec
from dataflow.system import RealSystem

if TYPE_CHECKING:
    from dataflow.pipeline import RunResult
    from dataflow.state.store import Store

Duration = str | timedelta
FilePaths = str | PathLike[str] | Sequence[str | PathLike[str]]
SchemaLike: TypeAlias = pa.Schema | dict[str, Any] | type | None


class Stream:
    """Rows on their way: a schema, perhaps an event time, and the steps that make them.

    >>> import dataflow as flow
    >>> from dataflow import col
    >>> rides = flow.from_rows([{"km": 3.0}, {"km": 12.5}], {"km": "float64"})
    >>> rides.filter(col.km > 10).derive(miles=col.km * 0.62).collect().to_pylist()
    [{'km': 12.5, 'miles': 7.75}]
    """

    def __init__(self, port: Port) -> None:
        self._port = port

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows and their types."""
        return self._port.type.schema

    @property
    def errors(self) -> Stream:
        """The rows that this step could not compute, with `error_code`, `error_message`, `error_step` and more."""
        return self._side("errors")

    @property
    def late(self) -> Stream:
        """The rows that came after their window was final, with `late_by`, `watermark`, `window_end` and more."""
        return self._side("late")

    def _side(self, name: str) -> Stream:
        port = Port(self._port.node, name)
        try:
            port.type  # noqa: B018  # checks that the step has such rows
        except DataflowError as error:
            raise error.at(caller_origin()) from None
        return Stream(port)

    def _then(self, spec: base.OperatorSpec, *others: Port) -> Stream:
        return Stream(Port(make_node(spec, self._port, *others)))

    def __repr__(self) -> str:
        columns = ", ".join(f"{f.name}: {f.type}" for f in self.schema)
        return f"Stream({columns})"

    # ── steps that treat each row alone ──

    def filter(self, *conditions: Expr) -> Stream:
        """Keep the rows for which all conditions are true (null is not true)."""
        for condition in conditions:
            _require_expr("filter", condition)
        return self._then(FilterSpec(conditions))

    def select(self, *columns: str | Expr, **named: Expr) -> Stream:
        """Only these columns, in this order: names, expressions with a name, `name=expression`."""
        return self._then(ProjectSpec("select", _named("select", columns, named), keep=False))

    def derive(self, *expressions: Expr, **named: Expr) -> Stream:
        """Add columns, or replace them; from left to right, later ones see earlier ones."""
        return self._then(ProjectSpec("derive", _named("derive", expressions, named), keep=True))

    def drop(self, *names: str) -> Stream:
        """All columns but these."""
        return self._then(ProjectSpec("drop", (), keep=True, dropped=names))

    def rename(self, **new_to_old: str) -> Stream:
        """Give columns other names: `rename(new="old")`; their places stay."""
        columns = tuple((new, col(old)) for new, old in new_to_old.items())
        return self._then(ProjectSpec("rename", columns, keep=True))

    def union(self, *others: Stream) -> Stream:
        """The rows of this stream and the others, columns by name; a column that one lacks is null there."""
        try:
            spec = UnionSpec.of([self._port.type, *(other._port.type for other in others)])
        except DataflowError as error:
            raise error.at(caller_origin()) from None
        return self._then(spec, *(other._port for other in others))

    def named(self, name: str) -> Stream:
        """Give the last step a name of its own: for state, errors, metrics and the ledger."""
        return Stream(Port(self._port.node.named(name), self._port.name))

    def pipe(self, fn: Callable[..., Stream], *args: Any) -> Stream:
        """`fn(self, *args)`: keeps a chain readable."""
        return fn(self, *args)

    # ── time and windows ──

    def watermark(self, column: str | Expr, *, delay: Duration = "0s") -> Stream:
        """Say which column tells when a row happened, and how far rows may be out of order.

        The watermark before a row is the greatest event time seen so far in its partition, less `delay`. An
        expression becomes a column `event_time`, or gets the name of its `.alias()`.
        """
        delay_us = _length_us(delay, "watermark: delay")
        if isinstance(column, str):
            return self._then(WatermarkSpec(column, delay_us))
        _require_expr("watermark", column)
        if isinstance(column, Column):
            return self._then(WatermarkSpec(column.name, delay_us))
        name = column.output_name()
        name = "event_time" if name is None or name in self.schema.names else name
        return self.derive(**{name: column})._then(WatermarkSpec(name, delay_us))

    def window(
        self, window: Window, *, by: str | Expr | Sequence[str | Expr] | None = None, lateness: Duration = "0s"
    ) -> WindowedStream:
        """Group rows by window and, with `by`, by key; `lateness` keeps windows open longer."""
        stream, names = _with_keys(self, by)
        return WindowedStream(stream, window, names, _length_us(lateness, "window: lateness"))

    # ── running ──

    def collect(self, **options: Any) -> pa.Table:
        """Run the stream and return all its rows; options as in `Pipeline.run`. Ctrl-C raises KeyboardInterrupt."""
        from dataflow.pipeline import collect

        return collect(self, None, options)

    def head(self, n: int = 10, **options: Any) -> pa.Table:
        """Run the stream until there are `n` rows; works on endless input too."""
        from dataflow.pipeline import collect

        if n < 1:
            raise PlanError("head needs n of at least 1", origin=caller_origin())
        return collect(self, n, options)

    # ── writing ──

    def to(self, sink: base.Sink, *, name: str | None = None) -> StreamSink:
        """Write into an object that fulfils the Sink protocol."""
        if not isinstance(sink, base.Sink):
            raise TypeMismatchError(
                f"`to` needs a sink, got {type(sink).__name__}",
                help="a sink has open, write, prepare, commit and abort (see dataflow.Sink)",
                origin=caller_origin(),
            )
        return self._sink(SinkSpec(name or type(sink).__name__, "sink", lambda context: sink))

    def write_topic(self, topic: str, *, store: Store | str | PathLike[str] | None = None) -> StreamSink:
        """Append to a topic of the event log: of the run's store, or of another one."""
        from dataflow.operators.sinks.topic import check_topic_name, topic_sink
        from dataflow.state.store import Store, store_path

        path = ""
        try:
            check_topic_name(topic)
            if store is not None:
                path = os.path.abspath(store_path(store))
        except DataflowError as error:
            raise error.at(caller_origin()) from None

        def make(context: SinkContext) -> base.Sink:
            return topic_sink(topic, context, store if isinstance(store, Store) or store is None else path)

        return self._sink(SinkSpec(topic, "topic", make, needs_store=store is None, guarantee=EXACTLY_ONCE, path=path))

    def write_csv(
        self,
        path: str | PathLike[str],
        *,
        partition_by: str | Sequence[str] = (),
        roll: Duration | None = None,
        mode: str = "error",
        delivery: str | None = None,
        name: str | None = None,
    ) -> StreamSink:
        """Write CSV: a single file, or a directory of parts (a path that ends in `/` or has no suffix).

        A file is seen once it is complete: a single one when the input has ended, which needs bounded input; a part
        when `roll` is over (a duration such as "15m", or a size such as "128MB"; by default 128 MB or the end, on
        endless input also 15 minutes) and its epoch is committed. With a store each row is in exactly one of them,
        restarts included; without one, a bounded run shows all of its files at its end, or none.

        `mode` says what may be there before: nothing ("error"), parts that stay ("append"), what this pipeline wrote
        earlier, which goes when the new files are there ("replace"), or that only in the directories that get new
        files ("replace_partitions"). `partition_by` makes a directory for each value: `country=DE/`.

        Nulls are empty, an empty text is `""`, times are ISO 8601 (instants in UTC), durations too (`PT1.5S`). Where
        there is only one column, a null is `""` too, since an empty line is no row; a null of a text is refused there.

        >>> import tempfile
        >>> import dataflow as flow
        >>> orders = flow.from_rows([{"id": 1, "note": "a, b"}, {"id": 2, "note": None}], {"id": "int", "note": "str"})
        >>> with tempfile.TemporaryDirectory() as home:
        ...     result = orders.write_csv(f"{home}/orders.csv").run()
        ...     flow.read_csv(f"{home}/orders.csv").collect().to_pydict()
        {'id': [1, 2], 'note': ['a, b', None]}
        """
        return self._file_sink("csv", path, partition_by, roll, mode, delivery, name)

    def write_jsonl(
        self,
        path: str | PathLike[str],
        *,
        partition_by: str | Sequence[str] = (),
        roll: Duration | None = None,
        mode: str = "error",
        delivery: str | None = None,
        name: str | None = None,
    ) -> StreamSink:
        """Write JSON Lines, an object a row; files, options and promises as in `write_csv`.

        Lists, structs and maps become arrays and objects; NaN and infinity, which JSON lacks, become null.

        >>> import tempfile, pathlib
        >>> import dataflow as flow
        >>> orders = flow.from_rows([{"id": 1, "tags": ["new"]}], {"id": "int", "tags": "list[string]"})
        >>> with tempfile.TemporaryDirectory() as home:
        ...     result = orders.write_jsonl(f"{home}/orders.jsonl").run()
        ...     print(pathlib.Path(home, "orders.jsonl").read_text(), end="")
        {"id":1,"tags":["new"]}
        """
        return self._file_sink("jsonl", path, partition_by, roll, mode, delivery, name)

    def write_parquet(
        self,
        path: str | PathLike[str],
        *,
        partition_by: str | Sequence[str] = (),
        roll: Duration | None = None,
        mode: str = "error",
        delivery: str | None = None,
        name: str | None = None,
    ) -> StreamSink:
        """Write Parquet; files, options and promises as in `write_csv`.

        >>> import tempfile
        >>> import dataflow as flow
        >>> orders = flow.from_rows([{"id": 1, "day": "mon"}, {"id": 2, "day": "tue"}], {"id": "int", "day": "string"})
        >>> with tempfile.TemporaryDirectory() as home:
        ...     result = orders.write_parquet(f"{home}/orders/", partition_by="day").run()
        ...     flow.read_parquet(f"{home}/orders/day=tue/*.parquet").collect().to_pydict()
        {'id': [2]}
        """
        return self._file_sink("parquet", path, partition_by, roll, mode, delivery, name)

    def write_arrow(
        self,
        path: str | PathLike[str],
        *,
        partition_by: str | Sequence[str] = (),
        roll: Duration | None = None,
        mode: str = "error",
        delivery: str | None = None,
        name: str | None = None,
    ) -> StreamSink:
        """Write Arrow IPC files, not compressed, so that readers map them; options and promises as in `write_csv`.

        >>> import tempfile
        >>> import pyarrow as pa
        >>> import dataflow as flow
        >>> orders = flow.from_rows([{"id": 1}, {"id": 2}], {"id": "int"})
        >>> with tempfile.TemporaryDirectory() as home:
        ...     result = orders.write_arrow(f"{home}/orders.arrow").run()
        ...     with pa.OSFile(f"{home}/orders.arrow") as file:
        ...         pa.ipc.open_file(file).read_all().to_pydict()
        {'id': [1, 2]}
        """
        return self._file_sink("arrow", path, partition_by, roll, mode, delivery, name)

    def write_sqlite(
        self,
        path: str | PathLike[str],
        table: str,
        *,
        key: str | Sequence[str] = (),
        delivery: str | None = None,
        name: str | None = None,
    ) -> StreamSink:
        """Write into a table of an SQLite database, which is made if it is missing.

        With `key`, a row takes the place of the one with the same key. With a store the rows of an epoch are one
        transaction, which remembers the epoch in the table `_dataflow_epochs`: each row arrives exactly once. Without
        one a bounded run is one transaction, at its end. A pipeline may write several tables of a database, each by a
        transaction of its own. Times become ISO 8601 text, decimals text, NaN becomes null.
        Do not open the database by another SQLite (the module `sqlite3`) in this process while the pipeline runs: the
        locks of two of them do not meet.

        >>> import sqlite3, tempfile
        >>> import dataflow as flow
        >>> prices = flow.from_rows([{"id": 1, "price": 5}, {"id": 1, "price": 7}], {"id": "int", "price": "int"})
        >>> with tempfile.TemporaryDirectory() as home:
        ...     result = prices.write_sqlite(f"{home}/shop.db", "prices", key="id").run()
        ...     database = sqlite3.connect(f"{home}/shop.db")
        ...     print(database.execute("SELECT * FROM prices").fetchall())
        ...     database.close()
        [(1, 7)]
        """
        from dataflow.operators.sinks.sqlite import SqliteSink, SqliteTarget

        try:
            target = SqliteTarget(path=fspath(path), table=table, schema=self.schema, key=_names(key))
        except DataflowError as error:
            raise error.at(caller_origin()) from None
        spec = SinkSpec(
            name or f"{target.path} {table}",
            "sqlite",
            lambda context: SqliteSink(target, _named_context(context, spec)),
            guarantee=EXACTLY_ONCE,
            all_or_nothing=True,
            delivery=known_delivery(delivery),
            target=(target.path, table, target.key),
            path=target.absolute,
            place=(target.absolute, table.lower()),  # SQLite does not tell names by their case
        )
        return self._sink(spec)

    def write_callback(
        self, fn: Callable[[pa.RecordBatch, int], object], *, delivery: str | None = None, name: str | None = None
    ) -> StreamSink:
        """Call `fn(batch, epoch)` with the rows of each epoch, after its commit.

        At least once: after a failure the next run calls it again with the same rows and epoch, so a function that
        remembers the epochs it has dealt with gets each row exactly once. An exception of it fails the run.

        >>> import dataflow as flow
        >>> numbers = flow.from_rows([{"n": 1}, {"n": 2}], {"n": "int"})
        >>> result = numbers.write_callback(lambda batch, epoch: print(epoch, batch.to_pydict())).run()
        1 {'n': [1, 2]}
        """
        from dataflow.operators.sinks.callback import CallbackSink

        if not callable(fn):
            raise TypeMismatchError(
                f"write_callback needs a function, got {type(fn).__name__}",
                help="as in `def notify(batch, epoch): …`",
                origin=caller_origin(),
            )
        spec = SinkSpec(
            name or str(getattr(fn, "__name__", type(fn).__name__)),
            "callback",
            lambda context: CallbackSink(fn, _named_context(context, spec)),
            guarantee=AT_LEAST_ONCE,
            delivery=known_delivery(delivery),
        )
        return self._sink(spec)

    def _file_sink(
        self,
        format: str,
        path: str | PathLike[str],
        partition_by: str | Sequence[str],
        roll: Duration | None,
        mode: str,
        delivery: str | None,
        name: str | None,
    ) -> StreamSink:
        from dataflow.operators.sinks.files import FORMATS, FileSink, FileTarget, Roll

        try:
            target = FileTarget(
                path=fspath(path),
                format=FORMATS[format],
                schema=self.schema,
                bounded=self._port.type.bounded,
                roll=None if roll is None else Roll.of(roll),
                mode=mode,
                partition_by=_names(partition_by),
            )
        except DataflowError as error:
            raise error.at(caller_origin()) from None
        spec = SinkSpec(
            name or target.path,
            format,
            lambda context: FileSink(target, _named_context(context, spec)),
            guarantee=EXACTLY_ONCE,
            all_or_nothing=True,
            delivery=known_delivery(delivery),
            target=(target.path, mode, target.partition_by),
            path=target.absolute,
            place=() if target.is_directory else (target.absolute,),
        )
        return self._sink(spec)

    def print(self, limit: int | None = None) -> StreamSink:
        """Print the rows: a header, then a line a row."""

        def make(context: SinkContext) -> base.Sink:
            from dataflow.operators.sinks.console import ConsoleSink

            return ConsoleSink(context.schema, limit)

        return self._sink(SinkSpec("", "console", make))

    def _sink(self, spec: SinkSpec) -> StreamSink:
        node = make_node(spec, self._port)
        check_delivery([node], has_store=True)  # what no run can keep fails here
        return StreamSink(node)


class WindowedStream:
    """A stream cut into windows; `agg` says what to compute of each."""

    def __init__(self, stream: Stream, window: Window, by: tuple[str, ...], lateness_us: int) -> None:
        self._stream, self._window, self._by, self._lateness_us = stream, window, by, lateness_us

    def agg(
        self, *aggregates: Aggregate, by: str | Expr | Sequence[str | Expr] | None = None, **named: Aggregate
    ) -> Stream:
        """One row a window and key, once the watermark has passed the window's end.

        Columns: `window_start`, `window_end` (timestamp[us]), the keys, then the aggregates. An aggregate
        without a name is called after its function and column, as in `sum_price`.
        """
        stream, names = _with_keys(self._stream, by) if by is not None else (self._stream, self._by)
        if self._by and names != self._by:
            raise PlanError(
                f"agg: `by` is {', '.join(names)} here and {', '.join(self._by)} on the window",
                help="give it once",
                origin=caller_origin(),
            )
        made = (*((_aggregate_name(one), one) for one in aggregates), *named.items())
        for name, one in made:
            if not isinstance(one, Aggregate):
                raise TypeMismatchError(
                    f"agg: `{name}` is {one!r}, which is not an aggregate",
                    help=f"say how rows become one value, as in `{name}=col.x.sum()`",
                    origin=caller_origin(),
                )
        if not made:
            raise PlanError("agg needs an aggregate", help="as in `.agg(n=count())`", origin=caller_origin())
        return stream._then(WindowAggregateSpec(self._window, names, made, self._lateness_us))


class StreamSink:
    """The end of a stream: where its rows go. Run it alone, or with others in a `Pipeline`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._used = False

    def run(self, **options: Any) -> RunResult:
        """Run this sink alone; options as in `Pipeline.run`."""
        from dataflow.pipeline import Pipeline

        return Pipeline(self._node.spec.describe().replace(" ", "_"), self).run(**options)

    def named(self, name: str) -> StreamSink:
        self._used = True
        return StreamSink(self._node.named(name))

    def use(self) -> Node:
        """The node, now part of a pipeline."""
        self._used = True
        return self._node

    def __del__(self) -> None:
        if not getattr(self, "_used", True):
            warnings.warn(
                f"the sink `{self._node.spec.describe()}` ({self._node.origin}) was made and never run; "
                "call .run() or give it to a Pipeline",
                stacklevel=1,
            )


# ── readers ──────────────────────────────────────────────────────────────────────────────────────────────


def read_csv(
    path: FilePaths,
    *,
    schema: SchemaLike = None,
    null_values: Sequence[str] = ("",),
    delimiter: str = ",",
    header: bool = True,
    encoding: str = "utf-8",
    name: str | None = None,
    columns: Sequence[str] | None = None,
) -> Stream:
    """Rows of CSV files: a path, a glob (`**` too) or a list; they are one partition, in the order of their paths.

    `schema` (a `pa.Schema`, a dict of type names, a dataclass) may leave columns out; those are inferred from the
    first 10,000 rows. A value that does not fit fails the run with file, line and column.

    `null_values` stand for null. In a text column they do so without quotes only: `""` is an empty text, as `write_csv`
    writes it. Blank lines are no rows.
    """
    from dataflow.operators.sources.csv import CsvSource

    return _read(
        lambda: CsvSource(
            path,
            schema=schema,
            null_values=tuple(null_values),
            delimiter=delimiter,
            header=header,
            encoding=encoding,
            name=name,
            columns=columns,
        )
    )


def read_parquet(path: FilePaths, *, name: str | None = None, columns: Sequence[str] | None = None) -> Stream:
    """Rows of Parquet files: a path, a glob or a list; row groups are decoded in parallel, in order."""
    from dataflow.operators.sources.parquet import ParquetSource

    return _read(lambda: ParquetSource(path, name=name, columns=columns))


def read_topic(
    topic: str,
    *,
    store: Store | str | PathLike[str] | None = None,
    start: int | str = "earliest",
    until: int | None = None,
    follow: bool = False,
    name: str | None = None,
) -> Stream:
    """Rows of a topic as it is now; `start` and `until` are offsets (`until` is exclusive).

    With `follow` the run goes on with what is appended later, by this process or another one, until it is stopped.
    """
    from dataflow.operators.sources.topic import TopicSource

    return _read(lambda: TopicSource(topic, store, name=name, start=start, until=until, follow=follow))


def from_arrow(data: pa.Table | pa.RecordBatch, *, name: str | None = None) -> Stream:
    """Rows of an Arrow table; its chunks are the batches."""
    from dataflow.operators.sources.arrow import ArrowSource

    return _read(lambda: ArrowSource(data, name=name))


def from_rows(rows: Iterable[Any], schema: SchemaLike = None, *, name: str | None = None) -> Stream:
    """Rows of Python objects: dicts, tuples, dataclasses; a list, or a generator that may never end."""
    from dataflow.operators.sources.rows import RowsSource

    return _read(lambda: RowsSource(rows, schema, name=name))


def read(source: base.Source, *, name: str | None = None) -> Stream:
    """Rows of an object that fulfils the Source protocol."""
    from dataflow.operators.sources.adapter import UserSource

    return _read(lambda: UserSource(source, name=name))


def tumbling(size: Duration, *, offset: Duration = "0s") -> TumblingWindow:
    """Windows of equal length that do not overlap, cut at multiples of `size` from 1970 UTC on, moved by `offset`.

    An offset beyond the size is what is left of it: `offset="61m"` moves hourly windows by a minute.
    """
    try:
        return TumblingWindow(size_us=duration_us(size, "size"), offset_us=duration_us(offset, "offset"))
    except DataflowError as error:
        raise error.at(caller_origin()) from None


def _read(make: Callable[[], SplitSource]) -> Stream:
    try:
        source = make()
        schema = source.schema(RealSystem())
    except DataflowError as error:
        raise error.at(caller_origin()) from None
    return Stream(Port(make_node(SourceSpec(source, schema))))


# ── what the verbs share ─────────────────────────────────────────────────────────────────────────────────


def _length_us(value: Duration, what: str) -> int:
    try:
        us = duration_us(value, what)
    except DataflowError as error:
        raise error.at(caller_origin()) from None
    if us < 0:
        raise PlanError(f"{what} cannot be negative", help='use a duration such as "10s"', origin=caller_origin())
    return us


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _named_context(context: SinkContext, spec: SinkSpec) -> SinkContext:
    return context if context.name else replace(context, name=spec.describe())


def _require_expr(verb: str, value: object) -> None:
    if isinstance(value, Aggregate):
        raise TypeMismatchError(
            f"{verb}: `{value!r}` is an aggregate",
            help="aggregates belong into `.window(…).agg(…)`",
            origin=caller_origin(),
        )
    if not isinstance(value, Expr):
        raise TypeMismatchError(
            f"{verb} needs an expression, got {value!r}",
            help="as in `col.price > 10`; a plain value is `lit(…)`",
            origin=caller_origin(),
        )


def _named(verb: str, columns: Sequence[str | Expr], named: dict[str, Expr]) -> tuple[tuple[str, Expr], ...]:
    """Output names and expressions, in the order in which they were written."""
    made: list[tuple[str, Expr]] = []
    for one in columns:
        expr = col(one) if isinstance(one, str) else one
        _require_expr(verb, expr)
        name = expr.output_name()
        if name is None:
            raise NameNotFoundError(
                f"{verb}: `{expr!r}` has no name",
                code="DF0204",
                help='add `.alias("name")`' if verb == "by" else f'write `{verb}(name=…)` or add `.alias("name")`',
                origin=caller_origin(),
            )
        made.append((name, expr))
    for name, expr in named.items():
        _require_expr(verb, expr)
        made.append((name, expr))
    if not made:
        raise PlanError(f"{verb} needs at least one column", origin=caller_origin())
    return tuple(made)


def _with_keys(stream: Stream, by: str | Expr | Sequence[str | Expr] | None) -> tuple[Stream, tuple[str, ...]]:
    """The names of the keys; an expression becomes a column of the stream first."""
    keys = [] if by is None else [by] if isinstance(by, str | Expr) else list(by)
    for key in keys:
        if isinstance(key, str):
            try:
                require_column(key, stream.schema, "by")
            except DataflowError as error:
                raise error.at(caller_origin()) from None
    named = _named("by", keys, {}) if keys else ()
    computed = {name: expr for name, expr in named if not isinstance(expr, Column)}
    return (stream.derive(**computed) if computed else stream), tuple(name for name, _ in named)


def _aggregate_name(aggregate: Aggregate) -> str:
    name = aggregate.output_name() if isinstance(aggregate, Aggregate) else None
    if name is None:
        raise NameNotFoundError(
            f"agg: `{aggregate!r}` has no name",
            code="DF0204",
            help="write `agg(name=…)`, as in `agg(n=count())`",
            origin=caller_origin(),
        )
    return name
