"""One launch of workers that dial back: which of them have come, which have not, and where each one prints.

Used by ``dialback``, one ``Launch`` for each time that an engine is asked for workers. Workers come on call threads,
the thread of ``addprocs`` waits for enough of them, an engine's watcher tells that no more will come. The lock is never
held while anything is sent, appended or told.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from itertools import count
from typing import Any, Final, NamedTuple

from distpool.cores import THREAD_VARIABLES
from distpool.door import send_answer
from distpool.errors import LaunchWorkerError
from distpool.forkserver.interpreter import interpreter_flags
from distpool.managers.interface import Launched, WorkerConfig, WorkerProcess
from distpool.managers.interpreter import located, own_path_entries, words
from distpool.output import Output, checked_mode
from distpool.tcp import LOOPBACK
from distpool.transport import Deadline, Reader, Waiter

# Seconds that a worker has to read our answer. Arbitrary; the answer fits into its buffers.
ANSWER_SECONDS: Final = 5.0
# How much of one worker's output may wait to be shown; then no more is read, and a worker that prints on waits.
OUTPUT_WINDOW: Final = 1 << 20
_READ_BYTES: Final = 1 << 16


class Refused(Exception):
    """Why somebody who has proved himself is turned away."""


class Looks(NamedTuple):
    """What an engine's manager knows of its workers: the cores of each, and which hosts see the files that we see."""

    cores: int
    shares_files_with: Callable[[str], bool]


