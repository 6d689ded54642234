"""Parts: the complete files of a file sink, from a hidden name to the one that readers see.

A part is written under a hidden name in the target's directory and made durable; the epoch's handle says which name,
size and hash it has, and the commit gives it its visible one. That may be done again at any time: a part that has its
name already is known by its size and hash. Names carry the pipeline, the sink, the run and its store, so a file that
somebody else put there is never taken for one of ours, nor one of another store's run that writes there, too. The hard
part is a directory for each value of some columns (`partition_by`): rows of all of them are gathered in memory, so that
few files are open and none is made for a handful of rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from dataflow.errors import ConnectorError
from dataflow.operators.base import SinkRoom
from dataflow.operators.sinks.formats import GROUP_BYTES_MAX, GROUP_ROWS_MAX, FileFormat, RowWriter
from dataflow.operators.sinks.output import HashedFile, hash_of, not_written
from dataflow.operators.sinks.text import plain_texts
from dataflow.state.layout import escape, make_durable_dirs
from dataflow.system import Disk

GATHERED_BYTES_MAX = 128 << 20
"""Of all rows in memory that wait to become row groups."""
OPEN_FILES_MAX = 128
"""Processes may have 1,024 files open by default, and a run has other ones, too."""
PARTITIONS_MAX = 10_000
"""Of rows that are written together. More directories than that are a mistake (a column of ids) rather than a wish."""
NAME_BYTES_MAX = 80
"""Of what users may have called something, inside of a file's name (255 bytes)."""
NULL_DIRECTORY = "__HIVE_DEFAULT_PARTITION__"
"""What all readers of such directories take for null."""
PUBLIC_MODE = 0o777
"""Of directories for results; the process's umask says who else may read them."""
_HARMLESS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


@dataclass(frozen=True, slots=True)
class Part:
    """A complete file; both names are relative to the target's directory."""

    hidden: str
    name: str
    size: int
    xxh3: int
    rows: int

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PartNames:
    """The names of one sink's files. `file` is the name of a target that is a single file, else None."""

    owner: str
    """Of all runs of the sink; begins the names of parts."""
    home: str
    """Of those of them that have one store."""
    run: str
    suffix: str
    file: str | None = None

    @classmethod
    def of(cls, pipeline: str, sink: str, home: str, run: str, suffix: str, file: str | None) -> PartNames:
        told = _hash(f"{pipeline}\0{sink}")
        owner = f"part-{_short(escape(pipeline))}-{told}"
        return cls(owner, _hash(home), _short(escape(run)), suffix, file)

    def visible(self, number: int) -> str:
        return self.file or f"{self.owner}-{self.run}-{self.home}-{number:05}.{self.suffix}"

    def hidden(self, number: int) -> str:
        """Begins with a dot, so that no reader of the directory takes it for a part."""
        file = f"{_short(self.file)}-" if self.file else ""
        return f".{file}{self.owner}-{self.run}-{self.home}-{number:05}.{self.suffix}.inprogress"

    def is_own_part(self, name: str) -> bool:
        """Whether any run of the sink made it, also one of another store."""
        return re.fullmatch(rf"{re.escape(self.owner)}-.+-\d+\.{self.suffix}", name) is not None

    def is_home_part(self, name: str) -> bool:
        return re.fullmatch(self._home_pattern, name) is not None

    def is_home_hidden(self, name: str) -> bool:
        file = f"{_short(self.file)}-" if self.file else ""
        return re.fullmatch(rf"\.{re.escape(file)}{self._home_pattern}\.inprogress", name) is not None

    @property
    def _home_pattern(self) -> str:
        return rf"{re.escape(self.owner)}-.+-{self.home}-\d+\.{self.suffix}"


def _hash(name: str) -> str:
    return xxhash.xxh3_64_hexdigest(name.encode())[:8]


def _short(name: str) -> str:
    return name.encode()[:NAME_BYTES_MAX].decode(errors="ignore")


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Bucket:
    """The rows of one directory, and the part that they go into."""

    gathered: list[pa.RecordBatch] = field(default_factory=list)
    nbytes: int = 0
    rows: int = 0
    file: HashedFile | None = None
    writer: RowWriter | None = None
    number: int = 0
    written: int = 0
    """Rows in the file."""


