"""Semaphores that no other process can open, used through the process that has them.

``multiprocessing.Lock()`` and its relatives of the standard library's fork context are nameless: a forked child
inherits their memory, nobody else gets at it. Our workers are no children of the driver. So a worker that is sent one
gets a stand-in: it keeps what the real one keeps in each process (who holds it, how often) and asks the owner to wait
or to post. An owner may be a worker itself and have borrowed it in turn. That is a round trip where a named semaphore
takes a microsecond; ``Lock()`` of ``distpool.compat.multiprocessing`` is named.

The owner's half runs in call threads. A worker that dies while it waits gives up its turn; one that dies with the
semaphore in its hands keeps it for ever, as in the standard library.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from typing import Any

import distpool

# Seconds that the owner waits before it asks whether there is still somebody who waits. Arbitrary.
PATIENCE = 1.0

RECURSIVE = 0  # the kinds of the standard library's C class
SEMAPHORE = 1

_next_key = itertools.count(1).__next__
_lent: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by key, what others may use
_lock = threading.Lock()  # protects _lent and _views
# Semaphores behind recursive locks, by address: the locks themselves heed who holds them. Never freed, as closing one
# would close the lock's.
_views: dict[int, Any] = {}


def terms(lock: Any) -> tuple[int, int, int]:
    """What a borrower has to know: the kind, the highest value, and the key to ask for."""
    with _lock:
        key = getattr(lock, "_lent_as", None)
        if key is None:
            key = lock._lent_as = _next_key()
        _lent[key] = lock
    return lock._semlock.kind, lock._semlock.maxvalue, key


def borrow(kind: Any, semaphore_kind: int, max_value: int, key: int) -> Any:
    """A lock of the same class that asks its owner. In the borrower."""
    made = kind.__new__(kind)
    made._semlock = Borrowed(semaphore_kind, max_value, key)
    made._is_fork_ctx = True
    made._make_methods()
    return made


class Borrowed:
    """What ``_multiprocessing.SemLock`` is to the classes in ``synchronize``, for a semaphore of another process."""

    name = None
    handle = 0

    def __init__(self, kind: int, max_value: int, key: int) -> None:
        self.kind = kind
        self.maxvalue = max_value
        self._key = key
        self._holds = 0
        self._holder = 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """As the real one: wait, at most ``timeout`` seconds."""
        if self.kind == RECURSIVE and self._is_mine():
            self._holds += 1
            return True
        limit = 0.0 if not block else None if timeout is None else max(0.0, timeout)
        if not self.wait(limit):
            return False
        self._holds += 1
        self._holder = threading.get_ident()
        return True

    def wait(self, seconds: float | None) -> bool:
        """Take one from the semaphore, wherever it is; None waits without end."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = PATIENCE if end is None else min(PATIENCE, max(0.0, end - time.monotonic()))
            if distpool.remotecall_fetch(wait_for, 1, self._key, left, os.getpid()):
                return True
            if end is not None and time.monotonic() >= end:
                return False

    def release(self) -> None:
        """As the real one: AssertionError, ValueError for what is not held."""
        if self.kind == RECURSIVE:
            if not self._is_mine():
                raise AssertionError("attempt to release recursive lock not owned by thread")
            if self._holds > 1:
                self._holds -= 1
                return
        self._holds -= 1
        try:
            self.post()
        except BaseException:
            self._holds += 1
            raise

    def post(self) -> None:
        """Give one to the semaphore."""
        error = distpool.remotecall_fetch(post, 1, self._key)
        if error is not None:
            raise ValueError(error)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _count(self) -> int:
        return self._holds

    def _is_mine(self) -> bool:
        return self._holds > 0 and self._holder == threading.get_ident()

    def _get_value(self) -> int:
        return distpool.remotecall_fetch(value_of, 1, self._key)

    def _is_zero(self) -> bool:
        return self._get_value() == 0

    def _after_fork(self) -> None:
        self._holds = 0


# -- at the owner


def wait_for(key: int, seconds: float, os_pid: int) -> bool:
    """Take one from a semaphore of ours for a process of this machine, if it still lives then."""
    inner = _found(key)
    if isinstance(inner, Borrowed):
        return inner.wait(seconds)
    if not inner.acquire(True, seconds):
        return False
    try:
        os.kill(os_pid, 0)
    except ProcessLookupError:
        inner.release()
        return False
    return True


def post(key: int) -> str | None:
    """Give one to a semaphore of ours; returns why that cannot be."""
    inner = _found(key)
    try:
        inner.post() if isinstance(inner, Borrowed) else inner.release()
    except ValueError as error:
        return str(error)
    return None


def value_of(key: int) -> int:
    """Return the value of a semaphore of ours."""
    value: int = _found(key)._get_value()
    return value


def _found(key: int) -> Any:
    lock = _lent.get(key)
    if lock is None:
        raise LookupError(
            "the lock is gone in the process that made it, and was made by a fork context, so that no other process "
            "can open it; keep it there, or make it with distpool.compat.multiprocessing"
        )
    inner = lock._semlock
    if isinstance(inner, Borrowed) or inner.kind == SEMAPHORE:
        return inner

    with _lock:
        view = _views.get(inner.handle)
        if view is None:
            view = _views[inner.handle] = type(inner)._rebuild(inner.handle, SEMAPHORE, inner.maxvalue, None)
    return view
