"""Which files a path means, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.errors import ConnectorError, PlanError, TypeMismatchError
from dataflow.operators.sources.files import Files, check_on_error
from dataflow.system import RealSystem, SimulatedSystem

SYSTEM = RealSystem()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.csv", "a.csv", "sub/c.csv", "other.txt", "odd[1].csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / "dir.csv").mkdir()
    return tmp_path


def names(files: Files, folder: Path) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in files.paths(SYSTEM)]


def test_a_pattern_means_its_files_by_full_path_and_no_directories(folder: Path) -> None:
    assert names(Files(folder / "?.csv", ".csv"), folder) == ["a.csv", "b.csv"]
    assert names(Files(str(folder / "**/*.csv"), ".csv"), folder) == ["a.csv", "b.csv", "odd[1].csv", "sub/c.csv"]


def test_a_list_keeps_its_order(folder: Path) -> None:
    files = Files([folder / "sub/c.csv", str(folder / "[ab].csv")], ".csv")
    assert names(files, folder) == ["sub/c.csv", "a.csv", "b.csv"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    assert names(Files(folder / "odd[1].csv", ".csv"), folder) == ["odd[1].csv"]


def test_what_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(ConnectorError, match=r"there is no file .*nope.csv"):
        Files(folder / "nope.csv", ".csv").paths(SYSTEM)
    with pytest.raises(ConnectorError, match=r"no file matches .*nope/\*.csv"):
        Files(folder / "nope/*.csv", ".csv").paths(SYSTEM)
    with pytest.raises(ConnectorError, match="is a directory") as error:
        Files(folder / "sub", ".csv").paths(SYSTEM)
    assert error.value.help == f'read its files by a pattern, as in "{folder}/sub/*.csv"'
    with pytest.raises(ConnectorError, match="listed twice"):
        Files([folder / "a.csv", folder / "?.csv"], ".csv").paths(SYSTEM)


def test_something_else_than_paths_is_refused() -> None:
    for wrong in ([], [1], 3.5):
        with pytest.raises((TypeMismatchError, TypeError)):
            Files(wrong, ".csv")  # type: ignore[arg-type]


def test_a_name_comes_from_the_file_or_its_directory() -> None:
    assert Files("data/flights-2013.csv.gz", ".csv").name == "flights-2013"
    assert Files("data/*.csv", ".csv").name == "data"
    assert Files("*.csv", ".csv").name == "files"


def test_files_of_a_simulated_disk_are_found_too() -> None:
    system = SimulatedSystem(seed=1)
    system.disk.make_dirs("/d")
    for name in ("/d/b", "/d/a"):
        system.disk.write_bytes(name, b"x")
    assert Files("/d/*", "").paths(system) == ["/d/a", "/d/b"]


def test_dead_letters_are_refused_until_they_are_there() -> None:
    check_on_error("fail")
    with pytest.raises(PlanError, match="on_error='dead_letter' is not there yet"):
        check_on_error("dead_letter")
