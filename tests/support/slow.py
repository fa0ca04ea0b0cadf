"""A slow link: what goes through it arrives later, and no more of it in a second than the link carries.

A proxy between a driver and a worker that listens. Everything here runs in the test's own process.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Queue
from typing import Any

import distpool
from support.listeners import Addresses, Listener

# What is on the way and in the queue before it, of a link of some megabytes and some hundredths of a second.
_PIECE_BYTES = 1 << 14
_MOST_PIECES = 32


class SlowLink:
    """Listens at ``host`` and ``port``, and carries what comes to another place: ``delay`` seconds each way."""

    def __init__(self, host: str, port: int, *, delay: float, bytes_per_second: float) -> None:
        self._target = (host, port)
        self._delay = delay
        self._speed = bytes_per_second
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._server.getsockname()
        self._streams: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="slow link")]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ends = self._server.accept()[0], socket.create_connection(self._target)
                self._streams += ends
                for source, sink in (ends, ends[::-1]):
                    # So that the kernels here hold little, and a sender feels the link.
                    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                    sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._carry(source, sink)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        on_the_way: Queue[tuple[float, bytes]] = Queue(_MOST_PIECES)

        def take() -> None:
            free = 0.0  # when the link has carried what came before
            data = b"begin"
            while data:
                try:
                    data = source.recv(_PIECE_BYTES)
                except OSError:
                    data = b""
                free = max(free, time.monotonic()) + len(data) / self._speed
                time.sleep(max(0.0, free - time.monotonic()))
                on_the_way.put((free + self._delay, data))

        def give() -> None:
            data = b"begin"
            while data:
                arrival, data = on_the_way.get()
                time.sleep(max(0.0, arrival - time.monotonic()))
                with suppress(OSError):
                    sink.sendall(data) if data else sink.shutdown(socket.SHUT_WR)

        for each in (take, give):
            self._threads.append(threading.Thread(target=each, name="slow link"))
            self._threads[-1].start()

    def close(self) -> None:
        """Cut it."""
        for stream in (self._server, *self._streams):
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for stream in (self._server, *self._streams):
            stream.close()


class Behind(Addresses):
    """Reaches workers through slow links."""

    def __init__(self, *links: SlowLink) -> None:
        self.links = links

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        for link in self.links:
            launched.append(distpool.WorkerConfig(host=link.host, port=link.port))


@contextmanager
def slow_link(listener: Listener, *, delay: float = 0.05, bytes_per_second: float = 5e6) -> Iterator[SlowLink]:
    """A link to a worker, cut at the end."""
    link = SlowLink(listener.host, listener.port, delay=delay, bytes_per_second=bytes_per_second)
    try:
        yield link
    finally:
        link.close()
