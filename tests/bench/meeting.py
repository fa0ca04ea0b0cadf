"""Where workers prove that they are all there: each connects and waits until as many as were asked for have come.

Used by the rows that need one task in every worker at the same time, with any pool and without sleeping. The workers'
side is `work.meet`. One thread, in the process that runs the benchmarks; it sleeps in accept while others are measured.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def meeting(size: int) -> Iterator[str]:
    """A place where `size` workers wait for each other, again and again; yields what to tell `work.meet`."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as door:
        path = os.path.join(folder, "meeting")
        door.bind(path)
        door.listen(size)
        host = threading.Thread(target=_hold_meetings, args=(door, size), daemon=True)
        host.start()
        try:
            yield path
        finally:
            door.shutdown(socket.SHUT_RDWR)  # wakes the thread out of accept
            host.join()


def _hold_meetings(door: socket.socket, size: int) -> None:
    guests: list[socket.socket] = []
    try:
        while True:
            guests.append(door.accept()[0])
            if len(guests) == size:
                for guest in guests:
                    guest.sendall(b"!")
                    guest.close()
                guests.clear()
    except OSError:  # the door is shut
        for guest in guests:
            guest.close()
