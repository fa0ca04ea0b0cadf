"""What strangers do at an open port: connect and send the wrong things, or nothing. And what a worker notes of it.

Everything but `watch_pickle` and what it returns runs in the test's own process.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from distpool.handshake import MAGIC, NONCE_BYTES, PROOF_BYTES, Handshake
from distpool.tcp import new_handshake

Attack = Callable[[socket.socket], None]

_found: list[str] = []


def watch_pickle() -> None:
    """On a worker: note from now on whatever pickles ask for by name."""
    sys.addaudithook(lambda event, args: _found.append(str(args[1])) if event == "pickle.find_class" else None)


def pickle_asked_for() -> list[str]:
    """The names that were noted."""
    return sorted(set(_found))


def bomb(path: object) -> bytes:
    """A pickle that makes a file: opened by anybody, it leaves a trace."""
    return b"cposix\nsystem\n(S'touch %s'\ntR." % str(path).encode()


def record_handshake(host: str, port: int) -> bytes:
    """All that somebody who knows the secret sends to be let in, as a listener on the way would have it."""
    handshake, sent = new_handshake("initiator"), b""
    with socket.create_connection((host, port), timeout=30) as stream:
        while True:
            data = handshake.data_to_send()
            stream.sendall(data)
            sent += data
            if handshake.is_complete:
                return sent
            handshake.receive(stream.recv(handshake.wanted))


class Attackers:
    """Every kind of stranger, in turn; `chance` decides what they say, the same in each run."""

    def __init__(self, recorded: bytes, bomb: bytes) -> None:
        self._chance = random.Random(7)
        self._recorded = recorded
        self._bomb = bomb
        self.kinds: tuple[Attack, ...] = (
            self.noise,
            self.silence,
            self.reset,
            self.browser,
            self.magic_and_noise,
            self.wrong_secret,
            self.replay,
            self.endless,
            self.bomber,
            self.cut_short,
        )

    def noise(self, stream: socket.socket) -> None:
        """Random bytes."""
        stream.sendall(self._chance.randbytes(self._chance.randrange(1, 2000)))

    def silence(self, stream: socket.socket) -> None:
        """A connection, and nothing else."""

    def reset(self, stream: socket.socket) -> None:
        """A connection that is torn at once."""
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def browser(self, stream: socket.socket) -> None:
        """Somebody who has mistaken the port."""
        stream.sendall(b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n")

    def magic_and_noise(self, stream: socket.socket) -> None:
        """Somebody who knows how we begin."""
        stream.sendall(MAGIC + self._chance.randbytes(NONCE_BYTES + PROOF_BYTES + 1000))

    def wrong_secret(self, stream: socket.socket) -> None:
        """The whole handshake, with a guess."""
        guess = Handshake("initiator", self._chance.randbytes(32), "0.0")
        stream.sendall(guess.data_to_send())
        stream.settimeout(0.1)
        with contextlib.suppress(OSError):
            answer = stream.recv(guess.wanted)
            if len(answer) == guess.wanted:
                guess.receive(answer)
                stream.sendall(guess.data_to_send())

    def replay(self, stream: socket.socket) -> None:
        """What a driver has said before."""
        stream.sendall(self._recorded)

    def endless(self, stream: socket.socket) -> None:
        """Lengths far beyond every limit, and much of what they promise."""
        stream.sendall(MAGIC + b"\xff" * (1 << 16))

    def bomber(self, stream: socket.socket) -> None:
        """Pickles at every place where somebody might open one."""
        stream.sendall(self._bomb if self._chance.random() < 0.5 else MAGIC + bytes(NONCE_BYTES) + self._bomb * 8)

    def cut_short(self, stream: socket.socket) -> None:
        """The beginning of a good handshake."""
        stream.sendall(self._recorded[: self._chance.randrange(1, len(self._recorded))])


def attack(host: str, port: int, attackers: Attackers, count: int, at_a_time: int = 100) -> int:
    """Come `count` times, with up to `at_a_time` connections open; returns how many got a connection."""
    opened: list[socket.socket] = []
    connected = 0
    for number in range(count):
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        opened.append(stream)
        stream.settimeout(10)
        with contextlib.suppress(OSError):
            stream.connect((host, port))
            connected += 1
            attackers.kinds[number % len(attackers.kinds)](stream)
        if len(opened) >= at_a_time:
            for old in opened[: at_a_time // 2]:
                old.close()
            del opened[: at_a_time // 2]
    for stream in opened:
        stream.close()
    return connected


@contextlib.contextmanager
def dripping(host: str, port: int, count: int) -> Iterator[Callable[[], None]]:
    """Connections that send the beginning of a handshake a byte at a time: `drip()` sends the next byte of each."""
    streams = [socket.create_connection((host, port), timeout=10) for _ in range(count)]
    sent = [0]

    def drip() -> None:
        data = MAGIC[sent[0] : sent[0] + 1] or b"x"
        sent[0] += 1
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.sendall(data)

    try:
        yield drip
    finally:
        for stream in streams:
            stream.close()


class Meter:
    """How long each of many calls took."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.times: list[float] = []

    def run(self, count: int = 1) -> None:
        for _ in range(count):
            start = time.perf_counter()
            self._call()
            self.times.append(time.perf_counter() - start)

    @property
    def longest(self) -> float:
        return max(self.times)


def own_usage() -> tuple[int, int]:
    """On a worker: bytes of memory in use, and open descriptors."""
    import gc

    import psutil

    gc.collect()
    return psutil.Process().memory_info().rss, len(os.listdir("/proc/self/fd"))


def write_to_driver(data: bytes) -> None:
    """On a worker: put bytes of one's own choice on the connection to process 1."""
    from distpool.member import default_member

    default_member().cluster.peer(1)._stream.sendall(data)
