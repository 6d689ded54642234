"""A store that somebody may read and not write: beside a writer, after one, and on its own.

The tests may run as root, who may do anything: the reader is a process without that right.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from dataflow.state.store import Store
from tests.cli.conftest import environment

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
READER = """
import sys
import dataflow as flow
from dataflow.state.catalog import Catalog

store, rows_of = flow.Store(sys.argv[1]), Catalog._rows

def hold_up(catalog, *given):
    Catalog._rows = rows_of
    found = rows_of(catalog, *given)
    print("held up", flush=True)
    input()
    return found

for line in sys.stdin:
    if line == "hold up the next\\n":
        Catalog._rows = hold_up
        continue
    try:
        if line == "rows\\n":
            print(sorted(store.read("t")["n"].to_pylist()), flush=True)
        elif line == "count\\n":
            print(sum(batch.rows for batch in store.batches("t")), flush=True)
        else:
            print(store.data_version(), flush=True)
    except flow.DataflowError as error:
        print(error.code, error.message, flush=True)
"""


def give_up_rights() -> None:
    """From here on permissions hold for root too (in what this process becomes)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if os.geteuid() == 0 and libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "cannot give up the rights of root")


def allow(path: Path, directory: int = 0o555, file: int = 0o444) -> None:
    for one in [path, *path.rglob("*")]:
        one.chmod(directory if one.is_dir() else file)


def forbid_writing(path: Path) -> list[Path]:
    """Returns what is there."""
    allow(path)
    return sorted(path.rglob("*"))


def append(store: Store, *numbers: int) -> None:
    store.append("t", pa.table({"n": list(numbers)}))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A quiet store with the rows 1 and 2."""
    with Store(tmp_path / "store") as store:
        append(store, 1, 2)
    yield tmp_path / "store"
    for one in tmp_path.iterdir():
        one.chmod(0o700)
        allow(one, 0o700, 0o600)


@pytest.fixture
def killed(path: Path) -> Path:
    """The same, and 3 in what a writer that was killed has left of its log."""
    script = (
        f"import os, signal, pyarrow as pa, dataflow as flow; s = flow.Store({str(path)!r}); "
        "s.append('t', pa.table({'n': [3]})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], env=environment()).returncode == -signal.SIGKILL
    return path


class Reader:
    """A process that may only read."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, str(path)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=give_up_rights,
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *raised: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(60) == 0

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.hear()


def dataflow(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dataflow", *map(str, arguments)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=60, preexec_fn=give_up_rights
    )


@pytest.mark.parametrize("directory", [0o555, 0o755])
def test_a_quiet_store_is_read_and_left_as_it_is(path: Path, directory: int) -> None:
    allow(path, directory)
    before = sorted(path.rglob("*"))
    with Reader(path) as reader:
        assert reader.ask("rows") == "[1, 2]"
        assert sorted(path.rglob("*")) == before
    assert dataflow("log", "cat", "t", "--store", path, "--json").stdout == '{"n": 1}\n{"n": 2}\n'
    assert dataflow("log", "ls", "--store", path).returncode == 0
    assert dataflow("log", "verify", "--store", path).returncode == 0
    assert sorted(path.rglob("*")) == before


def test_a_reader_sees_what_writers_commit_that_come_and_go(path: Path) -> None:
    forbid_writing(path)
    with Reader(path) as reader:
        assert reader.ask("rows") == "[1, 2]"
        versions = [reader.ask("version"), reader.ask("version")]
        assert versions[0] == versions[1]
        for number in (3, 4):
            allow(path, 0o755, 0o644)
            with Store(path) as store:
                append(store, number)
                forbid_writing(path)
                assert reader.ask("rows") == str([1, 2, *range(3, number + 1)])
            forbid_writing(path)
            assert reader.ask("rows") == str([1, 2, *range(3, number + 1)])
            versions.append(reader.ask("version"))
        assert len(set(versions)) == 3


def test_a_reader_that_was_overtaken_reads_again(path: Path) -> None:
    forbid_writing(path)
    with Reader(path) as reader:
        assert reader.ask("rows") == "[1, 2]"
        reader.tell("hold up the next")
        assert reader.ask("count") == "held up"
        allow(path, 0o755, 0o644)
        with Store(path) as store:
            append(store, 3)
        forbid_writing(path)
        assert reader.ask("go on") == "3"


def test_the_log_of_a_writer_that_was_killed_is_read(killed: Path) -> None:
    before = forbid_writing(killed)
    with Reader(killed) as reader:
        assert reader.ask("rows") == "[1, 2, 3]"
    assert sorted(killed.rglob("*")) == before


def test_a_log_without_its_index_is_refused_rather_than_passed_over(killed: Path) -> None:
    (killed / "catalog.db-shm").unlink()
    forbid_writing(killed)
    with Reader(killed) as reader:
        assert reader.ask("rows").startswith("DF0610")
    copy = killed.with_name("copy")
    shutil.copytree(killed, copy)
    allow(copy, 0o700, 0o600)
    with Reader(copy) as reader:
        assert reader.ask("rows") == "[1, 2, 3]"


@pytest.mark.parametrize("state", ["path", "killed"])
def test_a_run_that_writes_is_refused_before_it_begins(
    state: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(state)
    before = forbid_writing(path)
    program = tmp_path / "program.py"
    program.write_text(
        "import dataflow as flow\n"
        "def rows():\n    print('read')\n    yield {'n': 1}\n"
        "pipeline = flow.Pipeline('p', flow.from_rows(rows(), {'n': 'int64'}).write_topic('t'))\n"
    )
    ran = dataflow("run", program, "--store", path)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [
        f"error[DF0604]: the store {path} can be read by this user, but not written; nothing was changed",
        " = help: run as the user whose store it is, or write into a store of your own",
    ]
    assert sorted(path.rglob("*")) == before


@pytest.mark.parametrize("closed", ["", "catalog.db", "topics/t/0"])
def test_what_may_not_be_read_is_told(path: Path, closed: str) -> None:
    forbid_writing(path)
    (path / closed).chmod(0)
    ran = dataflow("log", "cat", "t", "--store", path)
    verified = dataflow("log", "verify", "--store", path)
    (path / closed).chmod(0o700)
    assert "error[DF06" in ran.stderr and "Traceback" not in ran.stderr
    assert "Traceback" not in verified.stderr
    assert ran.returncode in (1, 2) and verified.returncode == 1
