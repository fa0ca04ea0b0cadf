"""What every pool promises, and calls that need no more than that.

A pool of any kind needs only ``push``, ``put``, ``take``, ``wait``, ``isready`` and ``workers`` to be used wherever a
pool is expected: ``remotecall(f, pool)``, ``remote(pool, f)``, ``pmap(f, pool, xs)``.
"""

from __future__ import annotations

from collections.abc import Callable

from distpool.light import TYPE_CHECKING, Any, TypeVar, later

if TYPE_CHECKING:
    from distpool import calls, member
    from distpool.member import Member
    from distpool.refs import Future
else:
    calls, member = later("distpool.calls"), later("distpool.member")

T = TypeVar("T")


class AbstractWorkerPool:
    """What a pool promises: ``push``, ``put``, ``take``, ``wait``, ``isready``, ``workers``. Julia's type.

    With these it can be used wherever a pool is expected: ``remotecall(f, pool)``, ``remote(pool, f)``,
    ``pmap(f, pool, xs)``.
    """

    def push(self, pid: int) -> None:
        """Make a process a member, and free."""
        raise NotImplementedError(f"{type(self).__name__} has to define push(pid)")

    def put(self, pid: int) -> int:
        """Give a process back that ``take`` returned."""
        raise NotImplementedError(f"{type(self).__name__} has to define put(pid)")

    def take(self, timeout: float | None = None) -> int:
        """Return a free member and hold it, waiting for one."""
        raise NotImplementedError(f"{type(self).__name__} has to define take(timeout)")

    def wait(self, timeout: float | None = None) -> None:
        """Wait until a member is free; holds none."""
        raise NotImplementedError(f"{type(self).__name__} has to define wait(timeout)")

    def isready(self) -> bool:
        """True when ``take`` would return at once."""
        raise NotImplementedError(f"{type(self).__name__} has to define isready()")

    def workers(self) -> list[int]:
        """Return the members."""
        raise NotImplementedError(f"{type(self).__name__} has to define workers()")

    def nworkers(self) -> int:
        """Return the number of members."""
        return len(self.workers())

    def __len__(self) -> int:
        return len(self.workers())

    def __bool__(self) -> bool:
        return True  # an empty pool is still a pool

    # -- calls on a pool -----------------------------------------------------------------------------------------

    def remotecall(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``f`` on a free member, which is held until ``f`` is done."""
        pid = self.take()
        try:
            future = calls.call_into_future(self._home(), f, pid, args, kwargs)
        except BaseException:
            self.put(pid)
            raise
        self._home().threads.run(lambda: self._put_when_done(future, pid))
        return future

    def _put_when_done(self, future: Future[Any], pid: int) -> None:
        try:
            future.wait()
        except BaseException:  # whoever fetches is told
            pass
        finally:
            self.put(pid)

    def remotecall_fetch(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run ``f`` on a free member and return its result."""
        pid = self.take()
        try:
            return calls.call_and_fetch(self._home(), f, pid, args, kwargs)
        finally:
            self.put(pid)

    def remotecall_wait(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``f`` on a free member and wait for it; raises what it raised."""
        return self.remotecall(f, *args, **kwargs).wait()

    def remote_do(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Run ``f`` on a free member and forget it; the member is free again at once."""
        pid = self.take()
        try:
            calls.do_in(self._home(), f, pid, args, kwargs)
        finally:
            self.put(pid)

    def _home(self) -> Member:
        """The cluster that the pids belong to."""
        return member.default_member()
