"""Memory that processes of one machine share.

Used by messages with large buffers (:class:`Segment`, :func:`map_buffers`), by whoever receives a large buffer from a
stream (:func:`fresh_memory`), and by the driver and its workers for a few words that must survive a worker
(:class:`SharedPage`). Any thread may enter. Everything is anonymous: a file without a name that lives as long as
somebody holds its descriptor or a mapping of it, so nothing can be left in /dev/shm, whoever is killed. ::

    sender                                        receivers, one or many
    store(buffers) --> fd ==== SCM_RIGHTS ====>   map_buffers(fd, lengths) --> writable views
      copied once, then sealed                      pages shared until written to, copied privately then

When is it worth it? What costs is not the copying: it is the kernel handing out pages of 4 KiB one by one, which it
does for memory files even where ordinary memory gets huge pages. Milliseconds from send to "all of it read" (Linux
6.18, four cores, median of five; stream sockets with a send buffer of 1 MiB, received into :func:`fresh_memory`)::

    size      one memcpy (huge / small pages)   one receiver      two               four
                                                socket  segment   socket  segment   socket  segment
    256 KiB        0.005                          0.1     0.3       0.15    0.35      0.3     0.4
    1 MiB          0.025                          0.2     0.7       0.3     0.7       0.7     1.0
    4 MiB          0.1                            0.8     2.2       1.7     2.4       3.2     2.9
    16 MiB         1.2                            3.7     8.5       7.2     9         17      12
    100 MB         10 / 60                        26      54        52      60        105     62

So **one receiver is served best by its socket** (also with the default buffer of 208 KiB: 42 ms for 100 MB), and a
segment pays from the third or fourth receiver on in time, from the second in memory. Received into a bytearray instead
of fresh memory, the 100 MB take 88 ms.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import sys
import threading

from distpool.light import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Bytes from which a buffer that goes to SEVERAL processes belongs in a segment: measured, where four receivers are
# served equally fast both ways (table above: 1 to 4 MiB; with the default socket buffer 256 KiB to 1 MiB).
THRESHOLD = 1 << 20

ALIGNMENT = 64  # bytes: a cache line, and what the widest vector instructions (AVX-512) and Arrow ask for
# Linux writes at most 2 GiB less a page in one call and returns short; other systems refuse more. Whole pages.
_MOST_BYTES_PER_WRITE = 1 << 30
_HUGE_PAGE = 2 << 20  # bytes, on x86-64 and most arm64


# -- anonymous files


def anonymous_file(size: int, create: Callable[[], int] | None = None) -> int:
    """Return the descriptor of a new nameless file of ``size`` zero bytes, closed on exec.

    Args:
        size: bytes; nothing is allocated before it is written.
        create: how to make the empty file; default: memory where the system can, else :func:`temporary_file`.

    Raises:
        OSError: no descriptor or no space is left.
    """
    fd = (create or _memory_or_temporary_file)()
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def temporary_file() -> int:
    """Create a file in the directory for temporary files and remove its name at once; returns its descriptor."""
    import tempfile  # costs milliseconds and is needed only where there is no memfd

    fd, path = tempfile.mkstemp(prefix="distpool-")
    os.unlink(path)
    return fd


def _memory_or_temporary_file() -> int:
    if hasattr(os, "memfd_create"):
        # It fails on an old kernel or in a sandbox; if what we lack is descriptors, the next line fails, too.
        with contextlib.suppress(OSError):
            return os.memfd_create("distpool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    return temporary_file()


# -- segments


class Segment:
    """Buffers copied once into a nameless file, for any number of processes to map.

    Owns its descriptor: send duplicates, :meth:`close` when the last one is sent. What was mapped stays.
    """

    def __init__(self, fd: int, lengths: Sequence[int]) -> None:
        self.fd = fd
        self.lengths = tuple(lengths)

    @classmethod
    def store(cls, buffers: Sequence[memoryview], create: Callable[[], int] | None = None) -> Segment:
        """Copy the buffers (contiguous, of any format) into a new segment.

        Written, not mapped and copied: the kernel then need not clear the pages first (52 against 93 ms for 100 MB),
        and a lack of memory is an error here instead of a SIGBUS.

        Raises:
            OSError: no descriptor, memory or disk space is left.
        """
        flat = [buffer.cast("B") if buffer.nbytes else memoryview(b"") for buffer in buffers]
        lengths = [buffer.nbytes for buffer in flat]
        starts, size = _layout(lengths)
        fd = anonymous_file(size, create)
        try:
            for start, buffer in zip(starts, flat, strict=True):
                _write_all(fd, buffer, start)
            _seal(fd)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, lengths)

    @property
    def nbytes(self) -> int:
        """The size of the file: the buffers and the gaps that align them."""
        return _layout(self.lengths)[1]

    def close(self) -> None:
        """Close the descriptor; harmless to repeat."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def map_buffers(fd: int, lengths: Sequence[int]) -> list[memoryview]:
    """Return the buffers of a segment, as writable views that nobody else sees written to.

    Takes the descriptor: it is closed in any case, and the mapping keeps none open (thousands of arrays may live under
    a small ``ulimit -n``). The whole segment is unmapped when the last of the views, and of the arrays over them, dies.

    Raises:
        ValueError: the file is smaller than the lengths say; reading it would be a SIGBUS.
        OSError: it cannot be mapped.
    """
    try:
        starts, size = _layout(lengths)
        if os.fstat(fd).st_size < size:
            raise ValueError(f"a segment of {os.fstat(fd).st_size} bytes cannot hold buffers of {size} bytes in all")
        whole = _map_privately(fd, size) if size else memoryview(bytearray())
    finally:
        os.close(fd)
    return [whole[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def fresh_memory(size: int) -> memoryview:
    """Return zeroed writable memory for a large buffer to be received into; freed when the last view dies.

    In huge pages where the system has them: filling 100 MB takes 10 ms so, and 51 ms in a bytearray. For sizes of some
    megabytes or more; below that a bytearray is as good.
    """
    if size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _layout(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Return where each buffer starts, and the size of the whole; sender and receiver compute the same."""
    starts, end = [], 0
    for length in lengths:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        starts.append(start)
        end = start + length
    return starts, end


def _write_all(fd: int, buffer: memoryview, start: int) -> None:
    done = 0
    while done < len(buffer):
        done += os.pwrite(fd, buffer[done : done + _MOST_BYTES_PER_WRITE], start + done)


def _seal(fd: int) -> None:
    """Make the file unchangeable, so that no process that gets it can alter or shrink it under another's feet."""
    try:
        import fcntl  # not everywhere

        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except (ImportError, AttributeError, OSError):  # an ordinary file: its descriptor goes only to processes of ours
        return


# -- mapping without a descriptor

if sys.version_info >= (3, 13):

    def _map_privately(fd: int, size: int) -> memoryview:
        return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, trackfd=False))

else:

    def _map_privately(fd: int, size: int) -> memoryview:
        """Map by the C library's own call, because before 3.13 Python's keeps a duplicate of the descriptor open."""
        libc = _libc()
        if libc is None:
            return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE))
        import ctypes
        import weakref

        address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
        if address == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        # The views keep the array alive, its death unmaps. At exit the kernel does that, and views may still live.
        array = (ctypes.c_char * size).from_address(address)
        weakref.finalize(array, libc.munmap, address, size).atexit = False
        return memoryview(array).cast("B")


