"""What the user gave becomes jobs: options checked, callables that were sent before found again.

Used by the pools, one ``Making`` per pool, in the threads of users. Owns the jobs of single calls that are kept for
later ones, and what former maps of a callable have told of its pace.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable

from distpool.light import TYPE_CHECKING, Any, Final, later

if TYPE_CHECKING:
    from distpool import jobs, pickling
    from distpool.dispatch import Dispatch
    from distpool.futures import Promise
    from distpool.jobs import CallJob, MapJob, Pace, PromisedMap, StreamJob
    from distpool.pickling import Parcel
else:
    jobs, pickling = later("distpool.jobs"), later("distpool.pickling")

# Callables that a pool keeps at its workers, beside those in use; the oldest goes first. Arbitrary: enough for a
# program's own functions, and a bound for one that makes a new lambda for each call.
KEPT_FUNCTIONS: Final = 64
# Globals that a kept callable mentions, pickled: it is sent anew with each call if they are larger. Arbitrary.
KEPT_BYTES: Final = 64 << 10


class Making:
    """Makes the jobs of one pool."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        # For single calls, by callable or its pickle; oldest first.
        self._functions: OrderedDict[Any, CallJob] = OrderedDict()
        self._functions_lock = threading.Lock()  # protects _functions
        self._paces: weakref.WeakKeyDictionary[Any, Pace] = weakref.WeakKeyDictionary()  # of maps, by callable

    def function(self, f: Callable[..., Any]) -> dict[str, Any]:
        """How the callable of a map travels: once per worker and job."""
        return {}

    def map_job(
        self, f: Callable[..., Any], iterables: tuple[Iterable[Any], ...], options: dict[str, Any], **how: Any
    ) -> MapJob:
        """A map that the calling thread will own; ``how`` goes to the job as it is."""
        checked = {**self.function(f), **map_options(**options)}
        return jobs.MapJob(f, _checked_input(iterables), pace=self._pace(f), **how, **checked)

    def promised_map(
        self, promise: Promise, f: Callable[..., Any], iterable: Iterable[Any], star: bool, options: dict[str, Any]
    ) -> PromisedMap:
        """A map that no thread owns."""
        checked = {**self.function(f), **map_options(**options)}
        return jobs.PromisedMap(promise, f, _checked_input((iterable,)), star=star, pace=self._pace(f), **checked)

    def stream_job(
        self, f: Callable[..., Any], iterables: tuple[Iterable[Any], ...], options: dict[str, Any], **how: Any
    ) -> StreamJob:
        """A map whose results are taken one by one; ``how`` goes to the job as it is."""
        checked = {**self.function(f), **map_options(**options)}
        return jobs.StreamJob(f, _checked_input(iterables), schedule=self._dispatch.schedule, **how, **checked)

    def _pace(self, f: Callable[..., Any]) -> Pace | None:
        """What former maps of the callable have told; None for one that cannot be a key."""
        try:
            return self._paces.setdefault(f, jobs.Pace())
        except TypeError:
            return None

    def call_job(self, f: Callable[..., Any]) -> CallJob:
        """The job of single calls of a callable: that of earlier ones if nothing has changed that it brings along."""
        key: Any = f
        function: Parcel | None = None
        if not pickling.goes_by_name(f):
            function = pickling.dump(f)
            if not _may_be_kept(function):
                return self._new_call_job(f, function, is_passing=True)
            key = function.body
        with self._functions_lock:
            old = self._functions.get(key)
            if old is not None and (function is None or _has_same_globals(old.function, function)):
                return old
            job = self._functions[key] = self._new_call_job(f, function, is_passing=False)
            if old is None and len(self._functions) > KEPT_FUNCTIONS:
                old = self._functions.popitem(last=False)[1]
        if old is not None:
            self._dispatch.pass_on(old)
        return job

    def _new_call_job(self, f: Callable[..., Any], function: Parcel | None, is_passing: bool) -> CallJob:
        job = jobs.CallJob(f, self._dispatch.pump, function=function)
        job.is_passing = is_passing
        if function is not None and not is_passing:  # kept for later calls: what it is bound to shall not be
            job.f = None
        return job


def _may_be_kept(function: Parcel) -> bool:
    """Whether a callable's parcel is small, and stays what it is: arrays in it are the user's, who may change them."""
    shipped = (function.globals or {}).values()
    if function.buffers or function.refs or any(each.buffers for each in shipped):
        return False
    return sum(len(each.body) for each in shipped) <= KEPT_BYTES


def _has_same_globals(before: Parcel, now: Parcel) -> bool:
    """Whether what a callable mentions is bound to the same objects as before, and they have the same contents."""
    old, new = before.globals or {}, now.globals or {}
    return old.keys() == new.keys() and all(
        each.value is new[name].value and each.body == new[name].body for name, each in old.items()
    )


def _checked_input(iterables: tuple[Iterable[Any], ...]) -> tuple[Iterable[Any], ...]:
    if not iterables:
        raise TypeError("map() needs at least one iterable")
    for iterable in iterables:
        iter(iterable) if not hasattr(iterable, "__next__") else None
    return iterables


def map_options(
    batch_size: int | str = "auto",
    timeout: float | None = None,
    on_error: Callable[[BaseException], Any] | None = None,
    retry_delays: Iterable[float] = (),
    retry_check: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Check the options of a map and its relatives; return them as a job wants them."""
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size={batch_size!r}: a number of tasks from 1 on, or 'auto'")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"timeout={timeout}: a number of seconds above 0, or None")
    delays = list(retry_delays)
    has_handlers = bool(delays) or on_error is not None
    return {
        "batch_size": None if batch_size == "auto" else batch_size,
        "timeout": timeout,
        "retries": jobs.Retries(delays, retry_check, on_error) if has_handlers else None,
    }
