"""Failures of user code on their way to the caller.

Used by whoever runs user code (capture, dump_exception) and by whoever receives the failure (load_exception). Owns
nothing.

    exception -> capture -> CapturedException(root exception, formatted text, hops)
                              dump_exception: text first, readable whatever happens; then the object, tested by
                                              loading it back here; what cannot travel is replaced by a stand-in
                              load_exception: the object, or again a stand-in if the receiver cannot rebuild it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

from distpool.light import Any, Final, pickle

from ..errors import CapturedException, RemoteException, RemoteStandIn
from .globals_ import peel_beside, wrap
from .parcel import Parcel, load, pack

_OURS: Final = __name__.partition(".")[0]  # "distpool"


def capture(exception: BaseException) -> CapturedException:
    """What failed, ready to travel. A RemoteException gives its root and its hops, not another layer."""
    if isinstance(exception, RemoteException):
        inner = exception.captured
        return CapturedException(inner.ex, inner.traceback, tuple(exception.hops))
    exception.__traceback__ = _from_user_code(exception.__traceback__)
    return CapturedException(exception, _formatted(exception), ())


def _from_user_code(tb: TracebackType | None) -> TracebackType | None:
    """Without the frames of ours that called the user's function; all of it when none is the user's."""
    step = tb
    while step is not None:
        module = step.tb_frame.f_globals.get("__name__")
        if not isinstance(module, str) or module.partition(".")[0] != _OURS:
            return step
        step = step.tb_next
    return tb


def _formatted(exception: BaseException) -> str:
    import traceback  # only for failures

    try:
        return "".join(traceback.format_exception(type(exception), exception, exception.__traceback__))
    except Exception as error:  # user code runs here: __str__, __notes__, properties
        return f"{_type_name(exception)} (its text could not be formatted: {error!r})\n"


def _type_name(exception: BaseException) -> str:
    cls = type(exception)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def _text(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception as error:
        return f"<str() failed: {error!r}>"


def dump_exception(exception: BaseException | CapturedException, stage: str = "") -> Parcel:
    """Pickle a failure so that it surely opens: tried here first, with stand-ins for what cannot travel.

    ``stage`` is the one of `CapturedException`. Open it with `load_exception`. Never raises for anything that the
    exception contains.
    """
    captured = exception if isinstance(exception, CapturedException) else capture(exception)
    root = captured.ex
    try:
        inner = _tested(root, {})
    except Exception as error:
        inner = _with_stand_ins(captured, error)
    # Exceptions bring classes of __main__, never new values for names there: the inner globals travel within.
    flags, body, buffers = wrap(inner, None)
    head = (_type_name(root), _text(root), captured.traceback, tuple(captured.hops), stage, flags, body)
    return Parcel(pickle.dumps(head, 5), buffers, None, inner.foreign, inner.refs)


def _tested(exception: BaseException, replaced: dict[int, BaseException], alone: bool = False) -> Parcel:
    parcel = pack(exception, replaced, alone)
    # Opened without its globals: they are ours already, and must not be assigned anew.
    came = type(pickle.loads(parcel.body, buffers=parcel.buffers))
    expected = type(replaced.get(id(exception), exception))
    if came is not expected:
        raise TypeError(f"{expected.__qualname__} comes back as {came.__qualname__}")
    return parcel


def _with_stand_ins(captured: CapturedException, error: Exception) -> Parcel:
    replaced: dict[int, BaseException] = {}
    for each in _relatives(captured.ex):
        try:
            _tested(each, {}, alone=True)
        except Exception as reason:
            replaced[id(each)] = _stand_in(each, captured.traceback if each is captured.ex else None, reason)
    try:
        return _tested(captured.ex, replaced)
    except Exception:  # each alone can travel, together they cannot: the root's text must do
        lonely = _stand_in(captured.ex, captured.traceback, error)
        lonely.__cause__ = lonely.__context__ = None
        return pack(lonely)


def _relatives(exception: BaseException) -> Iterator[BaseException]:
    """The exception and all that hang on it: causes, contexts, members of groups; each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exception]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        members = getattr(each, "exceptions", ())
        if isinstance(members, (tuple, list)):
            waiting += [member for member in members if isinstance(member, BaseException)]


def _stand_in(exception: BaseException, formatted: str | None, reason: Exception) -> RemoteStandIn:
    stand_in = RemoteStandIn(_type_name(exception), _text(exception), formatted or _formatted(exception))
    stand_in.__cause__ = exception.__cause__
    stand_in.__context__ = exception.__context__
    stand_in.__suppress_context__ = exception.__suppress_context__
    stand_in.__traceback__ = exception.__traceback__
    _note(stand_in, f"The original exception could not travel: {_describe(reason)}")
    return stand_in


def _describe(error: Exception) -> str:
    return f"{type(error).__qualname__}: {_text(error)}"


def _note(exception: BaseException, note: str) -> None:
    """``add_note`` of 3.11, for all versions."""
    notes = [*getattr(exception, "__notes__", ()), note]
    setattr(exception, "__notes__", notes)  # noqa: B010  # no attribute of 3.10, as its types know


def load_exception(body: bytes | memoryview, buffers: Sequence[Any] = ()) -> CapturedException:
    """Open what `dump_exception` made; an exception that cannot be rebuilt here is replaced by a stand-in."""
    type_name, text, formatted, hops, stage, flags, inner = pickle.loads(body)
    try:
        # This process must not change by it: only names that are missing here are assigned.
        exception = load(*peel_beside(flags, inner, buffers))
        if not isinstance(exception, BaseException):
            raise TypeError(f"{type_name} arrived as {type(exception).__qualname__}")
    except Exception as error:  # whatever user code does while being rebuilt costs this one exception
        exception = RemoteStandIn(type_name, text, formatted)
        exception.__cause__ = error
        _note(exception, f"The original exception could not be rebuilt here: {_describe(error)}")
    return CapturedException(exception, formatted, hops, stage)