@functools.cache
def _libc() -> Any:
    """Load the C library's mmap and munmap; None where Python was built without ctypes."""
    try:
        import ctypes  # some milliseconds; only processes that receive a large buffer pay
    except ImportError:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    size, offset = ctypes.c_size_t, ctypes.c_long
    libc.mmap.argtypes = [ctypes.c_void_p, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, offset]
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = [ctypes.c_void_p, size]
    return libc


# -- the shared page


class SharedPage:
    """Slots of eight 64-bit words, seen and written by all processes that map the page.

    For facts that must outlive the process that wrote them, such as which task a worker is in. A word is written and
    read whole; there is no order between words but the processor's. The driver creates it and hands out slots.
    """

    SLOT_BYTES = 64  # a cache line, so that workers do not slow each other down
    _SLOT_WORDS = 8

    def __init__(self, fd: int, mapping: mmap.mmap) -> None:
        self.fd = fd  # to pass on; -1 where the page was opened, not created
        self.slots = len(mapping) // self.SLOT_BYTES
        self._mapping = mapping
        self._lock = threading.Lock()  # protects _free and _taken; the driver's threads start workers side by side
        self._free = list(reversed(range(self.slots)))
        self._taken: set[int] = set()

    @classmethod
    def create(cls, slots: int, create: Callable[[], int] | None = None) -> SharedPage:
        """Create a page with this many slots, all zero; owns its descriptor."""
        fd = anonymous_file(slots * cls.SLOT_BYTES, create)
        return cls(fd, _map_shared(fd, slots * cls.SLOT_BYTES))

    @classmethod
    def open(cls, fd: int) -> SharedPage:
        """Map the page behind a descriptor that came from its creator; takes the descriptor and closes it."""
        try:
            return cls(-1, _map_shared(fd, os.fstat(fd).st_size))
        finally:
            os.close(fd)

    def slot(self, index: int) -> memoryview:
        """Return the eight words of a slot, as a writable view of unsigned 64-bit integers."""
        if not 0 <= index < self.slots:
            raise IndexError(f"slot {index} of a page with {self.slots}")
        return memoryview(self._mapping)[index * self.SLOT_BYTES : (index + 1) * self.SLOT_BYTES].cast("Q")

    def allocate(self) -> int | None:
        """Take a free slot and zero it; None when all are taken. For the driver only."""
        with self._lock:
            if not self._free:
                return None
            index = self._free.pop()
            self._taken.add(index)
        view = self.slot(index)
        for word in range(self._SLOT_WORDS):
            view[word] = 0
        return index

    def free(self, index: int) -> None:
        """Give a slot back. Its last words stay readable until it is allocated again."""
        with self._lock:
            if index not in self._taken:
                raise ValueError(f"slot {index} is not allocated")
            self._taken.remove(index)
            self._free.append(index)

    def close(self) -> None:
        """Close the descriptor; the mapping ends with the last view of a slot and this object."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _map_shared(fd: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, trackfd=False)
    return mmap.mmap(fd, size)  # keeps a duplicate of the descriptor: one per process, which is bearable
