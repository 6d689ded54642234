"""What `@kernel` promises: one signature a kernel, a cache that only its user can write, one line when it compiles."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataflow import kernels
from dataflow.kernels.accumulate import count_rows
from dataflow.kernels.gateway import ALL_VALID

COUNT = """
import numpy as np, numba
from dataflow import kernels
from dataflow.kernels.accumulate import count_rows
counts = np.zeros((2, 1), dtype=np.int64)
numba.njit(lambda x: x + 1)(1)  # a function of the program itself: says nothing
print("own compiled", flush=True)
count_rows(np.array([0, 1, 1]), np.empty(0, dtype=np.bool_), counts, 0)
compiled = [(one.name, one.seconds > 0) for one in kernels.instances()]
print(counts.ravel().tolist(), compiled, repr(numba.config.CACHE_DIR))
"""


def run(text: str, cache: Path) -> tuple[str, str]:
    environment = {**os.environ, kernels.CACHE_VARIABLE: str(cache), "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_the_first_run_compiles_and_says_so_and_the_second_does_not(tmp_path: Path) -> None:
    out, err = run(COUNT, tmp_path)
    assert out.splitlines()[1] == "[1, 2] [('count_rows', True)] ''"
    assert err == "compiling kernels (once)\n"
    out, err = run(COUNT, tmp_path)
    assert out.splitlines()[1] == "[1, 2] [('count_rows', False)] ''"
    assert err == ""


def test_the_cache_is_only_the_users(tmp_path: Path) -> None:
    run(COUNT, tmp_path)
    (made,) = tmp_path.iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o777)  # somebody else could have put machine code there
    out, _ = run(COUNT, tmp_path)
    assert "('count_rows', True)" in out


def test_without_a_place_for_the_cache_kernels_work_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run(COUNT, tmp_path / "file")[0].splitlines()[1].startswith("[1, 2]")


def test_importing_dataflow_or_a_kernel_does_not_import_numba(tmp_path: Path) -> None:
    out, _ = run("import dataflow.kernels.accumulate, sys; print('numba' in sys.modules)", tmp_path)
    assert out == "False\n"


def test_read_only_and_strided_arrays_make_no_further_signature() -> None:
    counts = np.zeros((3, 1), dtype=np.int64)
    slots = np.array([0, 9, 1, 9, 1, 9])[::2]
    count_rows(slots, ALL_VALID, counts, 0)
    known = kernels.instances()
    frozen = slots.copy()
    frozen.setflags(write=False)
    count_rows(frozen, np.array([True, True, False]), counts, 0)
    assert counts.ravel().tolist() == [2, 3, 0]
    assert kernels.instances() == known
    assert not frozen.flags.writeable


def test_kernels_are_called_by_place() -> None:
    with pytest.raises(AssertionError, match="by place"):
        count_rows(np.zeros(0, dtype=np.int64), ALL_VALID, np.zeros((0, 1), dtype=np.int64), at=0)
