"""Damage: what was never published is cut, what was published is never touched, and neither is ever read wrongly."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
import pyarrow as pa
import pytest

from dataflow.errors import StoreError
from dataflow.state.catalog_database import CorruptCatalogError
from dataflow.state.frames import Frame
from dataflow.state.log.recovery import Recovery, recover_partition
from dataflow.state.log.segment import CorruptSegmentError, Partition
from dataflow.state.store import EpochRecord, Store
from dataflow.system import AppendFile, Content, FilePath, RealSystem
from dataflow.system.real import RealAppendFile, RealDisk

NUMBERS = pa.schema({"n": pa.int64()})


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(numbers, pa.int64())})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store with the rows 0 to 5 in two batches of one segment, of epochs 4 and 5."""
    with Store(tmp_path / "store") as store, store.writer("t", NUMBERS) as writer:
        for number, rows in ((4, (0, 1, 2)), (5, (3, 4, 5))):
            writer.append(batch(*rows))
            pending = writer.prepare()
            assert pending is not None
            store.publish([pending], epoch=EpochRecord(pipeline="p", epoch=number, finished=False, graph_hash=""))
    return tmp_path / "store"


def segment(path: Path) -> Path:
    (only,) = (path / "topics/t/0").glob("*.arrow")
    return only


def read(path: Path) -> list[object]:
    with Store(path) as store:
        return list(store.read("t")["n"].to_pylist())


def recover(path: Path) -> Recovery:
    with Store(path) as store:
        catalog = store._catalog()
        partition = Partition(store.system, catalog.store_id, "t", 0, str(path / "topics/t/0"))
        return recover_partition(partition, catalog.segments("t", 0), catalog.partitions("t")[0])


def test_a_torn_tail_is_not_read_and_is_cut_by_the_next_writer(path: Path) -> None:
    published = segment(path).read_bytes()
    for tail in (b"x", b"\xff\xff\xff\xff\x00", published[-200:], bytes(5000)):
        segment(path).write_bytes(published + tail)
        assert read(path) == [0, 1, 2, 3, 4, 5]
        assert segment(path).stat().st_size == len(published) + len(tail), "reading changes nothing"
        assert recover(path) == Recovery(torn_bytes=len(tail), removed=())
        assert segment(path).read_bytes() == published
    assert read(path) == [0, 1, 2, 3, 4, 5]


def test_rows_go_on_after_a_torn_tail(path: Path) -> None:
    with segment(path).open("ab") as file:
        file.write(b"torn")
    with Store(path) as store:
        store.append("t", batch(6))
    assert read(path) == [0, 1, 2, 3, 4, 5, 6]


def test_a_file_of_which_nothing_was_published_is_removed_and_all_others_stay(path: Path) -> None:
    directory = path / "topics/t/0"
    (directory / f"{6:020d}-2.arrow").write_bytes(b"begun, never published")
    kept = [f"{3:020d}-7.arrow", "notes.txt", f"{9:020d}-8.arrow.bak", "9-9.arrow"]
    for name in kept:
        (directory / name).write_bytes(b"not ours to judge")
    assert recover(path).removed == (f"{6:020d}-2.arrow",)
    assert {*kept, "writer.lock", segment_name(path)} == {one.name for one in directory.iterdir()}
    with Store(path) as store:
        store.append("t", batch(6))
    assert (directory / f"{6:020d}-8.arrow").exists(), "numbers go on after the highest that is there"


def segment_name(path: Path) -> str:
    with Store(path) as store:
        return Path(store.batches("t")[0].segment.path).name


def test_a_flipped_bit_anywhere_below_the_published_length_is_found_on_reading(path: Path) -> None:
    published = segment(path).read_bytes()
    with Store(path) as store:
        entries = store.batches("t")
    for position in range(len(published)):
        damaged = bytearray(published)
        damaged[position] ^= 1 << (position % 8)
        segment(path).write_bytes(damaged)
        with Store(path) as store:
            readable = [_reads(store, entry) for entry in entries]
        # The schema message vouches for all; a batch only for itself.
        hit = [position < entries[0].position or 0 <= position - one.position < one.length for one in entries]
        assert readable == [not one for one in hit], position
    assert segment(path).read_bytes() == bytes(damaged), "nothing was changed"


