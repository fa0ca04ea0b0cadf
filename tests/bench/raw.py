"""The limit: the same work by hand, with blocking sends and receives between Python processes.

Nothing here could serve as a pool: no errors, no deaths, no order. It says what the machine and the interpreter cost.
Imported by the driver and run by the processes it starts (`python -m tests.bench.raw`), so it imports little.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

REQUEST = b"q" * 64  # bytes; about what an empty call takes: a header and the pickle of a function's name
ANSWER = b"a" * 32  # bytes; a header and a pickled None
SIZE = struct.Struct("!Q")
TWO_SIZES = struct.Struct("!QQ")  # bytes that follow, bytes wanted back


def read(stream: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; empty at the end of the stream."""
    data = stream.recv(size)
    while data and len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data


def send_pickled(stream: socket.socket, value: object) -> None:
    """Send a value behind its length."""
    body = pickle.dumps(value, 5)
    stream.sendall(SIZE.pack(len(body)))
    stream.sendall(body)


def receive_pickled(stream: socket.socket) -> Any:
    """Receive what `send_pickled` sent; EOFError at the end of the stream."""
    head = read(stream, SIZE.size)
    if not head:
        raise EOFError
    view = memoryview(bytearray(SIZE.unpack(head)[0]))
    done = 0
    while done < len(view):
        done += stream.recv_into(view[done:])
    return pickle.loads(view)


def serve_bytes(stream: socket.socket) -> None:
    """Answer each request of fixed size, opening none."""
    while read(stream, len(REQUEST)):
        stream.sendall(ANSWER)


def serve_calls(stream: socket.socket) -> None:
    """Run each pickled `(function, arguments)` and answer with its pickled result."""
    try:
        while True:
            function, arguments = receive_pickled(stream)
            send_pickled(stream, function(*arguments))
    except EOFError:
        pass


def serve_lists(stream: socket.socket) -> None:
    """Run a function on a whole list at once."""
    try:
        while True:
            function, items = receive_pickled(stream)
            send_pickled(stream, [function(item) for item in items])
    except EOFError:
        pass


def receive_fresh(stream: socket.socket, size: int) -> memoryview:
    """Receive `size` bytes straight into memory of their own, in huge pages where the system has them."""
    import mmap

    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    done = 0
    while done < size:
        done += stream.recv_into(view[done:])
    return view


def serve_arrays(stream: socket.socket) -> None:
    """Take so many bytes, give so many back: always the same ones, so that only their way counts."""
    kept = bytearray()
    while head := read(stream, TWO_SIZES.size):
        taken, wanted = TWO_SIZES.unpack(head)
        if taken:
            receive_fresh(stream, taken)
        if len(kept) != wanted:
            kept = bytearray(wanted)
        stream.sendall(kept)


SERVICES = {"bytes": serve_bytes, "calls": serve_calls, "lists": serve_lists, "arrays": serve_arrays}


@contextmanager
def process(service: str, *, over_tcp: bool = False) -> Iterator[socket.socket]:
    """Another Python process that serves; yields our end of a socket pair, or of a TCP connection over loopback."""
    import subprocess

    ours, theirs = _tcp_pair() if over_tcp else socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "tests.bench.raw", service, str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as child:
            theirs.close()
            try:
                yield ours
            finally:
                ours.close()  # its end of stream: the child leaves by itself
                child.wait()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # as ours has it: 100 MB take a sixth less
            end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
    return ours, theirs


@contextmanager
def forked_by_hand(processes: int) -> Iterator[Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]]:
    """The least that a clean start costs: exec one bare interpreter, let it fork, talk to each child over its pair."""
    pairs = [socket.socketpair() for _ in range(processes)]
    for _, theirs in pairs:
        theirs.set_inheritable(True)
    numbers = [str(theirs.fileno()) for _, theirs in pairs]
    command = [sys.executable, "-S", "-E", "-m", "tests.bench.raw", "fork", *numbers]
    server = os.posix_spawn(sys.executable, command, os.environ)
    streams = [ours for ours, _ in pairs]
    for _, theirs in pairs:
        theirs.close()

    def run_each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        busy = []
        for position, item in enumerate(items):
            stream = streams[position % processes]
            send_pickled(stream, (function, (item,)))
            busy.append(stream)
        return [receive_pickled(stream) for stream in busy]

    try:
        yield run_each
    finally:
        for stream in streams:
            stream.close()
        os.waitpid(server, 0)


def fork_children(numbers: Sequence[int]) -> None:
    """The bare interpreter: one child per descriptor, then wait for all of them to leave."""
    children = []
    for number in numbers:
        child = os.fork()
        if not child:
            for other in numbers:
                if other != number:
                    os.close(other)
            serve_calls(socket.socket(fileno=number))
            os._exit(0)
        children.append(child)
    for number in numbers:
        os.close(number)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    if sys.argv[1] == "fork":
        fork_children([int(number) for number in sys.argv[2:]])
    else:
        SERVICES[sys.argv[1]](socket.socket(fileno=int(sys.argv[2])))
