"""Functions to call when workers come and go, and the small notes that are kept about each worker.

Used by the member, one table per cluster, filled by the verbs of ``lifecycle``. All callbacks of one event run at the
same time, each in a call thread, never on the reading thread. Owns: the callbacks and the statuses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

from distpool.light import Any, Final
from distpool.threads import CallThreads

# The events, and how many arguments the callbacks of each get.
STARTING: Final = "starting"  # (manager, params): before the launch
STARTED: Final = "started"  # (pid): it has joined
EXITING: Final = "exiting"  # (pid): it will be removed
EXITED: Final = "exited"  # (pid, state): it is gone, "terminated" when it was asked to, else "exterminated"
ARGUMENTS: Final = {STARTING: 2, STARTED: 1, EXITING: 1, EXITED: 2}


class Callbacks:
    """What to call at each event, by key."""

    def __init__(self, threads: CallThreads) -> None:
        self._threads = threads
        self._lock = threading.Lock()  # protects both tables
        self._functions: dict[str, dict[Hashable, Callable[..., object]]] = {event: {} for event in ARGUMENTS}
        self._statuses: dict[tuple[int, Hashable], Any] = {}

    def add(self, event: str, function: Callable[..., object], key: Hashable) -> Hashable:
        """Keep a callback under ``key`` (None: the function itself) and return the key.

        Raises TypeError when it cannot take the event's arguments, ValueError when the key is in use.
        """
        _check_signature(event, function)
        key = function if key is None else key
        with self._lock:
            if key in self._functions[event]:
                raise ValueError(f"there is a callback for {event} workers under the key {key!r} already")
            self._functions[event][key] = function
        return key

    def remove(self, event: str, key: Hashable) -> None:
        """Forget a callback; KeyError when there is none under this key."""
        with self._lock:
            del self._functions[event][key]

    def begin(self, event: str, *args: Any) -> list[Running]:
        """Start all callbacks of an event; return them, running."""
        with self._lock:
            functions = list(self._functions[event].values())
        return [Running(self._threads, function, args) for function in functions]

    # -- statuses ------------------------------------------------------------------------------------------------

    def set_status(self, value: Any, key: Hashable, pid: int) -> None:
        """Keep one small value for a worker under a key."""
        with self._lock:
            self._statuses[pid, key] = value

    def status(self, key: Hashable, pid: int) -> Any:
        """Return it; None when there is none."""
        with self._lock:
            return self._statuses.get((pid, key))

    def forget(self, pid: int) -> None:
        """Drop all that was kept about a worker."""
        with self._lock:
            for entry in [entry for entry in self._statuses if entry[0] == pid]:
                del self._statuses[entry]


class Running:
    """One callback, being run in a thread of its own."""

    def __init__(self, threads: CallThreads, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.error: BaseException | None = None
        self.name = getattr(function, "__qualname__", repr(function))
        self._function = function
        self._args = args
        self._done = threading.Event()
        if not threads.run_unless_over(self._run):
            self._done.set()

    def _run(self) -> None:
        try:
            self._function(*self._args)
        except BaseException as error:  # the user's code: judged by whoever waits
            self.error = error
        finally:
            self._done.set()

    def wait(self, timeout: float | None) -> bool:
        """Wait for its end, at most so many seconds; return whether it has ended."""
        return self._done.wait(timeout)


def _check_signature(event: str, function: Callable[..., object]) -> None:
    import inspect  # slow to import, rarely needed

    try:
        inspect.signature(function).bind(*range(ARGUMENTS[event]))
    except TypeError as error:
        raise TypeError(
            f"{function!r} cannot be called with the {ARGUMENTS[event]} arguments of {event}: {error}"
        ) from None
    except ValueError:  # a built-in without a signature: it will show
        pass
