"""What is logged in workers, handled by the ``logging`` of process 1 as if it had been logged there.

Used only where it was asked for (``logging=True``), by ``membership`` here and by ``worker`` there; nobody else loads
this room, because it imports ``logging``. A worker that was asked has one handler at its root logger, so what its code
configures (``basicConfig`` does nothing where there is a handler) does not decide; process 1 does::

    worker    logger --> Forwarder.emit: text made here --LOG--> reading thread --> in turn with the worker's output
                                                                                      |
    process 1 logging.getLogger(name).handle(record) <--------------------------------'

Any thread logs. Nothing is owned but the records that wait for the thread that sends just now.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from distpool import messages as m
from distpool.member import Member
from distpool.output import later
from distpool.peer import Peer
from distpool.pickling import Parcel, dump
from distpool.wire import Frame

_PLAIN: Final = (str, bytes, int, float, bool, type(None))


def receive(member: Member, level: object) -> int:
    """Take log records of workers from now on; return the level from which they shall send them.

    ``level`` is True (that of this process's root logger), a number, or the name of a level: ValueError for any other.
    """
    if level is True:
        wanted: object = logging.getLogger().level
    else:
        wanted = logging.getLevelName(level) if isinstance(level, str) else level
    if not isinstance(wanted, int):
        raise ValueError(f"logging={level!r}: it is True, False, or a level such as 'INFO' or 20")
    member.actions[m.LOG] = lambda peer, frame: later(lambda: _handle(member, peer, frame))
    return wanted


def _handle(member: Member, peer: Peer, frame: Frame) -> None:
    """Hand a record to this process's loggers: their levels, filters and handlers decide."""
    try:
        record = logging.makeLogRecord({**member.open(frame), "worker": peer.pid})
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception as error:  # filters and handlers are the user's; the next record must not suffer
        logging.getLogger("distpool").warning("a log record of process %d was lost: %r", peer.pid, error)


def forward(peer: Peer, level: int, run_aside: Callable[[Callable[[], None]], None]) -> None:
    """Send what is logged in this process to process 1, from this level on."""
    root = logging.getLogger()
    root.setLevel(level)
    root.addHandler(_Forwarder(peer, run_aside))


class _Forwarder(logging.Handler):
    """Sends each record at once; ``run_aside`` runs a job in another thread."""

    def __init__(self, peer: Peer, run_aside: Callable[[Callable[[], None]], None]) -> None:
        super().__init__()
        self._peer = peer
        self._run_aside = run_aside
        self._waiting: deque[Parcel] = deque()
        self._sending = threading.Lock()  # one thread sends, so that records stay in order

    def emit(self, record: logging.LogRecord) -> None:
        """Make it fit to travel, and send it."""
        try:
            self._waiting.append(self._packed(record))
        except Exception:  # the record's arguments are the user's objects
            self.handleError(record)
            return
        if self._peer.is_sending:
            # A finaliser may log at any point of this thread, also where it holds the lock that sending needs.
            self._run_aside(self._send)
        else:
            self._send()

    def _send(self) -> None:
        # Whoever finds the lock taken leaves the record to its holder, who looks again after giving it back.
        while self._waiting and self._sending.acquire(blocking=False):
            try:
                while self._waiting:
                    self._peer.send_parcel(m.LOG, self._waiting.popleft())
            finally:
                self._sending.release()

    def _packed(self, record: logging.LogRecord) -> Parcel:
        """As the standard QueueHandler does: text in the place of arguments and traceback, which may not travel."""
        state: dict[str, Any] = dict(record.__dict__)
        state["msg"] = record.getMessage()
        state["args"] = None
        if record.exc_info:
            state["exc_text"] = record.exc_text or logging.Formatter().formatException(record.exc_info)
            state["exc_info"] = None
        parcel = _dumped(state)
        if parcel is None or parcel.foreign:  # extra fields whose types process 1 may not have
            parcel = dump({name: value if isinstance(value, _PLAIN) else repr(value) for name, value in state.items()})
        return parcel


def _dumped(state: dict[str, Any]) -> Parcel | None:
    try:
        return dump(state)
    except Exception:  # some extra field cannot travel
        return None
