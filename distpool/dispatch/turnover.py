"""Workers that have done their share of tasks: whoever owns them is told, and replaces them.

Used by ``sending`` and ``results``, in any thread, under no lock. A worker is *spent* when it has been sent all the
tasks that it may have: time to prepare another. What it has not begun may still be taken back, and it goes on then. It
is *retired* when it has done them all: it is not in the books any more, and its end is its owner's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable


class Turnover:
    """How many tasks a worker may do, and who is told when it has. Endless until ``begin``."""

    def __init__(self) -> None:
        self.share = math.inf
        self.spent: Callable[[], object] = _nobody
        self.retired: Callable[[int], object] = _nobody

    @property
    def is_on(self) -> bool:
        """True when workers are replaced after a number of tasks."""
        return self.share != math.inf

    def begin(self, share: int, spent: Callable[[], object], retired: Callable[[int], object]) -> None:
        """Give each worker that is added from now on ``share`` tasks.

        ``spent()`` is called when a worker has been sent all of them, ``retired(pid)`` when it has done them and is out
        of the books, on the reading thread. Neither may block.
        """
        self.share, self.spent, self.retired = share, spent, retired


def _nobody(*_: object) -> None:
    """Nobody counts the tasks."""
