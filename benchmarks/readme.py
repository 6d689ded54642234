"""Writes the README's measured parts anew: what the example prints, how it runs, and the table of speeds.

    python benchmarks/readme.py [demo explain speed]

tests/test_examples.py checks `demo` and `explain`; `speed` takes a minute, and nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import tumbling, workload
from benchmarks.lines import ROOT
from dataflow.cli import main as dataflow
from dataflow.cli.program import load_pipeline

README = ROOT / "README.md"
EXAMPLE = "examples/flight_delays.py"
WORKERS = 2
DEMO_ROWS = 12


def demo() -> str:
    """What `make demo` prints of the results."""
    with tempfile.TemporaryDirectory() as store:
        load_pipeline(str(ROOT / EXAMPLE)).run(store=store)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            arguments = [
                "log",
                "cat",
                "hourly_delays",
                "--store",
                store,
                "--format",
                "table",
                "--limit",
                str(DEMO_ROWS),
            ]
            assert dataflow(arguments) == 0
    lines = [line.rstrip() for line in said.getvalue().splitlines()]
    return "```\n" + "\n".join(lines).strip("\n") + "\n```"


def explain() -> str:
    """The stages of the example."""
    text = load_pipeline(str(ROOT / EXAMPLE)).explain(workers=WORKERS)
    return "```\n" + text[text.index("stages (") :].rstrip() + "\n```"


def speed() -> str:
    """The rates and ratios of all shapes."""
    measured = tumbling.measure(workload.default_work(), tumbling.ROWS, tumbling.ROUNDS, list(tumbling.SHAPES))
    return tumbling.report(measured)


PARTS = {"demo": demo, "explain": explain, "speed": speed}


def part_of(text: str, name: str) -> str:
    """What stands between the markers of a part."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    assert found is not None, name
    return found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: demo explain)")
    parts = parser.parse_args().parts or ["demo", "explain"]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    for name in parts:
        made = f"<!-- {name} -->\n{PARTS[name]()}\n<!-- /{name} -->"
        text = README.read_text()
        README.write_text(text.replace(f"<!-- {name} -->\n{part_of(text, name)}\n<!-- /{name} -->", made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
