"""Outcomes as text for the terminal, as Markdown for `docs/benchmarks.md`, and as plain data for `--json`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence

from tests.bench.runner import OURS, Goal, Outcome, Scale

SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def figure(value: float | None, unit: str) -> str:
    """A number with three digits and a unit that suits its size."""
    if value is None:
        return "–"
    if unit == "x":
        return f"{value:.3f} ×"
    scales = SECONDS if unit == "s" else BYTES
    size, name = next((scale for scale in scales if abs(value) >= scale[0]), scales[-1])
    return f"{value / size:.3g} {name}" if abs(value / size) < 1000 else f"{value / size:.0f} {name}"


def verdict(outcome: Outcome, goal: Goal) -> tuple[str, str]:
    """What was reached, and "met", "missed" or "–" where nothing was measured."""
    reached = outcome.reached(goal)
    if reached is None:
        return "–", "–"
    measured = figure(reached, outcome.row.unit) if goal.against is None else f"{reached:.3g} × {goal.against}"
    return measured, "met" if reached <= goal.at_most else "missed"


def machine(scale: Scale) -> str:
    """Where and how the figures were taken."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    system = f"Python {platform.python_version()} on {platform.system()} {platform.release()}, {os.cpu_count()} CPUs"
    kind = "quick sizes, " if scale.quick else ""
    return f"{system}, load average {load}; {kind}{scale.workers} workers, median of {scale.rounds}"


def text(outcome: Outcome) -> str:
    """One outcome for the terminal."""
    row = outcome.row
    lines = [f"{row.name}: {row.title}   (load {outcome.load:.2f})"]
    lines += [f"  {name:<32}{'  '.join(f'{cell:>9}' for cell in cells)}" for name, *cells in _cells(outcome)]
    lines += [f"  {name:<32}{reason}" for name, reason in (outcome.missing | outcome.failed).items()]
    for goal in row.goals:
        lines.append("  goal: {}: {}, {}".format(goal.text, *verdict(outcome, goal)))
    return "\n".join(lines)


def _cells(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    """Contender, median, least, most, and the median in terms of ours."""
    ours = outcome.median(OURS)
    for name, samples in outcome.samples.items():
        middle = outcome.median(name)
        # Beside figures below zero (less time than the lost work) a ratio would say nothing.
        ratio = f"{middle / ours:.2f} ×" if middle and ours and ours > 0 and name != OURS else ""
        yield name, *(figure(value, outcome.row.unit) for value in (middle, min(samples), max(samples))), ratio


def markdown(outcomes: Sequence[Outcome], scale: Scale, date: str) -> str:
    """The whole page."""
    return "\n".join(_page(outcomes, scale, date)) + "\n"


HEAD = """# Benchmarks

Written by `python -m tests.bench --markdown docs/benchmarks.md`. Every figure stands beside its peers and its raw
limit, all measured in one run, in turn (A B C A B C); read the ratios, not the seconds. *Raw* is the same work by
hand: two Python processes on a socket pair, or one `memcpy`. Lower is better everywhere. A missed goal is a shortfall
to work on, not a failure of the run.
"""


def _page(outcomes: Sequence[Outcome], scale: Scale, date: str) -> Iterator[str]:
    yield HEAD
    yield f"{date}. {machine(scale)}.\n"
    yield "## Goals\n"
    yield from _grid(("what", "distpool", "goal", "reached", ""), _goal_rows(outcomes))
    yield "\n## All figures\n"
    for outcome in outcomes:
        yield f"### {outcome.row.name}: {outcome.row.title}\n"
        yield f"{outcome.row.note} Load average {outcome.load:.1f}.\n".lstrip()
        header = ("contender", "median", "least", "most", "in terms of ours")
        absent = [(name, reason, "", "", "") for name, reason in (outcome.missing | outcome.failed).items()]
        yield from _grid(header, [*_cells(outcome), *absent])
        yield ""


def _goal_rows(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, ...]]:
    for outcome in outcomes:
        for goal in outcome.row.goals:
            ours = figure(outcome.median(goal.whose), outcome.row.unit)
            yield outcome.row.title, ours, goal.text, *verdict(outcome, goal)


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def plain(outcomes: Sequence[Outcome], scale: Scale, date: str) -> dict[str, object]:
    """Everything, with all samples, for programs."""
    return {
        "date": date,
        "machine": machine(scale),
        "rows": [
            {
                "name": outcome.row.name,
                "title": outcome.row.title,
                "unit": outcome.row.unit,
                "load": outcome.load,
                "samples": outcome.samples,
                "missing": outcome.missing,
                "failed": outcome.failed,
                "goals": [(goal.text, *verdict(outcome, goal)) for goal in outcome.row.goals],
            }
            for outcome in outcomes
        ],
    }
