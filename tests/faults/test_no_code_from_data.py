"""Nothing that a store holds is run: no import, no compilation, no unpickling while one is restored and read."""

from __future__ import annotations

import pytest

from benchmarks.a2 import audit
from benchmarks.lines import python


@pytest.mark.slow
def test_a_restored_run_executes_nothing_from_the_store() -> None:
    told = python(audit.CODE)
    assert told.split()[:2] == ["0", "1"], told
