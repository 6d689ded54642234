"""Rows into a table of an SQLite database; with `key`, a row takes the place of the one with the same key.

The rows of an epoch are written in one transaction of the database, together with the epoch's number (in the table
`_dataflow_epochs`), so that a commit that is repeated finds its number and does nothing. Without a store a bounded run
is one transaction, at its end. Several tables of one database are several sinks, each with transactions of its own;
they share a thread (`SinkSpec.place`), so that none waits for another's. The hard part is what SQLite would take
without a word and keep as something else: times, decimals and integers beyond 64 bits are given a form here, or
refused, and the columns of a table that is there already have to fit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import xxhash

from dataflow.errors import (
    ConnectorError,
    NameNotFoundError,
    PlanError,
    TargetFullError,
    TypeMismatchError,
    did_you_mean,
    says_full,
)
from dataflow.operators.base import SinkContext
from dataflow.operators.sinks.output import Spool, not_written
from dataflow.operators.sinks.staged import StagedEpoch, StagedSink
from dataflow.operators.sinks.text import check_times, pieces, plain_texts
from dataflow.schema import is_bytes_type, is_text_type, type_name

if TYPE_CHECKING:  # apsw is loaded by who writes into SQLite
    import apsw

__all__ = ["SqliteSink", "SqliteTarget"]

BUSY_TIMEOUT_MS = 4_000
"""How long a transaction of another program is waited for: less than a run may take to stop."""
CACHE_KIB = 65_536
"""Of a transaction: keys in no order touch pages all over the table."""
EPOCHS_TABLE = "_dataflow_epochs"
_EPOCHS_SQL = f"""CREATE TABLE IF NOT EXISTS {EPOCHS_TABLE} (pipeline TEXT NOT NULL, sink TEXT NOT NULL,
    history TEXT NOT NULL, epoch INTEGER NOT NULL, PRIMARY KEY (pipeline, sink, history)) WITHOUT ROWID"""
_FITTING = {
    "INTEGER": {"INTEGER", "NUMERIC", "BLOB"},
    "REAL": {"REAL", "NUMERIC", "BLOB"},
    "TEXT": {"TEXT", "BLOB"},
    "TIME": {"TEXT", "NUMERIC", "BLOB"},
    "BLOB": {"INTEGER", "REAL", "TEXT", "NUMERIC", "BLOB"},
    "": {"INTEGER", "REAL", "TEXT", "NUMERIC", "BLOB"},
}
"""The affinities of columns that keep each kind of value as it is (a column of type DATE has the one of numbers)."""
REFUSED_HELP = {
    "duplicate column": "names of columns that differ in case only are one to SQLite: `.rename` one of them",
    "too many columns": "a table of SQLite has 2000 columns at most: `.select` the ones that you need, or use "
    "`write_parquet`",
}
"""By a part of what SQLite says when it cannot make a table."""


# ── what is asked for ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class SqliteTarget:
    """A table, and the key of its rows; wrong wishes fail here, when the pipeline is built."""

    path: str
    table: str
    schema: pa.Schema
    key: tuple[str, ...] = ()
    absolute: str = field(init=False)
    """The path, seen from the working directory in which the pipeline was built."""

    def __post_init__(self) -> None:
        if not self.path or "\0" in self.path or self.path.startswith(":memory:"):
            raise PlanError(f"write_sqlite: {self.path!r} is not a file", code="DF0510", help="name a database file")
        if not isinstance(self.table, str) or not self.table or "\0" in self.table:
            raise PlanError(f"write_sqlite: {self.table!r} is not the name of a table", help='as in `table="orders"`')
        if not len(self.schema):
            raise TypeMismatchError("write_sqlite: the stream has no columns", code="DF0303", help="select some")
        for column in self.schema:
            _kind_of(column)
        self._check_key()
        self._check_names()
        object.__setattr__(self, "absolute", os.path.abspath(self.path))

    def _check_key(self) -> None:
        for name in self.key:
            if name not in self.schema.names:
                near = did_you_mean(name, self.schema.names)
                raise NameNotFoundError(
                    f"write_sqlite: key: there is no column `{name}` (columns: {', '.join(self.schema.names)})",
                    help=f"did you mean `{near}`?" if near else None,
                )
            if pa.types.is_floating(self.schema.field(name).type):
                raise TypeMismatchError(
                    f"write_sqlite: key: `{name}` is {type_name(self.schema.field(name).type)}, and NaN has no place "
                    "in a key of SQLite",
                    code="DF0302",
                    help="use an integer, text or time column; cast it if need be",
                )
        if len(set(self.key)) < len(self.key):
            raise PlanError("write_sqlite: key names a column twice", code="DF0510", help="name each once")

    def _check_names(self) -> None:
        """Ask SQLite itself whether there can be such a table."""
        import apsw

        if self.table.lower() == EPOCHS_TABLE:
            raise PlanError(
                f"write_sqlite: the table {EPOCHS_TABLE} is dataflow's own", code="DF0510", help="take another name"
            )
        try:
            apsw.Connection(":memory:").execute(self.create_sql)
        except (apsw.Error, ValueError) as error:
            raise PlanError(
                f"write_sqlite: SQLite cannot make the table {self.table!r} with these columns: {error}",
                code="DF0510",
                help=next((help for part, help in REFUSED_HELP.items() if part in str(error)), "take another name"),
            ) from None

    @property
    def create_sql(self) -> str:
        columns = [f"{_quoted(f.name)} {_declared(f)}{' NOT NULL' if f.name in self.key else ''}" for f in self.schema]
        if self.key:
            columns.append(f"PRIMARY KEY ({', '.join(map(_quoted, self.key))})")
        return f"CREATE TABLE IF NOT EXISTS {_quoted(self.table)} ({', '.join(columns)})"

    @property
    def insert_sql(self) -> str:
        names = self.schema.names
        sql = (
            f"INSERT INTO {_quoted(self.table)} ({', '.join(map(_quoted, names))}) "
            f"VALUES ({', '.join('?' * len(names))})"
        )
        if not self.key:
            return sql
        others = [_quoted(name) for name in names if name not in self.key]
        update = f"UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in others)}" if others else "NOTHING"
        return f"{sql} ON CONFLICT ({', '.join(map(_quoted, self.key))}) DO {update}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _kind_of(field: pa.Field) -> str:
    """How SQLite keeps the values: a key of `_FITTING`."""
    kind, t = field.type, pa.types
    if t.is_uint64(kind):
        reason, help = "SQLite has no integers beyond 64 bits with a sign", f'cast it: col.{field.name}.cast("int64")'
    elif t.is_integer(kind) or t.is_boolean(kind):
        return "INTEGER"
    elif t.is_floating(kind):
        return "REAL"
    elif is_text_type(kind) or t.is_decimal(kind):
        return "TEXT"
    elif t.is_temporal(kind) and not t.is_interval(kind):
        return "TIME"
    elif is_bytes_type(kind):
        return "BLOB"
    elif t.is_null(kind):
        return ""
    else:
        reason, help = "SQLite has no nested values", "select the fields that you need"
    raise TypeMismatchError(
        f"write_sqlite: column `{field.name}` is {type_name(kind)}, and {reason}", code="DF0303", help=help
    )


def _declared(field: pa.Field) -> str:
    kind = _kind_of(field)
    return "TEXT" if kind == "TIME" else kind


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────


class SqliteSink(StagedSink):
    """Writes into one table. A connection lives as long as a commit: so a file that somebody moved away is noticed."""

    def __init__(self, target: SqliteTarget, context: SinkContext) -> None:
        path = target.absolute
        run = context.run or f"{context.system.chance.getrandbits(32):08x}"
        table = xxhash.xxh32_hexdigest(target.table.encode())  # several tables of a database may have rows that wait
        spool = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:100]}-{run}-{table}.inprogress")
        super().__init__(context, context.staging or Spool(context, spool))
        self.target, self._path, self._probe = target, path, f"{spool}-probe"
        self._disk = context.system.disk
        self._waits_for_the_end = context.bounded and not self.has_store
        self._ended = False
        self._is_there = self._disk.exists(path)
        self._check_place()

    def write(self, batch: pa.RecordBatch) -> None:
        check_times(batch, f"write_sqlite {self.target.table}")
        for name in self.target.key:
            if batch.column(name).null_count:
                raise ConnectorError(
                    f"write_sqlite {self.target.table}: a row has no `{name}`, which is its key; the rows of this "
                    "epoch were not written",
                    code="DF0502",
                    help=f"leave such rows out: .filter(col.{name}.is_not_null())",
                )
        super().write(batch)

    def end(self) -> None:
        """The next epoch is the last one."""
        self._ended = True

    def prepare(self, epoch: int) -> dict[str, object]:
        handle = super().prepare(epoch)
        return handle if self._ended or not self._waits_for_the_end else handle | {"rows": 0}

    def commit(self, handle: object) -> None:
        """Hand the epoch's rows over; a transaction that found no room was undone, and is tried again."""
        self.context.room.attempt(lambda: self._commit(handle))

    def _commit(self, handle: object) -> None:
        super().commit(handle)
        if self._ended:  # a table without rows is made too
            with self._transaction() as connection:
                connection.execute(self.target.create_sql)

    def apply(self, epoch: StagedEpoch, batches: Iterable[pa.RecordBatch]) -> None:
        with self._transaction() as connection:
            if self.has_store and self._applied_epoch(connection, epoch.history) >= epoch.epoch:
                return
            connection.execute(self.target.create_sql)
            self._insert(connection, batches)
            if not self.has_store:
                return
            connection.execute(_EPOCHS_SQL)
            row = (self.context.pipeline, self.context.name, epoch.history, epoch.epoch)
            connection.execute(f"INSERT OR REPLACE INTO {EPOCHS_TABLE} VALUES (?, ?, ?, ?)", row)

    def applied_epoch(self, history: str) -> int:
        if not self._is_there:
            return 0
        with self._telling(), closing(self._connect()) as connection:
            return self._applied_epoch(connection, history)

    def _applied_epoch(self, connection: apsw.Connection, history: str) -> int:
        """0 also where the table was dropped, whatever the database remembers."""
        is_there = "SELECT 1 FROM pragma_table_info(?) LIMIT 1"
        if not all(list(connection.execute(is_there, (name,))) for name in (self.target.table, EPOCHS_TABLE)):
            return 0
        sql = f"SELECT max(epoch) FROM {EPOCHS_TABLE} WHERE pipeline = ? AND sink = ? AND history = ?"
        name = (self.context.pipeline, self.context.name, history)
        return int(connection.execute(sql, name).fetchall()[0][0] or 0)

    def _insert(self, connection: apsw.Connection, batches: Iterable[pa.RecordBatch]) -> None:
        sql = self.target.insert_sql
        for batch in batches:
            for piece in pieces(batch):
                connection.executemany(sql, zip(*map(_values, piece.columns), strict=True))

    # ── the database ──

    def _check_place(self) -> None:
        """Fail now, and not at the first commit, if the rows cannot go there."""
        directory = os.path.dirname(self._path)
        is_directory = self._disk.is_dir(self._path)
        if is_directory or not self._disk.is_dir(directory):
            what = f"{self._path} is a directory" if is_directory else f"there is no directory {directory}"
            raise ConnectorError(f"write_sqlite: {what}; nothing was changed", code="DF0511", help="name another path")
        if not self._is_there:
            try:
                self._disk.open_append(self._path, new=True).close()
                self._disk.remove(self._path)
            except OSError as error:
                raise not_written(self._path, error, "nothing was changed") from error
            return
        with self._telling():
            connection = self._connect()
            try:
                self._check_table(connection)
                self._check_writable(connection)
            finally:
                connection.close()

    def _check_writable(self, connection: apsw.Connection) -> None:
        import apsw

        connection.set_busy_timeout(0)
        try:
            connection.execute("BEGIN IMMEDIATE; ROLLBACK")
        except apsw.BusyError:
            """It is; somebody else is just writing."""

    def _check_table(self, connection: apsw.Connection) -> None:
        """A table that is there has our columns, of types that keep our values, and our key."""
        columns = connection.execute("SELECT name, type FROM pragma_table_info(?)", (self.target.table,))
        found = {name.lower(): (name, str(declared)) for name, declared in columns}
        if not found:
            return
        for column in self.target.schema:
            if column.name.lower() not in found:
                raise self._unfit(
                    f"has no column `{column.name}` (columns: {', '.join(row[0] for row in found.values())})",
                    "add it to the table, or leave it out of the stream",
                )
            declared = found[column.name.lower()][1]
            if _affinity(declared) not in _FITTING[_kind_of(column)]:
                raise self._unfit(
                    f"has `{column.name}` as {declared or 'a column without type'}, and the stream's is "
                    f"{type_name(column.type)}, which SQLite would change",
                    f"cast it in the stream, or declare the column {_declared(column)}",
                )
        if self.target.key and self._keys_of(connection).isdisjoint({frozenset(map(str.lower, self.target.key))}):
            key = ", ".join(map(_quoted, self.target.key))
            raise self._unfit(
                f"has no primary key or unique index of ({', '.join(self.target.key)}), by which rows are replaced",
                f"make one: CREATE UNIQUE INDEX … ON {_quoted(self.target.table)} ({key})",
            )

    def _keys_of(self, connection: apsw.Connection) -> set[frozenset[str]]:
        """The sets of columns that are unique in the table."""
        table = self.target.table
        primary = connection.execute("SELECT lower(name) FROM pragma_table_info(?) WHERE pk > 0", (table,))
        keys = {frozenset(name for (name,) in primary)}
        names = list(
            connection.execute('SELECT name FROM pragma_index_list(?) WHERE "unique" AND NOT partial', (table,))
        )
        for (name,) in names:
            columns = connection.execute("SELECT lower(name) FROM pragma_index_info(?)", (name,))
            keys.add(frozenset(column for (column,) in columns if column is not None))
        return keys

    def _connect(self) -> apsw.Connection:
        import apsw

        flags = apsw.SQLITE_OPEN_READWRITE | (0 if self._is_there else apsw.SQLITE_OPEN_CREATE)
        connection = apsw.Connection(self._path, flags=flags, vfs=self._disk.vfs_name())
        try:
            connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            if not self._disk.shares_memory:
                list(connection.execute("PRAGMA locking_mode = EXCLUSIVE"))
            connection.pragma("cache_size", -CACHE_KIB)
            # EXTRA: with FULL a power cut may bring a journal back that was deleted, and with it undo the commit.
            list(connection.execute("PRAGMA synchronous = EXTRA; PRAGMA schema_version"))
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        """All that is done inside, or nothing of it; durable at the end."""
        with self._telling():
            connection = self._connect()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
                if not self._is_there:
                    self._disk.sync_dir(os.path.dirname(self._path))
                self._is_there = True
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                connection.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """SQLite's errors, as ours."""
        import apsw

        kept = "its rows wait in the store; nothing of them was written" if self.has_store else "nothing was written"
        try:
            yield
        except apsw.Error as error:
            is_full = isinstance(error, apsw.FullError) or (
                isinstance(error, apsw.CantOpenError) and self._lacks_inodes()
            )
            what, help = ("cannot grow: the disk is full", "make room, then run again") if is_full else _told(error)
            kind = TargetFullError if is_full else ConnectorError
            raise kind(f"write_sqlite: {self._path} {what}; {kept}", code="DF0512", help=help) from error

    def _lacks_inodes(self) -> bool:
        """Whether no file can be made beside the database. SQLite does not say why it could not make its journal."""
        try:
            self._disk.open_append(self._probe, new=True).close()
            self._disk.remove(self._probe)
        except OSError as error:
            return says_full(error)
        return False

    def _unfit(self, what: str, help: str) -> ConnectorError:
        return ConnectorError(
            f"write_sqlite: the table `{self.target.table}` of {self._path} {what}; nothing was changed",
            code="DF0514",
            help=help,
        )


