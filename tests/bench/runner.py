"""Runs rows: opens all contenders of a row, measures them in turn, takes medians, compares with the goals.

Used by the rows (which describe themselves with the records here) and by the command line. Single-threaded.
A measurement is one number, lower is better. All contenders of a row are open at once and measured A B C A B C, so that
whatever else the machine does meets them alike; each is run once unmeasured before.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial

# Seconds until a row that hangs prints all stacks and ends the run; arbitrary, the slowest takes about 120.
ROW_LIMIT = 300

Measure = Callable[[], float]
OURS = "distpool"


@dataclass(frozen=True)
class Scale:
    """How much to do: full sizes and five rounds, or quick ones that only show that every row works."""

    quick: bool
    workers: int
    rounds: int

    def size(self, full: int, quick: int) -> int:
        """The size for this scale."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Contender:
    """One way to do what the row measures. `opened` yields the measurement, or raises ImportError if there is none."""

    name: str
    opened: Callable[[], AbstractContextManager[Measure]]


@dataclass(frozen=True)
class Goal:
    """The figure of `whose` is at most `at_most` times that of the contender `against`, or at most `at_most` itself."""

    text: str
    at_most: float
    against: str | None = None
    whose: str = OURS


@dataclass(frozen=True)
class Row:
    """One thing to measure. `unit` is "s", "B", or "x" (a ratio). `note` says what is counted."""

    name: str
    title: str
    contenders: Callable[[Scale], Sequence[Contender]]
    unit: str = "s"
    goals: tuple[Goal, ...] = ()
    note: str = ""


@dataclass
class Outcome:
    """What came of a row: samples by contender, in the order measured, and why others have none."""

    row: Row
    load: float
    samples: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float | None:
        """The middle sample of a contender; None if it was not measured."""
        samples = self.samples.get(name)
        return statistics.median(samples) if samples else None

    def reached(self, goal: Goal) -> float | None:
        """The figure in terms of the goal; None if one of the two was not measured."""
        ours = self.median(goal.whose)
        base = 1.0 if goal.against is None else self.median(goal.against)
        return None if ours is None or not base else ours / base


def run(row: Row, scale: Scale) -> Outcome:
    """Measure all contenders of a row. One that fails is reported in the outcome and leaves the others alone."""
    outcome = Outcome(row, os.getloadavg()[0])
    faulthandler.dump_traceback_later(ROW_LIMIT, exit=True)
    try:
        with ExitStack() as stack:
            measures = _opened(row.contenders(scale), stack, outcome)
            for _ in range(scale.rounds):
                for name, measure in list(measures.items()):
                    gc.collect()
                    if not _guarded(name, outcome, partial(_sample, outcome, name, measure)):
                        del measures[name]
    finally:
        faulthandler.cancel_dump_traceback_later()
    return outcome


def _opened(contenders: Sequence[Contender], stack: ExitStack, outcome: Outcome) -> dict[str, Measure]:
    """Open and warm up every contender that there is."""
    measures: dict[str, Measure] = {}

    def admit(contender: Contender) -> None:
        measure = stack.enter_context(contender.opened())
        measure()
        measures[contender.name] = measure

    for contender in contenders:
        try:
            _guarded(contender.name, outcome, partial(admit, contender))
        except ImportError as reason:
            outcome.missing[contender.name] = f"not available: {reason}"
    return measures


def _sample(outcome: Outcome, name: str, measure: Measure) -> None:
    outcome.samples.setdefault(name, []).append(measure())


def _guarded(name: str, outcome: Outcome, deed: Callable[[], None]) -> bool:
    """Run one step of one contender. Must catch everything: the other contenders' figures are still wanted."""
    try:
        deed()
    except ImportError:
        raise
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        outcome.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        outcome.samples.pop(name, None)
        return False
    return True
