"""The cluster's secret: who knows it belongs to the cluster.

Used by ``tcp`` and ``listening`` for the handshake, by managers who hand it to the workers that they start, and by
users (``cluster_cookie``). Any thread. Owns: the secret of this process, drawn at first need. One per process and not
per cluster, as Julia has it: it keeps strangers out, and the clusters of one process are no strangers to each other.
"""

from __future__ import annotations

import os
import threading

from distpool.light import Final

# Bytes of the drawn secret: as many as the hash of the handshake has, out of reach of all guessing.
SECRET_BYTES: Final = 32
MAX_CHARACTERS: Final = 255


class _Secret:
    """The secret of this process; a forked copy of the process goes on with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _value: two threads must not draw two
        self._value: str | None = None

    def get(self) -> str:
        with self._lock:
            if self._value is None:
                self._value = os.urandom(SECRET_BYTES).hex()
            return self._value

    def set(self, value: str) -> None:
        with self._lock:
            self._value = value


_secret = _Secret()


def cluster_cookie(cookie: str | None = None) -> str:
    """Return the secret that the processes of this process's clusters share, or set it.

    Drawn at first use: 256 random bits as hexadecimal text. Only what is started or connected later uses a new value,
    so set it before adding workers that were given another one. It is for workers that are reached over a network: keep
    it off command lines, where every user of the machine can read it. ``""`` is legal and proves nothing.

    Args:
        cookie: the new secret, at most 255 ASCII characters of one line; None only asks.

    Raises TypeError for anything but text, ValueError for text that does not fit. Julia's ``cluster_cookie``, but for
    the length: nothing is padded or cut.

    >>> len(cluster_cookie()) >= 32
    True
    """
    if cookie is None:
        return _secret.get()
    if not isinstance(cookie, str):
        raise TypeError(f"cluster_cookie() takes text, not a {type(cookie).__name__}")
    if len(cookie) > MAX_CHARACTERS:
        raise ValueError(f"the cookie has {len(cookie)} characters; at most {MAX_CHARACTERS} are allowed")
    if not cookie.isascii() or "\n" in cookie or "\r" in cookie:
        raise ValueError("the cookie must be ASCII and one line: it is handed to workers as a line of their input")
    _secret.set(cookie)
    return cookie
