"""What a pool offers to those who build on it: calls whose outcomes go where they say, maps as streams that have begun.

Used by the drop-ins (``distpool.compat``), which have futures and iterators of their own to fill. Nothing here makes a
thread wait for another: an outcome goes to its promise on the thread that reads it, and who waits for a promise reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

from distpool.light import TYPE_CHECKING, Any, Final, later
from distpool.pools.abstract import AbstractWorkerPool
from distpool.waiting import Deadline

if TYPE_CHECKING:
    from distpool import pickling, turns
    from distpool.dispatch import Dispatch
    from distpool.futures import Promise
    from distpool.jobs import StreamJob
    from distpool.member import Member
    from distpool.pools.making import Making
    from distpool.turns import InTurn
    from distpool.waiting import Waiter
else:
    pickling, turns = later("distpool.pickling"), later("distpool.turns")

# How long a worker has to say whether it gives a call back; only one that cannot needs so long. Arbitrary.
ANSWER_SECONDS: Final = 1.0


class ResultStream:
    """The results of a map that has begun: it goes on whether or not anybody takes them. Made by ``pool.stream``.

    One thread at a time takes results.
    """

    def __init__(self, dispatch: Dispatch, member: Member, job: StreamJob) -> None:
        self._dispatch = dispatch
        self._member = member
        self._job = job
        dispatch.start(job)
        dispatch.pump(job)
        member.reader.expect()

    def outcomes(self, timeout: float | None = None) -> Iterator[Any]:
        """Iterate over what becomes of the tasks, in order: values, and an ``Outcome`` for each that is not plain.

        Whoever asks such an outcome (``value()``) has it opened: it returns or raises. The iterator goes on after
        failures. Raises TimeoutError when the next one is not there ``timeout`` seconds after this call (the iterator
        is spent then, the stream is not), and at the end what the input raised.
        """
        return self._each(self._job.take, None if timeout is None else Deadline(timeout))

    def chunks(self, timeout: float | None = None) -> Iterator[list[Any]]:
        """Iterate over lists of what became of tasks that follow one another, as it came: much faster, item by item.

        In one list all are values, or all are ``Outcome`` objects. As ``outcomes`` otherwise; use one of the two.
        """
        return self._each(self._job.take_several, None if timeout is None else Deadline(timeout))

    def _each(self, take: Callable[[], Any], deadline: Deadline | None) -> Iterator[Any]:
        job, pump = self._job, self._dispatch.pump
        while True:
            job.waiter.done = False  # before looking, so that what comes meanwhile is not overlooked
            try:
                taken = [take()]  # in a list, for a generator keeps its variables: users may want to free it
            except IndexError:
                taken = []
            if not taken:  # not in the handler: Ctrl-C would come as something that happened while handling that
                if job.is_finished:
                    break
                if not self._dispatch.await_result(job, deadline):
                    raise TimeoutError(f"{job.name}: the next result is not there, and the time is up")
                continue
            if job.is_hungry:
                pump(job)
            yield taken.pop()
        if job.input_error is not None:
            raise job.input_error

    @property
    def is_finished(self) -> bool:
        """True when all tasks are done, whether or not their results were taken."""
        return self._job.is_done

    @property
    def input_error(self) -> BaseException | None:
        """What the input has raised, if it has."""
        return self._job.input_error

    def stop(self, error: BaseException) -> None:
        """Read no more input; what has been sent to workers is done, and after that ``outcomes`` raises ``error``."""
        self._job.stop_reading(error)
        self._job.demand()

    def hurry(self) -> None:
        """Read all input, however far ahead of who takes results."""
        self._job.hurry()
        self._job.demand()

    def close(self, interrupt: bool = False) -> None:
        """Drop the results and whatever has not begun; with ``interrupt`` also stop what runs. Harmless to repeat."""
        self._dispatch.drop(self._job, interrupt)

    def keep(self, thing: object) -> None:
        """Keep something alive until the tasks are done and nobody will take their results any more."""
        self._job.kept = thing

    def forsake(self) -> None:
        """Do all tasks, but keep no more results. Takes no lock: finalisers may call it, in any thread."""
        job, member = self._job, self._member
        member.reader.run_soon(lambda: member.threads.run(lambda: self._dispatch.forsake(job)))


class Promising(AbstractWorkerPool):
    """The part of ``WorkerPool`` that others build on."""

    _member: Member
    _dispatch: Dispatch
    _making: Making

    def submit_into(self, promise: Promise, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Run ``f(*args, **kwargs)`` on the first worker that is free; its outcome goes to ``promise``.

        As ``submit``, for those who have futures of their own: nothing lies between the message from the worker and
        ``promise.resolve``. Plain values (builtins, standard library, arrays) come opened; all others as ``Outcome``
        objects, which run the code of strangers when they are asked, so ``resolve`` must not ask.

        Arguments are pickled now. Raises TypeError, naming the part, when they cannot be.
        """
        self._send(promise, f, args, kwargs)

    def _send(self, promise: Promise, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._check_open()
        job = self._making.call_job(f)
        job.waiting.append((pickling.dump_arguments(args, kwargs), promise))
        if not job.is_listed or self._dispatch.broken is not None:  # it was just given up in favour of others
            self._dispatch.start(job)
        self._dispatch.pump(job)
        self._member.reader.expect()

    def wait_for(self, waiter: Waiter, timeout: float | None = None, *, eager: bool = False) -> bool:
        """Wait until somebody calls ``waiter.complete()``, at most ``timeout`` seconds; return whether somebody did.

        The thread that waits reads for everybody meanwhile, so it is not woken by another one when ``complete`` is
        called from a promise's ``resolve``. A waiter serves one wait of one thread. ``eager`` says that it may be a
        matter of microseconds: the thread looks some 100 of them before it sleeps, as long as that pays off.
        """
        return self._member.reader.wait(waiter, None if timeout is None else Deadline(timeout), eager=eager)

    def attend(self) -> None:
        """Somebody waits for an outcome, and not in ``wait_for``: let it be read without delay. Does not block."""
        self._member.reader.nudge()

    def run_aside(self, job: Callable[[], object]) -> None:
        """Run ``job()`` in a thread kept for such jobs, at once; what ``resolve`` must not do itself."""
        self._member.threads.run(job)

    def in_turn(self) -> InTurn:
        """Return what makes calls one after the other in such a thread: callbacks of those who use the pool."""
        return turns.InTurn(self._member.threads.run, self._member.reader.call_later)

    def recall(self, promise: Promise) -> None:
        """Ask the worker that a call was sent to whether it gives the call back; wait for its answer.

        It does unless it has begun the call, and says so within a millisecond even while it is busy: then
        ``promise.come_back`` has been called, and after that ``leave``, if another worker had room for it. Waits a
        second at most: C code that holds the interpreter keeps a worker from answering.
        """
        self._dispatch.recall(promise, Deadline(ANSWER_SECONDS))

    def stop_call(self, promise: Promise) -> None:
        """Interrupt a call that runs; its worker is killed and replaced when that does not end it within a second.

        Of no effect on a call that has not been sent to a worker: for these, ``promise.leave`` returns False.
        """
        shipment = self._dispatch.find(promise)
        if shipment is not None:
            self._dispatch.stop(shipment, next(i for i, item in enumerate(shipment.run.items) if item[1] is promise))

    def sweep(self) -> None:
        """Take back calls that workers have and have not begun, and forget those whose promises are ``cancelled()``."""
        self._dispatch.sweep()

    def stream(
        self,
        f: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        star: bool = False,
        ordered: bool = True,
        buffersize: int | str | None = None,
        aside: bool = False,
        **options: Any,
    ) -> ResultStream:
        """Begin ``map(f, *iterables)`` now; the results are taken from what is returned, in input order if ``ordered``.

        At most ``buffersize`` tasks are read ahead of who takes results (None: all, as fast as workers want them;
        "auto": a few envelopes for each worker). The input is read in this thread, in those that take results, and in
        call threads; ``aside``: in a thread for nothing else, so that it may wait for whatever the results bring about.
        With ``star`` each item is a tuple of arguments. Options as for ``map``.
        """
        self._check_open()
        ahead = sys.maxsize if buffersize is None else None if isinstance(buffersize, str) else buffersize
        return ResultStream(
            self._dispatch, self._member, self._stream_job(f, iterables, ordered, ahead, options, star, aside)
        )

    def _stream_job(
        self,
        f: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        is_ordered: bool,
        buffer_size: int | None,
        options: dict[str, Any],
        star: bool = False,
        aside: bool = False,
    ) -> StreamJob:
        return self._making.stream_job(
            f,
            iterables,
            options,
            is_ordered=is_ordered,
            buffer_size=buffer_size,
            workers=self._width(),
            keeps=self,
            star=star,
            aside=self._member.threads.run if aside else None,
        )

    def map_into(
        self, promise: Promise, f: Callable[..., Any], iterable: Iterable[Any], /, *, star: bool = False, **options: Any
    ) -> Callable[[], int]:
        """Do ``map(f, iterable, fail_fast=False)`` in the background; its outcome, a list, goes to ``promise``.

        Maps are taken up in the order in which they came, when workers have nothing of earlier ones to begin; the input
        is read in this thread and in call threads. Only ``promise.resolve`` is called, and that with an ``Outcome``:
        the results are opened and put together by whoever asks it. With ``star`` each item is a tuple of arguments.
        Options as for ``map``. Returns what tells how many tasks are done.
        """
        self._check_open()
        job = self._making.promised_map(promise, f, iterable, star, options)
        self._dispatch.run_aside(job)
        self._member.reader.expect()
        return lambda: job.settled

    @property
    def broken(self) -> BaseException | None:
        """Why the pool will never have a worker again: every task fails with this. None as long as it may have."""
        return self._dispatch.broken

    def _check_open(self) -> None:
        raise NotImplementedError

    def _width(self) -> int:
        """How many workers there are, or shall be."""
        raise NotImplementedError
