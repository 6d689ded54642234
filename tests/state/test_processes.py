"""Several processes on one store: who may write, who must not, and what a killed one leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from dataflow.state import store as stores
from dataflow.state.store import Store
from dataflow.system import LockHeldError

ROOT = Path(__file__).parents[2]

RACE = """
import sys
import pyarrow as pa
from dataflow.state.store import Store
from dataflow.system import LockHeldError

store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    writer = store.writer("t", pa.schema({"n": pa.int64()}))
    print("won", flush=True)
except LockHeldError as error:
    print(error.holder.get("pid"), flush=True)
sys.stdin.readline()
"""

APPEND_FOREVER = """
import sys
import pyarrow as pa
from dataflow.state.store import Store

store, n = Store(sys.argv[1]), int(sys.argv[2])
while True:
    rows = pa.table({"n": pa.array(range(n, n + 100), pa.int64())})
    store.append("t", rows)
    n += 100
    print(n, flush=True)  # acknowledged: every row below n
"""

COUNT_UP = """
import sys
import pyarrow as pa
from dataflow.state.store import Store

with Store(sys.argv[1]) as store:
    for n in range(20):
        store.append(sys.argv[2], pa.table({"n": [n]}))
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_of_racing_processes_one_gets_the_partition_and_the_others_hear_who(tmp_path: Path) -> None:
    racers = [start(RACE, str(tmp_path / "store")) for _ in range(4)]
    try:
        assert [line_of(racer) for racer in racers] == ["ready"] * 4
        for racer in racers:
            say(racer)
        said = [line_of(racer) for racer in racers]
        assert said.count("won") == 1
        winner = racers[said.index("won")]
        # Who asks in the moment between taking the lock and writing one's name into it hears no name.
        assert set(said) - {"won", "None"} <= {str(winner.pid)}
    finally:
        for racer in racers:
            end(racer)
    Store(tmp_path / "store").writer("t", pa.schema({"n": pa.int64()})).close()


def test_a_killed_holder_does_not_block_and_a_stopped_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "APPEND_SECONDS_MAX", 0.05)
    path = str(tmp_path / "store")
    holder = start(RACE, path)
    try:
        line_of(holder)
        say(holder)
        assert line_of(holder) == "won"
        os.kill(holder.pid, signal.SIGSTOP)
        with Store(path) as store, pytest.raises(LockHeldError, match=f"process {holder.pid}"):
            store.append("t", pa.table({"n": [1]}))
    finally:
        end(holder)
    with Store(path) as store:
        store.append("t", pa.table({"n": [1]}))
        assert store.read("t").num_rows == 1


def test_what_was_acknowledged_before_a_kill_is_there_once(tmp_path: Path) -> None:
    """Killed at any moment: every acknowledged row, no row twice, nothing after a gap."""
    path, acknowledged, rows = str(tmp_path / "store"), 0, 0
    for kill_after in (1, 2, 3, 5, 7):
        writer = start(APPEND_FOREVER, path, str(rows))
        try:
            for _ in range(kill_after):
                acknowledged = int(line_of(writer))
        finally:
            writer.kill()
            rest, _ = writer.communicate()
        acknowledged = int(rest.split()[-1]) if rest.split() else acknowledged
        with Store(path) as store:
            found = store.read("t")["n"].to_pylist()
        rows = len(found)
        assert found == list(range(rows))
        assert rows in (acknowledged, acknowledged + 100), "at most one commit was durable and not yet told"


def test_processes_write_side_by_side_and_commit_ids_give_one_order(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    writers = [start(COUNT_UP, path, f"t{i}") for i in range(3)]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    with Store(path) as store:
        assert [store.read(f"t{i}")["n"].to_pylist() for i in range(3)] == [list(range(20))] * 3
        commits = [entry.commit_id for i in range(3) for entry in store.batches(f"t{i}")]
    assert sorted(commits) == list(range(1, 61))


APPENDS = """
import sys
import pyarrow as pa
from dataflow.state.store import Store
for number in range(100):
    with Store(sys.argv[1]) as store:
        store.append("t", pa.table({"n": [number]}))
"""


def test_appends_of_several_processes_take_turns(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    processes = [subprocess.Popen([sys.executable, "-c", APPENDS, path]) for _ in range(3)]
    assert [process.wait(100) for process in processes] == [0, 0, 0]
    with Store(path) as store:
        assert sorted(store.read("t")["n"].to_pylist()) == sorted(list(range(100)) * 3)
