"""The errors of what cannot be pickled, as users of the standard library's pools catch them.

Used by both doors, in the thread that sees the error. distpool raises a TypeError that names the part which cannot be
sent, with pickle's own error as its cause; code that exists catches pickle's.
"""

from __future__ import annotations


def unexplained(error: BaseException) -> BaseException:
    """Return what pickle itself raised, of the type that users catch; our explanation is its cause.

    Any other error is returned as it is.
    """
    original = error.__cause__
    if not isinstance(error, TypeError) or original is None or not str(error).startswith("cannot send "):
        return error
    error.__cause__ = None
    original.__cause__ = error
    return original
