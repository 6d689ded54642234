"""The images of a power cut: toy workloads whose legal disks are known, and bugs that only some of them show."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dataflow.system import RealSystem, System
from dataflow.torture.crash_images import image_trials
from dataflow.torture.frame import Tally
from dataflow.torture.images import Acks, Image, Recording, images, record
from dataflow.torture.seam import QuickSystem, SeededDisk
from dataflow.torture.workload import log_and_check

Work = Callable[[System, Path, Acks], None]


def recorded(work: Work, folder: Path) -> Recording:
    return record(work, RealSystem(), folder)


def disks(recording: Recording) -> list[dict[str, bytes | None]]:
    """Each image as names and contents below the root."""

    def shown(image: Image) -> dict[str, bytes | None]:
        return {os.path.relpath(path, recording.root): image.contents.get(path) for path in image.names}

    return [shown(image) for image, _ in images(recording, seed=1)]


def test_a_file_that_was_never_synced_may_be_missing_empty_torn_or_zeros(tmp_path: Path) -> None:
    def work(system: System, root: Path, acks: Acks) -> None:
        system.disk.open_append(root / "f", new=True).write(b"abcd")

    found = disks(recorded(work, tmp_path))
    for disk in ({}, {"f": b""}, {"f": b"a"}, {"f": b"abc"}, {"f": b"abcd"}, {"f": bytes(4)}, {"f": b"a\0\0\0"}):
        assert disk in found
    assert {"f": b"abcde"} not in found


def test_synced_bytes_stay_and_a_synced_name_too(tmp_path: Path) -> None:
    def work(system: System, root: Path, acks: Acks) -> None:
        file = system.disk.open_append(root / "f", new=True)
        file.write(b"ab")
        file.sync()
        system.disk.sync_dir(root)
        acks.note("durable")
        file.write(b"cd")

    recording = recorded(work, tmp_path)
    after = [image for image, _ in images(recording, seed=1) if recording.acks.until(image.moment)]
    contents = {content for image in after for content in image.contents.values()}
    assert len(after) >= 4
    assert all(content.startswith(b"ab") for content in contents)
    assert {b"ab", b"abc", b"abcd", b"ab\0\0"} <= contents


def test_a_sync_of_the_file_does_not_make_its_name_durable(tmp_path: Path) -> None:
    def work(system: System, root: Path, acks: Acks) -> None:
        system.disk.write_bytes(root / "f", b"ab")

    assert {} in disks(recorded(work, tmp_path))


def test_an_overwritten_byte_is_old_or_new_and_never_zero(tmp_path: Path) -> None:
    def work(system: System, root: Path, acks: Acks) -> None:
        system.disk.write_bytes(root / "f", b"old!")
        system.disk.sync_dir(root)
        system.disk.truncate(root / "f", 2)
        system.disk.open_append(root / "f").write(b"xy")

    contents = {disk["f"] for disk in disks(recorded(work, tmp_path)) if "f" in disk}
    assert {b"old!", b"ol", b"olxy", b"ol\0\0"} <= contents


def test_a_directory_that_is_lost_takes_its_files_with_it(tmp_path: Path) -> None:
    def work(system: System, root: Path, acks: Acks) -> None:
        system.disk.make_dirs(root / "a" / "b")
        system.disk.write_bytes(root / "a" / "b" / "f", b"1")
        system.disk.sync_dir(root / "a" / "b")

    found = disks(recorded(work, tmp_path))
    assert {} in found
    assert {"a": None, "a/b": None, "a/b/f": b"1"} in found
    assert not any("a/b/f" in disk and "a" not in disk for disk in found)


def replace_file(system: System, root: Path, acks: Acks, *, sync_file: bool, sync_directory: bool) -> None:
    """The usual way to replace a file, with or without each of its two syncs."""
    system.disk.write_bytes(root / "f", b"old")
    system.disk.sync_dir(root)
    acks.note(b"old")
    file = system.disk.open_append(root / "f.new", new=True)
    file.write(b"new")
    if sync_file:
        file.sync()
    system.disk.rename(root / "f.new", root / "f")
    if sync_directory:
        system.disk.sync_dir(root)
    acks.note(b"new")


def check_file(root: Path, notes: list[object], tally: Tally, where: str) -> None:
    found = (root / "f").read_bytes() if (root / "f").exists() else None
    legal = [note for note in (b"old", b"new") if note not in notes[:-1]]
    if notes and found not in legal:
        tally.find("lost", f"{where}: {found!r} and not one of {legal}")


@pytest.mark.parametrize(
    ("sync_file", "sync_directory", "is_right"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_file_is_replaced_safely_only_with_both_syncs(
    tmp_path: Path, sync_file: bool, sync_directory: bool, is_right: bool
) -> None:
    def work(system: System, root: Path, acks: Acks) -> None:
        replace_file(system, root, acks, sync_file=sync_file, sync_directory=sync_directory)

    tally = Tally()
    for trial in image_trials(work, check_file, RealSystem(), 1, tmp_path):
        trial(tally)
    assert tally.faults > 10
    assert (tally.damage == 0) is is_right, tally.findings


def test_equal_images_are_made_once_and_the_same_seed_makes_the_same(tmp_path: Path) -> None:
    def work(system: System, root: Path, acks: Acks) -> None:
        replace_file(system, root, acks, sync_file=True, sync_directory=True)

    recording = recorded(work, tmp_path)
    made = [(digest, len(recording.acks.until(image.moment))) for image, digest in images(recording, seed=1)]
    assert len(set(made)) == len(made)
    assert made == [(digest, len(recording.acks.until(one.moment))) for one, digest in images(recording, seed=1)]


def test_an_image_on_disk_is_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    recording = recorded(lambda system, root, acks: system.disk.write_bytes(root / "f", b"ab"), tmp_path / "work")
    for number, (image, _) in enumerate(images(recording, seed=1)):
        made = tmp_path / str(number)
        made.mkdir()
        image.make(made, recording.root)
        assert [path.name for path in made.iterdir()] == [os.path.basename(path) for path in image.names]


def test_a_recording_of_the_log_has_thousands_of_legal_disks(tmp_path: Path) -> None:
    workload, _ = log_and_check(3)
    recording = record(workload, QuickSystem(3, SeededDisk(3)), tmp_path)
    kinds = {type(operation).__name__ for operation in recording.operations}
    assert kinds >= {"Create", "Write", "Sync", "SyncDir", "Truncate", "Remove", "MakeDir"}
    assert sum(1 for _ in images(recording, seed=3, mixtures=1)) > 3000
