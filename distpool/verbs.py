"""Julia's functions on references: ``fetch``, ``put``, ``take``, ``isready``, ``isopen``, ``close``, ``wait``; and ids.

For users; distpool itself calls the methods. They take whatever has the method of that name: a Future, a RemoteChannel,
a Channel, a pool. Each runs and moves what that method does.
"""

from __future__ import annotations

from distpool.channel import Channel
from distpool.light import Any
from distpool.member import default_member
from distpool.messages import NULL_ID, RRID
from distpool.refs import RemoteRef


def fetch(x: Any, timeout: float | None = None) -> Any:
    """Return the value of a Future, RemoteChannel or Channel, waiting for it; anything else is returned as it is.

    ``timeout`` is in seconds: None waits for ever, 0 only looks; TimeoutError when time is up. Raises what the
    reference's own ``fetch`` raises. Julia's ``fetch``, which has no time limit.

    >>> fetch(5)
    5
    """
    if isinstance(x, (RemoteRef, Channel)):
        return x.fetch(timeout=timeout)  # type: ignore[union-attr]
    return x


def put(ref: Any, *args: Any) -> Any:
    """Put a value into a Future, RemoteChannel, Channel or pool; return that object. Julia's ``put!``.

    Waits while a channel is full. Raises what the object's own ``put`` raises; TypeError for one that has none.

    >>> put(Channel(1), "item").take()
    'item'
    """
    result = _method(ref, "put")(*args)
    return ref if result is None else result


def take(ref: Any, *args: Any) -> Any:
    """Remove and return the first item of a RemoteChannel, Channel or pool, waiting for one. Julia's ``take!``.

    Raises what the object's own ``take`` raises; TypeError for one that has none, such as a Future, which keeps its
    value: ``fetch`` it.

    >>> take(put(Channel(1), "item"))
    'item'
    """
    return _method(ref, "take")(*args)


def isready(ref: Any, *args: Any) -> bool:
    """True when ``fetch`` (``take`` for a pool) would return at once; of a reference, its owner is asked. Julia's.

    Raises what the object's own ``isready`` raises; TypeError for one that has none.

    >>> isready(Channel(1))
    False
    """
    return bool(_method(ref, "isready")(*args))


def isopen(ref: Any) -> bool:
    """True while things can be put into a Channel or RemoteChannel; TypeError for a Future, which is never closed.

    >>> isopen(Channel(1))
    True
    """
    return bool(_method(ref, "isopen")())


def close(ref: Any) -> None:
    """Close a channel, for everybody who uses it, or a pool; TypeError for what cannot be closed, such as a Future.

    >>> channel = Channel(1)
    >>> close(channel)
    >>> isopen(channel)
    False
    """
    _method(ref, "close")()


def wait(ref: Any, timeout: float | None = None) -> Any:
    """Wait until a Future, channel or pool is ready; return it. What it holds stays where it is. Julia's ``wait``.

    ``timeout`` is in seconds, as for `fetch`; TimeoutError when time is up. Raises what the object's own ``wait``
    raises; TypeError for one that has none.

    >>> wait(put(Channel(1), "item")).take()
    'item'
    """
    _method(ref, "wait")(timeout=timeout)
    return ref


def _method(ref: Any, name: str) -> Any:
    method = getattr(ref, name, None)
    if method is None:
        raise TypeError(f"{name}() is for references, channels and pools; a {type(ref).__name__} has no {name}")
    return method


def remoteref_id(ref: RemoteRef) -> RRID:
    """Return the id of a reference: (whence, id), the same in every process. Julia's ``remoteref_id``.

    TypeError for what is no reference.

    >>> from distpool import Future
    >>> tuple(remoteref_id(Future()))[0]  # made by process 1
    1
    """
    if not isinstance(ref, RemoteRef):
        raise TypeError(f"remoteref_id() takes a Future or a RemoteChannel, not a {type(ref).__name__}")
    return ref.rrid


def channel_from_id(rrid: RRID) -> Channel[Any]:
    """Return the channel behind a reference that this process owns; LookupError for any other.

    Julia's ``channel_from_id``. It is the object itself: the one that the factory of a `RemoteChannel` returned.

    >>> from distpool import RemoteChannel
    >>> jobs = RemoteChannel(lambda: Channel(10))
    >>> _ = jobs.put("item")
    >>> channel_from_id(remoteref_id(jobs)).take()
    'item'
    """
    if rrid == NULL_ID:
        raise LookupError("(0, 0) is the id of no reference")
    return default_member().channel(RRID(*rrid))