def _reads(store: Store, entry: object) -> bool:
    try:
        store.read_entry(entry)  # type: ignore[arg-type]
    except CorruptSegmentError:
        return False
    return True


def test_the_error_names_the_file_the_byte_the_offset_and_the_epoch(path: Path) -> None:
    with Store(path) as store:
        entry = store.batches("t")[1]
    content = bytearray(segment(path).read_bytes())
    content[entry.position + 100] ^= 0x10
    segment(path).write_bytes(content)
    with pytest.raises(CorruptSegmentError) as found:
        read(path)
    error = found.value
    assert (error.code, error.position, error.offset, error.epoch) == ("DF0603", entry.position, 3, 5)
    assert error.path == f"topics/t/0/{segment(path).name}"
    assert "nothing was changed" in error.message
    with Store(path) as store:
        assert store.read("t", until=3)["n"].to_pylist() == [0, 1, 2], "what is whole stays readable"


@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_a_segment_that_lost_published_bytes_is_refused_by_readers_and_writers(path: Path, damage: str) -> None:
    file, torn = segment(path), path / f"topics/t/0/{6:020d}-2.arrow"
    torn.write_bytes(b"would be cut, if all else were well")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] if damage == "short" else b"")
    with pytest.raises(CorruptSegmentError):
        read(path)
    with Store(path) as store, pytest.raises(CorruptSegmentError, match="were published"):
        store.writer("t", NUMBERS)
    assert torn.exists(), "nothing was changed"


def test_a_segment_in_another_ones_place_is_found(path: Path, tmp_path: Path) -> None:
    """Same rows, same lengths: only the schema message tells that it is not this store's."""
    with Store(tmp_path / "other") as other, other.writer("t", NUMBERS) as writer:
        for rows in ((0, 1, 2), (3, 4, 5)):
            writer.append(batch(*rows))
        pending = writer.prepare()
        assert pending is not None
        other.publish([pending])
    shutil.copy(segment(tmp_path / "other"), segment(path))
    with pytest.raises(CorruptSegmentError, match="schema message"):
        read(path)


def test_a_catalog_that_points_into_another_topic_is_found(path: Path) -> None:
    with Store(path) as store:
        store.append("u", batch(7, 8, 9))
    catalog = apsw.Connection(str(path / "catalog.db"))
    catalog.execute("UPDATE topics SET name = name || '_', folded = folded || '_'")
    catalog.execute("UPDATE topics SET name = iif(name = 't_', 'u', 't'), folded = iif(folded = 't_', 'u', 't')")
    catalog.close()
    with pytest.raises(CorruptSegmentError):
        read(path)


CATALOG_DAMAGES = {
    "a position in a checkpoint": (
        "UPDATE pipelines SET checkpoint = replace(checkpoint, '12', '13')",
        "pipeline `p`: its row does not have its checksum",
    ),
    "an epoch": ("UPDATE pipelines SET epoch = 4", "pipeline `p`: its row does not have its checksum"),
    "a frame's owner": ("UPDATE frames SET owner = 'state b'", "pipeline `p`: its list of frames"),
    "a frame that is gone": ("DELETE FROM frames WHERE frame = 2", "pipeline `p`: its list of frames"),
    "a frame more": ("INSERT INTO frames VALUES ('p', 9, 'state a', 1, '1.state', 9, 9, 9)", "its list of frames"),
    "a ledger": ("UPDATE ledger SET counts = x'00'", "pipeline `p`: its ledger is no JSON"),
    "a column's name": (
        "UPDATE schemas SET arrow = CAST(replace(arrow, CAST('n' AS BLOB), CAST('m' AS BLOB)) AS BLOB)",
        "topic `t`: version 1 of its columns",
    ),
    "columns that are gone": ("DELETE FROM schemas", "topic `t`: its columns are not listed"),
    "rows at the beginning": ("DELETE FROM batches WHERE first_offset = 0", "(partition 0) does not have the rows"),
    "rows at the end": ("DELETE FROM batches WHERE first_offset = 6", "(partition 0) does not have the rows"),
    "rows in the middle": ("DELETE FROM batches WHERE first_offset = 3", "(partition 0) has a gap"),
    "a commit": ("DELETE FROM commits WHERE commit_id = 2", "(partition 0) has a gap"),
    "half an entry": ("UPDATE batches SET entries = substr(entries, 1, 20)", "(partition 0) has a gap"),
    "a segment": ("UPDATE segments SET segment_id = segment_id + 9", "names a segment that is not listed"),
    "the store's id": ("UPDATE meta SET value = 'f' WHERE key = 'store_id'", "what it says of the store itself"),
    "the store's row": ("DELETE FROM meta", "what it says of the store itself"),
}
STATES = [Frame(1, "state a", 1, "1.state", 0, 8, 5), Frame(2, "state a", 1, "1.state", 8, 8, 2**64 - 5)]


