"""What a worker prints: first, among other lines, where it listens; later whatever its work prints.

Used by ``ClusterManager.connect`` for workers whose standard output the manager has (``config.io``). The start is read
on the thread that connects, within its deadline; later lines by a thread per worker, which ends with the worker's
output.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading

from distpool.errors import LaunchWorkerError
from distpool.light import Any, Final
from distpool.output import Output
from distpool.tcp import parse_address_line
from distpool.transport import Deadline

# How many other lines may come before the address: login banners, loaded modules. Julia's number.
MAX_LINES: Final = 1000
# The same in bytes, for output without line ends. Arbitrary: a thousand lines of more than anybody reads.
MAX_BYTES: Final = 1 << 20
# How much of what was captured an error repeats: its end, where a traceback has its last line.
SHOWN_CHARACTERS: Final = 4000

PREFIX: Final = "      From worker "


class WorkerOutput:
    """The standard output of one worker that is read here: any open file with a descriptor, text or binary."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._rest = b""  # read, but not a whole line yet
        self.captured: list[str] = []  # lines before the address
        try:
            self._fd = stream if isinstance(stream, int) else stream.fileno()
        except (AttributeError, io.UnsupportedOperation):
            raise TypeError(
                f"WorkerConfig.io must be an open file with a descriptor, such as Popen(...).stdout, not {stream!r}"
            ) from None

    def read_address(self, deadline: Deadline) -> tuple[str, int]:
        """Read until the worker has said where it listens.

        Raises LaunchWorkerError, with what was captured, when the output ends before, has too many other lines, or the
        time is over; three different texts.
        """
        size = 0
        while len(self.captured) <= MAX_LINES and size <= MAX_BYTES:
            data = self._read(deadline)
            if not data:
                self.captured += [_text(self._rest)] if self._rest else []
                raise self._failure("its output ended before its address line (did the launch command fail?)")
            size += len(data)
            address = self._look_for_address(data)
            if address is not None:
                return address
        raise self._failure(f"no address line found in its first {len(self.captured)} lines of output")

    def _look_for_address(self, data: bytes) -> tuple[str, int] | None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for place, line in enumerate(lines):
            address = parse_address_line(_text(line))
            if address is not None and len(self.captured) <= MAX_LINES:
                self._rest = b"\n".join([*lines[place + 1 :], self._rest])
                return address
            self.captured.append(_text(line))
        return None

    def _read(self, deadline: Deadline) -> bytes:
        """Wait for output, at most until the deadline. Empty at the end of the output."""
        left = deadline.remaining()
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            if not poll.poll(None if left is None else left * 1000):
                raise self._failure("timed out waiting for its address line; raise timeout= or DISTPOOL_WORKER_TIMEOUT")
        return os.read(self._fd, 1 << 16)

    def _failure(self, reason: str) -> LaunchWorkerError:
        output = "\n".join(self.captured)[-SHOWN_CHARACTERS:]
        return LaunchWorkerError(f"{reason}\nits output: {output}" if output else f"{reason}; it printed nothing")

    def show_startup(self) -> None:
        """Print what came before the address line, as Julia does."""
        for line in self.captured:
            _show(f"{PREFIX}startup:\t{line}")
        self.captured = []

    def forward(self, output: Output | None, pid: int) -> threading.Thread:
        """Pass further output of worker ``pid`` on to where it is shown, by a thread of its own, until it ends."""
        shown = threading.Semaphore(0)  # so that no more is read than is shown: a worker that prints on waits
        if output is None:
            output = Output()
            output.assign(pid)
        output.when_consumed(lambda count: shown.release())
        thread = threading.Thread(
            target=self._forward, args=(output, shown), name=f"distpool output of {pid}", daemon=True
        )
        thread.start()
        return thread

    def _forward(self, output: Output, shown: threading.Semaphore) -> None:
        data = self._rest  # what came along with the address line
        while True:
            if data:
                output.feed(1, data)
                shown.acquire()
            data = os.read(self._fd, 1 << 16)
            if not data:
                break
        output.end()
        self.close()

    def close(self) -> None:
        """Give the descriptor back; not while another thread reads."""
        if isinstance(self._stream, int):
            os.close(self._stream)
        else:
            self._stream.close()


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r\n")


def _show(line: str) -> None:
    """Write a line where this process's output goes at this moment (a notebook, a test's capture), in one piece."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):  # closed, broken or None: nobody reads it; the worker must go on
        return
