"""Work for whoever has room: jobs are asked for more, else what another worker has not started is taken back.

Used by all rooms below it, in any thread. Owns: whether a look at silent workers is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from distpool import messages as m
from distpool.dispatch.ledger import Ledger
from distpool.dispatch.slots import Shipment
from distpool.jobs import Run
from distpool.light import Final
from distpool.transport import Reader
from distpool.wire import Frame

monotonic = time.monotonic

# An envelope that has been silent for so long is stuck in a task that takes longer than expected.
SILENCE_SECONDS: Final = 0.005
# Jobs that are told that there is room; all others are, too, if a worker has nothing to do after that. There may be
# thousands, with a call each: those are the single calls of functions that mention large globals. Arbitrary.
FEW_JOBS: Final = 16
# Taking back less work than this costs more than it brings.
WORTH_SECONDS: Final = 0.001

_NOTHING_LEFT: Final = 2**64 - 1  # a worker's answer to TAKE_BACK of an envelope it does not have


class Sharing:
    """Sees that no worker is idle while another has tasks that it has not begun."""

    def __init__(self, ledger: Ledger, reader: Reader) -> None:
        self._ledger = ledger
        self._reader = reader
        self._checks_silence = False  # a look is due; two of them, by threads at the same moment, do no harm

    def feed(self) -> None:
        """There is room at some worker: tell the jobs that have tasks."""
        jobs = self._ledger.hungry_jobs(FEW_JOBS)
        for job in jobs:
            job.demand()
        if not jobs:
            self.balance()
        elif len(jobs) == FEW_JOBS and self._ledger.is_idle():  # those were not enough
            for job in self._ledger.hungry_jobs():
                job.demand()

    def balance(self) -> None:
        """Perhaps a worker is idle and no job has more: take from another one what it has not started."""
        may_choose_later, chosen = self._ledger.mark_recalls(_worth_taking)
        for shipment, keep in chosen:
            self.recall(shipment, keep)
        if may_choose_later and not chosen:
            self._look_later()

    def _look_later(self) -> None:
        if not self._checks_silence:
            self._checks_silence = True
            self._reader.call_later(SILENCE_SECONDS, self._check_silence)

    def _check_silence(self) -> None:
        self._checks_silence = False
        self.balance()

    def recall(self, shipment: Shipment, keep: int, then: Callable[[], object] | None = None) -> None:
        """Ask a worker for the tasks of an envelope that have not started, but for ``keep`` of them.

        ``then`` is called when it has answered, and what it gave up is back, or when it is gone.
        """
        peer = shipment.slot.peer
        assert peer is not None
        request = peer.next_request()
        recall = _Recall(self, shipment, then)
        peer.pending[request] = recall
        sent = peer.send(m.TAKE_BACK, request=request, whence=keep, ref=shipment.request)
        if not sent and peer.pending.pop(request, None) is not None:
            recall.end()

    def taken_back(self, shipment: Shipment, count: int) -> None:
        """A worker has given tasks up: the envelope ends after ``count`` of them. On the reading thread."""
        job, run = shipment.job, shipment.run
        back = self._ledger.cut(shipment, None if count == _NOTHING_LEFT else count)
        if not back:
            # The worker had begun more than we knew. What it has kept may wait behind a task that never ends, and so
            # may its other envelopes, while the worker that this was for is idle: nothing else makes us look again.
            self._look_later()
            return
        # In pieces, one for each worker that has nothing to do.
        size = max(1, -(-len(back) // max(1, len(self._ledger))))
        for start in range(0, len(back), size):
            job.put_back(Run(run.first + count + start, back[start : start + size], run.attempt))
        self.feed()


class _Recall:
    """A TAKE_BACK that waits for its answer."""

    __slots__ = ("_sharing", "_shipment", "_then")

    def __init__(self, sharing: Sharing, shipment: Shipment, then: Callable[[], object] | None) -> None:
        self._sharing = sharing
        self._shipment = shipment
        self._then = then

    def arrived(self, frame: Frame) -> None:
        self._sharing.taken_back(self._shipment, frame.whence)
        self.end()

    def lost(self, error: BaseException) -> None:
        """The shipment itself is told, too."""
        self.end()

    def end(self) -> None:
        """Tell who asked."""
        if self._then is not None:
            self._then()


def _worth_taking(candidates: Iterable[Shipment], idle: int) -> list[tuple[Shipment, int]]:
    """Choose envelopes to take from, at most one per idle worker, and how many unstarted tasks each may keep."""
    now = monotonic()
    chosen: list[tuple[float, Shipment, int]] = []
    for shipment in candidates:
        waiting = shipment.waiting
        work = waiting * (shipment.job.cost or 0.0)
        is_silent = now - shipment.heard > SILENCE_SECONDS + (shipment.slot.lag or 0.0)
        if is_silent:
            chosen.append((work + 1.0, shipment, 0))  # stuck in a long task: it keeps nothing
        elif work > WORTH_SECONDS:
            chosen.append((work, shipment, waiting // 2))
    chosen.sort(key=lambda choice: choice[0], reverse=True)
    return [(shipment, keep) for _, shipment, keep in chosen[:idle]]
