"""A still picture of a store's catalog: a private copy of the database and its write-ahead log.

Opening the catalog where it lies would write to the store: SQLite makes and fills `catalog.db-shm` even for a reader,
and believes what it finds there. So the two files are copied, the database first. A checkpoint of the writer that runs
meanwhile only moves into the database what is in the log as well, and the log is copied last: whatever the copy of the
database has mixed, the copy of the log sets right. Only a log that was begun anew in between (its header changed)
breaks this, and then the copy is made again.

The hard part is what SQLite does not tell: it ends the log silently at the first frame whose checksum is wrong, since
that is what a power cut leaves. A flipped bit there would take back commits that readers have seen. `wal_findings`
tells the two apart where that is possible: a power cut spoils one transaction at most, the last one.

Part of the verifier: imports nothing of the store (see __init__.py).
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TypeAlias

import apsw

from dataflow.errors import StoreError
from dataflow.state.verify.files import PIECE_BYTES, File, Finding, StoreFiles, Unreadable

CATALOG, WAL, JOURNAL = "catalog.db", "catalog.db-wal", "catalog.db-journal"
UNFINISHED_FILES = {CATALOG, WAL, JOURNAL, "catalog.db-shm", "store.lock"}
APPLICATION_ID = 0x4446_4C57
FORMAT_VERSION = 2
COPIES_MAX = 100
"""Of a catalog whose log begins anew each time; a store that is not written needs one."""
FREE_BYTES_MIN = 64 << 20
"""Left on the disk of the copy."""
STEPS_MAX, STEPS_BYTE_MAX, STEPS_REPORTED = 50_000_000, 100, 100_000
"""Of SQLite's virtual machine for one statement, and more for each byte of the catalog: more is running in circles."""
LENGTH_MAX = 1 << 30
"""Of one value: SQLite's own bound."""

TABLES: dict[str, dict[str, str]] = {
    "meta": {"key": "TEXT", "value": "TEXT", "xxh3": "INTEGER"},
    "topics": {"topic_id": "INTEGER", "name": "TEXT", "folded": "TEXT", "xxh3": "INTEGER"},
    "schemas": {"topic_id": "INTEGER", "version": "INTEGER", "arrow": "BLOB", "xxh3": "INTEGER"},
    "partitions": {"topic_id": "INTEGER", "partition": "INTEGER", "rows": "INTEGER", "bytes": "INTEGER"},
    "segments": {
        "segment_id": "INTEGER",
        "topic_id": "INTEGER",
        "partition": "INTEGER",
        "file": "TEXT",
        "first_offset": "INTEGER",
        "schema_version": "INTEGER",
        "header_bytes": "INTEGER",
        "header_xxh3": "INTEGER",
        "published_bytes": "INTEGER",
    },
    "commits": {
        "commit_id": "INTEGER",
        "wall_us": "INTEGER",
        "pipeline": "TEXT",
        "epoch": "INTEGER",
        "xxh3": "INTEGER",
    },
    "batches": {
        "topic_id": "INTEGER",
        "partition": "INTEGER",
        "first_offset": "INTEGER",
        "commit_id": "INTEGER",
        "rows": "INTEGER",
        "entries": "BLOB",
    },
    "pipelines": {
        "name": "TEXT",
        "graph_hash": "TEXT",
        "state_hash": "TEXT",
        "epoch": "INTEGER",
        "finished": "INTEGER",
        "commit_id": "INTEGER",
        "checkpoint": "TEXT",
        "frames_xxh3": "INTEGER",
        "xxh3": "INTEGER",
    },
    "frames": {
        "pipeline": "TEXT",
        "frame": "INTEGER",
        "owner": "TEXT",
        "rows": "INTEGER",
        "file": "TEXT",
        "position": "INTEGER",
        "length": "INTEGER",
        "xxh3": "INTEGER",
    },
    "ledger": {"pipeline": "TEXT", "epoch": "INTEGER", "commit_id": "INTEGER", "counts": "BLOB"},
}
PRIMARY_KEYS: dict[str, tuple[str, ...]] = {
    "meta": ("key",),
    "topics": ("topic_id",),
    "schemas": ("topic_id", "version"),
    "partitions": ("topic_id", "partition"),
    "segments": ("segment_id",),
    "commits": ("commit_id",),
    "batches": ("topic_id", "partition", "first_offset"),
    "pipelines": ("name",),
    "frames": ("pipeline", "frame"),
    "ledger": ("pipeline", "epoch"),
}
UNIQUE: dict[str, list[tuple[str, ...]]] = {
    "topics": [("name",), ("folded",)],
    "segments": [("topic_id", "partition", "file")],
}
NULLABLE = {("commits", "pipeline"), ("commits", "epoch")}

Signature: TypeAlias = tuple[object, ...]
Value: TypeAlias = int | float | str | bytes | None
Row: TypeAlias = tuple[object, ...]


