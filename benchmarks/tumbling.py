"""Keyed tumbling windows against DuckDB, Polars and what pyarrow's decoding alone costs.

    python benchmarks/tumbling.py [--rows 10000000] [--rounds 7] [--only SHAPE …] [--work DIR] [--json]

Every engine is a warm process of its own; one call goes round all of them again and again (A B C A B C …), so that
a slow minute of the machine falls on all alike, and only medians and their ratios count. Each answer of each round
is checked. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import workload

SHAPES = {
    "int": "one Parquet file, int64 key, count and sum",
    "str": "string keys",
    "two": "two key columns",
    "five": "five aggregates",
    "filter": "a filter and a derived column before the window",
    "csv": "one CSV file",
    "topic": "a topic of the store, checksums verified",
}
ENGINES: dict[str, Sequence[str]] = {
    "dataflow": tuple(SHAPES),
    "duckdb": ("int", "str", "two", "five", "filter", "csv"),
    "polars": ("int", "str", "two", "five", "filter", "csv"),
    "pyarrow": ("int", "str"),
}
ROWS, ROUNDS = 10_000_000, 7
SPREAD_MAX = 0.25
"""Of the rounds of one job, (slowest - fastest) / median; beyond it the medians are not to be trusted."""


@dataclass(frozen=True)
class Bar:
    """A promise: the rate of (engine, shape) is at least `least` times the best rate of the others."""

    text: str
    shape: str
    against: Sequence[tuple[str, str]]
    least: float
    aim: float | None = None


BARS = (
    Bar("Parquet against DuckDB", "int", [("duckdb", "int")], 1.3, 1.6),
    Bar("Parquet against Polars", "int", [("polars", "int")], 1.1, 1.35),
    Bar("Parquet against decoding alone", "int", [("pyarrow", "int")], 0.55, 0.70),
    Bar("string keys against the headline", "str", [("dataflow", "int")], 0.6),
    Bar("string keys against DuckDB", "str", [("duckdb", "str")], 1.0),
    Bar("string keys against Polars", "str", [("polars", "str")], 1.0),
    Bar("two key columns against the headline", "two", [("dataflow", "int")], 0.6),
    Bar("five aggregates against the headline", "five", [("dataflow", "int")], 0.6),
    Bar("filter and derive against the headline", "filter", [("dataflow", "int")], 0.6),
    Bar("CSV against the better of both", "csv", [("duckdb", "csv"), ("polars", "csv")], 0.95, 1.1),
    Bar("topic against DuckDB on Parquet", "topic", [("duckdb", "int")], 2.0, 4.0),
)


@dataclass
class Worker:
    """An engine's process."""

    process: subprocess.Popen[str]

    def round(self, shape: str) -> tuple[float, workload.Answer]:
        """Run a shape once: its wall seconds and its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(shape + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the engine ended while running `{shape}`; its message is above")
        reply = json.loads(line)
        return reply["seconds"], workload.Answer(**reply["answer"])


@dataclass
class Measured:
    """Seconds of each counted round by (engine, shape)."""

    rows: int
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def rate(self, engine: str, shape: str) -> float:
        """Million rows a second, of the median round."""
        return self.rows / statistics.median(self.seconds[engine, shape]) / 1e6

    def spread(self, engine: str, shape: str) -> float:
        times = self.seconds[engine, shape]
        return (max(times) - min(times)) / statistics.median(times)

    def ratio(self, bar: Bar) -> float | None:
        """What the bar compares, or None when one of its sides was not measured."""
        if any(pair not in self.seconds for pair in [("dataflow", bar.shape), *bar.against]):
            return None
        return self.rate("dataflow", bar.shape) / max(self.rate(*pair) for pair in bar.against)


@contextmanager
def worker(engine: str, folder: Path) -> Iterator[Worker]:
    command = [sys.executable, str(Path(__file__).with_name("engines.py")), engine, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Worker(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def measure(work: Path, rows: int, rounds: int, shapes: Sequence[str]) -> Measured:
    """Run every engine on every shape, round-robin, after one round that is not counted."""
    folder = workload.prepare(work, rows, csv="csv" in shapes, topic="topic" in shapes)
    right = {shape: workload.expected(rows, filtered=shape == "filter", five=shape == "five") for shape in shapes}
    measured = Measured(rows)
    with ExitStack() as stack:
        workers = {engine: stack.enter_context(worker(engine, folder)) for engine in ENGINES}
        for number in range(rounds + 1):
            for shape in shapes:
                for engine in (name for name, known in ENGINES.items() if shape in known):
                    seconds, answer = workers[engine].round(shape)
                    _check(engine, shape, answer, right[shape])
                    if number:
                        measured.seconds.setdefault((engine, shape), []).append(seconds)
    return measured


def _check(engine: str, shape: str, answer: workload.Answer, right: workload.Answer) -> None:
    if engine == "pyarrow":
        right = workload.Answer(0, right.rows, 0.0, 0, 0.0)
    if not answer.agrees_with(right):
        raise SystemExit(f"{engine} gave a wrong answer on `{shape}`: {answer}, expected {right}")


def report(measured: Measured) -> str:
    """The table of rates and the table of bars, in Markdown."""
    lines = [
        "| million rows a second | dataflow | DuckDB | Polars | decoding alone | spread |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for shape, text in SHAPES.items():
        if ("dataflow", shape) in measured.seconds:
            cells = [f"{measured.rate(e, shape):.1f}" if (e, shape) in measured.seconds else "" for e in ENGINES]
            lines.append(f"| {text} | {' | '.join(cells)} | {measured.spread('dataflow', shape):.0%} |")
    lines += ["", "| ratio | measured | bar | aim | |", "|---|---:|---:|---:|---|"]
    for bar in BARS:
        if (ratio := measured.ratio(bar)) is not None:
            aim = "" if bar.aim is None else f"{bar.aim:.2f}"
            lines.append(
                f"| {bar.text} | {ratio:.2f} | {bar.least:.2f} | {aim} | {'ok' if ratio >= bar.least else 'SHORT'} |"
            )
    return "\n".join(lines)


def as_json(measured: Measured) -> str:
    rates = {f"{engine}/{shape}": measured.rate(engine, shape) for engine, shape in measured.seconds}
    seconds = {f"{engine}/{shape}": times for (engine, shape), times in measured.seconds.items()}
    ratios = [
        {"text": bar.text, "ratio": ratio, "least": bar.least, "aim": bar.aim, "ok": ratio >= bar.least}
        for bar in BARS
        if (ratio := measured.ratio(bar)) is not None
    ]
    return json.dumps({"rows": measured.rows, "rates": rates, "seconds": seconds, "ratios": ratios})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="counted rounds; one more warms up")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--work", type=Path, default=workload.default_work(), help="where the data are made and kept")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    measured = measure(arguments.work, arguments.rows, arguments.rounds, arguments.only)
    print(as_json(measured) if arguments.json else report(measured))
    if (spread := max(measured.spread(*pair) for pair in measured.seconds)) > SPREAD_MAX:
        print(f"rounds spread by up to {spread:.0%}: something else was running; measure again", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
