"""Errors as ``multiprocessing.Pool`` raises them: the original exception, the worker's traceback as its cause.

Used by ``results`` and ``streams``, in the thread that asks for a result.
"""

from __future__ import annotations

import multiprocessing.pool as standard

import distpool

from ..unpicklable import unexplained

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any, Final

# Users compare with them, and print them; the types know them not.
MaybeEncodingError: Any = vars(standard)["MaybeEncodingError"]
RemoteTraceback: Any = vars(standard)["RemoteTraceback"]

# What to do when a worker has died in a call: this Pool has no option for it.
REMEDY: Final = (
    "Only this call is lost, and the pool goes on: call again if it may run twice, or use "
    "distpool.WorkerPool, whose map(..., retry_delays=[...]) does that by itself."
)


def failure_of(error: BaseException) -> BaseException:
    """Return what to raise for an error of distpool's."""
    if not isinstance(error, distpool.RemoteException):
        if isinstance(error, distpool.ProcessExitedException) and error.running:
            error.remedy = REMEDY
        return unexplained(error)
    captured = error.captured
    original = error.unwrap()
    if captured.stage == "packing":
        return _unsendable(original, captured.traceback)
    original.__cause__ = _trace(captured.traceback)
    return original.with_traceback(None)  # its frames are told of in the cause; once is enough


def _unsendable(error: BaseException, traceback: str) -> BaseException:
    """A result that could not be pickled. Its ``value`` is only described: it cannot be here."""
    reason = unexplained(error)
    made: Any = MaybeEncodingError(reason, str(error))
    made.value = str(error)
    made.__cause__ = _trace(traceback)
    return made  # type: ignore[no-any-return]


def _trace(text: str) -> BaseException:
    return RemoteTraceback(f'\n"""\n{text}"""')  # type: ignore[no-any-return]
