"""The seam keeps its word: what is durable, who holds a lock, how time moves, what a recording has."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import apsw
import pyarrow as pa
import pytest

from dataflow.system import (
    Create,
    LockHeldError,
    RealSystem,
    RecordingSystem,
    Rename,
    SimulatedSystem,
    Sync,
    SyncDir,
    System,
    Truncate,
    Write,
)


@pytest.fixture(params=["real", "recording", "simulated"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[System, str]:
    """A system, and a directory of it."""
    if request.param == "simulated":
        simulated = SimulatedSystem(seed=1)
        simulated.disk.make_dirs("/home/me")
        return simulated, "/home/me"
    real = RealSystem()
    return (real if request.param == "real" else RecordingSystem(real)), str(tmp_path)


def test_a_file_grows_at_its_end_and_says_where_bytes_went(world: tuple[System, str]) -> None:
    system, home = world
    file = system.disk.open_append(f"{home}/a", new=True)
    assert [file.write(b"one"), file.write(pa.py_buffer(b"two")), file.size] == [0, 3, 6]
    file.truncate(4)
    assert file.write(memoryview(b"!")) == 4
    file.sync()
    file.close()
    assert system.disk.read_bytes(f"{home}/a") == b"onet!"
    assert system.disk.open_append(f"{home}/a").size == 5
    with pytest.raises(FileExistsError):
        system.disk.open_append(f"{home}/a", new=True)


def test_a_new_name_is_given_only_if_nobody_has_it(world: tuple[System, str]) -> None:
    system, home = world
    system.disk.write_bytes(f"{home}/a", b"a")
    system.disk.write_bytes(f"{home}/b", b"b")
    with pytest.raises(FileExistsError):
        system.disk.rename_new(f"{home}/a", f"{home}/b")
    assert system.disk.read_bytes(f"{home}/b") == b"b"
    system.disk.rename_new(f"{home}/a", f"{home}/c")
    assert system.disk.list_dir(home) == ["b", "c"]
    if isinstance(system, RecordingSystem):
        assert system.operations[-1] == Rename(f"{home}/a", f"{home}/c")


def test_a_file_system_without_links_gives_new_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr("os.link", refuse)
    disk = RealSystem().disk
    disk.write_bytes(tmp_path / "a", b"a")
    disk.rename_new(tmp_path / "a", tmp_path / "b")
    disk.write_bytes(tmp_path / "a", b"new")
    with pytest.raises(FileExistsError):
        disk.rename_new(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"a"


def test_directories_globs_and_renames(world: tuple[System, str]) -> None:
    system, home = world
    disk = system.disk
    disk.make_dirs(f"{home}/x/y")
    disk.make_dirs(f"{home}/x/y")
    disk.write_bytes(f"{home}/x/y/b.csv", b"b")
    disk.write_bytes(f"{home}/a.csv", b"")
    assert disk.glob(f"{home}/**/*.csv") == [f"{home}/a.csv", f"{home}/x/y/b.csv"]
    assert disk.glob(f"{home}/*.csv") == [f"{home}/a.csv"]
    disk.rename(f"{home}/x/y/b.csv", f"{home}/a.csv")
    disk.sync_dir(home)
    assert disk.read_bytes(f"{home}/a.csv") == b"b"
    assert (disk.list_dir(home), disk.is_dir(f"{home}/x"), disk.exists(f"{home}/x/y/b.csv")) == (
        ["a.csv", "x"],
        True,
        False,
    )
    disk.remove(f"{home}/a.csv")
    for missing in (disk.read_bytes, disk.size, disk.list_dir, disk.remove):
        with pytest.raises(FileNotFoundError):
            missing(f"{home}/a.csv")


def test_maps_and_arrow_files_read_what_was_written(world: tuple[System, str]) -> None:
    system, home = world
    system.disk.write_bytes(f"{home}/full", b"0123456789")
    system.disk.write_bytes(f"{home}/empty", b"")
    assert system.disk.map(f"{home}/full").slice(2, 3).to_pybytes() == b"234"
    assert system.disk.map(f"{home}/empty").size == 0
    for memory_map in (True, False):
        with system.disk.open_arrow(f"{home}/full", memory_map=memory_map) as file:
            file.seek(7)
            assert file.read() == b"789"
        with system.disk.open_arrow(f"{home}/empty", memory_map=memory_map) as file:
            assert file.read() == b""


def test_a_lock_is_refused_with_its_holder_and_free_after_release(world: tuple[System, str]) -> None:
    system, home = world
    lock = system.disk.lock(f"{home}/lock", "topic `clicks`")
    with pytest.raises(LockHeldError, match="topic `clicks` is in use by"):
        system.disk.lock(f"{home}/lock", "topic `clicks`")
    lock.release()
    with system.disk.lock(f"{home}/lock", "again"):
        lock.release()  # twice does no harm, not even to the next holder
        with pytest.raises(LockHeldError):
            system.disk.lock(f"{home}/lock", "third")


def test_sqlite_runs_on_every_disk(world: tuple[System, str]) -> None:
    system, home = world
    for _ in range(2):
        connection = apsw.Connection(f"{home}/db", vfs=system.disk.vfs_name())
        if not system.disk.shares_memory:
            list(connection.execute("PRAGMA locking_mode = EXCLUSIVE"))
        assert list(connection.execute("PRAGMA journal_mode = WAL")) == [("wal",)]
        connection.execute("CREATE TABLE IF NOT EXISTS t (n); INSERT INTO t VALUES (7)")
        rows = list(connection.execute("SELECT * FROM t"))
        connection.close()
    assert rows == [(7,), (7,)]
    assert system.disk.exists(f"{home}/db")


def test_a_lock_is_released_although_its_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "lock")
    lock = RealSystem().disk.lock(path, "of a disk that is dead by now")

    def fail(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr("dataflow.system.real.os.ftruncate", fail)
        lock.release()
    RealSystem().disk.lock(path, "me").release()


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys; from dataflow.system import RealSystem; "
        "lock = RealSystem().disk.lock(sys.argv[1], 'a test'); print('held', flush=True); sys.stdin.read()"
    )
    path = str(tmp_path / "lock")
    root = str(Path(__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockHeldError, match=f"process {holder.pid}") as refused:
            RealSystem().disk.lock(path, "me")
        assert refused.value.holder["note"] == "a test"
        holder.kill()
    assert json.loads(Path(path).read_text())["pid"] == holder.pid, "what a dead holder wrote stays, and means nothing"
    RealSystem().disk.lock(path, "me").release()


def test_simulated_time_moves_only_when_somebody_waits() -> None:
    system = SimulatedSystem(seed=1)
    started_us = system.clock.wall_us()
    system.scheduler.sleep(1.5)
    event = system.scheduler.event()
    assert not event.wait(0.5)
    event.set()
    assert event.wait(99.0)
    assert (system.clock.monotonic(), system.clock.wall_us() - started_us) == (2.0, 2_000_000)
    with pytest.raises(AssertionError, match="for ever"):
        system.scheduler.event().wait()


def test_who_waits_lets_the_others_have_turns_in_an_order_that_the_seed_decides() -> None:
    def order(seed: int) -> tuple[list[str], str]:
        system, had = SimulatedSystem(seed), list[str]()
        event = system.scheduler.event()

        def turn(name: str) -> bool:
            had.append(name)
            if len(had) == 20:
                event.set()
            return len(had) < 20

        threads = [system.scheduler.start_thread(lambda: None, name, partial(turn, name)) for name in "abc"]
        assert event.wait(10.0)
        assert 0 < system.clock.monotonic() < 1.0, "turns take a little time, and nobody waited for nothing"
        for thread in threads:
            thread.join()
        assert not any(thread.is_alive() for thread in threads)
        return had[:20], system.trace

    assert order(1) == order(1)
    assert order(1)[0] != order(2)[0]
    assert set(order(1)[0]) == set("abc")


def test_the_same_seed_gives_the_same_chance() -> None:
    assert SimulatedSystem(seed=7).chance.random() == SimulatedSystem(seed=7).chance.random()
    assert SimulatedSystem(seed=7).chance.random() != SimulatedSystem(seed=8).chance.random()


@pytest.mark.parametrize("seed", range(20))
def test_a_power_cut_keeps_what_was_synced_and_a_prefix_of_the_rest(seed: int) -> None:
    disk = SimulatedSystem(seed).disk
    file = disk.open_append("/kept", new=True)
    disk.sync_dir("/")
    file.write(b"synced")
    file.sync()
    file.write(b"not synced")
    disk.write_bytes("/unnamed", b"synced, but its name is not")
    disk.make_dirs("/dir")
    disk.write_bytes("/dir/inside", b"x")
    disk.sync_dir("/dir")
    disk.lose_power()
    content = disk.read_bytes("/kept")
    assert content.startswith(b"synced")
    assert b"syncednot synced".startswith(content)
    assert disk.list_dir("/") == ["kept"], "a directory's name is durable with the one above it"
    file.write(b"by a dead process")
    assert disk.read_bytes("/kept") == content


def test_a_rename_is_durable_only_with_its_directory() -> None:
    disk = SimulatedSystem(seed=1).disk
    disk.write_bytes("/old", b"1")
    disk.write_bytes("/new", b"2")
    disk.sync_dir("/")
    disk.rename("/new", "/old")
    disk.lose_power()
    assert (disk.read_bytes("/old"), disk.read_bytes("/new")) == (b"1", b"2")
    disk.rename("/new", "/old")
    disk.sync_dir("/")
    disk.lose_power()
    assert (disk.list_dir("/"), disk.read_bytes("/old")) == (["old"], b"2")


def test_a_recording_has_every_change_of_files_and_of_databases(tmp_path: Path) -> None:
    system = RecordingSystem(RealSystem())
    path, database = str(tmp_path / "f"), str(tmp_path / "db")
    file = system.disk.open_append(path)
    file.write(b"abc")
    file.sync()
    file.truncate(1)
    file.close()
    system.disk.rename(path, path + "2")
    system.disk.sync_dir(tmp_path)
    assert system.operations == [
        Create(path),
        Write(path, 0, b"abc"),
        Sync(path),
        Truncate(path, 1),
        Rename(path, path + "2"),
        SyncDir(str(tmp_path)),
    ]
    system.operations.clear()
    connection = apsw.Connection(database, vfs=system.disk.vfs_name())
    list(connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL"))
    connection.execute("CREATE TABLE t (n)")
    wal = [type(one) for one in system.operations if getattr(one, "path", "") == f"{database}-wal"]
    connection.close()
    assert wal[0] is Create
    assert wal[-1] is Sync
    assert wal.count(Write) > 1


def test_replaying_a_recording_gives_the_same_files(tmp_path: Path) -> None:
    system = RecordingSystem(SimulatedSystem(seed=1))
    connection = apsw.Connection("/db", vfs=system.disk.vfs_name())
    list(connection.execute("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL"))
    connection.execute("CREATE TABLE t (n); INSERT INTO t VALUES (1), (2)")
    replayed: dict[str, bytearray] = {}
    for one in system.operations:
        if isinstance(one, Create):
            replayed[one.path] = bytearray()
        elif isinstance(one, Write):
            content = replayed[one.path]
            content.extend(bytes(max(0, one.position - len(content))))
            content[one.position : one.position + len(one.data)] = one.data
        elif isinstance(one, Truncate):
            del replayed[one.path][one.size :]
    for path in ("/db", "/db-wal"):
        assert bytes(replayed[path]) == system.disk.read_bytes(path)
    connection.close()


def test_importing_the_seam_does_not_import_sqlite() -> None:
    code = "import sys, dataflow.system; print('apsw' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert ran.stdout == "False\n"
