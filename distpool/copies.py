"""Forked copies of this process: ``os.fork()`` in a program that has workers, or in a task.

A copy has the sockets of its parent and none of its threads. What it read would be missing there, what it sent would
garble a message, and what it waited for would never come. So whoever holds something that belongs to one process alone
registers here and is told in each copy to let go of it (``disown``), before anything else runs there.

A task that forks is copied with its worker. The copy ends where it would return to us, as a script does at its end:
the task has one result, and the worker sends it.
"""

from __future__ import annotations

import os
import sys
from weakref import WeakSet

from distpool.light import Any, NoReturn, Protocol


class Owner(Protocol):
    """Something that a forked copy of its process must not use. Held weakly."""

    def disown(self) -> None:
        """Belong to another process from now on. Runs in the copy, which has one thread: any lock may be held."""


_owners: WeakSet[Any] = WeakSet()


def tell_in_copies(owner: Owner) -> None:
    """Call ``owner.disown()`` in every process that is forked from this one while the owner exists."""
    _owners.add(owner)


def end_copy(error: BaseException | None) -> NoReturn:
    """End a copy that has come to its end, or raised this: with the status, and the traceback, of a script's end."""
    status = 0
    try:
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            if status and not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
        elif error is not None:
            status = 1
            sys.excepthook(type(error), error, error.__traceback__)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:  # whatever the user has put in the place of these
        os._exit(status & 0xFF)


def _disown_all() -> None:
    for owner in list(_owners):
        owner.disown()
    _owners.clear()  # what is forked from the copy has nothing of it either


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
