"""`dataflow run`: what it prints where, and what it exits with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dataflow as flow
from tests.cli import programs
from tests.cli.conftest import Cli, environment

Program = Callable[..., Path]


def test_a_program_runs_into_a_topic_that_can_be_read_back(cli: Cli, program: Program) -> None:
    program(programs.WORDS)
    ran = cli("run", "program.py", "--store", "store", "--workers", "2")
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert ran.stderr.startswith("delivery: topic words: exactly once\n"), "what each sink gets is said at the start"
    assert "words: 3 rows in, 3 rows out" in ran.stderr

    read = cli("log", "cat", "words", "--store", "store", "--json")
    rows = [json.loads(line) for line in read.stdout.splitlines()]
    assert [(row["word"], row["n"]) for row in rows] == [("a", 1), ("b", 1), ("a", 1)]
    assert rows[2]["window_start"].startswith("1970-01-01T00:01:00")


def test_json_prints_the_result_on_stdout(cli: Cli, program: Program) -> None:
    program(programs.WORDS)
    facts = json.loads(cli("run", "program.py", "--store", "store", "--json").stdout)
    assert (facts["pipeline"], facts["rows_in"], facts["rows_out"], facts["stopped"]) == ("words", 3, 3, None)
    assert any(step.startswith("agg") or "window" in step for step in facts["ledger"]), facts["ledger"]


def test_a_function_of_the_file_is_named(cli: Cli, program: Program) -> None:
    program(programs.FUNCTION)
    assert cli("run", "program.py:build", "--store", "store").returncode == 0


def test_of_several_pipelines_one_has_to_be_named(cli: Cli, program: Program) -> None:
    program(programs.TWO)
    unnamed = cli("run", "program.py", "--store", "store")
    assert unnamed.returncode == 2
    assert "2 Pipelines: pipeline, other" in unnamed.stderr
    assert cli("run", "program.py:other", "--store", "store").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.py"], "there is no file nowhere.py"),
        (["run", "program.py:pipelin"], "did you mean `pipeline`?"),
        (["run", "program.py:rows"], "is a Stream, not a Pipeline"),
        (["run", "program.py", "--workers", "0"], "not a number of workers"),
        (["run"], "FILE.py[:name]"),
        (["rum", "program.py"], "invalid choice"),
    ],
)
def test_wrong_use_exits_with_2_and_says_what_to_do(
    cli: Cli, program: Program, arguments: list[str], said: str
) -> None:
    program(programs.WORDS)
    ran = cli(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_exception_while_building_shows_only_the_users_frames(cli: Cli, program: Program) -> None:
    program("def helper():\n    return 1 / 0\n\nhelper()")
    ran = cli("run", "program.py")
    assert ran.returncode == 2
    assert "ZeroDivisionError" in ran.stderr
    assert "in helper" in ran.stderr
    assert "/dataflow/" not in ran.stderr


def test_a_wrong_program_shows_the_users_line_and_no_traceback(cli: Cli, program: Program) -> None:
    program('rows = flow.from_rows([{"price": 1}], {"price": "int64"})\nrows.filter(col.prise > 1)')
    ran = cli("run", "program.py")
    assert ran.returncode == 2
    assert "did you mean `price`?" in ran.stderr
    assert "program.py:4" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_exception_while_running_exits_with_1_and_shows_the_users_frames(cli: Cli, program: Program) -> None:
    program(
        "def broken():\n    yield {'n': 1}\n    raise LookupError('no more')\n"
        "pipeline = flow.Pipeline('p', flow.from_rows(broken(), {'n': 'int64'}).write_topic('t'))"
    )
    ran = cli("run", "program.py", "--store", "store")
    assert ran.returncode == 1
    assert "LookupError: no more" in ran.stderr
    assert "in broken" in ran.stderr
    assert "/dataflow/" not in ran.stderr


@pytest.mark.parametrize("kilobytes", [2, 20, 60])
def test_a_disk_that_takes_no_more_is_told_in_our_words_only(tmp_path: Path, program: Program, kilobytes: int) -> None:
    program(programs.WORDS)
    size = kilobytes << 10
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "from dataflow.cli import main; sys.exit(main(['run', 'program.py', '--store', 'store']))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("error[DF06"), ran.stderr
    assert "help: raise the limit (`ulimit -f`)" in ran.stderr or "catalog" in ran.stderr
    assert "Traceback" not in ran.stderr and "apsw" not in ran.stderr, ran.stderr


def test_a_store_that_cannot_tidy_up_closes_all_the_same(tmp_path: Path) -> None:
    script = (
        "import resource, pyarrow as pa, dataflow as flow\n"
        "closed, forgotten = flow.Store('closed'), flow.Store('forgotten')\n"
        "for store in (closed, forgotten): store.append('t', pa.table({'n': [1]}))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "closed.close()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    for name in ("closed", "forgotten"):
        assert flow.Store(tmp_path / name).read("t")["n"].to_pylist() == [1]


def test_the_file_runs_under_a_name_of_its_own_beside_its_neighbours(cli: Cli, program: Program) -> None:
    program("WORD = 'a'", name="neighbour.py")
    program("from neighbour import WORD\nassert __name__ == '__dataflow__'" + programs.WORDS)
    assert cli("run", "program.py", "--store", "store").returncode == 0


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 3), (signal.SIGINT, 130)])
def test_a_signal_commits_and_leaves(tmp_path: Path, cli: Cli, program: Program, sent: int, code: int) -> None:
    program(programs.ENDLESS)
    command = [sys.executable, "-m", "dataflow", "run", "program.py", "--store", "store"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "started" not in (line := process.stderr.readline()):
            assert line, "the run ended before it began"
        process.send_signal(sent)
        said = process.stderr.read()
    assert process.returncode == code, said
    assert "stopped by" in said
    rows = cli("log", "cat", "numbers", "--store", "store", "--json").stdout.splitlines()
    assert [json.loads(row)["n"] for row in rows] == list(range(len(rows)))


TERMINATE = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n"


@pytest.mark.parametrize(
    "body",
    [
        TERMINATE,
        f"try:\n    {TERMINATE.replace(chr(10), '; ')}\nexcept BaseException: pass",
        "import os, signal, threading, time\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\ntime.sleep(50)\n",
    ],
)
def test_sigterm_while_the_program_is_loaded_stops_what_has_not_begun(
    tmp_path: Path, cli: Cli, program: Program, body: str
) -> None:
    program(body + programs.WORDS)
    ran = cli("run", "program.py", "--store", "store")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr == "stopped by SIGTERM before the run began: nothing was read, nothing was written\n"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 3), ("SIGINT", 130)])
@pytest.mark.parametrize("module", ["dataflow.cli", "pyarrow"])
def test_a_signal_while_the_command_itself_is_loaded_stops_what_has_not_begun(
    tmp_path: Path, program: Program, sent: str, code: int, module: str
) -> None:
    program(programs.WORDS)
    script = (
        "import os, signal, sys\n"
        "class Sender:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == '{module}': os.kill(os.getpid(), signal.{sent})\n"
        "sys.meta_path.insert(0, Sender())\n"
        "sys.argv = ['dataflow', 'run', 'program.py', '--store', 'store']\n"
        "from dataflow.__main__ import main; sys.exit(main())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout) == (code, "")
    assert ran.stderr == f"stopped by {sent} before the run began: nothing was read, nothing was written\n"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(("body", "code"), [(programs.WORDS, 0), ("1 / 0", 2)])
def test_a_signal_after_the_work_is_done_does_not_change_the_exit_code(
    cli: Cli, program: Program, sent: str, body: str, code: int
) -> None:
    program(f"import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.{sent})\n{body}")
    ran = cli("run", "program.py", "--store", "store")
    assert ran.returncode == code, ran.stderr
    assert "KeyboardInterrupt" not in ran.stderr


SINK = """
class Sink:
    def recover(self, handle):
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)
    def open(self, epoch): pass
    def write(self, batch): pass
    def prepare(self, epoch): pass
    def commit(self, handle): pass
    def abort(self, handle): pass
