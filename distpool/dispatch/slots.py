"""What a worker has in flight: its slot, and the shipments in it.

Used by every room of dispatch. Records only: ``ledger`` owns them, and its lock protects their fields, but for those
of a shipment that the reading thread alone uses.
"""

from __future__ import annotations

import math
import time
from collections import deque

from distpool.envelopes import PAGE_ENVELOPE, PAGE_NOTES, PAGE_SINCE, PAGE_STARTED
from distpool.jobs import Job, Run
from distpool.light import Final, Protocol
from distpool.peer import Peer
from distpool.wire import Frame

monotonic = time.monotonic

# The way to a worker on another machine takes no longer; what is measured beyond that is something else. Arbitrary.
MOST_LAG_SECONDS: Final = 1.0
# What a time limit allows for the way there and back as long as nobody knows it: to the other side of the world.
UNKNOWN_LAG_SECONDS: Final = 0.25


class Slot:
    """One worker, as dispatch sees it."""

    __slots__ = ("heard", "in_flight", "is_held", "lag", "left", "page", "peer", "pid", "reserved")

    def __init__(self, pid: int, peer: Peer | None, page: memoryview | None, left: float = math.inf) -> None:
        self.pid = pid
        self.peer = peer  # None for this very process
        self.page = page  # where the worker notes what it does
        self.in_flight: deque[Shipment] = deque()
        self.reserved = 0  # envelopes that are being packed for it
        self.is_held = False  # somebody took it out of the pool, and will put it back
        self.left = left  # tasks that it may still be sent before it is replaced
        # Seconds for the way there and back, as measured lately; only of workers without a page, which may be far away.
        self.lag: float | None = None
        self.heard = 0.0  # when the last result came from it

    @property
    def load(self) -> int:
        """Envelopes it has, or is about to get."""
        return len(self.in_flight) + self.reserved

    def measure(self, shipment: Shipment, seconds: float) -> None:
        """The first results of an envelope have come, of tasks that took so long. On the reading thread."""
        if self.page is not None or self.peer is None or shipment.job.cost is None:  # the first may have loaded much
            return
        lag = min(max(0.0, monotonic() - shipment.heard - seconds), MOST_LAG_SECONDS)
        if self.lag is None or lag < self.lag:  # if others were before it, it is less than that
            self.lag = lag
        elif shipment.is_alone:
            self.lag += (lag - self.lag) / 8


class Receiver(Protocol):
    """Who is told what becomes of a shipment: ``results``."""

    def arrived(self, shipment: Shipment, frame: Frame) -> None:
        """Results have come."""

    def lost(self, shipment: Shipment, error: BaseException) -> None:
        """Its worker is gone."""


class Shipment:
    """An envelope in flight: which tasks a worker has, and how many of their results have come."""

    __slots__ = (
        "count",
        "done",
        "heard",
        "is_alone",
        "is_dropped",
        "is_recalled",
        "job",
        "late",
        "receiver",
        "request",
        "run",
        "slot",
    )

    def __init__(self, receiver: Receiver, job: Job, slot: Slot, run: Run) -> None:
        self.receiver = receiver
        self.job = job
        self.slot = slot
        self.run = run
        self.request = 0
        self.count = len(run.items)  # less after a part was taken back
        self.done = 0
        self.heard = monotonic()  # when the last result came, or it was sent
        self.is_alone = not slot.in_flight  # its worker had nothing else to do when it was sent
        self.is_recalled = False  # a part is being taken back
        self.is_dropped = False  # nobody wants its results
        self.late: int | None = None  # the task whose time was up

    @property
    def waiting(self) -> int:
        """How many tasks have not begun, as far as we know: all but the one that the worker is in."""
        is_next = self.slot.in_flight[0] is self  # else it waits behind another envelope, perhaps for long
        return self.count - self.done - is_next

    def arrived(self, frame: Frame) -> None:
        """Results of some of its tasks. On the reading thread."""
        self.receiver.arrived(self, frame)

    def lost(self, error: BaseException) -> None:
        """Its worker is gone. On the reading thread."""
        self.receiver.lost(self, error)

    def started(self) -> tuple[int, float] | None:
        """Return how many tasks have begun and when the last did (monotonic seconds); None when none has.

        The time is 0.0 when all have ended and their results are on their way.
        """
        page = self.slot.page
        if page is None:
            return None
        for notes in (0, PAGE_NOTES):
            if page[notes + PAGE_ENVELOPE] == self.request:
                return page[notes + PAGE_STARTED], page[notes + PAGE_SINCE] / 1e9
        return None
