"""Tasks that take too long, or that shall stop: interrupted first, then killed with their worker.

Used by ``sending`` (each shipment of a job with a time limit) and ``front``. Timers, so it runs on the reading thread.
"""

from __future__ import annotations

import time

from distpool import messages as m
from distpool.dispatch.slots import UNKNOWN_LAG_SECONDS, Shipment
from distpool.jobs import Job
from distpool.light import Final
from distpool.member import Member

monotonic = time.monotonic

# A task that was interrupted because its time was up has this long to end before its worker is killed.
GRACE_SECONDS: Final = 1.0


class Limits:
    """Stops what takes too long."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def watch(self, shipment: Shipment, seconds: float) -> None:
        """Look in ``seconds`` whether a task of the shipment has used up its time."""
        self._member.reader.call_later(seconds, lambda: self._check(shipment))

    def _check(self, shipment: Shipment) -> None:
        timeout = shipment.job.timeout
        if timeout is None or shipment not in shipment.slot.in_flight or shipment.slot.peer is None:
            return
        started = shipment.started()
        left = timeout
        if started is not None and started[1]:
            left = started[1] + timeout - monotonic()
        elif shipment.slot.page is None and shipment.slot.in_flight[0] is shipment:  # else it waits behind another
            left = _begun(shipment) + timeout - monotonic()
        if left > 0:
            self.watch(shipment, left)
            return
        shipment.late = started[0] - 1 if started is not None else shipment.done
        self.stop(shipment, shipment.late)
        self.watch(shipment, timeout)

    def stop(self, shipment: Shipment, index: int | None) -> None:
        """Interrupt one task of a shipment, None: whichever runs; kill the worker if that does not end it."""
        if shipment.slot.peer is None:  # this very process: nothing can end its threads
            return
        shipment.slot.peer.send(m.INTERRUPT, ref=shipment.request, whence=0 if index is None else index + 1)
        self._member.reader.call_later(GRACE_SECONDS, lambda: self._kill_if_stuck(shipment, index))

    def _kill_if_stuck(self, shipment: Shipment, index: int | None) -> None:
        if shipment not in shipment.slot.in_flight or (index is not None and shipment.done > index):
            return
        started = shipment.started()
        if started is None and shipment.slot.page is not None:
            return  # the worker is in a task of somebody else
        is_stuck = started is None or (started[1] > 0 and index in (None, started[0] - 1))
        config, peer = self._member.configs.get(shipment.slot.pid), shipment.slot.peer
        if not is_stuck:
            return
        if config is not None and config.process is not None:
            config.process.send_signal(9)
        elif peer is not None:  # somebody else has started it: what can be done from here is to work without it
            self._member.roll.give_up(peer, "it was stuck, and its connection was closed", was_asked=False)


def _begun(shipment: Shipment) -> float:
    """When the task that a worker without a page is in has begun, at the latest."""
    slot = shipment.slot
    lag = UNKNOWN_LAG_SECONDS if slot.lag is None else slot.lag
    return max(shipment.heard, slot.heard) + lag


def too_late(job: Job) -> TimeoutError:
    """What becomes of a task whose time was up."""
    return TimeoutError(f"a task of {job.name} took longer than {job.timeout} seconds and was stopped")
