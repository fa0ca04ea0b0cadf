"""The workers of a pool's own: started, initialised, replaced when they die, ended with the pool.

They live in a cluster of their own, so a library's pool and its user's pool never see each other. Replacements are
started in a call thread, because nobody who notices a death may wait.
"""

from __future__ import annotations

from collections.abc import Callable

from distpool.calls import call_into_future, wrapped
from distpool.cores import usable_cores
from distpool.dispatch import Dispatch
from distpool.errors import CompositeException, LaunchWorkerError, ProcessExitedException
from distpool.joining import add_workers
from distpool.leaving import leave
from distpool.light import Any, Final
from distpool.managers.local import LocalManager
from distpool.member import Member
from distpool.messages import DRIVER

# A pool gives up when so many workers per process died in a row before they finished anything.
STILLBIRTHS: Final = 3


class OwnedWorkers:
    """The workers of a pool's own: started, initialised, replaced, ended."""

    def __init__(
        self,
        member: Member,
        dispatch: Dispatch,
        processes: int | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        preload: tuple[str, ...],
        options: dict[str, Any],
    ) -> None:
        wanted = usable_cores() if processes is None else processes
        if isinstance(wanted, bool) or not isinstance(wanted, int):
            raise TypeError(f"processes={processes!r}: a number of workers, or None for as many as there are cores")
        if wanted < 1:
            raise ValueError(f"processes={processes}: a pool needs at least one worker")
        self._member = member
        self._dispatch = dispatch
        self._wanted = wanted
        self._initializer = initializer
        self._initargs = initargs
        self._preload = preload
        self._options = options  # of addprocs
        self._is_ending = False
        self._stillbirths = 0  # workers in a row that died before one was ready

    def start(self) -> None:
        """Start all workers and wait until they are ready."""
        try:
            self._add(self._wanted)
        except BaseException:
            self.end(wait_for_work=False)
            raise

    def _add(self, count: int) -> None:
        member = self._member
        manager = LocalManager(count, reader=member.reader, preload=self._preload)
        try:
            pids = add_workers(member, manager, {**manager.default_addprocs_params(), **self._options})
        except CompositeException as error:
            raise LaunchWorkerError(f"{len(error)} of {count} workers of the pool did not start: {error}") from error
        if self._is_ending:  # it began before these had joined
            leave(member)
            return
        if self._initializer is not None:
            self._initialize(pids)
        for pid in pids:
            if member.cluster.is_member(pid):
                self._dispatch.add_worker(pid)

    def _initialize(self, pids: list[int]) -> None:
        assert self._initializer is not None
        member = self._member
        futures = [call_into_future(member, self._initializer, pid, self._initargs, {}) for pid in pids]
        for future in futures:
            future.wait()

    def departed(self, pid: int, error: ProcessExitedException) -> None:
        """One is gone: start another in its place. Told on the reading thread."""
        if not self._is_ending:
            self._member.threads.run(self._replace)

    def _replace(self) -> None:
        try:
            self._add(1)
            self._stillbirths = 0
        except BaseException as error:  # reported to everyone whose task waits
            self._stillbirths += 1
            if self._is_ending:
                return
            if self._initializer is None and self._stillbirths < STILLBIRTHS * self._wanted:
                self._replace()
            elif not self._dispatch.workers():
                self._dispatch.give_up(wrapped(DRIVER, error))

    def abandon(self) -> None:
        """Nobody has the pool any more. On the reading thread."""
        if not self._is_ending:
            self._member.threads.run(lambda: self.end(wait_for_work=False))

    def end(self, wait_for_work: bool) -> None:
        """End the workers."""
        member = self._member
        if wait_for_work:
            self._dispatch.drain()
        self._is_ending = True
        if not wait_for_work:
            for config in list(member.configs.values()):
                if config.process is not None:
                    config.process.send_signal(9)
        leave(member)
