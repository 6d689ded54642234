"""What the rows have found and nobody has solved yet, each by the shortest way to see it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest

from dataflow.errors import DataflowError
from dataflow.state.store import Store
from dataflow.system import FilePath
from dataflow.system.real import RealDisk
from dataflow.torture.failed_syncs import FailedSync
from dataflow.torture.seam import Change, FaultySystem, QuickSystem, Refusal

ROWS = pa.table({"n": [1]})


class SomebodyElse(RealDisk):
    """Another process makes the same store between our look for it and our making of it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._has_come = path, False

    def exists(self, path: FilePath) -> bool:
        found = super().exists(path)
        if os.path.basename(path) == "catalog.db" and not found and not self._has_come:
            self._has_come = True
            Store(self._path, QuickSystem()).append("theirs", ROWS)
        return found


@pytest.mark.xfail(strict=True, reason="what the other one made in between is taken for a store without its index")
def test_two_processes_may_make_one_store_at_the_same_time(tmp_path: Path) -> None:
    disk = SomebodyElse(tmp_path / "store")
    store = Store(tmp_path / "store", QuickSystem(disk=disk))
    store.append("ours", ROWS)
    assert [info.name for info in store.topics()] == ["ours", "theirs"]


class RefuseOnce:
    """The disk does not confirm a directory, once."""

    def __init__(self, name: str) -> None:
        self._name, self._has_refused = name, False

    def before(self, change: Change) -> Refusal | None:
        if change.kind == "sync_dir" and os.path.basename(change.path) == self._name and not self._has_refused:
            self._has_refused = True
            return Refusal(errno.EIO)
        return None


@pytest.mark.xfail(strict=True, reason="an OSError of the disk comes as it is")
@pytest.mark.parametrize("name", ["store", "topics", "t"])
def test_a_directory_that_is_not_confirmed_is_told_with_a_code(tmp_path: Path, name: str) -> None:
    with (
        Store(tmp_path / "store", FaultySystem(QuickSystem(), RefuseOnce(name))) as store,
        pytest.raises(DataflowError),
    ):
        store.append("t", ROWS)


@pytest.mark.xfail(strict=True, reason="a directory that is there is taken for durable")
def test_a_directory_that_was_not_confirmed_is_synced_before_it_is_relied_on(tmp_path: Path) -> None:
    class Counting(RefuseOnce):
        synced = 0

        def before(self, change: Change) -> Refusal | None:
            refusal = super().before(change)
            self.synced += change.kind == "sync_dir" and change.path.endswith("topics") and refusal is None
            return refusal

    fault = Counting("topics")
    with Store(tmp_path / "store", FaultySystem(QuickSystem(), fault)) as store:
        with pytest.raises(OSError):
            store.append("t", ROWS)
        store.append("t", ROWS)
    assert fault.synced > 0


def test_the_fault_of_a_failed_fsync_takes_back_only_what_it_covered(tmp_path: Path) -> None:
    """The rig itself: what was written anew after the failure stays, the rest goes back to what was there."""
    fault = FailedSync(fails_at=2)
    disk = FaultySystem(QuickSystem(), fault).disk
    file = disk.open_append(tmp_path / "f", new=True)
    file.write(b"ab")
    file.sync()
    file.write(b"cd")
    with pytest.raises(OSError):
        file.sync()
    file.truncate(3)
    file.write(b"ef")
    fault.drop_caches()
    assert (tmp_path / "f").read_bytes() == b"ab\0ef"