class Launch:
    """One launch.

    ``ticket`` tells its workers from others and is no secret; ``extra`` is for the engine's manager.
    """

    def __init__(self, count_: int, params: dict[str, Any], launched: Launched, secret: str, looks: Looks) -> None:
        self.ticket: Final = secrets.token_hex(8)
        self.count: Final = count_
        self.params: Final = params
        # What its workers read as one line, from standard input or a file of mode 600; never for a command line.
        self.secret: Final = secret
        self.address = ""  # where its workers shall connect to
        self.extra: Any = None
        # Handles on the workers that there are any of, by ident; filled by the engine's manager before they come.
        self.processes: dict[object, WorkerProcess] = {}
        self._launched = launched
        self._looks = looks
        self._next_number = count().__next__
        self._printed: list[Prints] = []
        self._lock = threading.Lock()  # protects all below
        self.reason = ""  # why no more will come; empty as long as they may
        self._places: dict[object, Place] = {}  # of the workers that live, by ident
        self._waiting: list[Place] = []  # have been answered, and are not handed over yet
        self._left = count_  # how many have not come
        self._came: set[object] = set()  # idents, also of those that are gone
        self._failed: dict[object, str] = {}  # those that will not come, and why
        self._enough = Waiter()  # for the thread that launches
        self._at_least = count_
        self._is_going_on = False  # ``launch`` has returned: who comes now is handed over at once

    # -- what the engine has to run --------------------------------------------------------------------------------

    def command(self, *options: str) -> list[str]:
        """Return the command of one worker: the program and flags of ``addprocs``, then our own words."""
        program, flags = words(self.params["exename"]), words(self.params["exeflags"])
        if not program:
            raise LaunchWorkerError("exename is empty, so there is no program to start; pass the path of a Python")
        if self._is_our_python:
            flags = [*interpreter_flags(), *flags]
        return [*located(program, self._directory), *flags, *self.arguments(*options)]

    def arguments(self, *options: str) -> list[str]:
        """Return the words after the program and its flags, for engines that know where Python is on their side."""
        return ["-m", "distpool", "--worker", "--connect", self.address, "--ticket", self.ticket, *options]

    @property
    def _is_our_python(self) -> bool:
        return words(self.params["exename"]) == [sys.executable]

    @property
    def _directory(self) -> str:
        return str(os.path.abspath(self.params["dir"]))

    def _setup(self, host: str) -> dict[str, Any]:
        """How a worker there shall look: like this process, as far as its machine can."""
        env: dict[str, str] = {}
        if not self.params.get("enable_threaded_blas"):
            env = {name: os.environ.get(name, str(self._looks.cores)) for name in THREAD_VARIABLES}
        path = [entry for entry in sys.path if isinstance(entry, str)] if self._is_our_python else own_path_entries()
        is_like_here = self._looks.shares_files_with(host)
        return {
            "dir": self._directory if is_like_here or self.params["dir"] != os.getcwd() else None,
            "path": path if is_like_here else [],
            "is_whole_path": self._is_our_python and is_like_here,
            "argv": list(sys.argv),
            "preload": list(self.params.get("preload") or ()),
            "env": {**env, **dict(self.params.get("env") or {})},
        }

    # -- who comes ---------------------------------------------------------------------------------------------------

    def receive_worker(self, stream: Any, facts: dict[str, Any]) -> None:
        """A worker of this launch is here. Raises Refused, or OSError when it is gone already."""
        place = self._reserve(stream, facts)
        shows = place.output.how != "none"
        try:
            answer = {**self._setup(place.host), "place": place.number, "shows_output": shows}
            send_answer(stream, answer, Deadline(ANSWER_SECONDS))
        except BaseException:
            with self._lock:
                self._places.pop(place.ident, None)
                self._came.discard(place.ident)
                self._left += 1
            raise
        with self._lock:
            if not self._is_going_on:
                self._waiting.append(place)
                self._look_whether_enough()
                return
        self._launched.append(place.config())

    def _reserve(self, stream: Any, facts: dict[str, Any]) -> Place:
        number = self._next_number()
        ident = number if facts.get("ident") is None else facts["ident"]
        if isinstance(ident, str) and ident.isascii() and ident.isdigit():
            ident = int(ident)
        place = Place(self, number, ident, str(facts["host"]), stream)
        with self._lock:
            if self.reason:
                raise Refused(f"its launch is over: {self.reason}")
            if not self._left:
                raise Refused(f"all {self.count} workers of its launch have come")
            if ident in self._places:
                raise Refused(f"a worker {ident!r} of its launch is here already")
            self._places[ident] = place
            self._came.add(ident)
            self._left -= 1
        return place

    def receive_output(self, stream: Any, number: int, reader: Reader) -> None:
        """What a worker of this launch prints will come here."""
        with self._lock:
            place = next((place for place in self._places.values() if place.number == number), None)
        if place is None:
            raise Refused("the worker whose output this is has no place here")
        send_answer(stream, {}, Deadline(ANSWER_SECONDS))
        self._printed.append(Prints(stream, place.output, reader))

    # -- who is waited for -------------------------------------------------------------------------------------------

    def arrivals(self, at_least: int) -> Waiter:
        """Return what is done when so many have come, or no more will."""
        with self._lock:
            self._at_least = at_least
            self._look_whether_enough()
        return self._enough

    def _look_whether_enough(self) -> None:
        if self.reason or len(self._waiting) >= self._at_least:
            self._enough.complete()

    def go_on(self, too_late: str) -> int:
        """Hand over those that have come, in the order of their idents; return how many of the wanted are missing.

        When some are missing the launch is over, ``too_late`` being the reason unless there is another one; otherwise
        those that come later are handed over at once.
        """
        with self._lock:
            came, self._waiting = self._waiting, []
            missing = self._left if len(came) < self._at_least else 0
            if missing:
                self.reason = self.reason or too_late
            self._is_going_on = True
            lost = self._left if self.reason and not missing else 0
        for place in sorted(came, key=lambda place: (isinstance(place.ident, str), place.ident)):
            self._launched.append(place.config())
        self._tell_lost(lost)
        return missing

    def fail(self, ident: object, reason: str) -> None:
        """A worker will not come; nothing, if it has come."""
        with self._lock:
            if ident not in self._came:
                self._failed[ident] = reason

    def has_come(self, ident: object) -> bool:
        """Whether a worker is here, or was."""
        with self._lock:
            return ident in self._came

    @property
    def failure(self) -> str:
        """Why nobody else will come, once that is known of each: the first reason. Else empty."""
        with self._lock:
            is_hopeless = self._left and len(self._failed) >= self._left
            return next(iter(self._failed.values())) if is_hopeless else ""

    def over(self, reason: str) -> None:
        """No more will come: the cluster is told of those that it does not wait for any more."""
        self._tell_lost(self.close(reason))

    def close(self, reason: str) -> int:
        """Let no more come; return of how many the cluster has to be told."""
        with self._lock:
            if self.reason:
                return 0
            self.reason = reason
            self._look_whether_enough()
            return self._left if self._is_going_on else 0

    def _tell_lost(self, lost: int) -> None:
        for _ in range(lost):
            self._launched.lost(LaunchWorkerError(f"a worker that was to join later did not come: {self.reason}"))

    @property
    def awaits_more(self) -> bool:
        """Whether some have not come and still may."""
        return bool(self._left) and not self.reason

    @property
    def is_complete(self) -> bool:
        """Whether all have come."""
        return not self._left

    # -- who goes ----------------------------------------------------------------------------------------------------

    def send_home(self) -> None:
        """Close the connections of those that have come and were not handed over."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            for place in waiting:
                self._places.pop(place.ident, None)
        for place in waiting:
            place.stream.close()

    def remove(self, place: Place) -> bool:
        """A worker is gone; False when that was known."""
        with self._lock:
            if self._places.get(place.ident) is not place:
                return False
            del self._places[place.ident]
            return True

    @property
    def is_empty(self) -> bool:
        """True when nobody is here and nobody will come."""
        with self._lock:
            return not self._places and not self.awaits_more

    def stop_printing(self) -> None:
        """Give up the connections on which workers have printed. On the reading thread."""
        for prints in self._printed:
            prints.close()


class Place:
    """One worker of a launch, from its arrival on."""

    def __init__(self, launch: Launch, number: int, ident: object, host: str, stream: Any) -> None:
        self.launch: Final = launch
        self.number: Final = number
        self.ident: Any = ident
        self.stream: Final = stream
        self.output: Final = Output(checked_mode(launch.params.get("output", "prefix")))
        self.host: Final = LOOPBACK if host == socket.gethostname() else host

    def config(self) -> WorkerConfig:
        """Return what a cluster has to know of it."""
        return WorkerConfig(
            stream=self.stream,
            output=self.output,
            process=self.launch.processes.get(self.ident),
            host=self.host,
            ident=self.ident,
            userdata=self,
        )


class Prints:
    """The connection that is a worker's standard output and error. A handler of the reader."""

    def __init__(self, stream: Any, output: Output, reader: Reader) -> None:
        self._stream = stream
        self._output = output
        self._reader = reader
        self._unshown = 0  # bytes that were taken and are not shown yet; on the reading thread
        self._is_watched = True
        self._is_closed = False
        output.when_consumed(self._consumed)
        stream.setblocking(False)
        reader.register(self)

    def fileno(self) -> int:
        """The connection's descriptor."""
        number: int = self._stream.fileno()
        return number

    def on_writable(self) -> None:
        """Never asked for: nothing is sent."""

    def on_readable(self) -> None:
        """It has printed something, or ended."""
        if self._is_closed:
            return
        # What an encrypted connection has received already no poll would tell of.
        while self._take() and getattr(self._stream, "has_pending", False):
            pass

    def _take(self) -> bool:
        """Take a piece; False when there is no reason to look for another."""
        try:
            data = self._stream.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._unshown += len(data)
        self._output.feed(1, data)
        if self._unshown < OUTPUT_WINDOW:
            return True
        self._is_watched = False
        self._reader.unregister(self)
        return False

    def _consumed(self, size: int) -> None:
        """So much was shown. On the thread that shows."""
        self._reader.run_soon(self._shown(size))

    def _shown(self, size: int) -> Callable[[], None]:
        def note() -> None:
            self._unshown -= size
            if not self._is_watched and not self._is_closed and self._unshown < OUTPUT_WINDOW:
                self._is_watched = True
                self._reader.register(self)
                self.on_readable()

        return note

    def close(self) -> None:
        """Nothing more is taken. On the reading thread."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_watched:
            self._reader.unregister(self)
        self._stream.close()
        self._output.end()
