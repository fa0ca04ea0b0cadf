"""What workers print, shown here: lines put together, marked with their worker and written to this process's streams.

Used by the managers, which feed what they read, by ``membership``, which knows the worker's id and waits until all is
shown, and for log records, which take the same way. Bytes come in on the reading thread, which never blocks here; one
thread at a time shows them, and it ends when there is nothing to show::

    fork server --output events--> Output.feed --> queue --> lines --> hook, prefix --> sys.stdout, sys.stderr as they
    a pipe of another manager ---> Output.feed -->   |                                   are at that moment
    log records ------------------> later ---------->'

Owns: the queue, the lines that are not complete. Order is kept for each worker and stream; a line is written in one
piece, so lines of several workers never mix.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable

from distpool.light import Final, TypeAlias
from distpool.threads import CallThreads
from distpool.transport import Deadline

Hook = Callable[[int, str, str], "str | None"]
# "prefix", "raw", "none", or what is called with (pid, "stdout" or "stderr", line) and returns what to write, or None.
How: TypeAlias = "str | Hook"

MODES: Final = ("prefix", "raw", "none")
# A line that is longer than this many bytes is shown in pieces of this size: what waits for its end stays bounded.
# Arbitrary: no one reads such a line, and some programs parse shorter ones.
LONGEST_LINE: Final = 1 << 20
# Seconds that the end of a worker, pool or program waits for output to be shown: a terminal that was stopped (Ctrl-S)
# must not stop it for ever. Arbitrary.
SHOW_SECONDS: Final = 2.0

_NAMES: Final = {1: "stdout", 2: "stderr"}
_PREFIX: Final = "      From worker "  # Julia's, with as many blanks as its manual has


def checked_mode(how: object) -> How:
    """Return ``how`` if it is a way to show output; else ValueError or TypeError."""
    if callable(how) or how in MODES:
        return how  # a callable is taken at its word
    if isinstance(how, str):
        raise ValueError(f"output={how!r}: it is 'prefix', 'raw', 'none' or a callable(pid, stream, line)")
    raise TypeError(f"output= takes 'prefix', 'raw', 'none' or a callable(pid, stream, line), not {how!r}")


class Output:
    """Where the output of one worker goes.

    ``consumed(count)`` is called when so many bytes have been shown, so that whoever reads the worker's pipe may stop
    when much is waiting. What comes before the worker's id is known is kept.
    """

    def __init__(self, how: How = "prefix", consumed: Callable[[int], None] | None = None) -> None:
        self.how: Final = checked_mode(how)
        self.pid: int | None = None
        self._consumed = consumed
        self._lock = threading.Lock()  # protects pid and _early
        self._early: list[tuple[int, bytes]] = []  # what came before the pid was known
        self._partial = {1: bytearray(), 2: bytearray()}  # a line whose end has not come; the showing thread's
        self._hook_has_failed = False
        self._ended = threading.Event()

    def when_consumed(self, consumed: Callable[[int], None]) -> None:
        """Be told from now on how many bytes have been shown."""
        self._consumed = consumed

    def assign(self, pid: int) -> None:
        """Say whose output it is."""
        with self._lock:
            self.pid = pid
            early, self._early = self._early, []
            for stream, data in early:
                _show_later(self, stream, data)

    def feed(self, stream: int, data: bytes) -> None:
        """Take what was written to stdout (1) or stderr (2). Never blocks."""
        with self._lock:
            if self.pid is None:
                self._early.append((stream, data))
            else:
                _show_later(self, stream, data)

    def end(self) -> None:
        """Nothing more will come: lines without an end are shown as they are."""
        if self.pid is None:
            self.assign(0)  # it never got an id; what it said tells why
        later(self._show_rest)
        self._ended.set()

    def wait_for_end(self, deadline: Deadline) -> bool:
        """Wait until nothing more will come, if anybody feeds it. Returns False when that took too long."""
        return self._consumed is None or self._ended.wait(deadline.remaining())

    # -- on the thread that shows --------------------------------------------------------------------------------

    def show(self, stream: int, data: bytes) -> None:
        """Show the lines that are complete now, keep the rest."""
        partial = self._partial[stream]
        cut = data.rfind(b"\n") + 1
        if cut:
            self._show_lines(stream, bytes(partial + data[:cut]))
            partial.clear()
        partial += data[cut:]
        while len(partial) > LONGEST_LINE:
            end = _character_end(partial, LONGEST_LINE)
            self._show_lines(stream, bytes(partial[:end]) + b"\n")
            del partial[:end]
        if self._consumed is not None:
            self._consumed(len(data))

    def _show_rest(self) -> None:
        for stream, partial in self._partial.items():
            if partial:
                self._show_lines(stream, bytes(partial) + b"\n")
                partial.clear()

    def _show_lines(self, stream: int, data: bytes) -> None:
        """Show one or more lines, each with its end."""
        text = data.decode("utf-8", "replace")
        if self.how == "raw":
            _write(stream, text)
        elif self.how != "none":
            _write(stream, "".join([self._shown(stream, line) for line in text[:-1].split("\n")]))

    def _shown(self, stream: int, line: str) -> str:
        """Return what is written for this line."""
        if callable(self.how):
            try:
                text = self.how(self.pid or 0, _NAMES[stream], line)
                return "" if text is None else text if text.endswith("\n") else text + "\n"
            except Exception:  # the user's code: the line must not be lost for it (the fork's rule, D#157)
                self._tell_once(self.how)
        if line.startswith(_PREFIX):  # of a worker that this one has started and forwarded
            return line + "\n"
        return f"{_PREFIX}{self.pid or 'startup'}:\t{line}\n"

    def _tell_once(self, hook: Hook) -> None:
        if not self._hook_has_failed:
            self._hook_has_failed = True
            import logging  # rarely needed

            logging.getLogger("distpool").exception("output=%r has failed; its lines are shown with a prefix", hook)


def _character_end(data: bytearray, end: int) -> int:
    """Return the last place up to ``end`` that is not inside a UTF-8 character (of at most four bytes)."""
    for place in range(end, end - 4, -1):
        if data[place] & 0xC0 != 0x80:
            return place
    return end


def _write(stream: int, text: str) -> None:
    """Write whole lines to what is stdout or stderr at this moment: a terminal, a notebook, a test's capture."""
    for _ in range(2):
        file = sys.stdout if stream == 1 else sys.stderr
        try:
            try:
                file.write(text)
            except UnicodeEncodeError:  # a stream with a smaller alphabet
                encoding = file.encoding or "ascii"
                file.write(text.encode(encoding, "backslashreplace").decode(encoding))
            file.flush()
            return
        except Exception:  # None, closed or broken, and it may be anybody's object: workers must not suffer
            if file is (sys.stdout if stream == 1 else sys.stderr):
                return  # else it was replaced just now, by the end of a capture: once more


