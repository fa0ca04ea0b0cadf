"""The command: ``python -m tests.bench [--quick] [NAME ...] [--markdown FILE] [--json FILE]``.

Names select rows by their beginning; none selects all. No row fails on a time: the exit code is 1 only if something
raised.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tests.bench import arrays, calls, channels, deaths, memory, schedule, startup, table, tcp, throughput
from tests.bench.runner import Outcome, Row, Scale, run

ROWS: list[Row] = [
    row for room in (calls, channels, throughput, schedule, arrays, tcp, startup, memory, deaths) for row in room.ROWS
]


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure distpool beside its peers.")
    parser.add_argument("names", nargs="*", help="rows to run, by the beginning of their names (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, three rounds: does every row work?")
    parser.add_argument("--rounds", type=int, help="samples per contender (default 5, quick 3)")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples here")
    return parser.parse_args(words)


def _chosen(names: Sequence[str]) -> list[Row]:
    unknown = [name for name in names if not any(row.name.startswith(name) for row in ROWS)]
    if unknown:
        raise SystemExit(f"no row begins with {', '.join(unknown)}; there are {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if not names or row.name.startswith(tuple(names))]


def main(words: Sequence[str] | None = None) -> int:
    """Run the chosen rows, print each as it is done, write the files asked for."""
    arguments = _arguments(words)
    rows = _chosen(arguments.names)
    if arguments.list:
        print("\n".join(f"{row.name:<20}{row.title}" for row in rows))
        return 0
    # Forked peers beside threads: Python 3.12 and later warn at every fork. It is their way to start, not ours to mend.
    warnings.simplefilter("ignore", DeprecationWarning)
    workers = max(2, min(4, os.cpu_count() or 1))
    scale = Scale(arguments.quick, workers, arguments.rounds or (3 if arguments.quick else 5))
    print(table.machine(scale), end="\n\n", flush=True)
    outcomes: list[Outcome] = []
    for row in rows:
        outcomes.append(run(row, scale))
        print(table.text(outcomes[-1]), end="\n\n", flush=True)
    date = datetime.date.today().isoformat()
    if arguments.markdown:
        arguments.markdown.write_text(table.markdown(outcomes, scale, date), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(table.plain(outcomes, scale, date), indent=1), encoding="utf-8")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
