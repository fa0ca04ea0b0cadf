"""Exceptions and tracebacks as parts of any pickle: every message may hold exceptions, as values as well as errors.

Used by the pickler. The standard pickle calls ``type(*args)`` at the receiver, which breaks for every class whose
``__init__`` takes something else than what it hands to ``super().__init__``, and it drops traceback, cause, context and
notes. Here the object is made without its ``__init__`` and given its state; only classes that reduce themselves
(``__reduce__`` of their own) are rebuilt their own way. Tracebacks become lists of frames here, and real tracebacks
again at the receiver.
"""

from __future__ import annotations

from collections.abc import Generator
from types import BuiltinMethodType, FunctionType, GetSetDescriptorType, MemberDescriptorType, TracebackType

from distpool.light import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .gathering import Gathering

_FRAMES_KEPT: Final = 100  # at either end of a traceback; a RecursionError has a thousand, all alike (arbitrary)

# Fields of built-in exceptions that hold whatever object happened to be at hand, seldom one that can travel.
_LEFT_BEHIND: Final = frozenset({"obj", "characters_written", "exceptions"})


def reduce_exception(packer: Gathering, exception: BaseException) -> Any:
    """Take an exception apart: how to make it, and all that it carries."""
    replacement = packer.replaced.get(id(exception))
    if replacement is not None:
        exception = replacement
    reduced = exception.__reduce_ex__(5)
    state = _chain(packer, exception)
    cls = type(exception)
    if isinstance(reduced, str):
        return reduced  # a singleton that is found by its name
    if not _reduces_plainly(cls):
        maker, arguments, own = reduced[0], reduced[1], reduced[2] if len(reduced) > 2 else None
        return make_by_own_rule, (maker, tuple(arguments)), (own, *state), None, None, set_own_state
    fields = {"__dict__": _attributes(exception), **_fields(exception)}
    arguments = tuple(reduced[1])
    return make_exception, (cls, arguments), (fields, exception.args, *state), None, None, set_exception_state


def _reduces_plainly(cls: type) -> bool:
    """Do ``__reduce__``, ``__reduce_ex__`` and ``__getstate__`` all come from built-in classes?"""
    for name in ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"):
        for each in cls.__mro__:
            if name in vars(each):
                if each.__module__ != "builtins":
                    return False
                break
    return True


def _attributes(exception: BaseException) -> dict[str, Any]:
    return {name: value for name, value in vars(exception).items() if name != "__notes__"}


def _fields(exception: BaseException) -> dict[str, Any]:
    """What built-in classes keep outside ``__dict__`` (``OSError.filename``, ``SystemExit.code``), and slots."""
    fields: dict[str, Any] = {}
    for cls in type(exception).__mro__:
        if cls in (BaseException, object):
            continue
        for name, member in vars(cls).items():
            is_field = isinstance(member, (MemberDescriptorType, GetSetDescriptorType))
            if is_field and name not in _LEFT_BEHIND and not name.startswith("__"):
                value = getattr(exception, name, None)
                if value is not None:
                    fields[name] = value
    return fields


def _chain(packer: Gathering, exception: BaseException) -> tuple[Any, ...]:
    notes = getattr(exception, "__notes__", None)
    if packer.alone:  # testing whether this one can travel without its relatives
        return (None, None, None, exception.__suppress_context__, notes)
    return (
        flatten(exception.__traceback__),
        exception.__cause__,
        exception.__context__,
        exception.__suppress_context__,
        notes,
    )


def flatten(tb: TracebackType | None) -> list[tuple[str, str, int, str]] | None:
    """A traceback as (file, function, line, module) from the outermost frame to the innermost."""
    if tb is None:
        return None
    frames = []
    step: TracebackType | None = tb
    while step is not None:
        code, module = step.tb_frame.f_code, step.tb_frame.f_globals.get("__name__")
        frames.append((code.co_filename, code.co_name, step.tb_lineno, module if isinstance(module, str) else "?"))
        step = step.tb_next
    if len(frames) > 2 * _FRAMES_KEPT:
        del frames[_FRAMES_KEPT:-_FRAMES_KEPT]
    return frames


# ------------------------------------------------------------------------------------------------ at the receiver


def make_exception(cls: type[BaseException], arguments: tuple[Any, ...]) -> BaseException:
    """An exception without running the ``__init__`` that its class defines in Python."""
    builtin: Any = next(each for each in cls.__mro__ if each.__module__ == "builtins")
    try:
        exception = cls.__new__(cls, *arguments)
    except TypeError:  # a __new__ of its own with other arguments
        exception = builtin.__new__(cls, *arguments)
    # Some built-in classes (UnicodeDecodeError, OSError below a class with __init__) take their fields in __init__. One
    # that was subclassed and never called it has nothing there to restore.
    try:
        builtin.__init__(exception, *arguments)
    except TypeError:
        return exception
    return exception


def set_exception_state(exception: BaseException, state: tuple[Any, ...]) -> None:
    """All that an exception carries; comes after it exists, so chains may lead back to it."""
    fields, args, *chain = state
    exception.__dict__.update(fields.pop("__dict__"))
    for name, value in fields.items():
        try:
            setattr(exception, name, value)
        except (AttributeError, TypeError):  # a read-only field, already set through the arguments
            continue
    exception.args = args
    _set_chain(exception, *chain)


def detached(error: BaseException) -> BaseException:
    """The same exception with a traceback that keeps nothing alive: it may be kept beside what it is about."""
    frames = flatten(error.__traceback__)
    return error.with_traceback(rebuild(frames) if frames else None)


def make_by_own_rule(maker: Any, arguments: tuple[Any, ...]) -> Any:
    """What the class's own ``__reduce__`` asks for."""
    return maker(*arguments)


def set_own_state(exception: BaseException, state: tuple[Any, ...]) -> None:
    """State of a class that reduces itself: its own ``__setstate__`` first, then the chain."""
    own, *chain = state
    if own is not None:
        setter = getattr(exception, "__setstate__", None)
        # BaseException has a built-in __setstate__ that takes a dict, so one is always there.
        if setter is not None and (isinstance(own, dict) or not isinstance(setter, BuiltinMethodType)):
            setter(own)
    _set_chain(exception, *chain)


def _set_chain(
    exception: BaseException,
    frames: list[tuple[str, str, int, str]] | None,
    cause: BaseException | None,
    context: BaseException | None,
    suppress: bool,
    notes: Any,
) -> None:
    if not isinstance(exception, BaseException):
        return  # its __reduce__ made something else of it; who asked for an exception will notice
    exception.__cause__ = cause
    exception.__context__ = context
    exception.__suppress_context__ = suppress
    if notes is not None:
        setattr(exception, "__notes__", notes)  # noqa: B010  # no attribute of 3.10, as its types know
    if frames is not None:
        exception.__traceback__ = rebuild(frames)


def _nowhere() -> Generator[None, None, None]:
    yield


def rebuild(frames: list[tuple[str, str, int, str]]) -> TracebackType | None:
    """A real traceback again, which can be raised and printed.

    Its frames are those of generators that never run. Frames that do run (what tblib makes) keep the frames that called
    them, and so all that was at hand where the failure was opened, the user's objects and remote references too, in a
    cycle until the garbage collector comes by; in a process that waits for work it does not.
    """
    made: TracebackType | None = None
    for filename, name, line, module in reversed(frames):
        code = _nowhere.__code__.replace(co_filename=filename, co_name=name, co_firstlineno=max(line, 1))
        frame = FunctionType(code, {"__name__": module, "__file__": filename}, name)().gi_frame
        made = TracebackType(made, frame, -1, line)
    return made
