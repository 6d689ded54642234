"""What the rows have found, each by the shortest way to see it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from dataflow.errors import DataflowError
from dataflow.state.store import Store
from dataflow.system import FilePath
from dataflow.system.real import RealDisk
from dataflow.torture.failed_syncs import FailedSync
from dataflow.torture.processes import Channel, WarmParent
from dataflow.torture.seam import Change, FaultySystem, QuickSystem, Refusal, closing_quietly

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


@pytest.mark.parametrize("name", ["store", "topics", "t"])
def test_a_directory_that_is_not_confirmed_is_told_with_a_code(tmp_path: Path, name: str) -> None:
    with (
        Store(tmp_path / "store", FaultySystem(QuickSystem(), RefuseOnce(name))) as store,
        pytest.raises(DataflowError),
    ):
        store.append("t", ROWS)


def test_a_directory_that_was_not_confirmed_is_synced_before_it_is_relied_on(tmp_path: Path) -> None:
    class Counting(RefuseOnce):
        synced = 0

        def before(self, change: Change) -> Refusal | None:
            refusal = super().before(change)
            self.synced += change.kind == "sync_dir" and change.path.endswith("topics") and refusal is None
            return refusal

    fault = Counting("topics")
    with Store(tmp_path / "store", FaultySystem(QuickSystem(), fault)) as store:
        with pytest.raises(DataflowError):
            store.append("t", ROWS)
        store.append("t", ROWS)
    assert fault.synced > 0


class RefuseLog:
    """The disk does not confirm the catalog's log, once, when told to."""

    is_armed = False

    def before(self, change: Change) -> Refusal | None:
        if self.is_armed and change.kind == "sync" and change.path.endswith("-wal"):
            self.is_armed = False
            return Refusal(errno.EIO)
        return None


def fail_a_commit_and_open_again(channel: Channel, *, path: str) -> None:
    fault = RefuseLog()
    with closing_quietly():
        reader, store = Store(path, QuickSystem()), Store(path, FaultySystem(QuickSystem(), fault))
        store.append("t", ROWS)
        assert reader.read("t").num_rows == 1  # as a follower has it open
        fault.is_armed = True
        with pytest.raises(DataflowError, match="may or may not be on disk"):
            store.append("t", ROWS)
        store.close()
        channel.send(Store(path, QuickSystem()).writer("t", ROWS.schema).next_offset)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_commit_that_failed_at_its_last_step_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """After the failure the rows are cut off as a torn tail; after a kill the log's frames turn out to be valid."""
    path = str(tmp_path / "store")
    with WarmParent() as warm:
        said, code = warm.start("tests.faults.test_found:fail_a_commit_and_open_again", path=path).rest()
    assert code == -signal.SIGKILL
    assert said == [1], "rows up to offset 1 were there"
    with Store(path) as store:
        assert store.read("t").num_rows in (1, 2)


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
