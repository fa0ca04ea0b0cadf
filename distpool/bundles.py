"""Many parcels in one: items pickled one by one, so that one that does not open costs only itself.

Used by both halves of a pool, for items whose opening may run strange code. The bundle's own body holds nothing but
numbers and bytes; the parcels' out-of-band buffers follow one another in the order of the parcels.
"""

from __future__ import annotations

from collections.abc import Sequence

from distpool.light import Any, pickle
from distpool.pickling import Parcel, load, load_exception
from distpool.wire import Buffer


class Item:
    """One parcel of a bundle, not opened yet. ``ok`` is False when it holds an exception."""

    __slots__ = ("_body", "_buffers", "ok")

    def __init__(self, ok: bool, body: Buffer, buffers: Sequence[Any]) -> None:
        self.ok = ok
        self._body: Buffer | None = body
        self._buffers = buffers

    def refuse(self) -> None:
        """Let ``open`` raise KeyboardInterrupt: nobody wants it any more."""
        self._body = None

    def open(self) -> Any:
        """Unpickle it: the object, or the ``CapturedException``."""
        if self._body is None:
            raise KeyboardInterrupt("stopped before it began")
        return load(self._body, self._buffers) if self.ok else load_exception(self._body, self._buffers)


def bundle(parts: Sequence[tuple[bool, Parcel]], note: int = 0) -> Parcel:
    """Put parcels into one; the booleans say which hold an object and no exception; ``note`` goes along."""
    body = pickle.dumps((note, [(ok, parcel.body, len(parcel.buffers)) for ok, parcel in parts]), 5)
    buffers = [view for _, parcel in parts for view in parcel.buffers]
    names: dict[str, Any] = {}
    for _, parcel in parts:
        names.update(parcel.globals or {})
    refs = [claim for _, parcel in parts for claim in parcel.refs or ()]
    return Parcel(body, buffers, names or None, False, refs or None)


def unbundle(body: Buffer, buffers: Sequence[Any]) -> tuple[int, list[Item]]:
    """Take a bundle apart; nothing is opened. Returns the note and the items."""
    note, entries = pickle.loads(body)
    items: list[Item] = []
    start = 0
    for ok, part, count in entries:
        items.append(Item(ok, part, buffers[start : start + count]))
        start += count
    return note, items
