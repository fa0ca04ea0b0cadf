"""Byte streams in memory, as a library of the user's might have: blocking, one thread reads while another writes."""

from __future__ import annotations

import threading


class MemoryStream:
    """One direction: what is written can be read. ``close`` ends both sides; ``most`` limits what one read returns."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.is_closed = False
        self.flushes = 0
        self._data = bytearray()
        self._changed = threading.Condition()

    def write(self, data: bytes) -> int:
        """Take half of what comes, and at least one byte, as a raw stream may."""
        with self._changed:
            if self.is_closed:
                raise BrokenPipeError("nobody reads")
            taken = max(1, len(data) // 2)
            self._data += data[:taken]
            self._changed.notify_all()
            return taken

    def read(self, n: int) -> bytes:
        """Return at least one byte; all ``n`` bytes when there is no ``most``."""
        with self._changed:
            wanted = n if self.most is None else 1
            self._changed.wait_for(lambda: len(self._data) >= wanted or self.is_closed)
            count = n if self.most is None else min(n, self.most)
            data = bytes(self._data[:count])
            del self._data[:count]
            return data

    def flush(self) -> None:
        """Count."""
        self.flushes += 1

    def close(self) -> None:
        """Nothing more goes in; what is in can be read."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


def crossed(most: int | None = None) -> tuple[tuple[MemoryStream, MemoryStream], tuple[MemoryStream, MemoryStream]]:
    """Two connections' ends, each (read stream, write stream)."""
    there, back = MemoryStream(most), MemoryStream(most)
    return (back, there), (there, back)