def read_all(path: Path) -> None:
    """All that rests on the catalog alone."""
    with Store(path) as store:
        store.pipeline("p")
        store.ledger("p")
        store.topics()
        store.read("t")


@pytest.mark.parametrize("name", CATALOG_DAMAGES)
def test_a_catalog_that_says_what_nobody_wrote_is_refused_and_names_what_is_concerned(path: Path, name: str) -> None:
    damage, told = CATALOG_DAMAGES[name]
    with Store(path) as store, store.writer("t", NUMBERS) as writer:
        writer.append(batch(6))
        pending = writer.prepare()
        assert pending is not None
        record = EpochRecord(
            pipeline="p", epoch=6, finished=False, graph_hash="", added=STATES, checkpoint={"sources": {"s": {"0": 12}}}
        )
        store.publish([pending], epoch=record)
    read_all(path)
    catalog = apsw.Connection(str(path / "catalog.db"))
    catalog.execute(damage)
    catalog.close()
    with pytest.raises(CorruptCatalogError) as raised:
        read_all(path)
    error = raised.value
    assert told in error.message
    assert (error.code, error.path) == ("DF0603", str(path / "catalog.db"))
    assert "nothing was changed" in error.message
    assert error.help is not None and "backup" in error.help


def test_a_part_of_a_partition_is_read_where_the_rest_is_damaged(path: Path) -> None:
    catalog = apsw.Connection(str(path / "catalog.db"))
    catalog.execute("DELETE FROM batches WHERE first_offset = 0")
    catalog.close()
    with Store(path) as store:
        assert store.read("t", start=3)["n"].to_pylist() == [3, 4, 5]
        assert store.batches("t", start=3, until=3) == store.batches("t", start=6) == []
        for start, until in ((0, 1), (2, 4), (2, None)):
            with pytest.raises(CorruptCatalogError):
                store.batches("t", start=start, until=until)


def test_frames_come_and_go_and_the_list_keeps_its_checksum(path: Path) -> None:
    with Store(path) as store:
        for epoch, added, dropped in ((6, STATES, []), (7, [], [1]), (8, [STATES[0]], [2, 77]), (9, [], [1])):
            record = EpochRecord(pipeline="p", epoch=epoch, finished=False, graph_hash="", added=added, dropped=dropped)
            store.publish([], epoch=record)
            state = store.pipeline("p")
            assert state is not None
            assert list(state.frames) == {6: STATES, 7: STATES[1:], 8: STATES[:1], 9: []}[epoch]


# ── a disk that fails ──


