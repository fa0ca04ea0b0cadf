"""Which part of an object cannot be pickled? Only used when pickling has failed, to say so in the error.

Used by `parcel`, which passes the way to try a part along: ``pack`` returns if it can be pickled, and raises if not.
Goes down from the object to the first part that fails and has no failing part itself. Parts are pickled again, and so
user code is run again (``__reduce__``): hence the limits of depth and time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from time import monotonic
from types import BuiltinMethodType, FunctionType, MethodType

from distpool.light import Any, Final

from .functions import code_facts
from .gathering import UnsendableGlobal, fill_of

_DEPTH: Final = 20  # levels; arbitrary, deeper paths help nobody
_SECONDS: Final = 0.5  # the search only decorates an error; nobody should wait for it
_WIDTH: Final = 10_000  # parts of one container that are tried

Pack = Callable[[object], object]


class _Refused(TypeError, RuntimeError):
    """A part raised RuntimeError from its own ``__reduce__``."""


def explain(obj: object, error: Exception, pack: Pack) -> TypeError:
    """The error to raise: what was to be sent, which part of it fails, of which type, and why."""
    return _explain(*_starts(obj), obj, error, pack)


def explain_arguments(arguments: tuple[Any, ...], keywords: dict[str, Any], error: Exception, pack: Pack) -> TypeError:
    """As `explain`, for the arguments of a call."""
    return _explain("call", _arguments(arguments, keywords), (arguments, keywords), error, pack)


def _explain(root: str, starts: list[tuple[str, Any]], obj: object, error: Exception, pack: Pack) -> TypeError:
    search = _Search(pack)
    path, culprit, reason = root, obj, error
    for label, part in starts:
        failure = search.failure(part)
        if failure is not None:
            path, culprit, reason = search.descend(label, part, failure)
            break
    noun = "argument " if path.startswith(("args", "kwargs")) else ""
    # An object that refuses with a RuntimeError of its own (a CachingPool does, as in Julia) is met by both names.
    kind = _Refused if type(reason) is RuntimeError else TypeError
    return kind(f"cannot send {noun}'{path}' of type {_type_name(culprit)}: {_reason(reason)}")


def explain_global(name: str, value: object, error: Exception, pack: Pack) -> str:
    """The message for a global of by-value code that cannot be pickled."""
    if isinstance(error, UnsendableGlobal):
        return str(error)
    path, culprit, reason = _Search(pack).descend(name, value, error)
    inside = "" if path == name else f" (its part '{path}' of type {_type_name(culprit)})"
    return (
        f"cannot send global '{name}' of type {_type_name(value)}{inside}, which the code being sent mentions: "
        f"{_reason(reason)}. Pass it as an argument, or create it inside the function."
    )


def _starts(obj: Any) -> tuple[str, list[tuple[str, Any]]]:
    """A call is (function, arguments, keywords): name its parts as the user wrote them."""
    if type(obj) is tuple and len(obj) == 3 and callable(obj[0]) and type(obj[1]) is tuple and type(obj[2]) is dict:
        return "call", [("function", obj[0]), *_arguments(obj[1], obj[2])]
    return "value", [("value", obj)]


def _arguments(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[tuple[str, Any]]:
    parts = [(f"args[{index}]", value) for index, value in enumerate(arguments)]
    return parts + [(f"kwargs[{key!r}]", value) for key, value in keywords.items()]


class _Search:
    """One search for the part at fault, and its time limit."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._deadline = monotonic() + _SECONDS

    def failure(self, part: object) -> Exception | None:
        """What pickling this part raises; None if it can be pickled."""
        try:
            self._pack(part)
        except Exception as error:  # whatever user code raises while being pickled is what we look for
            return error
        return None

    def descend(self, path: str, obj: Any, error: Exception) -> tuple[str, Any, Exception]:
        """From a part that fails with ``error`` to the innermost one: where it is, what it is, why it fails."""
        seen = {id(obj)}
        for _ in range(_DEPTH):
            for label, part in _parts(obj):
                if monotonic() > self._deadline:
                    return path, obj, error
                if id(part) in seen:
                    continue
                failure = self.failure(part)
                if failure is not None:
                    seen.add(id(part))
                    path, obj, error = path + label, part, failure
                    break
            else:
                break
        return path, obj, error


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """The parts of an object that would be pickled with it, with the text that leads to each."""
    if isinstance(obj, dict):
        for key, value in islice(list(obj.items()), _WIDTH):
            yield f'["{key}"]' if isinstance(key, str) else f"[{key!r:.40}]", value
        for key in islice(list(obj), _WIDTH):
            yield f".keys()[{key!r:.40}]", key
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for index, value in enumerate(islice(list(obj), _WIDTH)):
            yield f"[{index}]", value
    elif isinstance(obj, FunctionType):
        yield from _parts_of_function(obj)
    elif isinstance(obj, (MethodType, BuiltinMethodType)):
        yield ".__self__", obj.__self__
        yield from [(".__func__", obj.__func__)] if isinstance(obj, MethodType) else []
    elif isinstance(obj, partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    if not isinstance(obj, (type, FunctionType)):
        yield from _attributes(obj)


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        for value in fill_of(cell) or ():
            yield f"<closure {name}>", value
    for index, value in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{index}]", value
    for name in code_facts(function.__code__).names:
        if name in function.__globals__:
            yield f"<global {name}>", function.__globals__[name]


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    """What __getstate__ says where the class has one of its own; else attributes and slots."""
    if getattr(type(obj), "__reduce__", None) is not object.__reduce__:
        try:
            obj.__reduce__()
        except Exception:  # it refuses of its own accord: no part is at fault
            return
    state = getattr(type(obj), "__getstate__", None)
    if state is not None and state is not getattr(object, "__getstate__", None):
        try:
            yield "<state>", obj.__getstate__()
        except Exception:  # then the object itself is at fault
            return
        return
    for name, value in list(getattr(obj, "__dict__", {}).items()):
        yield f".{name}", value
    for cls in type(obj).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(obj, name):
                yield f".{name}", getattr(obj, name)


def _type_name(obj: object) -> str:
    cls = type(obj)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, TypeError):
        return str(error)
    return f"{type(error).__qualname__}: {error}"
