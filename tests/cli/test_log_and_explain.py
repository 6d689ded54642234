"""`dataflow log` and `dataflow explain`, and what every command shares."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import dataflow as flow
from dataflow.cli import main
from dataflow.cli.log import json_lines
from tests.cli import programs
from tests.cli.conftest import environment

Said = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = tmp_path / "store"
    opened = flow.Store(path)
    opened.append("numbers", pa.table({"n": [1, 2, 3], "x": [0.5, None, float("nan")], "s": ["a", "", None]}))
    opened.append("words", pa.table({"word": ["one"]}))
    return str(path)


def test_ls_lists_topics_with_their_rows(store: str, capsys: Said) -> None:
    assert main(["log", "ls", "--store", store, "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(topic["topic"], topic["rows"]) for topic in listed] == [("numbers", 3), ("words", 1)]


def test_cat_prints_csv_into_a_pipe(store: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["log", "cat", "numbers", "--store", store, "--limit", "2"]) == 0
    assert capfdbinary.readouterr().out.decode().splitlines() == ['"n","x","s"', '1,0.5,"a"', '2,,""']


def test_cat_prints_durations_as_people_read_them(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with flow.Store(tmp_path / "store") as store:
        store.append("short", pa.table({"wait": pa.array([90_000_000, None], pa.duration("us"))}))
    assert main(["log", "cat", "short", "--store", str(tmp_path / "store")]) == 0
    assert capfdbinary.readouterr().out.decode().splitlines() == ['"wait"', '"0:01:30"', ""]


def test_cat_prints_bytes_and_texts_that_are_no_utf8(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    broken = pa.array([b"\xff", b"a"], pa.binary()).view(pa.string())
    with flow.Store(tmp_path / "store") as store:
        store.append("raw", pa.table({"raw": [b"\x00\xff", None], "many": [[b"\xff"], []], "text": broken}))
    assert main(["log", "cat", "raw", "--store", str(tmp_path / "store")]) == 0
    said = capfdbinary.readouterr().out.decode().splitlines()
    assert said == ['"raw","many","text"', '"00ff","[""ff""]","\ufffd"', ',"[]","a"']


def test_a_map_is_an_object_in_json_or_a_list_of_pairs() -> None:
    def told(kind: pa.DataType, *maps: list[tuple[object, object]] | None) -> list[object]:
        return [json.loads(line)["m"] for line in json_lines(pa.table({"m": pa.array(maps, kind)}))]

    texts = pa.map_(pa.string(), pa.binary())
    assert told(texts, [("a", b"\xff"), ("b", None)], [], None) == [{"a": "ff", "b": None}, {}, None]
    assert told(texts, [("a", b"1"), ("a", b"2")]) == [[["a", "31"], ["a", "32"]]]  # an object would lose one
    assert told(pa.map_(pa.int64(), pa.list_(pa.bool_())), [(1, [True])], []) == [[[1, [True]]], []]


def test_cat_prints_a_table_that_no_narrow_pipe_cuts(store: str, capsys: Said) -> None:
    assert main(["log", "cat", "numbers", "--store", store, "--format", "table"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines() if "0.5" in line] == [["1", "0.5", "a"]]


def test_json_lines_hold_what_json_has_no_word_for() -> None:
    far = pa.array([320_000_000_000_000_000], pa.timestamp("us"))  # beyond the years of a datetime
    table = pa.table({"far": far, "x": [float("nan")], "raw": [b"\x00\xff"], "many": [[1, None]]})
    (line,) = json_lines(table)
    row = json.loads(line)
    assert row["far"].startswith("12110-05-25T")
    assert (row["x"], row["raw"], row["many"]) == ("nan", "00ff", [1, None])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["log", "cat", "number"], "did you mean `numbers`?"),
        (["log", "cat", "numbers", "--limit", "-1"], "--limit"),
    ],
)
def test_wrong_use_exits_with_2(store: str, capsys: Said, arguments: list[str], said: str) -> None:
    assert main([*arguments, "--store", store]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("action", [["ls"], ["cat", "t"], ["verify"]])
def test_a_folder_with_other_files_is_no_store(tmp_path: Path, capsys: Said, action: list[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert main(["log", *action, "--store", str(tmp_path)]) == 2
    assert "there is no store at" in capsys.readouterr().err


def test_a_folder_that_is_no_store_is_left_as_it_is(tmp_path: Path, capsys: Said) -> None:
    assert main(["log", "ls", "--store", str(tmp_path / "nothing")]) == 2
    assert "there is no store at" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


def test_a_reader_that_has_seen_enough_is_no_error(store: str) -> None:
    shell = f'"{sys.executable}" -m dataflow log cat numbers --store "{store}" --json | true; exit "${{PIPESTATUS[0]}}"'
    ran = subprocess.run(["bash", "-c", shell], env=environment(), capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_explain_shows_the_steps_and_runs_nothing(program: Callable[[str], Path], capsys: Said) -> None:
    assert main(["explain", str(program(programs.WORDS))]) == 0
    told = capsys.readouterr().out
    assert "watermark" in told
    assert "tumbling" in told


def test_version_and_help_exit_with_0(capsys: Said) -> None:
    assert main(["--version"]) == 0
    assert main(["--help"]) == 0
    assert "run" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("action", [["ls"], ["cat", "numbers"], ["cat", "numbers", "--json"], ["verify"]])
def test_output_that_finds_no_room_is_told(store: str, action: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "dataflow", "log", *action, "--store", store]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: the output cannot be written: the disk is full\n = help: make room")
