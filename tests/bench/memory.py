"""The row about the memory of an idle worker. Every sample is a fresh interpreter (`probe.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.fresh import contenders
from tests.bench.peers import RUN_EACH
from tests.bench.runner import Contender, Goal, Row, Scale


def _idle(scale: Scale) -> Sequence[Contender]:
    import psutil  # noqa: F401  # without it the row is not available, said here rather than by a failing probe

    return contenders("memory", list(RUN_EACH), scale.workers)


ROWS = [
    Row(
        "idle-worker",
        "memory of an idle worker",
        _idle,
        "B",
        (Goal("below 5 MB of its own", 5e6),),
        "Unique set size (USS), the middle worker, after its first call; the driver has imported nothing else. "
        "Forked peers share what the driver had.",
    ),
]
