"""Large arrays that tasks carry, in memory once for all workers of this machine, wherever in the arguments they are.

Used by the drop-ins around ``pool.submit``: both halves are here. The first time an array is met it is copied into
anonymous memory; each message has its descriptor, and each task maps it. Pages are shared until somebody writes to
them: a task that changes its argument changes its own copy, as always, and no other task sees it. ::

    reduce --> memory file (once for each array and call) == Descriptor ==> open_shared --> an array over a mapping

Arrays that are files already (``numpy.memmap``) are opened by the worker again, so what it writes is in the file.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import distpool

if TYPE_CHECKING:
    import numpy as np

# One write takes at most 2 GiB less a page, and returns short. Whole pages.
_MOST_BYTES_PER_WRITE = 1 << 30

_sharing = threading.local()  # .arrays: the SharedArrays that this thread pickles for


class SharedArrays:
    """The large arrays of one call of the user's, for as long as its tasks may be sent.

    An array is taken as it is when the first task with it is sent; what is written to it afterwards, other tasks of the
    same call do not see. It is known by its memory, so views of the same data are one. It is not kept alive: what a
    generator makes for one task goes with that task.

    Args:
        least: bytes from which an array is shared; None: none is.
    """

    def __init__(self, least: int | None) -> None:
        _register()
        self._least = least if hasattr(mmap, "MAP_PRIVATE") else None
        self._lock = threading.Lock()  # an array is copied once; protects nothing that finalisers touch
        self._known: dict[tuple[int, int], _Shared] = {}  # by address and size

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Share what this thread pickles within the block."""
        before = getattr(_sharing, "arrays", None)
        _sharing.arrays = self
        try:
            yield
        finally:
            _sharing.arrays = before

    def close(self) -> None:
        """Give up what is held here; tasks under way have what they need."""
        self._known.clear()

    def reduce(self, array: np.ndarray[Any, Any]) -> Any:
        """Return how an array travels; NotImplemented: copied as always."""
        import numpy as np  # whoever has an array has it

        mapped = _backing(array)
        if mapped is not None:
            return _by_file(array, mapped)
        if self._least is None or array.nbytes < max(1, self._least) or type(array) is not np.ndarray:
            return NotImplemented
        if array.dtype.hasobject or not (array.flags.c_contiguous or array.flags.f_contiguous):
            return NotImplemented
        order = "C" if array.flags.c_contiguous else "F"
        return open_shared, (self._descriptor(array), array.dtype, array.shape, order)

    def _descriptor(self, array: np.ndarray[Any, Any]) -> distpool.Descriptor:
        import numpy as np

        owner = array
        while isinstance(owner.base, np.ndarray):  # the one that keeps the memory
            owner = owner.base
        key = (array.__array_interface__["data"][0], array.nbytes)
        with self._lock:
            shared = self._known.get(key)
            if shared is None or shared.owner() is not owner:
                shared = self._known[key] = _Shared(array, owner, key, self._known)
            return shared.descriptor


class _Shared:
    """One array in memory that can be shared, until its owner goes."""

    def __init__(
        self,
        array: np.ndarray[Any, Any],
        owner: np.ndarray[Any, Any],
        key: tuple[int, int],
        known: dict[tuple[int, int], _Shared],
    ) -> None:
        self.descriptor = _copied(array)
        here = weakref.ref(self)

        def forget(_: object) -> None:  # a finaliser: takes no lock
            shared = here()
            if shared is not None and known.get(key) is shared:
                known.pop(key, None)

        self.owner = weakref.ref(owner, forget)


def _copied(array: np.ndarray[Any, Any]) -> distpool.Descriptor:
    """Write an array's memory, as it lies there, into a file without a name."""
    import numpy as np

    flat = array.ravel(order="K").view(np.uint8).data
    fd = _nameless_file()
    try:
        done = 0
        while done < len(flat):
            done += os.write(fd, flat[done : done + _MOST_BYTES_PER_WRITE])
        _seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return distpool.Descriptor.owning(fd)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # an old kernel, or a sandbox
            return os.memfd_create("distpool-array", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())


def _seal(fd: int) -> None:
    """Nobody who gets it can change it under the others' feet. An ordinary file goes only to our own workers."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def open_shared(descriptor: distpool.Descriptor, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> Any:
    """In the worker: an array over the shared memory; what is written to it is this task's own."""
    import numpy as np

    # The descriptor is not closed here: other arrays of the same message may be over the same memory.
    memory = mmap.mmap(descriptor.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.ndarray(shape, dtype, memory, order=order)


# -- arrays that are files


def _backing(array: Any) -> np.memmap[Any, Any] | None:
    """Return the file that an array is a view of, if it is one that others can open, too."""
    while array is not None:
        if isinstance(getattr(array, "base", None), mmap.mmap):
            import numpy as np

            is_file = isinstance(array, np.memmap) and array.filename is not None and array.mode != "c"
            return array if is_file and os.path.exists(array.filename) else None
        array = getattr(array, "base", None)
    return None


def _by_file(array: np.ndarray[Any, Any], mapped: np.memmap[Any, Any]) -> Any:
    start = array.__array_interface__["data"][0]
    lowest = start + sum(min(0, step * (count - 1)) for step, count in zip(array.strides, array.shape, strict=True))
    highest = start + sum(max(0, step * (count - 1)) for step, count in zip(array.strides, array.shape, strict=True))
    if not array.nbytes or array.dtype.hasobject:
        return NotImplemented
    offset = mapped.offset + lowest - mapped.__array_interface__["data"][0]
    mode = "r" if mapped.mode == "r" else "r+"
    path = str(mapped.filename)
    for order, is_so in (("C", array.flags.c_contiguous), ("F", array.flags.f_contiguous)):
        if is_so:
            return open_file, (path, array.dtype, mode, offset, array.shape, order)
    length = highest - lowest + array.itemsize
    return open_part, (path, array.dtype, mode, offset, length, array.shape, array.strides, start - lowest)


def open_file(path: str, dtype: np.dtype[Any], mode: Any, offset: int, shape: tuple[int, ...], order: Any) -> Any:
    """In the worker: the same file, mapped again; with mode "r+" what is written to it is in the file."""
    import numpy as np

    return np.memmap(path, dtype, mode, offset, shape, order)


def open_part(
    path: str,
    dtype: np.dtype[Any],
    mode: Any,
    offset: int,
    length: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    start: int,
) -> Any:
    """Likewise, for a view with gaps."""
    import numpy as np

    whole = np.memmap(path, np.uint8, mode, offset, (length,))
    return np.ndarray(shape, dtype, whole, start, strides)


def _reduce(array: Any) -> Any:
    arrays: SharedArrays | None = getattr(_sharing, "arrays", None)
    return NotImplemented if arrays is None else arrays.reduce(array)


@functools.cache
def _register() -> None:
    """Not when this room is imported: workers do that, too, and need not ask for each array that they return."""
    distpool.register_reducer("numpy.ndarray", _reduce)
