"""How things of ``multiprocessing`` get to workers and back: in ``initargs``, arguments, results, globals of a script.

The standard library lets most of them travel only while a process is being spawned, for then it knows that the receiver
is its own child. Messages of distpool go to processes of one program, too, so here they may always travel: as what
they are made of, a semaphore's name or a descriptor. An object must live, in the process that made it, until the
other one has opened it.

The rules are looked up by the names of classes, so nothing of the standard library is imported for them. Reducers run
in the thread that pickles; what they name runs where it is opened, perhaps on the thread that reads for everybody: so
it does not wait for other processes (but a manager's proxy, which says hello to its server).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

import distpool

TYPE_CHECKING = False  # type checkers take it as true; typing would cost each worker that loads this several ms
if TYPE_CHECKING:
    from typing import Any


def register() -> None:
    """Make the rules known in this process; harmless to repeat."""
    for name, reduce in RULES.items():
        distpool.register_reducer(name, reduce)


def _as_if_spawning(tell: Callable[[], Any]) -> Any:
    """Let one object give its state away. It is not asked for what is in that, which has rules as well."""
    from multiprocessing import context

    outer = context.get_spawning_popen()
    context.set_spawning_popen(outer or object())  # type: ignore[arg-type]  # looked at only for being there
    try:
        return tell()
    finally:
        context.set_spawning_popen(outer)


def _with_state(obj: Any) -> tuple[Any, ...]:
    return rebuild, (type(obj), _as_if_spawning(obj.__getstate__))


def rebuild(kind: Any, state: Any) -> Any:
    """An object of its state."""
    made = kind.__new__(kind)
    made.__setstate__(state)
    return made


def _as_it_says(obj: Any) -> Any:
    return _as_if_spawning(obj.__reduce__)


# -- semaphores


def _semaphore(lock: Any) -> tuple[Any, ...]:
    inner = lock._semlock
    if getattr(inner, "name", None) is None:  # made by a fork context, or lent to us: nobody else can open it
        from . import lent

        return lent.borrow, (type(lock), *lent.terms(lock))
    return rebuild, (type(lock), (0, inner.kind, inner.maxvalue, inner.name))


# -- what has descriptors


def _connection(connection: Any) -> tuple[Any, ...]:
    end = distpool.Descriptor(connection.fileno())
    return rebuild_connection, (type(connection), end, connection.readable, connection.writable)


def rebuild_connection(kind: Any, end: distpool.Descriptor, readable: bool, writable: bool) -> Any:
    """One end of a pipe."""
    return kind(end.detach(), readable, writable)


def _socket(sock: Any) -> Any:
    import socket

    if type(sock) is not socket.socket:  # a TLS connection, say, is more than its descriptor
        return NotImplemented
    return rebuild_socket, (distpool.Descriptor(sock.fileno()), sock.family, sock.type, sock.proto)


def rebuild_socket(end: distpool.Descriptor, family: int, kind: int, protocol: int) -> Any:
    """The socket, open here as well."""
    import socket

    return socket.socket(family, kind, protocol, fileno=end.detach())


def _arena(arena: Any) -> tuple[Any, ...]:
    return rebuild_arena, (type(arena), arena.size, distpool.Descriptor(arena.fd))


# Memory of Values and Arrays that this process has mapped, by the file's identity: opened for each message that has
# something in it, mapped once.
_arenas: weakref.WeakValueDictionary[tuple[int, int], Any] = weakref.WeakValueDictionary()


def rebuild_arena(kind: Any, size: int, end: distpool.Descriptor) -> Any:
    """The memory behind Values and Arrays."""
    facts = os.fstat(end.fileno())
    key = facts.st_dev, facts.st_ino
    arena = _arenas.get(key)
    if arena is None:
        arena = _arenas[key] = kind(size, end.fileno())
        weakref.finalize(arena, end.close).atexit = False  # the standard library leaves it open
    return arena


def _ctype(obj: Any) -> Any:
    import ctypes

    wrapper = getattr(obj, "_wrapper", None)
    if wrapper is None:  # not shared: a value like others
        return NotImplemented
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (obj._type_, wrapper, obj._length_)
    return rebuild_ctype, (type(obj), wrapper, None)


def rebuild_ctype(kind: Any, wrapper: Any, length: int | None) -> Any:
    """A shared ctypes object; its class and its memory."""
    from multiprocessing import sharedctypes

    return vars(sharedctypes)["rebuild_ctype"](kind, wrapper, length)  # registers it for processes that are spawned


def _shared_memory(memory: Any) -> tuple[Any, ...]:
    return attach, (type(memory), memory.name)


def attach(kind: Any, name: str) -> Any:
    """A block of shared memory, or a list in one, which another process looks after."""
    from multiprocessing import resource_tracker

    if distpool.myid() != 1:  # globals of a script come before the worker is told who it is
        share_tracker(resource_tracker)
    outer, guests.arrive = guests.arrive, True
    try:
        return kind(name=name)
    finally:
        guests.arrive = outer


def _shared_list(shared: Any) -> tuple[Any, ...]:
    return attach, (type(shared), shared.shm.name)


# -- who looks after shared memory: the resource tracker


class _Guests(threading.local):
    """Whether this thread just now opens something that belongs to another process."""

    arrive = False


guests = _Guests()


def share_tracker(resource_tracker: Any) -> None:
    """Let this process use the driver's resource tracker.

    One of its own would end with the worker, and take the worker's shared memory with it. What has come from the driver
    is the driver's to look after, and not even told of. Harmless to repeat.
    """
    tracker, own_pid = resource_tracker._resource_tracker, os.getpid()
    if "_send" in vars(tracker):
        return
    ensure_running, send = tracker.ensure_running, tracker._send

    def ensure_shared() -> None:
        if tracker._fd is None and os.getpid() == own_pid:  # else a process that a task has forked
            tracker._fd = distpool.remotecall_fetch(lend_tracker, 1).detach()
        ensure_running()

    def send_unless_guest(command: str, name: str, kind: str) -> None:
        if command != "REGISTER" or not guests.arrive:
            send(command, name, kind)

    tracker.ensure_running = ensure_shared
    tracker._send = send_unless_guest


def lend_tracker() -> distpool.Descriptor:
    """Return what leads to this process's resource tracker. Called in the driver."""
    from multiprocessing import resource_tracker

    fd = resource_tracker.getfd()
    assert fd is not None  # it is running now
    return distpool.Descriptor(fd)


# -- secrets


def _key(key: Any) -> tuple[Any, ...]:
    return type(key), (bytes(key),)


# By the full name of the class; subclasses follow it.
RULES: dict[str, Callable[[Any], Any]] = {
    "multiprocessing.synchronize.SemLock": _semaphore,
    "multiprocessing.synchronize.Condition": _with_state,
    "multiprocessing.queues.Queue": _with_state,
    "multiprocessing.queues.SimpleQueue": _with_state,
    "multiprocessing.sharedctypes.SynchronizedBase": _as_it_says,
    "multiprocessing.managers.BaseProxy": _as_it_says,
    "multiprocessing.process.AuthenticationString": _key,
    "multiprocessing.connection.Connection": _connection,
    "multiprocessing.heap.Arena": _arena,
    "multiprocessing.shared_memory.SharedMemory": _shared_memory,
    "multiprocessing.shared_memory.ShareableList": _shared_list,
    "socket.socket": _socket,
    "_ctypes._SimpleCData": _ctype,
    "_ctypes.Array": _ctype,
    "_ctypes.Structure": _ctype,
    "_ctypes.Union": _ctype,
}