"""


def test_sigterm_while_a_run_is_made_stops_it_as_soon_as_it_can(cli: Cli, program: Program) -> None:
    program(SINK + 'pipeline = flow.Pipeline("p", flow.from_rows([{"n": 1}] * 10**5).to(Sink()))')
    ran = cli("run", "program.py", "--store", "store", "--restarts", "1")
    assert ran.returncode == 3, ran.stderr
    assert "stopped by SIGTERM" in ran.stderr


@pytest.mark.parametrize("option", [["--restart"], ["--restarts", "2"]])
def test_what_needs_a_store_says_so_on_the_command_line(cli: Cli, program: Program, option: list[str]) -> None:
    program(programs.WORDS)
    ran = cli("run", "program.py", *option)
    assert ran.returncode == 2
    assert f"{option[0]} needs a store" in ran.stderr and "-->" not in ran.stderr


@pytest.mark.parametrize("line", ["col.a > 0 and col.b", "0 < col.a < 2", "col.a.quantile(2)"])
def test_an_expression_that_is_wrong_itself_is_told_with_its_line(cli: Cli, program: Program, line: str) -> None:
    program(f"wrong = {line}\n")
    ran = cli("run", "program.py")
    assert ran.returncode == 2
    assert "--> program.py:" in ran.stderr and f"| wrong = {line}\n" in ran.stderr


def test_a_program_without_a_pipeline_is_told_that_it_has_run(cli: Cli, program: Program) -> None:
    program("print('done')\n")
    ran = cli("run", "program.py")
    assert (ran.returncode, ran.stdout) == (2, "done\n")
    assert "makes no Pipeline" in ran.stderr and "has been run" in ran.stderr
