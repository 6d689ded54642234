"""A fresh clone on a machine that has only Debian's python3, python3-venv, make and git."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lines import ROOT, Line, Options

CI_SECONDS_MAX = 600
DEBIAN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def lines(_: Options) -> Iterator[Line]:
    for command in (["make", "demo"], ["make", "test"], ["bash", ".ci/run"]):
        with tempfile.TemporaryDirectory() as folder:
            yield _run(command, Path(folder))


def _run(command: list[str], folder: Path) -> Line:
    clone, home = folder / "clone", folder / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment = bare | {"PATH": DEBIAN_PATH, "HOME": str(home), "CI": "true"}
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    last = (done.stdout.strip().splitlines() or [""])[-1].strip("= ")
    if done.returncode != 0:
        print(done.stdout[-3000:], done.stderr[-3000:], sep="\n")
    bar = f"exit 0, < {CI_SECONDS_MAX} s"
    figure = f"exit {done.returncode}, {seconds:.0f} s, “{last[:60]}”"
    return Line(
        f"`{' '.join(command)}` on a fresh clone", figure, bar, done.returncode == 0 and seconds < CI_SECONDS_MAX
    )
