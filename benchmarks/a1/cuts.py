"""Any batch size, any number of workers, any cut: the property test on the adversarial generator."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.lines import ROOT, Line, Options


def lines(_: Options) -> Iterator[Line]:
    command = [sys.executable, "-m", "pytest", "-q", "tests/property/test_cuts.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    summary = done.stdout.strip().splitlines()[-1].strip("= ")
    yield Line(
        "batches of 1 to 65,536 rows, 1 to 4 workers, any cut: same rows", summary, "all pass", done.returncode == 0
    )
