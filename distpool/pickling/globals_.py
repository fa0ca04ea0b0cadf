"""Globals of ``__main__`` beside a payload: which of them a connection still has to send, and how they travel.

Used by the peers that send (one `SentGlobals` per connection and direction) and by whoever opens a payload. The sender
calls `wrap` in the order in which frames enter its stream, one at a time: what is noted as sent must arrive before a
frame that relies on it. The receiver must likewise `peel` frames with FLAG_GLOBALS in that order, and must not throw
one away unpeeled.

Julia's rule, restated: a name is sent when this connection never sent it, when it is bound to another object than the
one sent last, or when that object has changed inside. It is not sent when nothing changed here, whatever the receiver
did to its own: so a placeholder ``model = None`` does not overwrite the model that a worker loaded. (Julia sends plain
numbers again every time.)

    body with FLAG_GLOBALS:  length of the list (8 bytes) | pickled list of (name, body, number of buffers) | inner body
    buffers:                 those of the globals, in order, then those of the inner body
"""

from __future__ import annotations

import struct
import sys
import weakref
from collections.abc import Iterable, Sequence

from distpool.light import Any, Final, pickle

from ..messages import FLAG_GLOBALS
from .functions import made_module
from .parcel import Parcel, ShippedGlobal, load

_LENGTH: Final = struct.Struct("<Q")

_ATOMS: Final = frozenset({int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented)})

# crc32 reads 4 GB/s (measured): 64 MB cost 16 ms.
_SAMPLED_ABOVE: Final = 64 << 20  # bytes
_SAMPLES: Final = 1024
_SAMPLE: Final = 4096  # bytes each

_LARGE: Final = 10 << 20  # bytes; a global above this that is sent again and again deserves a warning
_KEPT: Final = 1 << 20  # bytes; larger values are not kept alive merely to compare identities

Digest = tuple[int, ...]


