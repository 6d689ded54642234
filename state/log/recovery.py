"""What is done to a partition's files when a writer opens it, under the partition's lock.

A torn tail and bit rot are different things. Bytes beyond what was published come from a writer that died: they were
never promised to anybody, and go. Damage below that line is never repaired by cutting: all checks come first, and when
one fails nothing has been changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dataflow.state.log.segment import SEGMENT_NAME, CorruptSegmentError, Partition, SegmentInfo


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was cut: the bytes of torn tails, and the files of which nothing was ever published."""

    torn_bytes: int
    removed: tuple[str, ...]


def recover_partition(
    partition: Partition, listed: Sequence[SegmentInfo], next_offset: int, settle: Callable[[], Listing] | None = None
) -> Recovery:
    """Check the listed segments, then cut whatever lies beyond what the catalog lists.

    Before anything is cut, `settle` makes sure that the catalog will not list it after all, and lists once more.
    """
    disk, torn_bytes = partition.system.disk, 0
    tails, removed = _beyond(partition, listed, next_offset)
    if (tails or removed) and settle is not None:
        tails, removed = _beyond(partition, *settle())
    for path, published_bytes, size in tails:
        disk.truncate(path, published_bytes)
        torn_bytes += size - published_bytes
    for name in removed:
        path = os.path.join(partition.directory, name)
        torn_bytes += disk.size(path)
        disk.remove(path)
    return Recovery(torn_bytes, tuple(removed))


Listing = tuple[Sequence[SegmentInfo], int]
"""A partition's segments, and its next offset."""


def _beyond(
    partition: Partition, listed: Sequence[SegmentInfo], next_offset: int
) -> tuple[list[tuple[str, int, int]], list[str]]:
    """The torn tails, and the files that were never published."""
    return _tails(partition, listed), _never_published(partition, listed, next_offset)


def _tails(partition: Partition, listed: Sequence[SegmentInfo]) -> list[tuple[str, int, int]]:
    """The segments that are longer than published; raises for one that is missing or shorter."""
    disk, tails = partition.system.disk, []
    for segment in listed:
        path = os.path.join(partition.directory, os.path.basename(segment.path))
        size = disk.size(path) if disk.exists(path) else -1
        if size < segment.published_bytes:
            found = "the file is missing" if size < 0 else f"the file ends at byte {size}"
            reason = f"{found}, but {segment.published_bytes} bytes were published"
            raise CorruptSegmentError(segment.path, max(size, 0), segment.first_offset, None, reason)
        if size > segment.published_bytes:
            tails.append((path, segment.published_bytes, size))
    return tails


def _never_published(partition: Partition, listed: Sequence[SegmentInfo], next_offset: int) -> list[str]:
    known = {os.path.basename(segment.path) for segment in listed}
    return [
        name
        for name in partition.system.disk.list_dir(partition.directory)
        if (match := SEGMENT_NAME.fullmatch(name)) and name not in known and int(match[1]) >= next_offset
    ]
