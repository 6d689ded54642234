"""Row 13: never two writers.

Fifty processes wait for one word and then all want the same thing: a partition, a pipeline's name, or a store that is
not there yet. One may get it; the others hear whose it is. Then the holder is stopped (it holds on), goes on and
leaves, or is killed (it holds no more), and all race again; what lies in the lock file means nothing. A winner of a
partition also writes: had there been two, their rows would show it.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflow.state.log.writer import TopicWriter
from dataflow.state.store import Store
from dataflow.system import Lock, LockHeldError
from dataflow.torture.frame import Budget, Plan, Result, Row, Tally, scratch
from dataflow.torture.processes import Channel, Reporter, Victim, fork, run_lanes
from dataflow.torture.seam import QuickSystem

OPENERS = 50
TOPIC, PIPELINE = "t", "p"
SCHEMA = pa.schema({"winner": pa.int64()})
ANSWER_SECONDS_MAX = 30.0
STALE = (b"", b"\x00" * 300, b'{"pid": 1, "boot": "another", "note": "of long ago"}', b"no JSON at all", b"[1, 2")
"""What may lie in a lock file that nobody holds."""
CREATION_SHARE = 10
"""One race in so many is for the making of a store."""


def run_plan(plan: Plan, budget: Budget, result: Result) -> None:
    result.tally = run_lanes(plan, budget, "dataflow.torture.one_writer:lane")


ROW = Row(number=13, promise="never two writers", trials_ci=200, run_plan=run_plan)


def lane(reporter: Reporter, *, lane: int, lanes: int, first: int, seed: int) -> None:
    done, number = 0, first
    with scratch() as folder:
        Store(folder / "store", QuickSystem(seed)).append(TOPIC, pa.table({"winner": pa.array([0], pa.int64())}))
        race = Race(folder, seed, max(2, OPENERS // lanes))
        while reporter.goes_on(done):
            chance = random.Random(f"{seed}/{lane}/{number}")
            with reporter.trial(number) as tally:
                race.run(number, chance, tally, f"seed {seed}, lane {lane}, race {number}")
            done, number = done + 1, number + 1
        race.end()


class Race:
    """Openers that stay, and what they race for."""

    def __init__(self, folder: Path, seed: int, openers: int) -> None:
        self._folder, self._seed = folder, seed
        self._openers = [self._new_opener() for _ in range(openers)]
        self._wins = 1  # a row was there before the first race

    def _new_opener(self) -> Victim:
        return fork(partial(open_when_told, self._folder, self._seed))

    def end(self) -> None:
        for opener in self._openers:
            opener.end()

    def run(self, number: int, chance: random.Random, tally: Tally, where: str) -> None:
        if number % CREATION_SHARE == CREATION_SHARE - 1:
            self._race_to_create(number, tally, where)
            return
        what = chance.choice(("partition", "pipeline"))
        self._leave_something_stale(what, chance)
        winner = self._race(what, self._openers, tally, where)
        if winner is None:
            return
        match chance.choice(("release", "pause", "kill")):
            case "release":
                tally.count("holder left")
                self._tell_to_release(winner)
            case "pause":
                tally.count("holder stopped")
                winner.send_signal(signal.SIGSTOP)
                others = [one for one in self._openers if one is not winner]
                self._race(what, others, tally, f"{where}, with the holder stopped", winners=0)
                winner.send_signal(signal.SIGCONT)
                self._tell_to_release(winner)
            case "kill":
                tally.count("holder killed")
                winner.end()
                self._openers[self._openers.index(winner)] = self._new_opener()
                again = self._race(what, self._openers, tally, f"{where}, with the holder killed")
                if again is not None:
                    self._tell_to_release(again)
        if what == "partition":
            self._check_rows(tally, where)

    def _race(self, what: str, openers: list[Victim], tally: Tally, where: str, *, winners: int = 1) -> Victim | None:
        """Let them all try at once; the one that won, if one did."""
        tally.faults += 1
        for opener in openers:
            opener.channel.send(what)
        answers = [(opener, opener.channel.receive(ANSWER_SECONDS_MAX)) for opener in openers]
        won = [opener for opener, answer in answers if answer == "won"]
        self._wins += len(won) if what == "partition" else 0
        for _, answer in answers:
            if answer not in ("won", "refused"):
                tally.find("wrong", f"{where}: an opener of the {what} said: {answer}", group=f"said {what}")
        if len(won) > max(winners, 0):
            tally.find("duplicated", f"{where}: {len(won)} have the {what}, and {winners} may", len(won) - winners)
        elif len(won) < winners:
            tally.find("wrong", f"{where}: nobody got the {what}")
        for extra in won[1:] if winners else won:
            self._tell_to_release(extra)
        return won[0] if won and winners else None

    def _tell_to_release(self, holder: Victim) -> None:
        holder.channel.send("release")
        answer = holder.channel.receive(ANSWER_SECONDS_MAX)
        assert answer == "released", answer

    def _leave_something_stale(self, what: str, chance: random.Random) -> None:
        store = self._folder / "store"
        name = f"topics/{TOPIC}/0/writer.lock" if what == "partition" else f"locks/pipeline-{PIPELINE}.lock"
        if (store / name).exists():
            (store / name).write_bytes(chance.choice(STALE))

    def _check_rows(self, tally: Tally, where: str) -> None:
        with Store(self._folder / "store", QuickSystem(self._seed)) as store:
            rows = store.topic(TOPIC).rows
        if rows != self._wins:
            kind = "lost" if rows < self._wins else "duplicated"
            tally.find(kind, f"{where}: {rows} rows of {self._wins} winners", abs(rows - self._wins))
            self._wins = rows

    def _race_to_create(self, number: int, tally: Tally, where: str) -> None:
        """All append to a store that is not there: each has to find its row in it in the end."""
        tally.faults += 1
        tally.count("raced to make a store")
        for opener in self._openers:
            opener.channel.send(f"create {number}")
        answers = [opener.channel.receive(ANSWER_SECONDS_MAX) for opener in self._openers]
        for answer in answers:
            if answer not in ("appended", "refused"):
                tally.find("wrong", f"{where}: one of who made a store said: {answer}", group="made a store")
        path = self._folder / f"made-{number}"
        with Store(path, QuickSystem(self._seed)) as store:
            rows, appended = store.topic(TOPIC).rows, answers.count("appended")
        if rows != appended:
            tally.find("lost" if rows < appended else "duplicated", f"{where}: {rows} rows of {appended} who appended")
        shutil.rmtree(path)


# ── an opener ──


def open_when_told(folder: Path, seed: int, channel: Channel) -> None:
    """Wait for a word, and try; until the driver is gone."""
    opener = Opener(folder, seed)
    while (word := channel.receive()) is not None:
        channel.send(opener.obey(word))


class Opener:
    """One of those who race. Its store stays open, as it does in a program that waits for its turn."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._system = folder, QuickSystem(seed)
        self._store = Store(folder / "store", self._system)
        self._held: TopicWriter | Lock | None = None

    def obey(self, word: str) -> str:
        kind, _, number = word.partition(" ")
        todo: dict[str, Callable[[], Any]] = {
            "partition": self._take_partition,
            "pipeline": self._take_pipeline,
            "release": self._release,
            "create": lambda: self._create(number),
        }
        try:
            return str(todo[kind]())
        except LockHeldError:
            return "refused"
        except Exception as error:  # noqa: BLE001 (the driver counts it)
            return f"{type(error).__name__}: {error}"

    def _take_partition(self) -> str:
        writer = self._store.writer(TOPIC, SCHEMA)
        self._held = writer
        writer.append(pa.record_batch({"winner": pa.array([1], pa.int64())}))
        pending = writer.prepare()
        assert pending is not None
        self._store.publish([pending])
        return "won"

    def _take_pipeline(self) -> str:
        self._held = self._store.lock_pipeline(PIPELINE)
        return "won"

    def _release(self) -> str:
        if isinstance(self._held, TopicWriter):
            self._held.close()
        elif self._held is not None:
            self._held.release()
        self._held = None
        return "released"

    def _create(self, number: str) -> str:
        with Store(self._folder / f"made-{number}") as store:  # its waits are real ones
            store.append(TOPIC, pa.table({"winner": pa.array([1], pa.int64())}))
        return "appended"
