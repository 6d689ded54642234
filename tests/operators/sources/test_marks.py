"""What is known again of files that were read, and what is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from dataflow.errors import ConnectorError, PlanError
from dataflow.operators.sources.marks import EDGE_BYTES, FOLDED_MAX, WHOLE_BYTES, FileMark, Folded, Marks
from dataflow.system import RealSystem

SYSTEM = RealSystem()
LARGE = 3 * WHOLE_BYTES + 12_345
APART = 1 << 17
"""Between two spots of the sample of a large file."""


def content_of(size: int) -> bytes:
    return bytes(number * 7 % 251 for number in range(1 << 16)) * (size // (1 << 16) + 1)


def write(path: Path, size: int) -> Path:
    path.write_bytes(content_of(size)[:size])
    os.utime(path, ns=(10**18, 10**18))  # long ago
    return path


def edit(path: Path, at: int) -> None:
    """Change one byte, as an editor would: the size stays, the time does not."""
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))


def read(folder: Path, bytes_read: int | None = None) -> FileMark:
    """Read all files, the last one so far; the mark as a store gives it back."""
    paths = sorted(map(str, folder.iterdir()))
    made = Marks(paths, SYSTEM)
    for number in range(len(paths)):
        file = made.open(number)
    return FileMark(**file.mark_after(file.content.size if bytes_read is None else bytes_read))  # type: ignore[arg-type] # JSON


def go_on(mark: FileMark, folder: Path) -> int:
    return Marks(sorted(map(str, folder.iterdir())), SYSTEM).go_on(mark)


def refused(mark: FileMark, folder: Path) -> str:
    with pytest.raises(PlanError) as error:
        go_on(mark, folder)
    assert error.value.code == "DF0407"
    assert error.value.help and "`restart`" in error.value.help
    return error.value.message


def test_a_file_that_has_grown_is_known_again_and_one_with_another_beginning_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    mark = read(tmp_path)
    for content in (b"abc", b"abcd", b"abc" + b"x" * 70_000):
        path.write_bytes(content)
        assert go_on(mark, tmp_path) == 0
    for content in (b"abd", b"xabc"):
        path.write_bytes(content)
        assert f"{path} has changed where it was read" in refused(mark, tmp_path)
    for content in (b"", b"ab"):
        path.write_bytes(content)
        assert f"has {len(content)} bytes now, and 3 of it were read before" in refused(mark, tmp_path)


def test_a_file_that_comes_before_those_that_were_read_is_refused(tmp_path: Path) -> None:
    for name in ("b", "c"):
        write(tmp_path / name, 1)
    mark = read(tmp_path)
    write(tmp_path / "d", 1)
    assert go_on(mark, tmp_path) == 1
    write(tmp_path / "a", 1)
    with pytest.raises(ConnectorError, match="what came to them would never be read"):
        go_on(mark, tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_bytes(b"longer")
    assert f"{tmp_path}/b has changed" in refused(mark, tmp_path)
    (tmp_path / "b").unlink()
    shutil.copyfile(tmp_path / "d", tmp_path / "bb")
    with pytest.raises(ConnectorError, match=r"\(1 then, 1 now\)"):
        go_on(mark, tmp_path)
    (tmp_path / "c").unlink()
    with pytest.raises(ConnectorError, match="is not there any more"):
        go_on(mark, tmp_path)


@pytest.mark.parametrize("at", [0, 70_000, WHOLE_BYTES - 1])
def test_one_byte_of_a_file_of_a_mebibyte_does_not_change_unnoticed(tmp_path: Path, at: int) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name, WHOLE_BYTES)
    mark = read(tmp_path)
    edit(tmp_path / "b", at)
    assert refused(mark, tmp_path).startswith(f"{tmp_path}/b has changed")
    edit(tmp_path / "b", at)
    assert go_on(mark, tmp_path) == 2
    edit(tmp_path / "c", at)
    assert refused(mark, tmp_path).startswith(f"{tmp_path}/c has changed")


@pytest.mark.parametrize("at", [0, EDGE_BYTES - 1, APART, 20 * APART + 4095, LARGE - EDGE_BYTES, LARGE - 1])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_large_file_is_compared_at_its_ends_and_at_spots_between(tmp_path: Path, name: str, at: int) -> None:
    for one in ("a", "b"):
        write(tmp_path / one, LARGE)
    mark = read(tmp_path)
    edit(tmp_path / name, at)
    assert refused(mark, tmp_path).startswith(f"{tmp_path}/{name} has changed")


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("change", [lambda path: edit(path, APART - 1), os.utime], ids=["between the spots", "touched"])
def test_a_file_of_which_it_cannot_be_told_is_told_of_once(
    tmp_path: Path, name: str, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for one in ("a", "b"):
        write(tmp_path / one, LARGE)
    mark = read(tmp_path)
    change(tmp_path / name)
    paths = sorted(map(str, tmp_path.iterdir()))
    going_on = Marks(paths, SYSTEM)
    assert going_on.go_on(mark) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"{tmp_path}/{name}: written to since it was read") and told.count("\n") == 1
    mark = FileMark(**going_on.open(1).mark_after(LARGE))  # type: ignore[arg-type] # JSON
    assert go_on(mark, tmp_path) == 1
    assert capsys.readouterr().err == ""
    edit(tmp_path / name, 0)
    assert refused(mark, tmp_path).startswith(f"{tmp_path}/{name} has changed")


def test_files_that_were_touched_or_copied_or_have_grown_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        write(folder / name, WHOLE_BYTES)
    write(folder / "c", LARGE)
    mark = read(folder)
    os.utime(folder / "a")
    with (folder / "c").open("ab") as file:
        file.write(b"more")
    assert go_on(mark, folder) == 2
    shutil.copytree(folder, tmp_path / "copied", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    shutil.move(tmp_path / "copied", folder)
    assert go_on(mark, folder) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", [200_000, LARGE])
def test_what_was_not_read_yet_may_be_mended(tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x", size)
    bytes_read = size // 2
    mark = read(tmp_path, bytes_read)
    edit(path, bytes_read)
    edit(path, size - 1)
    assert go_on(mark, tmp_path) == 0
    assert ("written to since it was read" in capsys.readouterr().err) == (bytes_read > WHOLE_BYTES)
    for at in (bytes_read - 1, bytes_read - EDGE_BYTES, 0):
        edit(path, at)
        assert "has changed where it was read" in refused(mark, tmp_path)
        edit(path, at)
    with path.open("ab") as file:
        file.write(b"more")
    edit(path, bytes_read - 1)
    assert "has changed where it was read" in refused(mark, tmp_path)


def test_a_file_of_the_same_time_and_size_is_not_read_again(tmp_path: Path) -> None:
    """The price of it: who sets the time back hides a change."""
    for name in ("a", "b"):
        write(tmp_path / name, 1000)
    mark = read(tmp_path)
    for name in ("a", "b"):
        edit(tmp_path / name, 0)
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    assert go_on(mark, tmp_path) == 1


def test_marks_of_older_versions_are_checked_as_far_as_they_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, LARGE)
    old = {key: value for key, value in asdict(read(tmp_path, 65_536)).items() if value is not None}
    for key in ("size", "modified_ns", "earlier_times", "earlier_samples"):
        del old[key]
    mark = FileMark(**old)
    edit(tmp_path / "a", 0)
    edit(tmp_path / "b", 65_536)
    going_on = Marks(sorted(map(str, tmp_path.iterdir())), SYSTEM)
    assert going_on.go_on(mark) == 1
    assert capsys.readouterr().err == ""
    on = FileMark(**going_on.open(1).mark_after(LARGE))  # type: ignore[arg-type] # JSON
    assert (on.earlier_times, on.size) == (None, LARGE)
    edit(tmp_path / "b", 65_535)
    assert refused(mark, tmp_path).startswith(f"{tmp_path}/b has changed")
    with pytest.raises(PlanError, match="of it were read before"):
        Marks(sorted(map(str, tmp_path.iterdir())), SYSTEM).go_on(mark, LARGE + 1)


def test_a_mark_stays_small_with_any_number_of_files_and_still_finds_the_one_that_changed(tmp_path: Path) -> None:
    files = 2 * FOLDED_MAX + 3
    for number in range(files):
        (tmp_path / f"{number:04}").write_bytes(f"{number:04}".encode())
    mark = read(tmp_path)
    assert mark.earlier_samples is not None and len(mark.earlier_samples) <= 8 * FOLDED_MAX
    assert go_on(mark, tmp_path) == files - 1
    os.utime(tmp_path / "0041", ns=(10**18, 10**18))
    assert go_on(mark, tmp_path) == files - 1
    (tmp_path / "0041").write_bytes(b"0014")
    assert refused(mark, tmp_path).startswith(f"one of the 4 files from {tmp_path}/0040 to {tmp_path}/0043 has changed")


@pytest.mark.parametrize("files", [1, FOLDED_MAX, FOLDED_MAX + 1, 4 * FOLDED_MAX, 4 * FOLDED_MAX + 1])
def test_digests_that_are_folded_again_and_again_stand_for_their_files(files: int) -> None:
    folded = Folded()
    for number in range(files):
        folded.add(number + 1)
    told = Folded.of(folded.told(), files)
    assert len(told.digests) <= FOLDED_MAX
    shares = [told.files_of(index) for index in range(len(told.digests))]
    assert [number for share in shares for number in share] == list(range(files))
    for share, digest in zip(shares, told.digests, strict=True):
        expected = 0
        for number in share:
            expected ^= number + 1
        assert digest == expected
