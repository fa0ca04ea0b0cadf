"""The standard library's doors without their slow halves: for starts counted in milliseconds.

``typing`` brings ``re``, ``enum`` and more; ``pickle``, ``socket`` and ``signal`` bring pure Python picklers and
conversions to enums. Together they double the time that a worker's imports take (measured: 26 ms with them, 14 ms
without; a pool of four is ready after 50 ms instead of 70). What distpool needs of them stands in the C modules
beneath, which is what this room hands out; where an interpreter has none, the standard module itself. Type checkers see
the standard modules.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take a variable of this name as true

if TYPE_CHECKING:
    import pickle as pickle
    import signal as signal
    import socket as socket
    from heapq import heappop as heappop
    from heapq import heappush as heappush
    from typing import Any as Any
    from typing import Final as Final
    from typing import Generic as Generic
    from typing import Literal as Literal
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import TypeAlias as TypeAlias
    from typing import TypeVar as TypeVar
    from typing import overload as overload

    def later(room: str) -> Any: ...
else:
    import sys
    from collections import namedtuple

    try:
        from _heapq import heappop, heappush
    except ImportError:
        from heapq import heappop, heappush
    try:
        import _pickle as pickle
    except ImportError:
        import pickle
    try:
        import _signal as signal
    except ImportError:
        import signal
    try:
        import _socket as socket
    except ImportError:
        import socket

    class Hint:
        """Stands where a type checker sees a form of ``typing``: adds nothing, takes subscripts."""

        __slots__ = ()

        def __class_getitem__(cls, parameters):
            return cls

    Any = Final = Generic = Literal = NoReturn = Protocol = TypeAlias = Hint

    def TypeVar(name, *constraints, **options):
        """Return something to write in brackets."""
        return name

    def overload(function):
        """Return what the next definition replaces."""
        return function

    class _Later:
        """Stands for a room: imports it when something of it is first asked for."""

        def __init__(self, room):
            self._room = room

        def __getattr__(self, name):
            __import__(self._room)
            value = getattr(sys.modules[self._room], name)
            setattr(self, name, value)  # the next time costs nothing
            return value

    def later(room):
        """Return what stands for a room that is imported at its first use. Type checkers see an import.

        So that a class can be had before all that its objects need: a pool has its fork server boot meanwhile.
        """
        return _Later(room)

    class _NamedTupleMaker(type):
        """Makes a named tuple of a class body with annotated fields, defaults and methods."""

        def __new__(cls, name, bases, namespace):
            if not bases:
                return type.__new__(cls, name, bases, namespace)
            fields = namespace["__annotations__"]
            defaults = [namespace[field] for field in fields if field in namespace]
            made = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
            for key in namespace.keys() - fields.keys() - {"__module__", "__qualname__"}:
                setattr(made, key, namespace[key])
            return made

    class NamedTuple(metaclass=_NamedTupleMaker):
        """The base class to write for a named tuple."""
