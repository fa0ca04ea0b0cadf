"""Ctrl-C between messages and not inside one: a message half handled or half sent would be lost.

Used by the reader while the main thread waits, and by a peer while it sends. For that time the handler of SIGINT,
Python's own or any other, is replaced by one that calls it only when the main thread has nothing in its hands: in a
poll, asleep, or at the end. So a handler may raise whatever it likes, and no lock stays held, no byte is sent twice.

``_signal`` is what ``signal`` is made of, without its conversions to enums: they take 8 us for each wait, this 0.5.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType

from distpool.light import Any, Final, TypeVar, signal

try:
    import _signal as fast_signal  # type: ignore[import-not-found]  # private to the interpreter, so without types
except ImportError:
    fast_signal = signal

T = TypeVar("T")

SIGINT: Final = int(signal.SIGINT)
_MAIN_IDENT = threading.main_thread().ident
# Seconds in which an interrupt is seen that came when Python had looked for signals and the kernel was not yet asked to
# wait: it ends no wait, and Python looks again when one has ended. So none lasts longer, in the main thread.
_LONGEST_WAIT: Final = 1.0


class _State:
    """What the main thread is doing. Read and written by the main thread alone: signal handlers run there."""

    may_raise = False
    pending = False
    handler: Callable[[int, FrameType | None], Any] = signal.default_int_handler


class _LookAgain(BaseException):
    """Ends a poll or a sleep whose handler of SIGINT has returned: it may have brought what is waited for."""


def interruptibly(block: Callable[[float | None], T], timeout: float | None) -> T | None:
    """Call ``block(timeout)``, a wait with nothing in its hands: SIGINT is handled within it, a kept one first.

    Returns None instead of what ``block`` returns when the handler has returned, so that the caller looks again; it may
    return before ``timeout``, too.
    """
    if threading.get_ident() != _MAIN_IDENT:
        return block(timeout)
    try:
        _State.may_raise = True
        if _State.pending:
            _deliver(sys._getframe())
        # A poll is level-triggered: what it reports is reported again if the interrupt comes before we have seen it.
        return block(_LONGEST_WAIT if timeout is None or timeout > _LONGEST_WAIT else timeout)
    except _LookAgain:
        return None
    finally:
        _State.may_raise = False


def raise_in_thread(ident: int, error: type[BaseException] | None) -> None:
    """Raise an exception in another thread, between two steps of its Python code; None takes one back."""
    import ctypes  # slow to import, and only needed here: Python has no other way to stop a thread

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(error) if error else None)


def _deliver(frame: FrameType | None) -> None:
    _State.pending = _State.may_raise = False
    _State.handler(SIGINT, frame)
    raise _LookAgain


def _keep_for_later(signum: int, frame: FrameType | None) -> None:
    if _State.may_raise:
        _deliver(frame)
    else:
        _State.pending = True


class DeferredInterrupt:
    """A context for the main thread in which SIGINT is handled between messages only; of no effect in other threads."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        self._is_set = False

    def __enter__(self) -> None:
        if threading.get_ident() != _MAIN_IDENT:
            return
        handler = fast_signal.getsignal(SIGINT)
        if handler is not _keep_for_later and callable(handler):
            _State.handler = handler
            _State.pending = _State.may_raise = False
            self._is_set = True
            fast_signal.signal(SIGINT, _keep_for_later)

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if not self._is_set:
            return
        if fast_signal.getsignal(SIGINT) is _keep_for_later:  # else the handler has put another in its place
            fast_signal.signal(SIGINT, _State.handler)
        if _State.pending:
            _State.pending = False
            if kind is None or not issubclass(kind, KeyboardInterrupt):
                _State.handler(SIGINT, sys._getframe())