def is_unfinished(files: StoreFiles) -> bool:
    """Whether the making of this store was cut off: a catalog in which nothing is, and no other file."""
    names = {entry.name for entry in files.entries()}
    if CATALOG not in names or names - UNFINISHED_FILES:
        return False
    if JOURNAL in names:
        return True
    try:
        with closing(Snapshot(files)) as snapshot:
            return snapshot.is_empty()
    except CatalogBroken:
        return False


class CatalogBroken(Exception):
    """SQLite cannot make sense of the catalog, or its tables are not those of the format."""


class Snapshot:
    """The catalog as it was at one moment; close it to remove the copy."""

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dataflow-verify-")))
            self._signature, self.findings = _copy_still(files, folder)
            self._connection = stack.enter_context(_connected(folder / CATALOG))
            self._steps = self._steps_max = 0
            self._bytes = (folder / CATALOG).stat().st_size
            self._connection.set_progress_handler(self._runs_in_circles, STEPS_REPORTED)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def is_current(self) -> bool:
        """Whether the store's catalog is still the one that was copied."""
        return self._signature == _signature(self._files)

    def query(self, sql: str, values: tuple[Value, ...] = ()) -> Iterator[Row]:
        """The rows of a SELECT; CatalogBroken when SQLite cannot read them."""
        self._steps, self._steps_max = 0, STEPS_MAX + STEPS_BYTE_MAX * self._bytes
        try:
            yield from self._connection.execute(sql, values)
        except (apsw.Error, UnicodeDecodeError, MemoryError) as error:
            raise CatalogBroken(f"SQLite cannot read it: {error or type(error).__name__}") from None

    def value(self, sql: str, values: tuple[Value, ...] = ()) -> object:
        """The first column of the first row, or None."""
        return next((row[0] for row in self.query(sql, values)), None)

    def is_empty(self) -> bool:
        """Whether nobody has put anything into the database yet."""
        pragmas = [self.value(f"PRAGMA {name}") for name in ("application_id", "user_version")]
        return pragmas == [0, 0] and self.value("SELECT count(*) FROM sqlite_schema") == 0

    def check_structure(self) -> None:
        """CatalogBroken unless this is a sound SQLite database with the tables of the format."""
        wrong = list(self._wrong_header())
        if not wrong:
            # Names before anything else: the integrity check would evaluate expressions of a hostile schema.
            wrong = list(self._wrong_shape())
        if not wrong:
            wrong = [str(row[0]) for row in self.query("PRAGMA integrity_check") if row[0] != "ok"]
        if not wrong:
            wrong = list(self._wrong_values())
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise CatalogBroken("; ".join(wrong[:3]) + more)

    def _wrong_header(self) -> Iterator[str]:
        if (found := self.value("PRAGMA application_id")) != APPLICATION_ID:
            yield f"the application id is {found}, not {APPLICATION_ID}"
        if (found := self.value("PRAGMA user_version")) != FORMAT_VERSION:
            yield f"the format version is {found}; this verifier knows {FORMAT_VERSION} only"
        if (found := self.value("PRAGMA journal_mode")) != "wal":
            yield f"the journal mode is {found}, not wal"
        if (found := self.value("PRAGMA encoding")) != "UTF-8":
            yield f"texts are stored as {found}, not UTF-8"

    def _wrong_shape(self) -> Iterator[str]:
        kinds = {row[0]: row[1] for row in self.query("SELECT name, type FROM sqlite_schema")}
        for name, kind in kinds.items():
            if kind not in ("table", "index"):
                yield f"there is a {kind} {name!r}"
        strict = {row[0] for row in self.query("SELECT name FROM pragma_table_list WHERE schema = 'main' AND strict")}
        for table, columns in TABLES.items():
            if kinds.get(table) != "table":
                yield f"there is no table {table}"
                continue
            if table not in strict:
                yield f"table {table} is not STRICT"
            found = list(self.query("SELECT name, type, pk, hidden FROM pragma_table_xinfo(?)", (table,)))
            if [(row[0], row[1]) for row in found] != list(columns.items()) or any(row[3] for row in found):
                yield f"table {table} has the columns " + ", ".join(f"{row[0]} {row[1]}" for row in found)
            keys = sorted((row[2], row[0]) for row in found if isinstance(row[2], int) and row[2])
            if tuple(name for _, name in keys) != PRIMARY_KEYS[table]:
                yield f"the primary key of {table} is ({', '.join(str(name) for _, name in keys)})"

    def _wrong_values(self) -> Iterator[str]:
        for table, columns in TABLES.items():
            for column in columns:
                if (table, column) not in NULLABLE:
                    count = self.value(f'SELECT count(*) FROM "{table}" WHERE "{column}" IS NULL')
                    if count:
                        yield f"{table}.{column} is null in {count} rows"
        for table, keys in UNIQUE.items():
            for key in keys:
                names = ", ".join(key)
                for row in self.query(f'SELECT {names} FROM "{table}" GROUP BY {names} HAVING count(*) > 1 LIMIT 1'):
                    yield f"{table} has {row} twice in ({names})"

    def _runs_in_circles(self) -> bool:
        self._steps += STEPS_REPORTED
        return self._steps > self._steps_max > 0


