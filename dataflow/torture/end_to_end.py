"""Row 2: kill -9 changes nothing of what a pipeline gives, end to end.

A process runs windows over a throttled source into a topic, Parquet files and a SQLite table; its group is killed at a
random moment, and the next one goes on in the same store. Another process follows the topic all the time: what it has
seen once must neither come again nor be taken back. When the input has ended, all three outputs and the late rows are
compared with those of a run that nobody disturbed, and the ledger with what was read and written. The hard part is to
hit the moments that matter: a kill counts as inside only if the store had a commit by then and the last one was still
to come.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import tempfile
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.errors import StoreError
from dataflow.state.store import Store
from dataflow.state.verify import rows as verified_rows
from dataflow.state.verify import verify
from dataflow.system import RealSystem
from dataflow.torture.books import check_store
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally
from dataflow.torture.pipelines import NAME, Numbers, pipeline
from dataflow.torture.processes import Channel, Reporter, Victim, fork, run_lanes

ROWS_PER_SECOND = 400_000
ROWS_PER_STORE = 8_000_000
INTERVAL = "100ms"
WORKERS = 2
KILL_SECONDS_MIN, KILL_SECONDS_MAX = 0.05, 3.0
FOLLOW_SECONDS = 0.02
"""Between two looks of the follower."""
REREAD_ROWS = 5_000
LATE_TOPIC = f"{NAME}.late"
Rows = list[tuple[object, ...]]


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(replace(plan, lanes=1), budget, "dataflow.torture.end_to_end:lane")


ROW = Row(number=2, promise="kill -9 changes nothing, end to end", trials_ci=12, run_plan=run_plan)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    done, number = 0, first
    with tempfile.TemporaryDirectory(prefix="dataflow-torture-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        rows = ROWS_PER_STORE
        while reporter.goes_on(done):
            chance = random.Random(f"{seed}/{number}")
            root = folder / str(number)
            root.mkdir()
            follower = fork(partial(_follow, root / "store", seed))
            has_ended = False
            while not has_ended:
                if not reporter.goes_on(done):
                    run_to_end(root, rows)
                    break
                with reporter.trial(number) as tally:
                    has_ended = kill_once(root, rows, chance, tally, f"seed {seed}, kill {number}")
                done, number = done + tally.faults, number + 1
            with reporter.trial(number) as tally:
                tally.trials = 0
                judge(root, folder, rows, follower, tally, f"seed {seed}, before kill {number}")


def kill_once(root: Path, rows: int, chance: random.Random, tally: Tally, where: str) -> bool:
    """Let the pipeline go on and kill it; whether it had come to its end before."""
    victim = fork(partial(_work, root, rows, ROWS_PER_SECOND))
    seconds = chance.uniform(KILL_SECONDS_MIN, KILL_SECONDS_MAX)
    try:
        message = victim.channel.receive(seconds)
    except TimeoutError:
        message = "running"
    said, code = victim.end()
    if message is None or (message != "running" and message[0] == "failed"):
        tally.find("wrong", f"{where}: the run failed: {message}")
    if message != "running":
        tally.trials = 0
        return True
    if code >= 0 and said and said[-1][0] == "ended":
        tally.trials = 0
        return True
    tally.faults += 1
    state = _state(root / "store")
    if state is None:
        tally.count("killed before the first commit")
    elif state[1]:
        tally.count("killed after the last commit")
    else:
        tally.count("killed between the first commit and the last")
    return False


def _state(path: Path) -> tuple[int, bool] | None:
    with Store(path) as store:
        state = store.pipeline(NAME)
        return None if state is None else (state.epoch, state.finished)


def _work(root: Path, rows: int, rows_per_second: float, channel: Channel) -> None:
    """The pipeline, until it has ended or is killed."""
    sys.stderr = StringIO()  # late rows are told of there
    try:
        made = pipeline(root, Numbers(rows, rows_per_second))
        result = made.run(store=root / "store", workers=WORKERS, checkpoint_interval=INTERVAL)
        channel.send(["ended", result.rows_in])
    except Exception as error:  # noqa: BLE001 (whatever it is: nothing but a kill was in its way)
        channel.send(["failed", f"{type(error).__name__}: {error}"])


def run_to_end(root: Path, rows: int) -> None:
    said, _ = fork(partial(_work, root, rows, 0.0)).rest()
    assert said and said[-1][0] == "ended", said


def _follow(path: Path, seed: int, channel: Channel) -> None:
    """Read the topic as it grows; at the end compare what was seen with what is there. Also read some rows again, now
    and then: they may not change."""
    chance, seen, seen_rows = random.Random(seed), [], 0
    scheduler = RealSystem().scheduler
    wrong: list[str] = []
    while True:
        try:
            finished = channel.receive(FOLLOW_SECONDS) is None
        except TimeoutError:
            finished = False
        else:
            finished = True
        with Store(path) as store:
            if "seconds" in _topics(store):
                while (fresh := store.read("seconds", start=seen_rows)).num_rows:
                    seen.append(fresh.combine_chunks())
                    seen_rows += fresh.num_rows
                if seen_rows:
                    at = chance.randrange(seen_rows)
                    again = store.read("seconds", start=at, until=min(at + REREAD_ROWS, seen_rows))
                    if not again.equals(pa.concat_tables(seen).slice(at, REREAD_ROWS)):
                        wrong.append(f"rows from offset {at} on have changed")
        if finished:
            break
        scheduler.sleep(FOLLOW_SECONDS)
    final = verified_rows(path, "seconds")
    if not seen or not pa.concat_tables(seen).cast(final.schema).equals(final):
        wrong.append(f"it saw {seen_rows} rows, which are not the {final.num_rows} that are there")
    channel.send([seen_rows, wrong[:5]])


def _topics(store: Store) -> list[str]:
    """The names of the topics; none while the store is being made."""
    try:
        return [info.name for info in store.topics()] if store.exists else []
    except StoreError as error:
        if error.code != "DF0601":
            raise
        return []


def judge(root: Path, folder: Path, rows: int, follower: Victim, tally: Tally, where: str) -> None:
    """Compare all that came out with an undisturbed run."""
    expected = folder / f"undisturbed-{rows}"
    if not expected.exists():
        expected.mkdir()
        run_to_end(expected, rows)
    follower.channel.send("finish")
    said, _ = follower.rest()
    seen_rows, wrong = said[-1] if said else (0, ["it died"])
    for what in wrong:
        tally.find("wrong", f"{where}: the follower: {what}")
    tally.count("rows that the follower saw", seen_rows)
    report = verify(root / "store")
    for finding in report.findings:
        if finding.kind == "damage":
            tally.find("wrong", f"{where}: the verifier: {finding}")
    for what, read in (
        ("topic", topic_rows),
        ("Parquet", parquet_rows),
        ("SQLite", sqlite_rows),
        ("late rows", late_rows),
    ):
        compare(read(root), read(expected), what, tally, where)
    source = Numbers(rows)
    check_store(root / "store", pipeline(root, source).nodes, NAME, {source.name: rows}, tally, where)


def compare(
    found: list[tuple[object, ...]], expected: list[tuple[object, ...]], what: str, tally: Tally, where: str
) -> None:
    if found == expected:
        tally.count(f"rows compared, {what}", len(found))
        return
    missing, more = lacking(expected, found), lacking(found, expected)
    if missing:
        tally.find("lost", f"{where}: {what} lacks {missing[:2]}", len(missing))
    if more:
        kind = "duplicated" if set(more) <= set(expected) else "wrong"
        tally.find(kind, f"{where}: {what} has too many: {more[:2]}", len(more))
    if not missing and not more:
        tally.find("out_of_order", f"{where}: {what}")


def lacking(some: Rows, others: Rows) -> Rows:
    """What is in some, as often as it is not in others."""
    counts: dict[tuple[object, ...], int] = {}
    for row in others:
        counts[row] = counts.get(row, 0) + 1
    left = []
    for row in some:
        if counts.get(row, 0):
            counts[row] -= 1
        else:
            left.append(row)
    return left


def _tuples(table: pa.Table) -> Rows:
    times = [name for name in table.schema.names if pa.types.is_timestamp(table.schema.field(name).type)]
    for name in times:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast("int64"))
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def topic_rows(root: Path) -> Rows:
    return _tuples(verified_rows(root / "store", "seconds"))


def late_rows(root: Path) -> Rows:
    """Late rows of two partitions have no order among each other. Their topic is made by the first of them."""
    try:
        table = verified_rows(root / "store", LATE_TOPIC)
    except StoreError as error:
        if "has no topic" not in str(error):
            raise
        return []
    return sorted(_tuples(table.select(["at", "key", "value"])))


def parquet_rows(root: Path) -> Rows:
    files = sorted((root / "parts").iterdir())
    assert all(file.suffix == ".parquet" for file in files), files
    return sorted(row for file in files for row in _tuples(pq.read_table(file)))


def sqlite_rows(root: Path) -> Rows:
    connection = sqlite3.connect(root / "seconds.sqlite")
    try:
        return sorted(connection.execute("SELECT * FROM seconds").fetchall())
    finally:
        connection.close()