class FailingFile(RealAppendFile):
    """Writes or syncs fail when `fails` says so; a failing write leaves half of its bytes."""

    fails: Callable[[str], bool]

    def write(self, data: Content) -> int:
        if self.fails("write"):
            super().write(memoryview(data)[: memoryview(data).nbytes // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)

    def sync(self) -> None:
        if self.fails("sync"):
            raise OSError(errno.EIO, "Input/output error")
        super().sync()


class FailingDisk(RealDisk):
    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()

    def open_append(self, path: FilePath, *, new: bool = False, mode: int = 0o666) -> AppendFile:
        super().open_append(path, new=new, mode=mode).close()
        file = FailingFile(os.fspath(path), os.open(path, os.O_WRONLY | os.O_APPEND))
        file.fails = self.failing.__contains__
        return file


class FailingSystem(RealSystem):
    def __init__(self) -> None:
        super().__init__()
        self.failing_disk = FailingDisk()
        self.disk = self.failing_disk


def test_a_failed_fsync_poisons_the_writer_and_leaves_the_file_as_it_is(path: Path) -> None:
    system = FailingSystem()
    with Store(path, system) as store:
        writer = store.writer("t", NUMBERS)
        writer.append(batch(6))
        system.failing_disk.failing.add("sync")
        with pytest.raises(StoreError, match="did not confirm") as failed:
            writer.prepare()
        assert failed.value.code == "DF0604"
        system.failing_disk.failing.clear()  # the next fsync would say that all is well: it lies
        for use in (writer.prepare, lambda: writer.append(batch(7))):
            with pytest.raises(StoreError, match="failed before"):
                use()
        (file,) = (path / "topics/t/0").glob("*-2.arrow")
        size = file.stat().st_size
        writer.rollback()
        writer.close()
        assert file.stat().st_size == size
        store.append("t", batch(8))
    assert read(path) == [0, 1, 2, 3, 4, 5, 8]


def test_a_full_disk_takes_nothing_of_a_batch_and_the_writer_goes_on_when_there_is_room(path: Path) -> None:
    system = FailingSystem()
    with Store(path, system) as store:
        with store.writer("t", NUMBERS) as writer:
            for _ in range(2):  # into a file that is not there yet, then into one that is
                system.failing_disk.failing.add("write")
                with pytest.raises(StoreError, match="the disk is full"):
                    writer.append(batch(66))
                system.failing_disk.failing.clear()
                writer.append(batch(6))
            pending = writer.prepare()
            assert pending is not None
            store.publish([pending])
        assert store.read("t")["n"].to_pylist() == [0, 1, 2, 3, 4, 5, 6, 6]


def test_a_commit_that_fails_at_its_last_step_stops_everything_and_cuts_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(path) as store:
        writer = store.writer("t", NUMBERS)
        writer.append(batch(6))
        pending = writer.prepare()
        assert pending is not None
        catalog = store._catalog()
        commit = catalog.commit

        def commit_and_lose_the_answer(requests: object) -> object:
            commit(requests)  # type: ignore[arg-type]
            raise apsw.IOError("disk I/O error")

        monkeypatch.setattr(catalog, "commit", commit_and_lose_the_answer)
        with pytest.raises(StoreError, match="may or may not be on disk") as failed:
            store.publish([pending])
        assert failed.value.code == "DF0608"
        monkeypatch.undo()
        with pytest.raises(StoreError, match="may or may not be on disk"):
            store.append("u", batch(1))
        with pytest.raises(StoreError, match="failed before"):
            writer.append(batch(7))
        writer.rollback()
        writer.close()
    assert read(path) == [0, 1, 2, 3, 4, 5, 6], "it was on disk, and its bytes are still there"


def test_a_catalog_that_takes_no_transaction_publishes_nothing_and_the_writer_can_try_again(path: Path) -> None:
    with Store(path) as store:
        store._catalog()._connection.set_busy_timeout(1)
        blocker = apsw.Connection(str(path / "catalog.db"))
        with store.writer("t", NUMBERS) as writer:
            writer.append(batch(6))
            pending = writer.prepare()
            assert pending is not None
            blocker.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="did not take a commit"):
                store.publish([pending])
            blocker.execute("ROLLBACK")
            store.publish([pending])
        blocker.close()
    assert read(path) == [0, 1, 2, 3, 4, 5, 6]


def test_somebody_elses_rows_in_between_are_noticed(path: Path) -> None:
    """As after a writer was paused for so long that its lock was broken by hand."""
    with Store(path) as store, store.writer("t", NUMBERS) as writer:
        writer.append(batch(6))
        pending = writer.prepare()
        assert pending is not None
        catalog = apsw.Connection(str(path / "catalog.db"))
        catalog.execute("UPDATE partitions SET rows = rows + 1")
        catalog.close()
        with pytest.raises(StoreError, match="somebody else wrote"):
            store.publish([pending])
