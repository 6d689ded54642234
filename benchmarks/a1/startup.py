"""How long one waits: for the import, for the very first run (kernels are compiled), and for every later one."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lines import Line, Options, at_most, python

PROCESSES = 11
IMPORT_MS_MAX, COLD_SECONDS_MAX, INSTANCES_MAX, COMPILE_SECONDS_MAX, WARM_SECONDS_MAX = 40, 6, 20, 4, 1
TIMED_IMPORT = (
    "import sys, time; began = time.perf_counter(); __import__(sys.argv[1]); print(time.perf_counter() - began)"
)
RUN_EXAMPLE = """
import json, sys
from dataflow.cli import main
code = main(["run", "examples/flight_delays.py", "--store", sys.argv[1]])
assert code == 0, code
from dataflow import kernels
compiled = kernels.instances()
print(json.dumps([len(compiled), sum(one.seconds for one in compiled)]))
"""


def lines(_: Options) -> Iterator[Line]:
    yield _import()
    with tempfile.TemporaryDirectory() as folder:
        cold, instances, seconds = _example(folder, "cold")
        yield at_most("first run of the example, empty kernel cache, with its process", cold, COLD_SECONDS_MAX, "s", 2)
        yield at_most("kernel instances that it compiles", instances, INSTANCES_MAX, "", 0)
        yield at_most("compiled in, together", seconds, COMPILE_SECONDS_MAX, "s", 2)
        warm = statistics.median(_example(folder, f"warm-{number}")[0] for number in range(3))
        yield at_most("second run of the example, from start to the end of the process", warm, WARM_SECONDS_MAX, "s", 2)


def _import() -> Line:
    """The median import of dataflow less that of pyarrow, each in fresh processes that take turns."""
    times: dict[str, list[float]] = {"pyarrow": [], "dataflow": []}
    for _ in range(PROCESSES):
        for module, seen in times.items():
            seen.append(float(python(TIMED_IMPORT, module)) * 1000)
    base, ours = (statistics.median(seen) for seen in times.values())
    return at_most(
        f"import dataflow ({ours:.0f} ms) beyond import pyarrow ({base:.0f} ms)", ours - base, IMPORT_MS_MAX, "ms"
    )


def _example(cache: str, store: str) -> tuple[float, int, float]:
    """Wall seconds of a process that runs the example, and the number of kernels and seconds that it compiled."""
    began = time.perf_counter()
    said = python(RUN_EXAMPLE, str(Path(cache) / store), DATAFLOW_KERNEL_CACHE=cache)
    wall = time.perf_counter() - began
    instances, seconds = json.loads(said.splitlines()[-1])
    return wall, instances, seconds
