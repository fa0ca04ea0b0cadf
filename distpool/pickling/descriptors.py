"""File descriptors that travel with the objects that have them: pipes, sockets, files, memory.

Used by users and by reducers of objects with a descriptor inside, in whatever thread pickles or loads. In a message a
descriptor takes the place of one out-of-band buffer. So it stays with its item when parcels are bundled, sent once
more to another worker, or kept; only the connection, which alone can pass it on, looks at it::

    Descriptor --pickle--> Attachment (a buffer of one byte) --peer--> SCM_RIGHTS
                                                                       Received --pickle--> Descriptor

Each of the three owns a duplicate of its own, closed with it; all attachments of one Descriptor share theirs, so that
thousands of tasks that wait with the same one cost one.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence

from distpool.light import TYPE_CHECKING, Any, pickle

from .gathering import in_message

if TYPE_CHECKING:
    from typing_extensions import Self


class Descriptor:
    """A file descriptor that can be sent: as an argument, a result, or inside an object, to processes of this machine.

    Holds a duplicate of ``fd``, which stays the caller's; the receiver gets a Descriptor with a duplicate of its own,
    for the same open file. It is closed with the object, unless ``detach`` has taken it. A process that is reached over
    the network cannot be handed descriptors: the message arrives, and opening it raises TypeError there. Pickled for
    anything but distpool's messages it raises TypeError at once.

    Raises OSError when ``fd`` is not open.

    >>> import os
    >>> from distpool import WorkerPool
    >>> end, other = os.pipe()
    >>> with WorkerPool(processes=1) as pool:
    ...     pool.submit(lambda pipe: os.write(pipe.fileno(), b"hello"), Descriptor(other)).result()
    5
    >>> os.read(end, 5)
    b'hello'
    >>> os.close(end), os.close(other)
    (None, None)
    """

    __slots__ = ("__weakref__", "_attached", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = -1  # for __del__, should the next line raise
        self._attached: weakref.ref[Duplicate] | None = None  # the one for messages, while any of them has it
        self._fd = os.dup(fd)

    @classmethod
    def owning(cls, fd: int) -> Self:
        """Make one of a descriptor that is open for it alone; nothing is duplicated."""
        made = cls.__new__(cls)
        made._fd = fd
        made._attached = None
        return made

    def fileno(self) -> int:
        """Return the descriptor, which stays this object's; ValueError when it has none any more."""
        if self._fd < 0:
            raise ValueError("this Descriptor was detached or closed")
        return self._fd

    def detach(self) -> int:
        """Return the descriptor, which is the caller's from now on; ValueError when it has none any more."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def close(self) -> None:
        """Close it; harmless to repeat."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Descriptor({self._fd})" if self._fd >= 0 else "Descriptor(closed)"

    def __reduce__(self) -> Any:
        if not in_message():
            raise TypeError(f"{self!r} has a meaning only for processes of this machine, in messages of distpool's")
        return receive, (pickle.PickleBuffer(Attachment(self._for_messages())),)

    def _for_messages(self) -> Duplicate:
        """Return one that stays open whatever becomes of this one. Two threads may make two: no harm."""
        shared = self._attached() if self._attached is not None else None
        if shared is None or self._fd < 0:
            shared = Duplicate(self.fileno())
            self._attached = weakref.ref(shared)
        return shared


class Duplicate:
    """The descriptor that the messages of one Descriptor share, open as long as this object lives.

    Closed by a finalizer: while a ``__del__`` runs, weak references still hand the object to other threads.
    """

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = os.dup(fd)
        weakref.finalize(self, os.close, self.fd).atexit = False


class Attachment(bytearray):
    """Stands for a descriptor among the buffers of a parcel. Writable, so that pickle does not wrap what arrives."""

    __slots__ = ("_end",)

    def __init__(self, end: Duplicate) -> None:
        super().__init__(1)
        self._end = end

    def duplicate(self) -> int:
        """Return a descriptor for one message."""
        return os.dup(self._end.fd)


class Received:
    """In the place of an Attachment's buffer: the descriptor as it came. Opened once, or closed with its message."""

    __slots__ = ("end",)

    def __init__(self, fd: int) -> None:
        self.end: Descriptor = Descriptor.owning(fd)


def is_attachment(view: memoryview) -> bool:
    """Tell whether a buffer of a parcel stands for a descriptor."""
    return type(view.obj) is Attachment


def duplicates(buffers: Sequence[memoryview]) -> list[int]:
    """Return the descriptors that go along with these buffers, each open for one message; OSError if there is none."""
    fds: list[int] = []
    try:
        fds.extend(view.obj.duplicate() for view in buffers if isinstance(view.obj, Attachment))
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def receive(came: object) -> Descriptor:
    """Called by the pickle at the receiver."""
    if isinstance(came, Received):
        return Descriptor(came.end.fileno())  # a payload may be opened twice
    if isinstance(came, memoryview) and isinstance(came.obj, Attachment):
        return Descriptor.owning(came.obj.duplicate())  # it has not left this process
    raise TypeError("a file descriptor can only be sent to a process on the same machine, over a local connection")
