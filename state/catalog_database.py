"""The database under the catalog: its tables, how it is made and opened, and what SQLite's errors mean to a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from dataflow.errors import DiskFullError, StoreError
from dataflow.state.layout import FILE_MODE, Layout
from dataflow.state.row_checksums import sealed
from dataflow.system import System

FORMAT_VERSION = 2
APPLICATION_ID = 0x4446_4C57
BUSY_TIMEOUT_MS = 30_000
"""How long to wait for another process's transaction. Each takes milliseconds: more means that one hangs."""
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, xxh3 INTEGER NOT NULL) STRICT;
CREATE TABLE topics (topic_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, folded TEXT NOT NULL UNIQUE,
    xxh3 INTEGER NOT NULL) STRICT;
CREATE TABLE schemas (topic_id INTEGER NOT NULL, version INTEGER NOT NULL, arrow BLOB NOT NULL,
    xxh3 INTEGER NOT NULL, PRIMARY KEY (topic_id, version)) STRICT;
CREATE TABLE partitions (topic_id INTEGER NOT NULL, partition INTEGER NOT NULL, rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL, PRIMARY KEY (topic_id, partition)) STRICT;
CREATE TABLE segments (segment_id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, partition INTEGER NOT NULL,
    file TEXT NOT NULL, first_offset INTEGER NOT NULL, schema_version INTEGER NOT NULL, header_bytes INTEGER NOT NULL,
    header_xxh3 INTEGER NOT NULL, published_bytes INTEGER NOT NULL, UNIQUE (topic_id, partition, file)) STRICT;
CREATE TABLE commits (commit_id INTEGER PRIMARY KEY, wall_us INTEGER NOT NULL, pipeline TEXT, epoch INTEGER,
    xxh3 INTEGER NOT NULL) STRICT;
CREATE TABLE batches (topic_id INTEGER NOT NULL, partition INTEGER NOT NULL, first_offset INTEGER NOT NULL,
    commit_id INTEGER NOT NULL, rows INTEGER NOT NULL, entries BLOB NOT NULL,
    PRIMARY KEY (topic_id, partition, first_offset)) STRICT;
CREATE TABLE pipelines (name TEXT PRIMARY KEY, graph_hash TEXT NOT NULL, state_hash TEXT NOT NULL,
    epoch INTEGER NOT NULL, finished INTEGER NOT NULL, commit_id INTEGER NOT NULL, checkpoint TEXT NOT NULL,
    frames_xxh3 INTEGER NOT NULL, xxh3 INTEGER NOT NULL) STRICT;
CREATE TABLE frames (pipeline TEXT NOT NULL, frame INTEGER NOT NULL, owner TEXT NOT NULL, rows INTEGER NOT NULL,
    file TEXT NOT NULL, position INTEGER NOT NULL, length INTEGER NOT NULL, xxh3 INTEGER NOT NULL,
    PRIMARY KEY (pipeline, frame)) STRICT;
CREATE TABLE ledger (pipeline TEXT NOT NULL, epoch INTEGER NOT NULL, commit_id INTEGER NOT NULL, counts BLOB NOT NULL,
    PRIMARY KEY (pipeline, epoch)) STRICT;
"""


class UnfinishedCatalogError(Exception):
    """The making of the catalog was cut off, or goes on in another process: there is no store yet."""


class DoubtfulCommitError(DiskFullError):
    """The disk was full while a commit was written.

    The next commit of this process takes its place; should there be none, it may count or not.
    """

    def __init__(self, root: str) -> None:
        super().__init__(
            f"the store {root} has no room for a commit; it is not acknowledged, and nothing of it was taken back",
            help="make room on the disk, then go on, or start again: the disk tells what was committed",
        )


class CorruptCatalogError(StoreError):
    """The catalog holds what nobody wrote: a row's checksum does not vouch for it, or rows are missing."""

    code = "DF0603"

    def __init__(self, path: str, what: str, consequence: str, remedy: str) -> None:
        super().__init__(
            f"{path} is corrupt: {what}; {consequence}; nothing was changed",
            help=f"restore the store from a backup, or {remedy}; `dataflow log verify` tells all that is damaged",
        )
        self.path, self.what = path, what


def create_catalog(system: System, layout: Layout) -> None:
    """Make the catalog, durably. The caller holds the creation lock."""
    disk = system.disk
    disk.open_append(layout.catalog, mode=FILE_MODE).close()  # SQLite gives its own files the mode of this one
    with told(layout.catalog):
        connection = prepared(opened(system, layout.catalog), system)
        try:
            if is_unfinished(connection):
                list(connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL"))
                _fill(connection, system)
        finally:
            connection.close()
    disk.sync_dir(layout.root)


def _fill(connection: apsw.Connection, system: System) -> None:
    connection.execute(f"BEGIN IMMEDIATE; {TABLES}")
    meta = {"store_id": f"{system.chance.getrandbits(128):032x}", "created_us": str(system.clock.wall_us())}
    connection.executemany("INSERT INTO meta VALUES (?, ?, ?)", map(sealed, meta.items()))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION}; COMMIT")


def opened(system: System, path: str) -> apsw.Connection:
    """A database, not looked at yet: so SQLite has made no file beside it."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    return apsw.Connection(path, flags=flags, vfs=system.disk.vfs_name())


def prepared(connection: apsw.Connection, system: System) -> apsw.Connection:
    """The connection, as the catalog needs it; closed when it cannot be used."""
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        if not system.disk.shares_memory:
            list(connection.execute("PRAGMA locking_mode = EXCLUSIVE"))
        list(connection.execute("PRAGMA synchronous = FULL; PRAGMA user_version"))
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def told(path: str) -> Iterator[None]:
    """An error of SQLite as one that says what to do. Only where nothing is written that anybody counts on."""
    try:
        yield
    except (apsw.NotADBError, apsw.CorruptError, UnicodeDecodeError) as error:
        what = "is not a database" if isinstance(error, apsw.NotADBError) else "is damaged"
        raise StoreError(f"{path} {what}; nothing was changed", help="restore it from a backup") from None
    except apsw.Error as error:
        raise StoreError(
            f"{path} cannot be used: {str(error) or type(error).__name__}; nothing that was committed is concerned",
            code="DF0608",
            help="is the disk full or damaged, or does another process hold the catalog? then start again",
        ) from error


def is_unfinished(connection: apsw.Connection) -> bool:
    """Whether the making of a catalog was cut off before its one transaction: a database without anything in it."""
    sql = "SELECT user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version"
    ((version, tables),) = list(connection.execute(sql))
    return not version and not tables


def not_begun(layout: Layout, error: apsw.Error) -> StoreError:
    what = f"the catalog of the store {layout.root} did not take a commit ({error}); nothing was published"
    if isinstance(error, apsw.FullError):
        return DiskFullError(what, help="make room on the disk, then go on")
    return StoreError(what, code="DF0608", help="does another process hold the catalog? nothing is lost: start again")
