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
from distpool.light import Protocol
from distpool.peer import Peer
from distpool.wire import Frame

monotonic = time.monotonic


class Slot:
    """One worker, as dispatch sees it."""

    __slots__ = ("in_flight", "is_held", "left", "page", "peer", "pid", "reserved")

    def __init__(self, pid: int, peer: Peer | None, page: memoryview | None, left: float = math.inf) -> None:
        self.pid = pid
        self.peer = peer  # None for this very process
        self.page = page  # where the worker notes what it does
        self.in_flight: deque[Shipment] = deque()
        self.reserved = 0  # envelopes that are being packed for it
        self.is_held = False  # somebody took it out of the pool, and will put it back
        self.left = left  # tasks that it may still be sent before it is replaced

    @property
    def load(self) -> int:
        """Envelopes it has, or is about to get."""
        return len(self.in_flight) + self.reserved


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
        self.heard = monotonic()  # when the last result came
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
