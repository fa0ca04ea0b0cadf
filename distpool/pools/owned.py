"""The workers of a pool's own: started, initialised, replaced, ended with the pool.

They live in a cluster of their own, so a library's pool and its user's pool never see each other. One that dies leaves
a vacancy, and so does one that has done its share of tasks (``max_tasks_per_child``); for the latter a spare is made
ready while it does the last ones::

    spent ----> a spare: started, initialised, waits
    retired --> vacancy: filled by a spare, else by a new worker; the old one is asked to end
    died -----> vacancy, likewise
    late -----> of a manager whose workers come when an engine starts them: a place more, or the vacancy that it is for

Workers are started and ended in call threads, because nobody who notices a death may wait. They are local ones, or a
manager's; one that cannot start a worker in another's place leaves the pool smaller.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from distpool.calls import Completion, call_into_future, wrapped
from distpool.cores import usable_cores
from distpool.dispatch import Dispatch
from distpool.errors import CompositeException, LaunchWorkerError, ProcessExitedException
from distpool.interrupts import DeferredInterrupt
from distpool.joining import add_workers
from distpool.leaving import drain, leave, retire_workers
from distpool.light import Any, Final
from distpool.managers.interface import ClusterManager, WorkerConfig
from distpool.managers.local import LocalManager
from distpool.member import Member
from distpool.messages import DRIVER
from distpool.refs import Future
from distpool.tallies import tally
from distpool.transport import Deadline

# A pool gives up when so many workers per process died in a row before they finished anything.
STILLBIRTHS: Final = 3
# No worker is started in another's place while so many per process have not ended yet: what they run at their exit
# may take long. Arbitrary.
ENDING: Final = 4
# A worker whose initializer has failed gets so long to be done with it, before it is asked to end. Arbitrary.
FAREWELL_SECONDS: Final = 2.0


class OwnedWorkers:
    """The workers of a pool's own: started, initialised, replaced, ended."""

    def __init__(
        self,
        member: Member,
        dispatch: Dispatch,
        processes: int | ClusterManager | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        preload: tuple[str, ...],
        max_tasks: int | None,
        replaces: bool,
        options: dict[str, Any],
    ) -> None:
        manager = processes if isinstance(processes, ClusterManager) else None
        wanted = 1 if manager is not None else _checked_number(processes)  # of a manager's as many as come
        if max_tasks is not None:
            _check_share(max_tasks, manager)
            dispatch.turnover.begin(max_tasks, self._fill, self._retired)
        self._member = member
        self._dispatch = dispatch
        self._manager = manager  # None: local ones
        self.wanted = wanted
        self._initializer = initializer
        self._initargs = initargs
        self._preload = preload
        self._replaces = replaces  # a worker that dies; else it takes the pool with it
        self._options = options  # of addprocs
        self._starter: threading.Thread | None = None  # starts the first workers, if nobody waits for them
        self._is_ending = False
        self._has_ended = False  # whoever ended it was not interrupted
        self._lock = threading.Lock()  # protects the fields below
        self._vacancies = 0  # places in the pool without a worker
        self._spares: deque[int] = deque()  # ready, and without a place
        self._starting = 0  # will be spares
        self._ending = 0  # have done their share, and have not ended
        self._is_launching = False  # a thread sees to it that as many start as are missing
        self._is_cut_off = False  # it was ended while its workers were starting
        self._may_prepare = True  # the last one that was started became ready
        self._stillbirths = 0  # workers in a row that died before one was ready
        # Of a manager's workers: in whose places others are to be started, and the last of them.
        self._models: deque[WorkerConfig] = deque()
        self._last_model: WorkerConfig | None = None

    def start(self) -> None:
        """Start all workers and wait until they are ready."""
        try:
            pids, error = self._launch(self.wanted) if self._manager is None else self._launch_by(self._manager)
            if error is not None:
                raise error
            employed = 0
            for pid, failure in self._initialize(pids):
                if failure is not None:
                    # In good order: what the initializer has begun to send somewhere, a log record say, gets there.
                    drain(self._member, [pid], Deadline(FAREWELL_SECONDS))
                    retire_workers(self._member, [pid])
                    raise failure
                employed += self._employ(pid)
            expected = self.wanted if self._manager is None else len(pids)
            if employed < expected:  # some ended when they had just joined
                with self._lock:
                    self._vacancies += expected - employed
                self._fill()
        except BaseException:
            self.end(wait_for_work=False)
            raise

    def start_aside(self) -> None:
        """Have all workers started; what ``start`` would raise every task raises."""
        self._starter = threading.Thread(target=self._start_aside, name="distpool pool start", daemon=True)
        self._starter.start()

    def _start_aside(self) -> None:
        try:
            self.start()
        except BaseException as error:  # reported to everyone whose task waits
            self._dispatch.give_up(error if self._is_cut_off else wrapped(DRIVER, error))

    def _launch(self, count: int) -> tuple[list[int], BaseException | None]:
        """Start local workers; return those that have joined, and why others have not: None if they died after that."""
        return self._add(LocalManager(count, reader=self._member.reader, preload=self._preload), count, {})

    def _launch_by(self, manager: ClusterManager) -> tuple[list[int], BaseException | None]:
        """Have a manager start all its workers; the pool is as large as what has come, and grows when more come."""
        pids, error = self._add(manager, 0, {"on_late": self._grown})
        self.wanted = max(1, len(pids))
        if not pids and error is None and not manager.awaits_more:
            error = LaunchWorkerError(f"{manager!r} has started no worker")
        return pids, error

    def _relaunch(self, manager: ClusterManager) -> tuple[list[int], BaseException | None]:
        """Have a manager start one worker in another's place: it has joined, or is told of when it comes."""
        with self._lock:
            if self._models:
                self._last_model = self._models.popleft()
            model = self._last_model  # again, if the last one could not be replaced
        # For a spare: any of those that live.
        model = model or next(iter(list(self._member.configs.values())), None)
        if model is None:  # it has just gone, and leaves its config to the next call
            return [], LaunchWorkerError("there is no worker any more that a spare could be like")
        return self._add(manager, 1, {"on_late": self._came, "instead_of": model})

    def _add(self, manager: ClusterManager, count: int, how: dict[str, Any]) -> tuple[list[int], BaseException | None]:
        member = self._member
        params = {**manager.default_addprocs_params(), **self._options}
        if self._preload:
            params["preload"] = self._preload
        try:
            pids = add_workers(member, manager, params, params.pop("timeout", None), **how)
            error: BaseException | None = None
        except CompositeException as several:
            number = f"{len(several)} of {count or len(several) + len(several.pids)}"
            error = LaunchWorkerError(f"{number} workers of the pool did not start: {several}")
            error.__cause__ = several
            pids = several.pids
        except Exception as other:
            pids, error = [], other
        tally("workers_started", len(pids))
        if self._is_ending:  # it began before these had joined, and may be why some have not
            leave(member)
            self._is_cut_off = True
            return [], RuntimeError("the pool was closed before this task was done")
        return pids, error

    def _initialize(self, pids: Sequence[int]) -> Iterator[tuple[int, BaseException | None]]:
        """Run the initializer on workers, on all at once; yield with each what it raised there, if it did."""
        begun = [(pid, self._begin_initializing(pid)) for pid in pids]
        for pid, call in begun:
            yield pid, self._failure(*call) if isinstance(call, tuple) else call

    def _begin_initializing(self, pid: int) -> tuple[Future[object], Completion] | BaseException | None:
        if self._initializer is None:
            return None
        completion = Completion()
        try:
            future = call_into_future(self._member, self._initializer, pid, self._initargs, {}, completion)
        except Exception as error:  # it is gone, or what the initializer mentions cannot be pickled any more
            return error
        return future, completion

    def _failure(self, future: Future[object], completion: Completion) -> BaseException | None:
        """Wait for an initializer, which says by itself that it has ended; return what it raised."""
        try:
            self._member.reader.wait(completion, eager=True)
            if completion.has_failed:
                future.wait()
        except BaseException as error:  # the user's code
            return error
        return None

    # -- who has a place -----------------------------------------------------------------------------------------

    def departed(self, pid: int, had_place: bool, error: ProcessExitedException) -> None:
        """One is gone: another is to have its place. Told on the reading thread."""
        if not self._is_ending and (had_place or pid in self._spares):  # else it was to end
            tally("workers_died")
        if not self._replaces and had_place and not self._is_ending:
            self._dispatch.give_up(error)
            self.abandon()
            return
        if self._manager is not None and not self._manager.can_relaunch:
            self._member.reader.run_soon(lambda: self._give_up_if_over(error))
            return
        with self._lock:
            if had_place:
                self._leave_vacancy(pid)
            elif pid in self._spares:
                self._spares.remove(pid)
        self._fill()

    def _retired(self, pid: int) -> None:
        """One has done its share. Told on the reading thread."""
        with self._lock:
            self._leave_vacancy(pid)
            self._ending += 1
        self._fill()
        self._member.threads.run(partial(self._retire, pid))

    def _leave_vacancy(self, pid: int) -> None:
        """Under the lock."""
        self._vacancies += 1
        if self._manager is not None and pid in self._member.configs:
            self._models.append(self._member.configs[pid])

    def _retire(self, pid: int) -> None:
        try:
            retire_workers(self._member, [pid])
        finally:
            with self._lock:
                self._ending -= 1
            self._fill()

    def _employ(self, pid: int) -> bool:
        """Give a worker a place in the pool; False when it is gone."""
        try:
            self._dispatch.add_worker(pid)
        except ProcessExitedException:
            return False
        # It may have gone just before it was entered: then nobody else takes it out again.
        return self._member.cluster.is_member(pid) or not self._dispatch.remove_worker(pid)

    def _fill(self) -> None:
        """Give spares the vacancies, and have started what is missing. Does not block."""
        while not self._is_ending:
            with self._lock:
                if not self._vacancies or not self._spares:
                    break
                pid = self._spares.popleft()
                self._vacancies -= 1
            if self._employ(pid):
                tally("workers_replaced")
            else:
                with self._lock:
                    self._vacancies += 1
        with self._lock:
            if self._is_launching or self._missing() <= 0:
                return
            self._is_launching = True
        self._member.threads.run(self._launch_missing)

    def _missing(self) -> int:
        """How many workers must be started now. Under the lock."""
        if self._is_ending or self._ending >= ENDING * self.wanted:
            return 0
        soon = self._dispatch.count_spent() if self._may_prepare else 0
        return self._vacancies + soon - len(self._spares) - self._starting

    # -- replacements, in call threads ---------------------------------------------------------------------------

    def _launch_missing(self) -> None:
        while True:
            with self._lock:
                count = self._missing()
                if count <= 0:
                    self._is_launching = False
                    return
                self._starting += count
            if self._manager is not None:
                for _ in range(count):
                    self._launch_instead(self._manager)
                continue
            pids, error = self._launch(count)
            if len(pids) < count:
                self._failed(count - len(pids), error or LaunchWorkerError("a worker of the pool died at its start"))
            if self._initializer is None:
                self._place(pids)
            elif pids:  # others need not wait for it
                self._member.threads.run(partial(self._place, pids))

    def _launch_instead(self, manager: ClusterManager) -> None:
        pids, error = self._relaunch(manager)
        if error is not None:
            self._failed(1, error)
        elif pids:  # else it comes later
            self._member.threads.run(partial(self._place, pids))

    def _came(self, pid: int | None, error: BaseException | None) -> None:
        """A worker has come that was started in another's place; or will not come."""
        if pid is None:
            self._failed(1, error or LaunchWorkerError("a worker of the pool did not come"))
        elif not self._is_late():
            self._place([pid])

    def _grown(self, pid: int | None, error: BaseException | None) -> None:
        """One of the manager's first workers has come when the pool was at work already; or will not come."""
        if pid is None:
            self._member.reader.run_soon(lambda: self._give_up_if_over(error or LaunchWorkerError("nobody came")))
        elif not self._is_late():
            with self._lock:
                self.wanted += 1
                self._vacancies += 1
                self._starting += 1
            self._place([pid])

    def _is_late(self) -> bool:
        """Whether the pool ends; then whoever has just come ends, too."""
        tally("workers_started")
        if self._is_ending:
            leave(self._member)
        return self._is_ending

    def _place(self, pids: Sequence[int]) -> None:
        """Make workers that have joined ready."""
        for pid, error in self._initialize(pids):
            if error is not None:
                self._failed(1, error)
                self._member.threads.run(partial(retire_workers, self._member, [pid]))
                continue
            with self._lock:
                self._starting -= 1
                self._stillbirths = 0
                self._may_prepare = True
                self._spares.append(pid)
                if not self._member.cluster.is_member(pid):  # gone before anybody looked for it among the spares
                    self._spares.remove(pid)
            self._fill()

    def _failed(self, count: int, error: BaseException) -> None:
        """Workers did not become ready: try again, else their places are lost, and with the last one the pool."""
        with self._lock:
            self._starting -= count
            self._stillbirths += count
            self._may_prepare = False
            has_died = isinstance(error, (LaunchWorkerError, ProcessExitedException))  # else: its initializer raised
            if not has_died or self._stillbirths >= STILLBIRTHS * self.wanted:
                self._vacancies = max(0, self._vacancies - count)
        # Only the reading thread never sees one that has lost its place in the books and not yet here.
        self._member.reader.run_soon(lambda: self._give_up_if_over(error))
        self._fill()

    def _give_up_if_over(self, error: BaseException) -> None:
        with self._lock:
            may_come = self._vacancies or self._starting or self._spares or self._is_ending
        may_come = may_come or (self._manager is not None and self._manager.awaits_more)
        if not may_come and not self._dispatch.workers():  # reported to everyone whose task waits
            self._dispatch.give_up(wrapped(DRIVER, error))

    # -- the end -------------------------------------------------------------------------------------------------

    def last_resort(self) -> Callable[[], None]:
        """Return what ends the workers when nobody has the pool any more; to be called on the reading thread.

        It has nothing of the pool's work: that keeps errors, with the frames that they came through, and so whatever is
        at hand there, be it the pool itself, or another.
        """
        owned, member, manager = weakref.ref(self), self._member, self._manager

        def end() -> None:
            left = owned()  # workers are just being started, or it would be gone with the pool
            if left is not None:
                left.abandon()
            else:
                member.threads.run(lambda: _end_workers(member, manager, 9))

        return end

    def abandon(self) -> None:
        """Nobody has the pool any more. On the reading thread."""
        if not self._has_ended:
            self._member.threads.run(lambda: self.end(wait_for_work=False))

    def end(self, wait_for_work: bool, signal: int = 9) -> None:
        """End the workers. Harmless to repeat; also after Ctrl-C, which ends the waiting and not what is waited for."""
        member = self._member
        if self._has_ended:
            return
        if wait_for_work:
            self._dispatch.drain()
            self._await_start()  # initializers are work, too
        self._is_ending = True
        try:
            _end_workers(member, self._manager, None if wait_for_work else signal)
        except KeyboardInterrupt:
            with DeferredInterrupt():  # the next one must not come before this
                member.threads.run(lambda: self.end(wait_for_work=False))
            raise
        self._await_start()  # what was just starting is ended there
        self._has_ended = True

    def _await_start(self) -> None:
        starter = self._starter
        # Without an identity it has not begun: Ctrl-C came between.
        if starter is not None and starter.ident is not None and starter is not threading.current_thread():
            starter.join()