class PartsWriter:
    """Turns rows into parts; `bytes_max` says how long one may get (None: as long as it takes)."""

    def __init__(
        self,
        disk: Disk,
        room: SinkRoom,
        root: str,
        names: PartNames,
        format: FileFormat,
        schema: pa.Schema,
        *,
        partition_by: tuple[str, ...] = (),
        bytes_max: int | None = None,
    ) -> None:
        self._disk, self._room, self._root, self._names, self._format = disk, room, root, names, format
        self._partition_by, self._bytes_max = partition_by, bytes_max
        self._schema = pa.schema([field for field in schema if field.name not in partition_by])
        self._group_bytes = GROUP_BYTES_MAX if bytes_max is None else min(GROUP_BYTES_MAX, bytes_max)
        self._buckets: dict[str, _Bucket] = {}
        self._gathered_bytes = 0
        self._number = 0
        self._complete: list[Part] = []

    @property
    def is_empty(self) -> bool:
        """Whether no row waits in a part that is not complete."""
        return not self._buckets

    def write(self, batch: pa.RecordBatch) -> None:
        for directory, rows in split(batch, self._partition_by):
            self._add(directory, rows)
        if self._gathered_bytes >= GATHERED_BYTES_MAX:
            for directory in list(self._buckets):
                self._flush(directory)

    def take_complete(self) -> list[Part]:
        """The parts that are complete, each handed out once; durable, names included."""
        parts, self._complete = self._complete, []
        if parts:
            self._disk.sync_dir(self._root)
        return parts

    def finish(self, *, at_least_one: bool = False) -> list[Part]:
        """Complete all parts; with `at_least_one`, make one even for no rows."""
        if at_least_one and not self._buckets and not self._complete:
            self._open(self._buckets.setdefault("", _Bucket()))
        for directory in list(self._buckets):
            self._flush(directory)
            if directory in self._buckets:
                self._complete_part(directory)
        return self.take_complete()

    def discard(self) -> None:
        """Remove what was not handed out."""
        for bucket in self._buckets.values():
            if bucket.file is not None:
                bucket.file.close()
                _remove(self._disk, bucket.file.path)
        remove_hidden(self._disk, self._root, self._complete)
        self._buckets, self._complete, self._gathered_bytes = {}, [], 0

    def _add(self, directory: str, rows: pa.RecordBatch) -> None:
        bucket = self._buckets.setdefault(directory, _Bucket())
        bucket.gathered.append(rows)
        bucket.rows += rows.num_rows
        bucket.nbytes += rows.nbytes
        self._gathered_bytes += rows.nbytes
        if bucket.rows >= GROUP_ROWS_MAX or bucket.nbytes >= self._group_bytes:
            self._flush(directory)

    def _flush(self, directory: str) -> None:
        """Write the gathered rows; the part is complete when it is long enough, or too many are open."""
        bucket = self._buckets[directory]
        if not bucket.gathered:
            return
        if bucket.writer is None:
            self._open(bucket)
        assert bucket.writer is not None and bucket.file is not None
        bucket.writer.write(pa.Table.from_batches(bucket.gathered, schema=self._schema).combine_chunks())
        bucket.written += bucket.rows
        self._gathered_bytes -= bucket.nbytes
        bucket.gathered, bucket.nbytes, bucket.rows = [], 0, 0
        is_long = self._bytes_max is not None and bucket.file.size >= self._bytes_max
        if is_long or sum(one.file is not None for one in self._buckets.values()) > OPEN_FILES_MAX:
            self._complete_part(directory)

    def _open(self, bucket: _Bucket) -> None:
        self._number += 1
        path = os.path.join(self._root, self._names.hidden(self._number))
        bucket.file, bucket.number = HashedFile(self._disk, path, self._room), self._number
        bucket.writer = self._format.writer(bucket.file, self._schema)

    def _complete_part(self, directory: str) -> None:
        bucket = self._buckets[directory]
        file, writer = bucket.file, bucket.writer
        assert file is not None and writer is not None
        writer.finish()
        file.finish()
        name = os.path.join(directory, self._names.visible(bucket.number))
        self._complete.append(Part(os.path.basename(file.path), name, file.size, file.xxh3, bucket.written))
        del self._buckets[directory]


