"""Rows about workers that are reached over TCP, here by loopback: an empty call, and 100 MB there and back.

Beside each stands the same by hand over a TCP connection. Ours is a fresh interpreter that listens, reached by the
driver as one on another machine is; with TLS the bytes are encrypted on the way, by hand with the standard library's
sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.bench import raw, work
from tests.bench.arrays import FLOAT, new_array, timed
from tests.bench.calls import by_hand, by_hand_pickled, per_call
from tests.bench.runner import Contender, Goal, Measure, Row, Scale

# Any flag asks for an interpreter of one's own, which listens on loopback; a forked worker has a socket pair.
OVER_TCP: dict[str, Any] = {"exeflags": ["-X", "utf8"]}


@contextmanager
def _worker(**options: Any) -> Iterator[int]:
    from distpool import addprocs, rmprocs

    (pid,) = addprocs(1, **OVER_TCP, **options)
    try:
        yield pid
    finally:
        rmprocs(pid)


def _round_trips(scale: Scale) -> Sequence[Contender]:
    count = scale.size(3000, 200)

    @contextmanager
    def ours(**options: Any) -> Iterator[Measure]:
        from distpool import remotecall_fetch

        with _worker(**options) as pid:
            yield per_call(lambda: remotecall_fetch(work.nothing, pid), count)

    return [
        Contender("raw", lambda: by_hand(count, over_tcp=True)),
        Contender("raw with pickle", lambda: by_hand_pickled(count, over_tcp=True)),
        Contender("distpool", ours),
        Contender("distpool with TLS", lambda: ours(tls=True)),
    ]


def _transfers(deed: str, megabytes: int) -> Sequence[Contender]:
    """Call one worker with an array or for an array."""
    function, is_result = {"argument": (work.ends, False), "result": (work.made, True)}[deed]
    size = megabytes * 1_000_000

    def made() -> Any:
        return size // FLOAT if is_result else new_array(megabytes)

    @contextmanager
    def ours(**options: Any) -> Iterator[Measure]:
        from distpool import remotecall_fetch

        with _worker(**options) as pid:
            yield timed(lambda argument: remotecall_fetch(function, pid, argument), made)

    @contextmanager
    def by_hand() -> Iterator[Measure]:
        import numpy

        with raw.process("arrays", over_tcp=True) as stream:

            def call(argument: Any) -> Any:
                back = size if is_result else FLOAT
                stream.sendall(raw.TWO_SIZES.pack(0 if is_result else size, back))
                if not is_result:
                    stream.sendall(argument)
                return numpy.frombuffer(raw.receive_fresh(stream, back))

            yield timed(call, made)

    return [
        Contender("raw", by_hand),
        Contender("distpool", ours),
        Contender("distpool with TLS", lambda: ours(tls=True)),
    ]


def _direction(deed: str) -> Callable[[Scale], Sequence[Contender]]:
    return lambda scale: _transfers(deed, scale.size(100, 10))


ROWS = [
    Row(
        "tcp-round-trip",
        "empty call over loopback TCP",
        _round_trips,
        goals=(Goal("at most 1.5 × raw", 1.5, "raw"),),
        note="As *empty call*, but to a worker that is reached over TCP. Raw moves 64 bytes there and 32 back.",
    ),
    Row(
        "tcp-argument",
        "100 MB to a TCP worker",
        _direction("argument"),
        goals=(Goal("at most 1.3 × raw", 1.3, "raw"),),
        note="The worker looks at both ends of the array. Raw: `sendall`, received straight into memory of its own.",
    ),
    Row(
        "tcp-result",
        "100 MB from a TCP worker",
        _direction("result"),
        goals=(Goal("at most 1.3 × raw", 1.3, "raw"),),
        note="The worker makes the array; raw sends the same bytes each time.",
    ),
]
