"""Running the command line as users do: in a process of its own, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def environment() -> dict[str, str]:
    """The environment of the tests, with the repository importable also where it is not installed."""
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`cli("run", "x.py")` runs `dataflow run x.py` in the test's own folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dataflow", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Write a program after the usual imports; returns its path."""

    def write(body: str, name: str = "program.py") -> Path:
        path = tmp_path / name
        path.write_text(f"import dataflow as flow\nfrom dataflow import col, count\n{body}\n")
        return path

    return write
