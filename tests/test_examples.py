"""Every example runs as it stands, and prints what the README shows."""

from __future__ import annotations

import csv
import datetime as dt
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import dataflow as flow
from benchmarks import readme
from dataflow.cli.program import load_pipeline
from tests.cli.conftest import environment

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FLIGHTS = ROOT / "examples" / "data" / "flights-2013-01.csv"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands(example: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dataflow", "run", str(example), "--store", str(tmp_path / "store")]
    ran = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_flight_delays_are_what_the_file_says(tmp_path: Path) -> None:
    load_pipeline(str(ROOT / "examples" / "flight_delays.py")).run(store=tmp_path / "store")
    rows = flow.Store(tmp_path / "store").read("hourly_delays").to_pylist()
    got = {(row["origin"], row["window_start"]): row for row in rows}
    expected = delays_by_hour()
    assert got.keys() == expected.keys()
    for group, flights in expected.items():
        row, delays = got[group], [delay for _, delay, _ in flights]
        assert row["flights"] == len(delays)
        assert row["mean_delay"] == pytest.approx(statistics.fmean(delays), rel=1e-12)
        assert row["p95_delay"] == pytest.approx(float(np.quantile(delays, 0.95)), rel=1e-12)
        assert row["worst_carrier"] == max(sorted(flights, key=lambda f: f[0]), key=lambda f: f[1])[2]


@pytest.mark.parametrize("part", ["demo", "explain"])
def test_the_readme_shows_what_the_example_prints(part: str) -> None:
    assert readme.part_of(readme.README.read_text(), part) == readme.PARTS[part]()


def delays_by_hour() -> dict[tuple[str, dt.datetime], list[tuple[dt.datetime, int, str]]]:
    """(departure, delay, carrier) of the flights of each origin and hour, by the standard library alone."""
    groups = defaultdict(list)
    with FLIGHTS.open() as file:
        for row in csv.DictReader(file):
            if row["dep_delay"] != "NA":
                delay = int(row["dep_delay"])
                scheduled = dt.datetime.fromisoformat(row["time_hour"])
                departed = scheduled + dt.timedelta(minutes=int(row["minute"]) + delay)
                hour = departed.replace(minute=0)
                groups[row["origin"], hour].append((departed, delay, row["carrier"]))
    return groups
