"""How a catalog is opened by those who may write it, and by those who may only read.

SQLite reads a database that it may not write, next to a writer of another user too, as long as its log and the log's
index are there: both sides then take part in its locks. The hard part is a quiet store. There is no log, a reader may
not make one, and SQLite reads such a database only as if nobody ever wrote to it (`immutable`). A writer may come all
the same, but never without a trace: its log comes before its first change of the database and goes after the last one.
So what was read counts only if neither file has changed since before it was opened; else it is read again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeAlias, TypeVar
from urllib.parse import quote

import apsw

from dataflow.errors import StoreError
from dataflow.state.catalog_database import opened, prepared, told
from dataflow.state.layout import Layout
from dataflow.system import System

if TYPE_CHECKING:
    from dataflow.state.catalog import Catalog

LOOKS_MAX = 100
"""At a store that a writer opens and closes all the time; every look but the first is 20 ms after the one before it."""
STILL_SECONDS = 0.02
"""Longer than a tick of the clock of file systems: a change that comes later has another time."""

Stamps: TypeAlias = tuple[object, object]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Access:
    """An open database. `stamps` are of its file and its log where nobody is allowed to write meanwhile."""

    connection: apsw.Connection
    is_read_only: bool = False
    stamps: Stamps | None = None


def open_catalog(system: System, layout: Layout) -> Access:
    """Open the catalog, to write if this user may."""
    with told(layout.catalog):
        for _ in range(LOOKS_MAX):
            connection = opened(system, layout.catalog)
            if not connection.readonly("main"):
                return Access(prepared(connection, system))
            if _has_log(system, layout):
                return _beside_a_log(system, layout, connection)
            connection.close()  # before SQLite makes a log that the store's owner could not open
            if (access := _while_it_is_still(system, layout)) is not None:
                return access
    raise restless(layout)


def _has_log(system: System, layout: Layout) -> bool:
    if system.disk.exists(layout.catalog_index):
        return True
    try:
        return system.disk.size(layout.catalog_log) > 0
    except FileNotFoundError:
        return False


def _beside_a_log(system: System, layout: Layout, connection: apsw.Connection) -> Access:
    try:
        return Access(prepared(connection, system), is_read_only=True)
    except (apsw.CantOpenError, apsw.ReadOnlyError) as error:
        raise StoreError(
            f"{layout.catalog_log} has commits that can be read only with its index {layout.catalog_index}, which this "
            "user can neither open nor make; nothing was changed",
            code="DF0610",
            help="let its owner open the store once (`dataflow log ls`), or copy it to where you may write",
        ) from error


def _while_it_is_still(system: System, layout: Layout) -> Access | None:
    """The database as it is without a log; None when somebody has begun to write."""
    before = _stamps(system, layout)
    system.scheduler.sleep(STILL_SECONDS)
    path = f"file:{quote(layout.catalog)}?immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(path, flags=flags, vfs=system.disk.vfs_name())
    access = Access(connection, is_read_only=True, stamps=before)
    if not _has_log(system, layout) and is_current(access, system, layout):
        return access
    connection.close()
    return None


def _stamps(system: System, layout: Layout) -> Stamps:
    return system.disk.stamp(layout.catalog), system.disk.stamp(layout.catalog_log)


def is_current(access: Access, system: System, layout: Layout) -> bool:
    """Whether nobody can have written to a database that is read as if nobody did."""
    return access.stamps is None or access.stamps == _stamps(system, layout)


def steady(read: Callable[Concatenate[Catalog, P], T]) -> Callable[Concatenate[Catalog, P], T]:
    """A reading method of the catalog, asked again as long as somebody wrote where nobody was expected to."""

    @wraps(read)
    def read_steadily(catalog: Catalog, /, *args: P.args, **options: P.kwargs) -> T:
        for _ in range(LOOKS_MAX):
            access = catalog.access()
            try:
                found = read(catalog, *args, **options)
            except StoreError:  # it may be that of pages which do not fit together
                if catalog.is_steady(access):
                    raise
                continue
            if catalog.is_steady(access):
                return found
        raise restless(catalog.layout)

    return read_steadily


def restless(layout: Layout) -> StoreError:
    return StoreError(
        f"the store {layout.root} was opened and closed by its writer {LOOKS_MAX} times while it was read; nothing was "
        "changed",
        code="DF0610",
        help="try again: a writer that stays at work is no hindrance",
    )


def not_writable(layout: Layout) -> StoreError:
    return StoreError(
        f"the store {layout.root} can be read by this user, but not written; nothing was changed",
        code="DF0604",
        help="run as the user whose store it is, or write into a store of your own",
    )
