"""Names of ``__main__`` that travel with code: ``clear`` unbinds them, ``capture`` keeps a function free of them.

Used by users, in any thread. Owns nothing.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from functools import update_wrapper
from types import FunctionType

from distpool.broadcast import targets_of
from distpool.errands import clear_names
from distpool.fanout import Call, fan_out, raise_failures
from distpool.light import Any, TypeVar, overload
from distpool.member import default_member
from distpool.pickling import mentioned_names, shipped_namespace
from distpool.pools.caching import CachingPool

F = TypeVar("F", bound=Callable[..., Any])


@overload
def clear(what: CachingPool) -> CachingPool: ...
@overload
def clear(what: str | Iterable[str], pids: int | Iterable[int] | None = None) -> None: ...
def clear(what: CachingPool | str | Iterable[str], pids: int | Iterable[int] | None = None) -> CachingPool | None:
    """``clear(pool)`` forgets what a CachingPool keeps; ``clear("name")`` or ``clear(["a", "b"])`` frees globals.

    The names of ``__main__`` become None in the processes ``pids`` (all workers), where they are defined; nothing
    changes in this process unless it is one of them. Code sent later that mentions a cleared name brings its value
    along again, if there is one here.

    Raises CompositeException for processes that are gone, ValueError for a pid that never was. Julia's ``clear!``.

    >>> from distpool import everywhere
    >>> everywhere("big = list(range(1000))")
    >>> clear("big")
    >>> everywhere("big is None", pids=1)
    True
    """
    if isinstance(what, CachingPool):
        if pids is not None:
            raise TypeError("clear(pool) takes no pids: what it keeps is forgotten at all its workers")
        return what.clear()
    if not isinstance(what, str) and not isinstance(what, Iterable):
        raise TypeError(f"clear() takes a CachingPool, a name or several names, not a {type(what).__name__}")
    names = [what] if isinstance(what, str) else list(what)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"clear() takes names of __main__ as text, not a {type(name).__name__}: clear('table')")
    member = default_member()
    call = Call(clear_names, names)
    targets = targets_of(member, member.cluster.workers() if pids is None else pids)
    outcomes = fan_out(member, [(pid, call) for pid in targets])
    for peer in member.cluster.peers():
        if peer.pid in targets:
            peer.forget_globals(names)
    raise_failures(outcomes)
    return None


def capture(f: F) -> F:
    """Return a copy of ``f`` that carries the globals it mentions, bound as they are now, instead of shipping them.

    Ordinarily the names of ``__main__`` that a function mentions are assigned in the worker's ``__main__``. A captured
    function brings them along inside itself: nothing in the worker changes, later assignments here have no effect on
    it, and they travel with it each time it is sent. Functions of ``__main__`` that it calls are captured with it; the
    objects themselves are not copied. A function that the workers can import is returned as it is.

    Raises TypeError for what is no Python function: capture the function inside it. No counterpart in Julia, where a
    ``let`` block does this.

    >>> rate = 2
    >>> capture(lambda x: x * rate)(21)
    42
    """
    if not isinstance(f, FunctionType):
        raise TypeError(f"capture() takes a Python function, not a {type(f).__name__}: capture the function inside it")
    namespace = shipped_namespace(f)
    if namespace is None:
        return f
    frozen: dict[str, Any] = {"__builtins__": builtins}
    copies: dict[int, FunctionType] = {}
    result = _copy(f, frozen)
    copies[id(f)] = result
    waiting: list[FunctionType] = [f]
    while waiting:
        for name in mentioned_names(waiting.pop()):
            if name in frozen or name not in namespace:
                continue
            value = namespace[name]
            if isinstance(value, FunctionType) and shipped_namespace(value) is namespace:
                if id(value) not in copies:
                    copies[id(value)] = _copy(value, frozen)
                    waiting.append(value)
                value = copies[id(value)]
            frozen[name] = value
    return result  # type: ignore[return-value]  # a function of the same signature


def _copy(f: FunctionType, namespace: dict[str, Any]) -> FunctionType:
    """The same function with other globals. Without a ``__name__`` these travel with it (see pickling.importable)."""
    copy = FunctionType(f.__code__, namespace, f.__name__, f.__defaults__, f.__closure__)
    copy.__kwdefaults__ = f.__kwdefaults__
    update_wrapper(copy, f)
    del copy.__dict__["__wrapped__"]  # it would bring the original along, and that its globals
    return copy