def _end_workers(member: Member, manager: ClusterManager | None, signal: int | None) -> None:
    """End every worker of a pool; with a signal at once, whatever it does."""
    if manager is not None:
        manager.close()
    if signal is not None:
        for config in list(member.configs.values()):
            if config.process is not None:
                config.process.send_signal(signal)
    leave(member)


def _checked_number(processes: object) -> int:
    wanted = usable_cores() if processes is None else processes
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise TypeError(f"processes={processes!r}: a number of workers, or None for as many as there are cores")
    if wanted < 1:
        raise ValueError(f"processes={processes}: a pool needs at least one worker")
    return wanted


def _check_share(max_tasks: int, manager: ClusterManager | None) -> None:
    if manager is not None and not manager.can_relaunch:
        raise ValueError(
            f"max_tasks_per_child={max_tasks!r}: {manager!r} cannot start a worker in another's place; give it a "
            "relaunch() method, or leave the option out"
        )
    if isinstance(max_tasks, bool) or not isinstance(max_tasks, int):
        raise TypeError(f"max_tasks_per_child={max_tasks!r}: a number of tasks from 1 on, or None for no limit")
    if max_tasks < 1:
        raise ValueError(f"max_tasks_per_child={max_tasks}: a worker does at least one task, or None for no limit")