@contextmanager
def _connected(path: Path) -> Iterator[apsw.Connection]:
    """A connection to a catalog that is not trusted, for as long as the block lasts."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    except apsw.Error as error:
        raise CatalogBroken(f"SQLite cannot open it: {error}") from None
    try:
        _distrust(connection, path.stat().st_size + path.with_name(WAL).stat().st_size)
        yield connection
    except apsw.Error as error:
        raise CatalogBroken(f"SQLite cannot open it: {error}") from None
    finally:
        connection.close(True)


def _distrust(connection: apsw.Connection, size: int) -> None:
    """Nothing in the database may run, nor take more memory than its own size."""
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.limit(apsw.SQLITE_LIMIT_LENGTH, min(max(size, 1_000_000), LENGTH_MAX))
    # Exclusive: the index of the log is then kept in memory instead of in a file.
    for pragma in ("locking_mode = EXCLUSIVE", "mmap_size = 0", "cell_size_check = ON", "query_only = ON"):
        connection.execute(f"PRAGMA {pragma}").fetchall()


# ── the copy ─────────────────────────────────────────────────────────────────────────────────────────────


def _copy_still(files: StoreFiles, folder: Path) -> tuple[Signature, list[Finding]]:
    """Copy database and log so that they are of one moment; returns what tells whether they changed since."""
    for _ in range(COPIES_MAX):
        signature = _signature(files)
        try:
            _copy(files, CATALOG, folder)
        except Unreadable as error:
            raise CatalogBroken(str(error)) from None
        try:
            _copy(files, WAL, folder)
        except Unreadable as error:
            if files.stat(WAL) is not None:
                raise CatalogBroken(f"its log {WAL} {error}") from None
            (folder / WAL).write_bytes(b"")
        after = _signature(files)
        found = wal_findings(folder)
        if after == signature:
            return signature, found
        # The same log, which only grew; what is wrong with its copy may be a frame that was just being written.
        if signature[:2] == after[:2] and signature[0] and not found:
            return signature, found
    raise CatalogBroken(f"it changed faster than it could be copied, {COPIES_MAX} times")


def _signature(files: StoreFiles) -> Signature:
    """Header and inode of the log, and what changes with the files."""
    header = b""
    try:
        with files.file(WAL) as file:
            header = file.read(0, min(file.size, WAL_HEADER_BYTES))
    except Unreadable:
        pass
    stats = [files.stat(name) for name in (WAL, CATALOG)]
    inodes = tuple(found and (found.st_dev, found.st_ino) for found in stats)
    return (header, inodes, *(found and (found.st_size, found.st_mtime_ns) for found in stats))


def _copy(files: StoreFiles, name: str, folder: Path) -> None:
    with files.file(name) as file:
        free = os.statvfs(folder)
        if file.size + FREE_BYTES_MIN > free.f_bavail * free.f_frsize:
            raise _no_room(name, f"{file.size} bytes", folder)
        try:
            with (folder / name).open("wb") as copy:
                for position in range(0, file.size, PIECE_BYTES):
                    copy.write(file.read(position, min(PIECE_BYTES, file.size - position)))
        except OSError as error:
            raise _no_room(name, error.strerror, folder) from None


def _no_room(name: str, why: str | None, folder: Path) -> StoreError:
    return StoreError(
        f"{name} ({why}) cannot be copied to {folder.parent}, which is how it is checked; nothing was changed",
        help="make room there, or set TMPDIR to a folder on a larger disk",
    )


# ── the write-ahead log (sqlite.org/fileformat2.html#walformat) ──────────────────────────────────────────

WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
WAL_MAGIC = {0x377F_0682: "<", 0x377F_0683: ">"}
"""And the order of bytes in which the checksums read their words."""
WAL_VERSION = 3_007_000
_MASK = 0xFFFF_FFFF
Checksum: TypeAlias = tuple[int, int]


def wal_findings(folder: Path) -> list[Finding]:
    """What SQLite would pass over in silence at the end of the log."""
    descriptor = os.open(folder / WAL, os.O_RDONLY | os.O_CLOEXEC)
    file = File(descriptor)
    try:
        return list(_wal_findings(file, _page_bytes(folder / CATALOG)))
    finally:
        file.close()


def _page_bytes(catalog: Path) -> int:
    """As the database's header says, for a log whose own header is broken."""
    with catalog.open("rb") as file:
        header = file.read(18)
    size = int.from_bytes(header[16:18], "big") if len(header) == 18 else 0
    return 65536 if size == 1 else size