def _told(error: apsw.Error) -> tuple[str, str]:
    """What SQLite's error means for the database, and what to do."""
    import apsw

    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return "is locked by another program", "end its transaction, then run again"
    if isinstance(error, apsw.ReadOnlyError):
        return "is read-only", "give this process the permission to write the file and its directory, then run again"
    if isinstance(error, apsw.CantOpenError):
        return "cannot be opened: it was moved away, or is not permitted", "put it back, then run again"
    if isinstance(error, apsw.NotADBError):
        return "is not an SQLite database", "name another file"
    if isinstance(error, apsw.CorruptError):
        return "is damaged", "restore it from a backup"
    if isinstance(error, apsw.ConstraintError):
        return f"refused a row ({error})", "change the table's constraint, or the rows"
    return f"failed ({error})", "put that right, then run again"


def _affinity(declared: str) -> str:
    """SQLite's rules for what a column of a declared type prefers to hold."""
    told = declared.upper()
    if "INT" in told:
        return "INTEGER"
    if any(word in told for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in told or not told:
        return "BLOB"
    return "REAL" if any(word in told for word in ("REAL", "FLOA", "DOUB")) else "NUMERIC"


def _values(column: pa.Array) -> list[Any]:
    """The values as SQLite takes them."""
    kind, t = column.type, pa.types
    if t.is_boolean(kind):
        column = column.cast(pa.int8())
    elif t.is_float16(kind):
        column = column.cast(pa.float32())
    elif t.is_temporal(kind) or t.is_decimal(kind):
        column = plain_texts(column)
    if not column.null_count and t.is_primitive(column.type):
        told: list[Any] = column.to_numpy(zero_copy_only=False).tolist()  # half the time of to_pylist
        return told
    return list(column.to_pylist())
