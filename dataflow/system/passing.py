"""What disks share that only look at changes: whatever reads is another disk's."""

from __future__ import annotations

import pyarrow as pa

from dataflow.system.contract import Disk, FilePath, Lock


class PassingDisk:
    """Passes on to `inner` all that changes nothing, and locks."""

    def __init__(self, inner: Disk) -> None:
        self._inner = inner

    @property
    def shares_memory(self) -> bool:
        return self._inner.shares_memory

    def read_bytes(self, path: FilePath) -> bytes:
        return self._inner.read_bytes(path)

    def map(self, path: FilePath) -> pa.Buffer:
        return self._inner.map(path)

    def open_arrow(self, path: FilePath, *, memory_map: bool = True) -> pa.NativeFile:
        return self._inner.open_arrow(path, memory_map=memory_map)

    def exists(self, path: FilePath) -> bool:
        return self._inner.exists(path)

    def is_dir(self, path: FilePath) -> bool:
        return self._inner.is_dir(path)

    def size(self, path: FilePath) -> int:
        return self._inner.size(path)

    def modified_ns(self, path: FilePath) -> int:
        return self._inner.modified_ns(path)

    def stamp(self, path: FilePath) -> object:
        return self._inner.stamp(path)

    def list_dir(self, path: FilePath) -> list[str]:
        return self._inner.list_dir(path)

    def glob(self, pattern: str) -> list[str]:
        return self._inner.glob(pattern)

    def lock(self, path: FilePath, note: str) -> Lock:
        return self._inner.lock(path, note)
