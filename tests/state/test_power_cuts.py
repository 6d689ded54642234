"""The power goes at every single change of the disk: what was acknowledged is there, once, and the store goes on."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from dataflow.errors import StoreError
from dataflow.state.log.segment import GrowingSegment
from dataflow.state.store import EpochRecord, Store
from dataflow.system import SimulatedSystem
from dataflow.system.simulated import SimulatedDisk, SimulatedFile

CHANGES = (
    (SimulatedFile, ("write", "truncate", "sync")),
    (SimulatedDisk, ("make_dirs", "sync_dir", "remove", "rename")),
)


class PowerCutError(OSError):
    """Nothing reaches the disk any more."""


class Power:
    """Counts changes of the disk and refuses all from the given one on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, changes_max: int) -> None:
        self.changes, self.changes_max, self.nested = 0, changes_max, 0
        for owner, names in CHANGES:
            for name in names:
                monkeypatch.setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, change: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(change)
        def watched(*arguments: Any, **options: Any) -> Any:
            if self.nested == 0:
                if self.changes >= self.changes_max:
                    raise PowerCutError("the power is gone")
                self.changes += 1
            self.nested += 1
            try:
                return change(*arguments, **options)
            finally:
                self.nested -= 1

        return watched


def work(store: Store, acknowledged: list[int]) -> None:
    """Two runs of a pipeline of two topics, with one rollback."""
    for run in range(2):
        with (
            store.writer("a", pa.schema({"n": pa.int64()})) as a,
            store.writer("b", pa.schema({"n": pa.int64()})) as b,
        ):
            for epoch in range(run * 2 + 1, run * 2 + 3):
                a.append(pa.record_batch({"n": pa.array([-1], pa.int64())}))
                a.rollback()
                pendings = []
                for writer in (a, b):
                    writer.append(pa.record_batch({"n": pa.array([epoch] * 3, pa.int64())}))
                    pendings.append(writer.prepare())
                record = EpochRecord(pipeline="p", epoch=epoch, finished=False, graph_hash="")
                store.publish([one for one in pendings if one is not None], epoch=record)
                acknowledged.append(epoch)


def run_until_cut(system: SimulatedSystem, power: Power) -> list[int]:
    acknowledged: list[int] = []
    store = Store("/home/store", system)
    try:
        work(store, acknowledged)
    except Exception:  # noqa: BLE001 (whatever it was: nothing but the missing power may have been the cause)
        assert power.changes == power.changes_max, "it failed though the power was on"
    return acknowledged


def changes_of_the_whole_work() -> int:
    with pytest.MonkeyPatch.context() as monkeypatch:
        power = Power(monkeypatch, 10**9)
        assert run_until_cut(SimulatedSystem(seed=0), power) == [1, 2, 3, 4]
        return power.changes


def cut_everywhere() -> None:
    total = changes_of_the_whole_work()
    for cut_at in range(total):
        system = SimulatedSystem(seed=cut_at)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # SQLite closing without power
            acknowledged = run_until_cut(system, Power(monkeypatch, cut_at))
            gc.collect()  # the dead process's connection ends before the power is back
        system.disk.lose_power()
        check(Store("/home/store", system), acknowledged, f"cut at change {cut_at} of {total}")


def test_a_power_cut_at_any_change_loses_nothing_acknowledged() -> None:
    cut_everywhere()


def forget_to_sync_the_file(segment: GrowingSegment) -> None:
    segment.is_synced = True


def forget_to_sync_the_directory(disk: SimulatedDisk, path: str) -> None:
    if path.startswith("/home/store/topics"):
        return
    sync_dir(disk, path)


sync_dir = SimulatedDisk.sync_dir


@pytest.mark.parametrize(
    ("owner", "name", "bug"),
    [
        (GrowingSegment, "sync", forget_to_sync_the_file),
        (SimulatedDisk, "sync_dir", forget_to_sync_the_directory),
    ],
)
def test_the_cuts_find_a_planted_bug(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, bug: object) -> None:
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises((AssertionError, StoreError)):
        cut_everywhere()


def check(store: Store, acknowledged: list[int], where: str) -> None:
    last = acknowledged[-1] if acknowledged else 0
    epoch = _epoch(store)
    assert epoch in (last, last + 1), where
    topics = {info.name: info for info in store.topics()} if epoch else {}
    expected = [n for n in range(1, epoch + 1) for _ in range(3)]
    for name in "ab":
        found = store.read(name)["n"].to_pylist() if name in topics else []
        assert found == expected, where
        store.append(name, pa.table({"n": [99]}))
        assert store.read(name)["n"].to_pylist() == [*expected, 99], where
    store.close()


def _epoch(store: Store) -> int:
    state = store.pipeline("p")
    return 0 if state is None else state.epoch
