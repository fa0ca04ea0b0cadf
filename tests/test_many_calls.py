"""Thousands of single calls of functions that mention globals: each is cheap, and sees the values of its time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

RunScript = Callable[..., Any]


def test_globals_between_calls_of_several_functions(run_script: RunScript) -> None:
    """Each call has the globals that its function mentioned when it was submitted, whatever others have sent since."""
    assert run_script("""
        from distpool import WorkerPool

        FACTOR = 1
        names = ["a"]

        def first(x):
            return FACTOR * x, names

        def second(x):
            return -FACTOR * x, names

        with WorkerPool(processes=1) as pool:
            for FACTOR in (1, 2, 1, 1, 2):
                print(pool.submit(first, 10).result(), pool.submit(second, 10).result())
            names.append("b")
            print(pool.submit(first, 1).result())
            FACTOR = 3
            print(pool.submit(second, 1).result(), pool.submit(first, 1).result())
            FACTOR = 2
            print(pool.submit(first, 1).result())
    """) == (
        0,
        "(10, ['a']) (-10, ['a'])\n(20, ['a']) (-20, ['a'])\n(10, ['a']) (-10, ['a'])\n(10, ['a']) (-10, ['a'])\n"
        "(20, ['a']) (-20, ['a'])\n(2, ['a', 'b'])\n(-3, ['a', 'b']) (3, ['a', 'b'])\n(2, ['a', 'b'])\n",
        "",
    )


def test_a_function_that_mentions_globals_is_sent_once(run_script: RunScript) -> None:
    """As long as these are what they were; large ones, and arrays in place, are sent when they have changed."""
    assert run_script("""
        import distpool
        from distpool import WorkerPool
        from distpool.peer import Peer
        from distpool import messages

        OFFSET = 1
        table = bytearray(200_000)
        sent = []
        original = Peer.send_parcel

        def send_parcel(self, kind, *args, **kwargs):
            sent.append(kind)
            return original(self, kind, *args, **kwargs)

        Peer.send_parcel = send_parcel

        def add(x):
            return x + OFFSET

        def look(x):
            return table[x]

        with WorkerPool(processes=1) as pool:
            print(sum(future.result() for future in [pool.submit(add, x) for x in range(500)]))
            print(sent.count(messages.FUNCTION))
            OFFSET = 2
            print(pool.submit(add, 0).result(), sent.count(messages.FUNCTION))
            print(pool.submit(look, 7).result())
            table[7] = 5
            print(pool.submit(look, 7).result())
    """) == (0, "125250\n1\n2 2\n0\n5\n", "")


def test_thousands_of_cancelled_calls_of_large_functions(run_script: RunScript, tmp_path: Path) -> None:
    """Each of them is a job of its own, which has nothing to do in the end: the pool goes on."""
    go = tmp_path / "go"
    os.mkfifo(go)
    assert run_script(f"""
        from distpool import WorkerPool

        table = list(range(30_000))

        def wait(path):
            with open(path):
                return len(table)

        with WorkerPool(processes=1) as pool:
            first = pool.submit(wait, {str(go)!r})
            others = [pool.submit(wait, "/dev/null") for _ in range(1500)]
            print(sum(other.cancel() for other in others[:-1]))
            with open({str(go)!r}, "w"):
                pass
            print(first.result(), others[-1].result(), pool.submit(abs, -1).result())
    """) == (0, "1499\n30000 30000 1\n", "")
