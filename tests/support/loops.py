"""What the tests of loops, spawning and broadcasts run in workers. Light, because workers import it."""

from __future__ import annotations

import sys
from typing import Any

import distpool


def main_value(name: str, default: Any = "undefined") -> Any:
    """Look a name of this process's `__main__` up."""
    return vars(sys.modules["__main__"]).get(name, default)


def bump() -> str:
    """Count in `__main__` how often this ran; return the name of the module it counted in."""
    main = sys.modules["__main__"]
    main.conf_bumps = main_value("conf_bumps", 0) + 1  # type: ignore[attr-defined]
    return main.__name__


def loop_to(n: int) -> int:
    """Add up 1 to n."""
    return sum(range(1, n + 1))


def pid_in_list(_: Any) -> list[int]:
    """Say where an item was processed."""
    return [distpool.myid()]


def in_list(x: Any) -> list[Any]:
    """Wrap an item, for reducers that concatenate."""
    return [x]


def identity(x: Any) -> Any:
    """Return the item."""
    return x


def fail_at_three(x: int) -> int:
    """Fail for one item."""
    if x == 3:
        raise KeyError("item three")
    return x


def fail(x: Any) -> None:
    """Fail for each item, saying which."""
    raise ValueError(f"item {x}")


def put_into(channel: distpool.RemoteChannel[Any]) -> Any:
    """Make a body that puts each item into a channel."""

    def body(x: Any) -> str:
        channel.put(x)
        return "dropped"

    return body


def bytes_received(row: Any) -> int:
    """Return the size of the memory that this row of an array is a view of: all that came with it."""
    whole = row
    while getattr(whole, "base", None) is not None:
        whole = whole.base
    return max(int(row.base.nbytes), int(memoryview(whole).nbytes))


def spawn_from_here(n: int) -> list[int]:
    """Spawn in turn from this process, and tell where each ran."""
    return [distpool.spawnat("next", distpool.myid).fetch() for _ in range(n)]


def everywhere_from_here(name: str) -> None:
    """Define a name in all processes, from this one."""
    distpool.everywhere(f"{name} = myid()")
