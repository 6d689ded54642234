"""A line of an acceptance list: what was promised, what was measured, and whether that is enough."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Line:
    """One promise. `figure` and `bar` are texts with their units."""

    text: str
    figure: str
    bar: str
    ok: bool


@dataclass(frozen=True)
class Options:
    """What all checks may need: the flights file, where to keep data, and how large to make the work."""

    flights: Path | None
    work: Path
    rows: int
    rounds: int
    seconds: float


def at_most(text: str, value: float, bar: float, unit: str, digits: int = 1) -> Line:
    return Line(text, f"{value:,.{digits}f} {unit}", f"≤ {bar:,g} {unit}", value <= bar)


def exactly(text: str, value: int, bar: int, unit: str = "") -> Line:
    return Line(text, f"{value:,} {unit}".strip(), f"{bar:,} {unit}".strip(), value == bar)


def python(code: str, *arguments: str, **variables: str) -> str:
    """What a fresh interpreter prints for this code; it has the repository on its path."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"a check's process failed:\n{done.stderr}")
    return done.stdout.strip()


def rss_anon_bytes(pid: int | str = "self") -> int:
    """Anonymous memory of a process: what it holds beyond files that are mapped."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell RssAnon")
