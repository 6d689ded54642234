"""The seam: disk, clock, chance and scheduler, handed in wherever state or runtime need them.

Only the modules in this folder open a file, read a clock, draw a random number or make a thread. So a test can
stop the clock, lose what was not synced, record every write, or repeat a run from a seed. The hard part is to
keep the interface as small as what the engine really does: whole files that only grow, plus SQLite, whose own
reads and writes come through here by the VFS named by `Disk.vfs_name`.

>>> from dataflow.system import SimulatedSystem
>>> system = SimulatedSystem(seed=4)
>>> system.scheduler.sleep(2.5)
>>> system.clock.monotonic()
2.5
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from dataflow.system.contract import (
    AppendFile,
    Clock,
    Content,
    Disk,
    Event,
    FilePath,
    Lock,
    LockHeldError,
    Mutex,
    Scheduler,
    System,
    Thread,
)
from dataflow.system.real import RealSystem

if TYPE_CHECKING:
    from dataflow.system.recording import (
        Create,
        MakeDir,
        Operation,
        RecordingSystem,
        Remove,
        Rename,
        Sync,
        SyncDir,
        Truncate,
        Write,
    )
    from dataflow.system.simulated import SimulatedSystem

__all__ = [
    "AppendFile",
    "Clock",
    "Content",
    "Create",
    "Disk",
    "Event",
    "FilePath",
    "Lock",
    "LockHeldError",
    "MakeDir",
    "Mutex",
    "Operation",
    "RealSystem",
    "RecordingSystem",
    "Remove",
    "Rename",
    "Scheduler",
    "SimulatedSystem",
    "Sync",
    "SyncDir",
    "System",
    "Thread",
    "Truncate",
    "Write",
]


def __getattr__(name: str) -> object:
    """Recording and simulation are loaded when somebody asks for them: a plain run never does."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "simulated" if name == "SimulatedSystem" else "recording"
    return getattr(import_module(f"dataflow.system.{module}"), name)
