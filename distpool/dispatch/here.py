"""This process as a worker of the pool: nothing is pickled, errors are bare.

Used by ``sending`` for the slot without a peer. Runs in call threads.
"""

from __future__ import annotations

import time

from distpool.dispatch.holding import Holding
from distpool.dispatch.judging import Judging
from distpool.dispatch.ledger import Ledger
from distpool.dispatch.slots import Shipment
from distpool.envelopes import CALL, ONE
from distpool.futures import Raised
from distpool.jobs import Job
from distpool.light import Any
from distpool.pickling import load

monotonic = time.monotonic


class Here:
    """Runs shipments in this process."""

    def __init__(self, ledger: Ledger, holding: Holding, judging: Judging) -> None:
        self._ledger = ledger
        self._holding = holding
        self._judging = judging

    def run(self, shipment: Shipment) -> None:
        """Run its tasks one after the other."""
        job, run = shipment.job, shipment.run
        for index, item in enumerate(run.items):
            if shipment.is_dropped:
                break
            begun = monotonic()
            try:
                result: list[Any] = [_call(job, item)]
            except BaseException as error:  # the user's code
                self._judging.failed(job, run, index, Raised(error))
            else:
                job.settle(run, run.first + index, result)
            job.learn(1, monotonic() - begun)
        self._ledger.unbook(shipment)
        self._holding.capacity_came()


def _call(job: Job, item: Any) -> Any:
    f = load(job.function.body) if job.f is None else job.f
    if job.how == ONE:
        return f(item)
    if job.how == CALL:
        args, kwargs = load(item[0].body, item[0].buffers)
        return f(*args, **kwargs)
    return f(*item)
