"""Nothing in the runtime or the state opens a file, sleeps or makes a thread but through the seam.

The linter sees names; an audit hook hears of every file and thread of a whole run, whoever opened it. The innermost
frame of ours must then not be in a guarded folder.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import ROOT, environment

RUN = """
import json, sys, threading

root = sys.argv[1]
guarded = tuple(f"{root}/{folder}/" for folder in ("dataflow/runtime", "dataflow/state", "state"))
watched = ("open", "os.", "shutil.", "tempfile.", "mmap.", "subprocess.", "fcntl.", "time.sleep", "thread")
heard, broken = set(), []

def innermost():
    "The file of the innermost frame of ours; None while a module is being imported."
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            return None
        if file.startswith(root + "/"):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back

def hook(event, arguments):
    if event.startswith(watched):
        where = innermost()
        if where is not None:
            heard.add(event)
            if where.startswith(guarded):
                broken.append(f"{event} {arguments} at {where}")

import dataflow as flow
from dataflow import col, count

start_thread = threading.Thread.start
def start(thread):
    sys.audit("thread", thread.name)  # Python itself tells of threads from 3.12 on
    start_thread(thread)

threading.Thread.start = start
sys.addaudithook(hook)
store = flow.Store(sys.argv[2])
rows = flow.from_rows([{"at": n, "key": n % 3} for n in range(1000)], {"at": "int64", "key": "int64"})
timed = rows.derive(time=(col.at * 1000).cast("timestamp[ms]")).watermark("time", delay="1s")
windows = timed.window(flow.tumbling("1m"), by="key").agg(n=count())
flow.Pipeline("seam", windows.write_topic("windows")).run(store=store, workers=2, checkpoint_interval="10ms")
flow.read_topic("windows", store=store).collect()
store.read("windows")
print(json.dumps([sorted(heard), broken]))
"""


def test_runtime_and_state_reach_files_and_threads_only_through_the_seam(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(ROOT), str(tmp_path / "store")]
    ran = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    heard, broken = json.loads(ran.stdout)
    assert not broken
    assert {"open", "thread"} <= set(heard), "the hook heard nothing: it proves nothing"


BANNED_MODULES = {
    "concurrent",
    "fcntl",
    "mmap",
    "multiprocessing",
    "random",
    "secrets",
    "shutil",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
BANNED_CALLS = {"open", "input"}
BANNED_ATTRIBUTES = {
    "os": {"open", "fdopen", "write", "fsync", "fdatasync", "rename", "replace", "unlink", "remove", "mkdir"}
    | {"makedirs", "listdir", "scandir", "stat", "truncate", "urandom", "walk", "fork", "posix_spawn"},
    "pa": {"memory_map", "OSFile", "input_stream", "output_stream", "create_memory_map"},
}


def test_the_sources_of_runtime_and_state_name_nothing_that_goes_round_the_seam() -> None:
    files = [path for folder in ("dataflow/runtime", "state") for path in (ROOT / folder).rglob("*.py")]
    # The verifier shares no code with the store, the seam included; nothing of the store imports it (test_verify.py).
    files = [path for path in files if path.parent != ROOT / "state/verify"]
    assert len(files) > 5
    found = [f"{path.relative_to(ROOT)}:{line} {what}" for path in files for line, what in _around_the_seam(path)]
    assert not found


def _around_the_seam(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                found += [(node.lineno, one.name) for one in names if one.name.split(".")[0] in BANNED_MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in BANNED_MODULES:
                found.append((node.lineno, module))
            case ast.Call(func=ast.Name(id=name)) if name in BANNED_CALLS:
                found.append((node.lineno, name))
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in BANNED_ATTRIBUTES.get(module, ()):
                found.append((node.lineno, f"{module}.{name}"))
    return found


def test_the_scan_sees_what_it_bans(tmp_path: Path) -> None:
    source = "import time, random as r\nfrom threading import Lock\nopen('x')\nos.fsync(1)\npa.memory_map('x')\n"
    (tmp_path / "x.py").write_text(source)
    assert [line for line, _ in _around_the_seam(tmp_path / "x.py")] == [1, 1, 2, 3, 4, 5]
