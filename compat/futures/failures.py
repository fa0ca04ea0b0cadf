"""Errors as the standard library raises them: its own classes, the original exception, the worker's traceback as cause.

Used by ``calls`` and ``maps`` when an outcome is looked at, always in the thread that asked for it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures.process import (
    BrokenProcessPool,
    _RemoteTraceback,  # users compare with it, and print it
)

import distpool

from ..unpicklable import unexplained

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any


def opened(
    outcome: distpool.Outcome, judge: Callable[[distpool.Outcome], BaseException]
) -> tuple[Any, BaseException | None]:
    """Look at an outcome: its value, or what ``judge`` says of its failure."""
    if not outcome.ok:
        return None, judge(outcome)
    try:
        return outcome.value(), None
    except BaseException as error:  # it came, and cannot be opened here: that may raise anything, also SystemExit
        return None, because(error, f"a result cannot be opened in this process: {named(error)}")


def failure_of(
    outcome: distpool.Outcome,
    why_broken: BaseException | None = None,
    is_strict: bool = False,
    is_last: bool = False,
) -> BaseException:
    """Return what the standard library would raise for an outcome that is no value.

    ``why_broken``: why its pool is broken, if it is: whatever happens to workers then is laid to that. ``is_strict``:
    the death of a worker is that of the executor. ``is_last``: the workers were ended on purpose.
    """
    error = outcome.exception()
    error.__traceback__ = None  # frames of ours alone; they would hold the future, which will hold the error
    has_died = isinstance(error, distpool.ProcessExitedException) and not isinstance(error, distpool.RemoteException)
    if why_broken is not None and (error is why_broken or has_died):
        return broken(why_broken)
    if isinstance(error, distpool.RemoteException):
        return _remote(error)
    if isinstance(error, distpool.ProcessExitedException):
        if is_strict:
            return broken(error)
        if is_last:
            return because(error, f"{error.what_happened()}: the executor's workers were told to end")
        remedy = "only this call is lost, the executor goes on: submit it again if it may run twice"
        return because(error, f"{error.what_happened()}; {remedy}")
    return unexplained(error)


def _remote(error: distpool.RemoteException) -> BaseException:
    """What the worker caught: raised by the function itself, or before or after it."""
    captured = error.captured
    original, trace = error.unwrap(), _RemoteTraceback(captured.traceback)  # type: ignore[arg-type]  # text, as the class says
    if captured.stage == "opening":
        told = BrokenProcessPool(f"a call cannot be opened in the worker: {named(original)}")
        told.__cause__ = trace
        return told
    if captured.stage == "packing":
        original = unexplained(original)
    original.__cause__ = trace
    return original.with_traceback(None)  # its frames are told of in the cause, once is enough


def broken(why: BaseException) -> BrokenProcessPool:
    """The error of an executor that will never do anything again."""
    if isinstance(why, distpool.ProcessExitedException):
        return because(why, f"{why.what_happened()}; the executor is broken, make a new one")
    if isinstance(why, distpool.RemoteException):
        told = BrokenProcessPool(f"the initializer of the executor's workers raised {named(why.unwrap())}")
        told.__cause__ = _RemoteTraceback(why.captured.traceback)  # type: ignore[arg-type]  # as above
        return told
    return because(why, f"the executor has no workers, and gets none: {named(why)}")


def because(cause: BaseException, message: str) -> BrokenProcessPool:
    """A BrokenProcessPool with a cause."""
    error = BrokenProcessPool(message)
    error.__cause__ = cause
    return error


def named(error: BaseException) -> str:
    """Type and text, in one line."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
