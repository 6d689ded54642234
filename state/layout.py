"""Where things lie in a store (FORMAT.md), and which names they may have.

A topic's name comes from programs and data and becomes a directory, so only harmless ones are let in; a pipeline's
name may be anything and is escaped. The hard part of a new directory is that it must survive a power cut together
with what is put into it: each one is synced into its parent before it is used.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from dataflow.errors import NameNotFoundError, StoreError, TypeMismatchError
from dataflow.system import Disk, FilePath

TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
"""Short enough for every file system, and nothing that a shell, a URL or a path would take for syntax."""
PIPELINE_BYTES_MAX = 255 - len("pipeline-.lock")
"""Of a pipeline's name when it is escaped: file systems take names of 255 bytes."""
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
CATALOG_FILES = frozenset({"catalog.db", "catalog.db-wal", "catalog.db-shm", "catalog.db-journal", "store.lock"})
"""What a directory may hold while a store is being made in it."""


def check_topic_name(name: str) -> str:
    """Return the name, or raise if a topic cannot be called so.

    >>> check_topic_name("clicks.v2")
    'clicks.v2'
    """
    if not isinstance(name, str) or not TOPIC_NAME.fullmatch(name) or name in (".", ".."):
        raise NameNotFoundError(
            f"a topic cannot be named {name!r}",
            code="DF0203",
            help="use 1 to 200 of the characters A-Z a-z 0-9 . _ - (and not `.` or `..`)",
        )
    return name


def check_store_path(path: object) -> str:
    """Return the path as text, or raise if it cannot be that of a directory."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise TypeMismatchError(
            f"a store is a directory, got {path!r}", help='give its path, as in "run/store", or a `flow.Store`'
        )
    return text


def check_pipeline_name(name: str) -> str:
    """Return the name, or raise if no file can be called after a pipeline of that name."""
    try:
        size = len(escape(name))
    except UnicodeEncodeError:
        raise NameNotFoundError(
            f"a pipeline with a store cannot be named {name!r}: a name is text that UTF-8 can hold",
            code="DF0203",
            help='take another name: `flow.Pipeline("orders", …)`',
        ) from None
    if size > PIPELINE_BYTES_MAX:
        raise NameNotFoundError(
            f"the name of pipeline `{name[:40]}…` is too long for a file in the store: {size} characters, and there is "
            f"room for {PIPELINE_BYTES_MAX}; nothing was changed",
            code="DF0203",
            help='take a shorter one: `flow.Pipeline("orders", …)`; what is not a-z 0-9 . _ - counts three times',
        )
    return name


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths inside a store."""

    root: str

    @property
    def catalog(self) -> str:
        return os.path.join(self.root, "catalog.db")

    @property
    def catalog_log(self) -> str:
        return f"{self.catalog}-wal"

    @property
    def catalog_index(self) -> str:
        """Of SQLite's log: memory that its readers and writers share."""
        return f"{self.catalog}-shm"

    @property
    def creation_lock(self) -> str:
        return os.path.join(self.root, "store.lock")

    @property
    def locks(self) -> str:
        return os.path.join(self.root, "locks")

    def pipeline_lock(self, name: str) -> str:
        return os.path.join(self.locks, f"pipeline-{escape(name)}.lock")

    def snapshots(self, pipeline: str) -> str:
        return os.path.join(self.root, "snapshots", escape(pipeline))

    def partition(self, topic: str, partition: int) -> str:
        return os.path.join(self.root, "topics", check_topic_name(topic), str(partition))

    def writer_lock(self, topic: str, partition: int) -> str:
        return os.path.join(self.partition(topic, partition), "writer.lock")


def escape(name: str) -> str:
    """A file name for any text: harmless bytes stay, every other one becomes `%` and two hex digits.

    >>> escape("My job/7"), escape("..")
    ('%4Dy%20job%2F7', '%2E.')
    """
    harmless = b"abcdefghijklmnopqrstuvwxyz0123456789._-"
    escaped = "".join(chr(byte) if byte in harmless else f"%{byte:02X}" for byte in name.encode())
    return f"%2E{escaped[1:]}" if not escaped.strip(".") else escaped


def make_durable_dirs(disk: Disk, path: FilePath, *, mode: int = DIRECTORY_MODE, until: FilePath = "/") -> None:
    """Make a directory and its parents, each durable in the one above it, up to the directory `until`.

    Those that are there are synced too: whoever made them may have died, or been refused, before they were durable.
    """
    name, top = os.path.abspath(path), os.path.abspath(until)
    disk.make_dirs(name, mode=mode)
    while name not in (top, os.path.dirname(name)):
        name = os.path.dirname(name)
        try:
            disk.sync_dir(name)
        except PermissionError:  # another user's directory, which was there long before
            return


def check_is_free(disk: Disk, layout: Layout) -> None:
    """Raise unless a store can be made here: nothing is there, or an empty directory."""
    if not disk.exists(layout.root):
        return
    if not disk.is_dir(layout.root):
        raise StoreError(
            f"{layout.root} is a file, and a store is a directory; nothing was changed", help="name another path"
        )
    others = sorted(set(disk.list_dir(layout.root)) - CATALOG_FILES)
    if "topics" in others:
        raise index_gone(layout, "but no catalog.db")
    if others:
        raise StoreError(
            f"{layout.root} is not a store: it has other files ({', '.join(others[:3])}); nothing was changed",
            help="name a directory that is empty or does not exist yet",
        )


def has_more_than_a_catalog(disk: Disk, layout: Layout) -> bool:
    """Whether a directory has what only a store with a finished catalog gets. Asked before the catalog is opened:
    after that, another process may have come to the end of making it."""
    return not set(disk.list_dir(layout.root)) <= CATALOG_FILES


def index_gone(layout: Layout, what: str) -> StoreError:
    return StoreError(
        f"the store {layout.root} has topics {what}: its only index is gone; nothing was changed",
        help="restore catalog.db (with catalog.db-wal, if there is one) from a backup; topics/ still has the rows",
    )