class SentGlobals:
    """What one connection was already sent. Not locked: calls follow the order of sending, one at a time."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def select(self, globals: dict[str, ShippedGlobal]) -> list[tuple[str, bytes, list[memoryview]]]:
        """Those of these globals that must be sent now; they count as sent from here on."""
        chosen = []
        for name, shipped in globals.items():
            record = self._records.get(name)
            if record is not None and record.still_holds(shipped):
                continue
            times = 0 if record is None else record.times
            self._records[name] = _Record(shipped, times + 1)
            if times == 2:  # the third time: once may be chance
                _warn_if_large(shipped)
            chosen.append((name, shipped.body, shipped.buffers))
        return chosen

    def forget(self, names: Iterable[str]) -> None:
        """These did not arrive after all: send them again when next mentioned."""
        for name in names:
            self._records.pop(name, None)

    def note_received(self, name: str, value: object) -> None:
        """The other side sent this one: it need not have it back while nobody changes it here."""
        self._records[name] = _Record(ShippedGlobal(name, value, b"", []), 0, seen=False)


class _Record:
    """One name: the object that was sent, by reference where that is safe and cheap, and a digest of its contents."""

    __slots__ = ("digest", "id", "ref", "seen", "times", "value")

    def __init__(self, shipped: ShippedGlobal, times: int, seen: bool = True) -> None:
        value = shipped.value
        self.times = times
        self.seen = seen  # False: contents not looked at yet, taken as unchanged the first time
        self.id = id(value)
        self.digest: Digest = () if type(value) in _ATOMS or not seen else _digest(shipped)
        self.value: object = None
        self.ref: weakref.ref[Any] | None = None
        try:
            self.ref = weakref.ref(value)
        except TypeError:
            # An id may be used again after its object died. A small object is kept alive to prevent that. A large one
            # is not; in its place could come an object of the same contents, and the receiver has those contents.
            if _size(shipped) <= _KEPT and sys.getsizeof(value, 0) <= _KEPT:
                self.value = value

    def still_holds(self, shipped: ShippedGlobal) -> bool:
        value = shipped.value
        if self.id != id(value) or (self.ref is not None and self.ref() is not value):
            return False
        if type(value) in _ATOMS:
            return True
        digest = _digest(shipped)
        if not self.seen:
            self.seen, self.digest = True, digest
        return digest == self.digest


def _size(shipped: ShippedGlobal) -> int:
    return len(shipped.body) + sum(buffer.nbytes for buffer in shipped.buffers)


def _digest(shipped: ShippedGlobal) -> Digest:
    """Tells changed contents from unchanged ones: the size and checksum of all parts; very large ones are sampled."""
    parts: list[Any] = [shipped.body, *shipped.buffers]
    return tuple(number for part in parts for number in (len(part), *_checksums(memoryview(part))))


def _checksums(view: memoryview) -> tuple[int, int]:
    import zlib  # only for those who send globals that can change

    if view.nbytes <= _SAMPLED_ABOVE:
        # Two sums for small parts, where one chance in 2**32 is all that stands between a change and its loss.
        return zlib.crc32(view), zlib.adler32(view) if view.nbytes < _KEPT else 0
    total = 0
    stride = (view.nbytes - _SAMPLE) // (_SAMPLES - 1)
    for index in range(_SAMPLES):
        total = zlib.crc32(view[index * stride : index * stride + _SAMPLE], total)
    return total, 0


def _warn_if_large(shipped: ShippedGlobal) -> None:
    size = _size(shipped)
    if size < _LARGE:
        return
    import logging  # only for this

    logging.getLogger("distpool").warning(
        "The global %r (%d MB) has been sent to the same process three times, because it changes between calls. "
        "Pass it as an argument, or leave it unchanged, or keep it at the workers with everywhere().",
        shipped.name,
        size >> 20,
    )


def wrap(parcel: Parcel, sent: SentGlobals | None) -> tuple[int, bytes, list[memoryview]]:
    """A parcel as (flags, body, buffers) for a frame of one connection; without a connection, all globals go along."""
    if parcel.globals is None:
        return 0, parcel.body, parcel.buffers
    if sent is not None:
        chosen = sent.select(parcel.globals)
    else:
        chosen = [(name, shipped.body, shipped.buffers) for name, shipped in parcel.globals.items()]
    if not chosen:
        return 0, parcel.body, parcel.buffers
    head = pickle.dumps([(name, body, len(buffers)) for name, body, buffers in chosen], 5)
    buffers = [buffer for _, _, each in chosen for buffer in each]
    return FLAG_GLOBALS, b"".join((_LENGTH.pack(len(head)), head, parcel.body)), [*buffers, *parcel.buffers]


def peel(
    flags: int, body: bytes | memoryview, buffers: Sequence[Any] = (), sent: SentGlobals | None = None
) -> tuple[bytes | memoryview, Sequence[Any]]:
    """Assign the globals in front of a payload, if any, and return the rest unopened, as `load` takes it.

    Args:
        sent: what this process sent on the same connection; received names count as known to the other side.
    """
    return _peel(True, flags, body, buffers, sent)


def peel_beside(
    flags: int, body: bytes | memoryview, buffers: Sequence[Any] = (), sent: SentGlobals | None = None
) -> tuple[bytes | memoryview, Sequence[Any]]:
    """`peel` in a process whose ``__main__`` is that of the sender, too: names that are there are left as they are."""
    return _peel(False, flags, body, buffers, sent)


def _peel(
    replaces: bool, flags: int, body: bytes | memoryview, buffers: Sequence[Any], sent: SentGlobals | None
) -> tuple[bytes | memoryview, Sequence[Any]]:
    if not flags & FLAG_GLOBALS:
        return body, buffers
    entries, body, buffers = _split(body, buffers)
    for name, packed, parts in entries:
        namespace, attribute = _place(name)
        if replaces or attribute not in namespace:
            value = namespace[attribute] = _loaded(name, packed, parts)
        else:
            value = namespace[attribute]
        if sent is not None:
            sent.note_received(name, value)
    return body, buffers


Entry = tuple[str, bytes, Sequence[Any]]


def _split(body: bytes | memoryview, buffers: Sequence[Any]) -> tuple[list[Entry], memoryview, Sequence[Any]]:
    """The globals in front of a payload, unopened, and the rest."""
    view = memoryview(body)
    (length,) = _LENGTH.unpack_from(view)
    start = _LENGTH.size + length
    entries: list[Entry] = []
    taken = 0
    for name, packed, count in pickle.loads(view[_LENGTH.size : start]):
        entries.append((name, packed, buffers[taken : taken + count]))
        taken += count
    return entries, view[start:], buffers[taken:]


def _place(name: str) -> tuple[dict[str, Any], str]:
    """Where a name belongs here: ``__main__``, or the namespace kept for a module that cannot be imported."""
    module, _, attribute = name.rpartition(":")
    return vars(made_module(module)) if module else vars(sys.modules["__main__"]), attribute


def _loaded(name: str, packed: bytes, buffers: Sequence[Any]) -> Any:
    try:
        return load(packed, buffers)
    except Exception as error:
        raise RuntimeError(f"the global {name!r} sent along with a call cannot be rebuilt here: {error!r}") from error