# -- the queue ---------------------------------------------------------------------------------------------------------


class _Queue:
    """What is to be shown, in order, and the thread that shows it."""

    def __init__(self) -> None:
        self._threads = CallThreads("distpool printing")
        # Protects all below; reentrant, as a finaliser of the user's may come here from anywhere.
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._added = 0
        self._done = 0
        self._shower: int | None = None  # the thread that shows; 0 before it runs

    def add(self, job: Callable[[], None]) -> None:
        with self._changed:
            self._jobs.append(job)
            self._added += 1
            if self._shower is not None:
                return
            self._shower = 0
        try:
            self._threads.run(self._show)
        except RuntimeError:  # the interpreter ends and gives no more threads: whoever waits for the end shows it
            with self._changed:
                self._shower = None

    def _show(self) -> None:
        """Show until nothing is left."""
        self._shower = threading.get_ident()
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException:  # an interrupt of the main thread at the end of the program, or a fault of ours
                self._shower = None  # whoever adds or waits next starts again
                raise
            finally:
                with self._changed:
                    self._done += 1

    def _next(self) -> Callable[[], None] | None:
        """Take the next job; None ends the showing, in one step with the look whether there is one."""
        with self._changed:
            if self._jobs:
                return self._jobs.popleft()
            self._shower = None
            self._changed.notify_all()
            return None

    def wait(self, deadline: Deadline) -> bool:
        if self._shower == threading.get_ident():  # a hook that ends a worker waits for itself
            return False
        with self._changed:
            wanted = self._added
            while self._done < wanted:
                if self._shower is None:
                    self._shower = 0
                    break
                if deadline.has_passed:
                    return False
                self._changed.wait(deadline.remaining())
            else:
                return True
        self._show()
        return True


_queue = _Queue()
if hasattr(os, "register_at_fork"):
    # What the parent was to show is the parent's, and its thread is not here.
    os.register_at_fork(after_in_child=_queue.__init__)  # type: ignore[misc]


def _show_later(output: Output, stream: int, data: bytes) -> None:
    _queue.add(lambda: output.show(stream, data))


def later(job: Callable[[], None]) -> None:
    """Run a job in its turn, after the output that has come before it. Never blocks."""
    _queue.add(job)


def wait_until_shown(seconds: float = SHOW_SECONDS) -> bool:
    """Wait until everything that has come so far is shown. Returns False when that took too long."""
    return _queue.wait(Deadline(seconds))
