"""Row 22: nothing that a store or a file holds is run.

A pipeline reads a file whose values, names and types would be code to whoever unpickles, evaluates or imports them, and
keeps them in windows, topics and checkpoints. Then, with the interpreter's audit events watched, it is restored and
runs to its end, the topics and the ledger are read, the store is verified and the pipeline explained: no event may come
that runs, compiles, imports or unpickles anything, starts a program or opens a connection. The hard part is what a
first use imports and compiles by itself; so the same is done in another store before.
"""

from __future__ import annotations

import os
import pickle
import random
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import dataflow as flow
from dataflow import col, count
from dataflow.state.store import Store
from dataflow.state.verify import verify
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.processes import Channel, Reporter, fork, run_lanes
from dataflow.torture.simulation import silent

WATCHED = {
    *("import", "exec", "compile", "pickle.find_class", "marshal.load", "marshal.loads", "ctypes.dlopen"),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen"),
    *("socket.__new__", "socket.connect", "socket.bind"),
}
"""Events of the interpreter."""
CONTROL = "pickle.find_class"
NAME = "audited"
HOSTILE_NAME = "__import__('os').system('true')"
"""Of a column."""
ROWS_MIN, ROWS_MAX = 2_000, 6_000


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.no_code_from_data:lane")


ROW = Row(number=22, promise="nothing that a store or a file holds is run", trials_ci=6, run_plan=run_plan)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    done, number = 0, first
    with scratch() as folder:
        while reporter.goes_on(done):
            with reporter.trial(number) as tally:
                where = f"seed {seed}, lane {lane}, trial {number}"
                root = folder / str(number)
                root.mkdir()
                victim = fork(partial(_try_once, root, f"{seed}/{lane}/{number}", where))  # nobody stops to be watched
                said, code = victim.rest()
                for part in said:
                    tally.add(Tally(**part))
                if code:
                    tally.find("wrong", f"{where}: the rig itself failed (its traceback is on stderr)")
            done, number = done + 1, number + 1


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._mark),)


def _try_once(root: Path, seed: str, where: str, channel: Channel) -> None:
    tally, mark = Tally(), root / "code-was-run"
    sys.addaudithook(_hear)
    audit(root, mark, random.Random(seed), tally, where)
    if mark.exists():
        tally.find("wrong", f"{where}: what was in the data has been run")
    tally.trials = 0  # counted by who asked
    channel.send(vars(tally))


def audit(root: Path, mark: Path, chance: random.Random, tally: Tally, where: str) -> None:
    """Do everything in one store, and then, watched, in another one what comes after its first run."""
    texts = hostile_texts(mark)
    file = root / "hostile.parquet"
    write_hostile(file, texts, chance)
    workers = chance.choice((1, 2))
    with silent():
        for store in (root / "before", root / "watched"):
            _pipeline(file).run(store=store, workers=workers, checkpoint_interval="1ms", until="head")
        _go_on_and_read(root / "before", file, workers)
        with watching() as events:
            found = _go_on_and_read(root / "watched", file, workers)
        with watching() as control:
            pickle.loads(pickle.dumps(OrderedDict()))
    if not control[CONTROL]:
        tally.find("wrong", f"{where}: the watch itself does not work")
    for event, times in events.items():
        tally.find("wrong", f"{where}: {times} times {event}", times)
    read_back = sum(text in texts for text in found)
    tally.faults += read_back > 0
    tally.count("values that would be code, read back", read_back)


def hostile_texts(mark: Path) -> list[str]:
    """Values that make `mark` when somebody runs, evaluates or unpickles them."""
    made = f"__import__('os').mkdir({str(mark)!r})"
    return [
        pickle.dumps(Bomb(mark), protocol=0).decode("latin-1"),
        made,
        f"exec({made!r})",
        f"!!python/object/apply:os.mkdir [{mark}]",
        "{{" + made + "}}",
        f"$(mkdir {mark})",
        f"'; {made} #",
    ]


def write_hostile(file: Path, texts: list[str], chance: random.Random) -> None:
    """A file whose types ask to be unpickled, too."""
    rows = chance.randint(ROWS_MIN, ROWS_MAX)
    bomb = texts[0].encode("latin-1")
    pickled_type = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": bomb}
    schema = pa.schema(
        [
            pa.field("at", pa.timestamp("us")),
            pa.field("key", pa.string()),
            pa.field(HOSTILE_NAME, pa.string(), metadata=pickled_type),
            pa.field("value", pa.float64()),
        ],
        metadata={b"pandas": bomb, b"__reduce__": bomb},
    )
    columns = [
        pa.array([n * 1_000 for n in range(rows)]).cast(pa.timestamp("us")),
        pa.array([chance.choice(texts) for _ in range(rows)]),
        pa.array([chance.choice(texts) for _ in range(rows)]),
        pa.array([chance.random() for _ in range(rows)]),
    ]
    pq.write_table(pa.table(columns, schema=schema), file)


def _pipeline(file: Path) -> flow.Pipeline:
    rows = flow.read_parquet(str(file))
    timed = rows.watermark("at", delay="1s")
    windows = timed.window(flow.tumbling("100ms"), by="key").agg(
        n=count(), total=col.value.sum(), half=col.value.quantile(0.5, exact=True), last=col(HOSTILE_NAME).last()
    )
    hours = timed.window(flow.tumbling("1h"), by="key").agg(n=count(), worst=col.key.max_by(col.value))
    sinks = (windows.write_topic("windows"), hours.write_topic("hours"), rows.write_topic("copies"))
    return flow.Pipeline(NAME, *sinks)


def _go_on_and_read(store: Path, file: Path, workers: int) -> list[str]:
    """Restore, run to the end, read, verify, explain; all texts that were in the topics."""
    pipeline = _pipeline(file)
    pipeline.run(store=store, workers=workers, checkpoint_interval="1ms")
    found: list[str] = []
    with Store(store) as opened:
        for info in opened.topics():
            table = opened.read(info.name)
            for field in table.schema:
                if pa.types.is_string(field.type):
                    found += table[field.name].to_pylist()
        opened.ledger(NAME)
    report = verify(store)
    assert report.ok, report.findings
    pipeline.explain()
    return found


_watchers: list[Counter[str]] = []
"""Who counts events. The hook itself stays for as long as the process lives."""


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _watchers and event in WATCHED:
        _watchers[-1][event] += 1


@contextmanager
def watching() -> Iterator[Counter[str]]:
    """Count the events that are watched, in all threads of this process."""
    _watchers.append(Counter())
    try:
        yield _watchers[-1]
    finally:
        _watchers.pop()
