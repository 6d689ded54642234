"""Settings of the whole process that a run needs: how often threads change hands, and how freed memory is kept.

Both are measured. Beside one spinning Python thread a columnar worker falls from 1,743 to 35 batches/s at the
interpreter's default switch interval. And glibc gives arrays of 128 KiB and more back to the kernel when they are
freed: the next batch then faults its pages in again, which was a tenth of the CPU time of the headline benchmark.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

SWITCH_SECONDS, IMPATIENT_SECONDS = 1e-4, 1e-5
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
KEPT_BYTES = 64 << 20
"""Arrays below this come from the heap, and so much free heap stays with the process."""


class TunedProcess:
    """Used with `with` around a run; the switch interval is restored after it."""

    def __enter__(self) -> None:
        self._before = sys.getswitchinterval()
        sys.setswitchinterval(min(self._before, SWITCH_SECONDS))
        _keep_freed_memory()

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._before)


@contextmanager
def impatient() -> Iterator[None]:
    """While the thread of `run` commits: it lets go of the interpreter's lock thirty times for a few microseconds each,
    and would wait for a thread that runs Python all the time `SWITCH_SECONDS` each time to get it back."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, IMPATIENT_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@cache
def _keep_freed_memory() -> None:
    """Once a process. Has no inverse: glibc forgets its own defaults. Elsewhere there is nothing to set."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, min(KEPT_BYTES, 32 << 20))  # glibc refuses more than 32 MiB
    mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