def _wal_findings(file: File, page_bytes: int) -> Iterator[Finding]:
    if file.size == 0:
        return
    header = file.read(0, min(file.size, WAL_HEADER_BYTES))
    order = WAL_MAGIC.get(int.from_bytes(header[:4], "big"), "")
    if len(header) < WAL_HEADER_BYTES or not any(header):
        what = "the log's header was never written; nothing of the log counts"
        yield Finding(kind="warning", file=WAL, position=0, what=what)
        return
    _, version, size, _, *salts, sum1, sum2 = struct.unpack(">8I", header)
    if not order or version != WAL_VERSION or _checksum(order, (0, 0), header[:24]) != (sum1, sum2):
        what = "the log's header is damaged; SQLite passes over the whole log: commits that are only there are lost"
        yield Finding(kind="damage", file=WAL, position=0, what=what)
        return
    yield from _frame_findings(file, size, order, (salts[0], salts[1]), (sum1, sum2))


@functools.cache
def _weights(words: int) -> tuple[list[int], list[int], tuple[int, int, int, int]]:
    """How much each word adds to either half of a checksum over so many, and how much the seed does.

    The checksum (s1 += x0 + s2; s2 += x1 + s1, for each pair) is linear: a sum of products is many times as fast.
    """
    first: list[int] = []
    second: list[int] = []
    a, b, c, d = 1, 0, 0, 1  # the matrix of all pairs that come later
    for _ in range(words // 2):
        first += [b & _MASK, (a + b) & _MASK]  # backwards: x1, then x0
        second += [d & _MASK, (c + d) & _MASK]
        a, b, c, d = (a + b) & _MASK, (a + 2 * b) & _MASK, (c + d) & _MASK, (c + 2 * d) & _MASK
    return first[::-1], second[::-1], (a, b, c, d)


def _checksum(order: str, seed: Checksum, content: bytes) -> Checksum:
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    first, second, (a, b, c, d) = _weights(len(words))
    sum1 = a * seed[0] + b * seed[1] + sum(map(operator.mul, first, words))
    sum2 = c * seed[0] + d * seed[1] + sum(map(operator.mul, second, words))
    return sum1 & _MASK, sum2 & _MASK


def _frame_findings(file: File, page_bytes: int, order: str, salts: Checksum, seed: Checksum) -> Iterator[Finding]:
    """Where the chain of checksums ends, and whether that can be the work of a power cut."""
    whole = FRAME_HEADER_BYTES + page_bytes
    ended_at: int | None = None
    seeds = [seed]
    commits = 0
    """Transactions that end in the run of frames, each chained to the one before it, that lies beyond the break."""
    for position in itertools.count(WAL_HEADER_BYTES, whole):
        if position + whole > file.size:
            if ended_at is None and _is_torn(file, position, salts):
                ended_at = position
            break
        frame = file.read(position, whole)
        _, pages, salt1, salt2, *found = struct.unpack_from(">6I", frame)
        ours = (salt1, salt2) == salts
        stored = (found[0], found[1])
        # Chained to what the frame before it says of itself, or to what that should have said.
        computed = [_checksum(order, before, frame[:8] + frame[FRAME_HEADER_BYTES:]) for before in seeds]
        chained = ours and stored in computed
        seeds = [stored] if chained else [stored, computed[0]]
        if ended_at is None:
            if chained:
                continue
            # Frames of an earlier use of the file have other salts, both of them; zeros were never written by anybody.
            is_older = salt1 != salts[0] and salt2 != salts[1] and (salt1, salt2) != (0, 0)
            if is_older and not _follows(file, position + whole, salts):
                break
            ended_at = position
        ends_one = 1 if pages else 0
        commits = commits + ends_one if chained else ends_one
        if commits > 1:
            what = (
                "a frame of the log is damaged; SQLite passes over it and all after it: commits that were made are lost"
            )
            yield Finding(kind="damage", file=WAL, position=ended_at, what=what)
            return
    if ended_at is not None:
        what = "the log's last transaction is not whole, and does not count: cut off by a crash, or damaged"
        yield Finding(kind="warning", file=WAL, position=ended_at, what=what)


def _is_torn(file: File, position: int, salts: Checksum) -> bool:
    """Whether the file ends within a frame of this use of it."""
    rest = file.read(position, min(file.size - position, FRAME_HEADER_BYTES))
    return len(rest) > 0 and (len(rest) < 16 or struct.unpack_from(">2I", rest, 8) == salts)


def _follows(file: File, position: int, salts: Checksum) -> bool:
    """Whether a frame of this use of the file begins there."""
    return position + 16 <= file.size and struct.unpack(">2I", file.read(position + 8, 8)) == salts