def split(batch: pa.RecordBatch, partition_by: tuple[str, ...]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of each directory, in their order, without the columns that the directory tells."""
    if not partition_by:
        yield "", batch
        return
    if not batch.num_rows:
        return
    order, starts = _grouped(batch, partition_by)
    rows = batch.select([name for name in batch.schema.names if name not in partition_by]).take(pa.array(order))
    ends = [*starts[1:], batch.num_rows]
    for directory, start, end in zip(_directories(batch, partition_by, order[starts]), starts, ends, strict=True):
        yield directory, rows.slice(start, end - start)


class DirectoryLimit:
    """Refuses rows that would make too many directories, before they are taken."""

    def __init__(self, root: str, partition_by: tuple[str, ...]) -> None:
        self._root, self._partition_by = root, partition_by
        self._seen: set[str] = set()

    def check(self, batch: pa.RecordBatch) -> list[str]:
        """The directories that the rows are the first for."""
        if not self._partition_by or not batch.num_rows:
            return []
        order, starts = _grouped(batch, self._partition_by)
        fresh: list[str] = []
        if len(starts) <= PARTITIONS_MAX:
            fresh = [one for one in _directories(batch, self._partition_by, order[starts]) if one not in self._seen]
            self._seen.update(fresh)
        if max(len(starts), len(self._seen)) > PARTITIONS_MAX:
            raise ConnectorError(
                f"{self._root}: partition_by={', '.join(self._partition_by)} makes more than {PARTITIONS_MAX:,} "
                "directories at a time; the rows of this epoch were not written",
                code="DF0515",
                help="partition by columns with fewer values, such as a date",
            )
        return fresh

    def forget(self) -> None:
        """The rows so far are in complete parts."""
        self._seen.clear()


def _grouped(batch: pa.RecordBatch, partition_by: tuple[str, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """An order of the rows that keeps those of one directory together, and where each directory begins in it."""
    groups = np.zeros(batch.num_rows, np.int64)
    for name in partition_by:
        codes = batch.column(name).dictionary_encode(null_encoding="encode")
        values = groups * max(len(codes.dictionary), 1) + codes.indices.to_numpy(zero_copy_only=False)
        groups = np.unique(values, return_inverse=True)[1].reshape(-1)  # dense: the product stays small
    order = np.argsort(groups, kind="stable")
    return order, np.flatnonzero(np.diff(groups[order], prepend=-1))


def _directories(batch: pa.RecordBatch, partition_by: tuple[str, ...], rows: np.ndarray[Any, Any]) -> list[str]:
    """The directory of each of these rows: `country=DE/day=2024-05-01`."""
    chosen = batch.take(pa.array(rows))
    told = [
        [directory_name(name, one) for one in plain_texts(chosen.column(name)).to_pylist()] for name in partition_by
    ]
    return [os.path.join(*names) for names in zip(*told, strict=True)]


def directory_name(column: str, value: str | None) -> str:
    """One level of a directory: percent-encoded, so that no value is a path.

    >>> directory_name("path", "../a b"), directory_name("n", None)
    ('path=..%2Fa%20b', 'n=__HIVE_DEFAULT_PARTITION__')
    """
    told = NULL_DIRECTORY if value is None else _encoded(value)
    if value == NULL_DIRECTORY:
        told = told.replace("_", "%5F")  # the text, not null
    return f"{_encoded(column)}={told}"


def _encoded(text: str) -> str:
    return "".join(chr(byte) if byte in _HARMLESS else f"%{byte:02X}" for byte in text.encode())


# ── making visible ───────────────────────────────────────────────────────────────────────────────────────


def publish(disk: Disk, room: SinkRoom, root: str, parts: Iterable[Part], *, replace: bool) -> None:
    """Give each part its name, durably; one that has it already is done. With `replace`, another file may have it."""
    parts = list(parts)
    directories = list(dict.fromkeys(os.path.dirname(os.path.join(root, part.name)) for part in parts))
    path = root
    try:
        for path in directories:  # all of them first: making one syncs the root, which must not lose a name half way
            room.attempt(partial(disk.make_dirs, path, mode=PUBLIC_MODE))
            make_durable_dirs(disk, path, mode=PUBLIC_MODE)
        for part in parts:
            path = os.path.join(root, part.name)
            hidden = os.path.join(root, part.hidden)
            room.attempt(partial(_give_name, disk, hidden, path, part, replace=replace))
        for path in directories:
            disk.sync_dir(path)
        if directories and root not in directories:
            disk.sync_dir(root)
    except OSError as error:
        raise not_written(path, error, "the epoch is committed, and its file waits under a hidden name") from error


def _give_name(disk: Disk, hidden: str, path: str, part: Part, *, replace: bool) -> None:
    if not disk.exists(hidden):
        if not _is_part(disk, path, part):
            raise ConnectorError(
                f"{path} was committed, but it is not there, and what was to become it ({hidden}) is gone; nothing was "
                "changed",
                code="DF0513",
                help="put the file back where it was moved to from; only its bytes count",
            )
        return
    if disk.size(hidden) != part.size:
        raise ConnectorError(
            f"{hidden} has {disk.size(hidden)} bytes instead of {part.size}: somebody changed it; nothing was changed",
            code="DF0513",
            help="restore it from a backup, or run the pipeline from the start",
        )
    if replace:
        disk.rename(hidden, path)
        return
    try:
        disk.rename_new(hidden, path)
    except FileExistsError:
        if not _is_part(disk, path, part):
            raise ConnectorError(
                f"{path} came to be while the run wrote its own; that file was not touched, and ours waits as {hidden}",
                code="DF0511",
                help="move the other file away and run again: ours then gets its name",
            ) from None
        _remove(disk, hidden)  # a power cut left it with both names


def _is_part(disk: Disk, path: str, part: Part) -> bool:
    if not disk.exists(path) or disk.is_dir(path):
        return False
    return disk.size(path) == part.size and hash_of(disk, path) == part.xxh3


def remove_hidden(disk: Disk, root: str, parts: Iterable[Part]) -> None:
    """Take parts back that were not committed."""
    for part in parts:
        _remove(disk, os.path.join(root, part.hidden))


def _remove(disk: Disk, path: str) -> None:
    if disk.exists(path):
        disk.remove(path)
