"""Late and error rows that no later step reads: counted, told, and in a run with a store kept in topics of their own.

Such rows are rare, so they take no part in the plan: each task collects its own until the epoch ends, and the epoch's
commit publishes them. The hard part is their columns: steps differ in them, and a topic has one schema. So the topic's
columns are those of all steps together; where two steps have a column of one name with different types, the later
one's goes under another name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import xxhash

from dataflow.message import Batch
from dataflow.operators.base import Receiver
from dataflow.schema import plain_schema, shown_values

if TYPE_CHECKING:
    from dataflow.state.log.writer import Pending, TopicWriter
    from dataflow.state.store import Store

SHOWN_MAX = 10
"""Unread rows that are told one by one; the others are counted."""
KEPT_BYTES_MAX = 16 << 20
"""Rows of one task that wait for the end of the epoch: beyond, one is asked for."""


NAME_CHARACTERS_MAX, HASH_DIGITS = 180, 8
"""Of a pipeline's name and of its hash in the name of a topic, which may have 200 characters."""


@dataclass(slots=True)
class UnreadRows:
    """Late or error rows that no later step reads: how many, and the first ones for the message."""

    step: str
    port: str
    rows: int = 0
    first: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class UnreadBatch:
    """Some of them: `sequence` is the place of their unit among all of their source."""

    port: str
    step: str
    sequence: int
    rows: pa.RecordBatch


class Unread(Receiver):
    """The end of a port that no step reads, in one task."""

    def __init__(self, step: str, port: str, name: str, *, keeps: bool, epoch_wanted: Callable[[], None]) -> None:
        self.rows, self._name = UnreadRows(step, port), name
        self._keeps, self._epoch_wanted = keeps, epoch_wanted
        self._kept: list[UnreadBatch] = []
        self._bytes = 0

    def on_batch(self, batch: Batch) -> None:
        if not batch.num_rows:
            return
        room = SHOWN_MAX - len(self.rows.first)
        if room > 0:
            shown = {name: shown_values(column.slice(0, room)) for name, column in batch.columns.items()}
            self.rows.first += [
                ", ".join(f"{name}={value}" for name, value in zip(shown, row, strict=True) if value is not None)
                for row in zip(*shown.values(), strict=True)
            ]
        self.rows.rows += batch.num_rows
        if self._keeps:
            self._keep(batch)

    def _keep(self, batch: Batch) -> None:
        rows = pa.RecordBatch.from_arrays(list(batch.columns.values()), list(batch.columns))
        schema = plain_schema(rows.schema)
        rows = rows if rows.schema.equals(schema) else batch.to_record_batch(schema)
        self._kept.append(UnreadBatch(self.rows.port, self._name, batch.place.sequence, rows))
        self._bytes += rows.nbytes
        if self._bytes > KEPT_BYTES_MAX:
            self._bytes = 0
            self._epoch_wanted()

    def take(self) -> list[UnreadBatch]:
        """What has come since the last time."""
        taken, self._kept, self._bytes = self._kept, [], 0
        return taken


class UnreadTopics:
    """The topics of one pipeline's unread rows: `<pipeline>.late` and `<pipeline>.errors`. Made when the first come."""

    def __init__(self, store: Store, pipeline: str) -> None:
        self._store, self._pipeline = store, pipeline
        self._writers: dict[str, TopicWriter] = {}

    def prepare(self, batches: Sequence[UnreadBatch]) -> list[Pending]:
        """Make these rows durable; the epoch's commit publishes them."""
        pendings = [self._prepared(port, [one for one in batches if one.port == port]) for port in ("late", "errors")]
        return [one for one in pendings if one is not None]

    def _prepared(self, port: str, batches: Sequence[UnreadBatch]) -> Pending | None:
        if not batches:
            return None
        topic = topic_of(self._pipeline, port)
        writer = self._writers.get(topic)
        known = writer.schema if writer is not None else self._known(topic)
        table = as_table(batches, known)
        if writer is None or not writer.schema.equals(table.schema):
            if writer is not None:
                writer.close()
            writer = self._writers[topic] = self._store.writer(topic, table.schema)
        for batch in table.combine_chunks().to_batches():
            writer.append(batch)
        return writer.prepare()

    def _known(self, topic: str) -> pa.Schema | None:
        known = {info.name: info.schema for info in self._store.topics()} if self._store.exists else {}
        return known.get(topic)

    def rollback(self) -> None:
        """Take back what was not published."""
        for writer in self._writers.values():
            writer.rollback()

    def close(self) -> None:
        """Take back what was not published, and free the topics."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


def topic_of(pipeline: str, port: str) -> str:
    """The topic of a pipeline's unread rows: its name and the port.

    A name that no topic can have is changed, and told apart from others that are changed alike by a hash.

    >>> topic_of("my_orders", "late"), topic_of("my orders", "late")
    ('my_orders.late', 'my_orders-b09292b0.late')
    """
    harmless = re.sub(r"[^A-Za-z0-9._-]", "_", pipeline)[:NAME_CHARACTERS_MAX]
    if harmless != pipeline:
        harmless += f"-{xxhash.xxh3_64_hexdigest(pipeline.encode())[:HASH_DIGITS]}"
    return f"{harmless}.{port}"


def as_table(batches: Sequence[UnreadBatch], known: pa.Schema | None) -> pa.Table:
    """The rows in one schema, which goes on from the topic's; in the order of their source."""
    fields = {} if known is None else {field.name: field for field in known}
    tables = []
    for one in sorted(batches, key=lambda batch: batch.sequence):
        columns = dict(zip(one.rows.schema.names, one.rows.columns, strict=True))
        if one.port == "late":
            columns["late_step"] = pa.repeat(pa.scalar(one.step), one.rows.num_rows)
        named = {}
        for name, column in columns.items():
            free = name
            while free in fields and not fields[free].type.equals(column.type):
                free = f"{free}_{column.type}".replace("[", "_").replace("]", "").replace(", ", "_")
            fields.setdefault(free, pa.field(free, column.type))
            named[free] = column
        tables.append((one.rows.num_rows, named))
    schema = pa.schema(list(fields.values()))
    made = [
        pa.RecordBatch.from_arrays(
            [columns.get(field.name, pa.nulls(rows, field.type)) for field in schema], schema=schema
        )
        for rows, columns in tables
    ]
    return pa.Table.from_batches(made, schema=schema)
