"""The errors: what they say, what they carry, how they travel, and what catches them."""

from __future__ import annotations

import builtins
import copy
import gc
import json
import pickle
import traceback
import weakref
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest

from distpool.errors import (
    CapturedException,
    ChannelClosedError,
    CompositeException,
    HandshakeError,
    LaunchWorkerError,
    LocalProtocolError,
    ProcessExitedException,
    ProtocolError,
    RemoteException,
    RemoteProtocolError,
    RemoteStandIn,
    remote_exception,
)

ExceptionGroup: Any = getattr(builtins, "ExceptionGroup", None)
needs_groups = pytest.mark.skipif(ExceptionGroup is None, reason="no exception groups before 3.11")


def caught_remotely(ex: BaseException, pid: int = 2) -> RemoteException:
    return remote_exception(pid, CapturedException(ex))


# -- RemoteException


def test_remote_exception_names_its_process_and_keeps_the_original() -> None:
    """C077: pid is the process that ran it, captured.ex the original."""
    original = ValueError("foobar")
    error = RemoteException(2, CapturedException(original, "Traceback ...\nValueError: foobar\n"))
    assert error.pid == 2
    assert error.captured.ex is original
    assert error.unwrap() is original
    assert error.__cause__ is original
    assert error.args == ("foobar",)


def test_text_names_worker_type_message_and_trace() -> None:
    """C081: the text has the worker id, the original message and the remote traceback."""
    trace = 'Traceback (most recent call last):\n  File "job.py", line 3, in foo\nValueError: math domain error\n'
    error = RemoteException(7, CapturedException(ValueError("math domain error"), trace))
    assert str(error) == f"On worker 7:\nValueError: math domain error\n\n{trace.rstrip()}"


def test_text_has_one_line_for_every_process_on_the_way() -> None:
    """C082: 1→2→3 shows both hops, and unwrap() needs no counting of levels."""
    at_two = remote_exception(3, CapturedException(ValueError("x")))
    at_one = remote_exception(2, CapturedException(at_two.unwrap(), hops=at_two.hops))
    assert at_one.hops == [2, 3]
    assert str(at_one) == "On worker 2:\nOn worker 3:\nValueError: x"
    assert at_one.unwrap() is at_two.captured.ex


def test_own_process_has_no_line() -> None:
    """Who raises it in the process that caught it passes the hops without that process."""
    captured = CapturedException(ValueError("x"))
    assert str(RemoteException(1, captured, captured.hops)) == "ValueError: x"
    assert str(RemoteException(captured)) == "ValueError: x"
    assert RemoteException(captured).pid == 0


def test_caught_twice_in_one_process_is_one_line() -> None:
    """A call to oneself inside a call from elsewhere does not show the process twice."""
    assert RemoteException(2, CapturedException(ValueError(), hops=[2, 3])).hops == [2, 3]
    assert RemoteException(2, CapturedException(ValueError(), hops=[1, 2])).hops == [2, 1, 2]


def test_unwrap_goes_through_exceptions_captured_by_hand() -> None:
    """unwrap() finds the root even where somebody nested them as Julia does."""
    root = KeyError("k")
    inner = RemoteException(3, CapturedException(root))
    assert RemoteException(2, CapturedException(inner)).unwrap() is root


def test_remote_exception_of_something_else_raises() -> None:
    """The message of a wrong argument names the remedy."""
    with pytest.raises(TypeError, match=r"CapturedException\(exc\)"):
        RemoteException(2, ValueError("x"))  # type: ignore[call-overload]


def test_an_exception_that_cannot_be_printed_is_still_described() -> None:
    """A failing __str__ or __repr__ of a user's exception does not hide the error."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise KeyError("no text")

        __repr__ = __str__

    error = caught_remotely(Mute())
    assert "unprintable Mute" in str(error)
    assert "unprintable Mute" in repr(error)


def test_traceback_shows_the_original_as_cause() -> None:
    """An uncaught error shows the text and the original with its traceback."""
    try:
        json.loads("{")
    except ValueError as original:
        text = "".join(traceback.format_exception(caught_remotely(original)))
    assert "in raw_decode" in text
    assert "direct cause" in text
    assert "On worker 2:" in text


# -- the mix with the original's type


class TwoArguments(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class WithSlots(Exception):
    __slots__ = ("empty", "filled")


class OwnText(LookupError):
    def __str__(self) -> str:
        return f"own text of {self.args}"


class OwnPid(Exception):
    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid
        self.captured = self.hops = "mine"


class FixedPid(Exception):
    pid = property(lambda self: 99)


class OwnNew(Exception):
    def __new__(cls, number: int) -> OwnNew:
        made = super().__new__(cls, number)
        made.number = number
        return made

    number: int


class AbstractError(Exception, metaclass=ABCMeta):
    pass


class Meta(type):
    made: list[str] = []  # noqa: RUF012

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], code: int) -> Any:
        mcs.made.append(name)
        return super().__new__(mcs, name, bases, namespace)

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], code: int) -> None:
        super().__init__(name, bases, namespace)


class Registered(Exception, metaclass=Meta, code=4):
    pass


class Guarded(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: this exception is frozen")


class OwnCopying(Exception):
    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("cannot be pickled")

    def __deepcopy__(self, memo: object) -> OwnCopying:
        raise TypeError("cannot be copied")

    __copy__ = __deepcopy__


T = TypeVar("T")


class GenericError(Exception, Generic[T]):
    pass


def unicode_error() -> Exception:
    try:
        b"a\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


ORIGINALS: list[Callable[[], Exception]] = [
    lambda: ValueError("x"),
    lambda: KeyError("colour"),
    lambda: FileNotFoundError(2, "No such file", "a.txt"),
    lambda: ConnectionResetError("reset"),
    lambda: SyntaxError("bad", ("a.py", 3, 4, "x = (")),
    lambda: ImportError("no", name="numpy", path="/"),
    lambda: AttributeError("no", name="x", obj=3),
    unicode_error,
    lambda: json.JSONDecodeError("bad", "{", 1),
    lambda: TwoArguments(4, "paper jam"),
    lambda: WithSlots("x"),
    lambda: OwnText("x"),
    lambda: OwnPid(5),
    lambda: FixedPid("x"),
    lambda: OwnNew(5),
    lambda: AbstractError("x"),
    lambda: Registered("x"),
    lambda: Guarded("x"),
    lambda: OwnCopying("x"),
    lambda: GenericError[int]("x"),
    lambda: ChannelClosedError("closed"),
    lambda: ProcessExitedException(3),
    lambda: RemoteStandIn("lab.E", "x"),
]


@pytest.mark.parametrize("make", ORIGINALS, ids=lambda make: type(make()).__name__)
def test_mix_is_caught_as_either(make: Callable[[], Exception]) -> None:
    """Both `except RemoteException` and `except <original type>` catch it; the original's arguments stay."""
    original = make()
    error = caught_remotely(original)
    assert isinstance(error, type(original))
    assert (error.pid, error.hops, error.captured.ex) == (2, [2], original)
    assert error.args == original.args
    assert type(error).__name__ == f"RemoteException({type(original).__name__})"
    assert str(error).startswith("On worker 2:\n")
    with pytest.raises(type(original)) as seen:
        raise error
    assert seen.value is error


def test_mix_keeps_fields_of_classes_in_c() -> None:
    """errno and file name, the bytes that could not be decoded, the place of a syntax error."""
    missing: Any = caught_remotely(FileNotFoundError(2, "No such file", "a.txt"))
    assert (missing.errno, missing.strerror, missing.filename) == (2, "No such file", "a.txt")
    undecoded: Any = caught_remotely(unicode_error())
    assert (undecoded.encoding, undecoded.object, undecoded.start, undecoded.end) == ("utf-8", b"a\xff", 1, 2)
    syntax: Any = caught_remotely(SyntaxError("bad", ("a.py", 3, 4, "x = (")))
    assert (syntax.msg, syntax.filename, syntax.lineno, syntax.text) == ("bad", "a.py", 3, "x = (")


def test_mix_keeps_attributes_and_slots_without_running_init() -> None:
    """An __init__ with two arguments is not called again; __dict__ and filled slots are copied."""
    error: Any = caught_remotely(TwoArguments(4, "paper jam"))
    assert (error.code, error.reason) == (4, "paper jam")
    original = WithSlots("x")
    original.filled = 3  # type: ignore[attr-defined]
    slotted: Any = caught_remotely(original)
    assert slotted.filled == 3
    assert not hasattr(slotted, "empty")


def test_notes_are_copied_not_shared() -> None:
    """A note added to the copy is not one of the original's."""
    original: Any = ValueError("x")
    original.__notes__ = ["first"]
    error: Any = caught_remotely(original)
    error.__notes__.append("second")
    assert original.__notes__ == ["first"]


def test_subclass_hooks_of_the_user_are_not_run() -> None:
    """Registries (metaclass, __init_subclass__) do not see the classes that distpool makes."""
    seen: list[type] = []

    class Base(Exception):
        def __init_subclass__(cls, **options: object) -> None:
            seen.append(cls)

    class Listed(Base):
        pass

    assert isinstance(caught_remotely(Listed()), Listed)
    assert seen == [Listed]
    caught_remotely(Registered())
    assert Meta.made == ["Registered"]


@pytest.mark.parametrize("original", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_must_not_be_caught_by_accident_stays_plain(original: BaseException) -> None:
    """A KeyboardInterrupt of a worker does not pass `except Exception` of the caller by."""
    error = caught_remotely(original)
    assert type(error) is RemoteException
    assert error.unwrap() is original


@pytest.mark.parametrize("original", [StopIteration(3), StopAsyncIteration(), RuntimeError("x"), Exception("x")])
def test_plain_where_a_mix_would_harm_or_add_nothing(original: Exception) -> None:
    """StopIteration would end a generator silently; a plain one is a RuntimeError already."""
    assert type(caught_remotely(original)) is RemoteException


def test_plain_where_python_does_not_allow_a_mix() -> None:
    """Any trouble with a class gives a plain RemoteException."""

    class Hidden(Exception):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("no attributes today")

    error = caught_remotely(Hidden("x"))
    assert type(error) is RemoteException
    assert error.args == ("x",)


@needs_groups
def test_mix_of_an_exception_group_is_a_group() -> None:
    """A group raised remotely can be split like any other."""
    original = ExceptionGroup("several", [ValueError("a"), KeyError("b")])
    error: Any = caught_remotely(original)
    assert isinstance(error, ExceptionGroup)
    assert error.exceptions == original.exceptions
    values, rest = error.split(ValueError)
    assert [type(each) for each in (*values.exceptions, *rest.exceptions)] == [ValueError, KeyError]


def test_mix_of_a_composite_exception_keeps_its_members() -> None:
    """What `distributed` raises inside a call arrives with its members."""
    error: Any = caught_remotely(CompositeException([ValueError("a"), KeyError("b")], pids=[4]))
    assert isinstance(error, CompositeException)
    assert ([type(each) for each in error], error.pids) == ([ValueError, KeyError], [4])
    assert str(error).startswith("On worker 2:\ndistpool.errors.CompositeException: ValueError: a")


def test_same_type_same_class() -> None:
    """Two errors of one type are of one class, as long as one of them lives."""
    first, second = caught_remotely(ValueError("a")), caught_remotely(ValueError("b"))
    assert type(first) is type(second)


def test_redefined_classes_are_freed() -> None:
    """A notebook that defines a class again and again does not leak the old ones."""

    def raised_and_forgotten() -> weakref.ref[type]:
        class Local(Exception):
            pass

        assert isinstance(caught_remotely(Local()), Local)
        return weakref.ref(Local)

    local = raised_and_forgotten()
    gc.collect()
    assert local() is None


# Without the two whose originals cannot be pickled: `pickling` puts a stand-in in their place.
PICKLED: list[Callable[[], Exception]] = [make for make in ORIGINALS if type(make()) not in (OwnCopying, TwoArguments)]


@pytest.mark.parametrize("make", PICKLED, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize("protocol", [4, 5])
def test_pickles(make: Callable[[], Exception], protocol: int) -> None:
    """It arrives as the same mix, with process, hops and original."""
    original = make()
    error = remote_exception(2, CapturedException(original, "trace", hops=[3]), hops=[3])
    copied = pickle.loads(pickle.dumps(error, protocol))
    assert type(copied) is type(error)
    assert (copied.pid, copied.hops, copied.captured.traceback) == (2, [3], "trace")
    assert type(copied.captured.ex) is type(original)
    assert copied.args == error.args


@pytest.mark.parametrize("copied_by", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("make", [*ORIGINALS, KeyboardInterrupt], ids=lambda make: type(make()).__name__)
def test_copies(make: Callable[[], BaseException], copied_by: Callable[[Any], Any]) -> None:
    """A copy shares what was captured, whatever the original's class does about copying."""
    error = caught_remotely(make())
    copied = copied_by(error)
    assert copied is not error
    assert type(copied) is type(error)
    assert copied.captured is error.captured


def test_subclass_by_hand_keeps_its_class_when_pickled() -> None:
    """A user's subclass of RemoteException arrives as such."""
    copied = pickle.loads(pickle.dumps(ByHand(2, CapturedException(ValueError("x")))))
    assert type(copied) is ByHand
    assert copied.pid == 2


class ByHand(RemoteException):
    pass


def test_stand_in_shows_type_and_text_of_what_could_not_travel() -> None:
    """C083: the text has the type name and the message of a class that exists only on the worker."""
    error = caught_remotely(RemoteStandIn("lab.SensorError", "sensor 4", "Traceback ..."))
    assert str(error) == "On worker 2:\nlab.SensorError: sensor 4"
    copied = pickle.loads(pickle.dumps(error.captured.ex))
    assert (copied.type_name, copied.text, copied.formatted) == ("lab.SensorError", "sensor 4", "Traceback ...")


# -- ProcessExitedException


def test_process_exited_default() -> None:
    """C084: worker_id is -1; it pickles."""
    copied = pickle.loads(pickle.dumps(ProcessExitedException()))
    assert copied.worker_id == -1
    assert str(copied).startswith("a worker process is gone. ")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "worker 3 is gone"),
        ({"os_pid": 4711, "exit_code": 5}, "worker 3 (os pid 4711) exited with code 5"),
        ({"exit_code": 0}, "worker 3 exited with code 0"),
        ({"signal": 11, "running": "f(1)"}, "worker 3 was killed by SIGSEGV while it ran f(1)"),
        ({"signal": 9, "detail": "out of memory?"}, "worker 3 was killed by SIGKILL (out of memory?)"),
        ({"signal": 250}, "worker 3 was killed by signal 250"),
    ],
)
def test_process_exited_tells_how_and_what_to_do(fields: dict[str, Any], text: str) -> None:
    """The text names process, cause and work, and then what the caller can do."""
    assert str(ProcessExitedException(3, **fields)).startswith(ProcessExitedException(3, **fields).what_happened())
    words, _, remedy = str(ProcessExitedException(3, **fields)).partition(". ")
    assert words == text
    assert "run it again" in remedy


@pytest.mark.parametrize("copied_by", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_process_exited_travels_with_all_fields(copied_by: Callable[[Any], Any]) -> None:
    """Nothing that is known about a death is lost on the way."""
    error = ProcessExitedException(3, os_pid=4711, exit_code=1, signal=9, detail="oom?", running="f()")
    copied = copied_by(error)
    assert vars(copied) == vars(error)
    assert str(copied) == str(error)


# -- CompositeException


def test_composite_is_its_members_in_order() -> None:
    """C086: len, order and text: the first error and the count of the others."""
    members = [ValueError(str(number)) for number in range(5)]
    error = CompositeException(iter(members))
    assert len(error) == 5
    assert list(error) == members
    assert error.exceptions == tuple(members)
    assert str(error) == "ValueError: 0\n\n... and 4 more exceptions."
    assert str(CompositeException(members[:2])).endswith("... and 1 more exception.")
    assert str(CompositeException(members[:1])) == "ValueError: 0"
    assert error.pids == []


def test_empty_composite_says_its_name() -> None:
    """Julia allows an empty one; it is an error like any other."""
    error = CompositeException()
    assert (len(error), error.exceptions, str(error), bool(error)) == (0, (), "CompositeException", True)
    assert "CompositeException" in "".join(traceback.format_exception(error))


def test_composite_wraps_what_is_no_exception() -> None:
    """A KeyboardInterrupt among the failures is kept, inside a RemoteException."""
    (member,) = CompositeException([KeyboardInterrupt()])
    assert isinstance(member, RemoteException)
    assert isinstance(member.unwrap(), KeyboardInterrupt)


def test_composite_holds_only_exceptions() -> None:
    """Anything else is refused at once."""
    with pytest.raises(TypeError, match="'oops'"):
        CompositeException(["oops"])  # type: ignore[list-item]


@pytest.mark.parametrize("copied_by", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("members", [[], [ValueError("a"), KeyError("b")]])
def test_composite_travels(members: list[Exception], copied_by: Callable[[Any], Any]) -> None:
    """Members, pids and notes arrive."""
    error: Any = CompositeException(members, pids=[2, 4])
    error.__notes__ = ["a note"]
    copied = copied_by(error)
    assert type(copied) is CompositeException
    assert [repr(each) for each in copied] == [repr(each) for each in members]
    assert (copied.pids, copied.__notes__) == ([2, 4], ["a note"])


@needs_groups
def test_composite_is_an_exception_group() -> None:
    """From 3.11 on it can be split as Python's own groups, and stays a CompositeException."""
    error: Any = CompositeException([ValueError("a"), KeyError("b")], pids=[2])
    assert isinstance(error, ExceptionGroup)
    values, others = error.split(ValueError)
    assert type(values) is type(others) is CompositeException
    assert ([repr(each) for each in values], values.pids) == (["ValueError('a')"], [2])


# -- the rest of the tree


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (ChannelClosedError, RuntimeError),
        (LaunchWorkerError, RuntimeError),
        (ProcessExitedException, RuntimeError),
        (RemoteException, RuntimeError),
        (CompositeException, Exception),
        (RemoteStandIn, Exception),
        (LocalProtocolError, ProtocolError),
        (RemoteProtocolError, ProtocolError),
        (HandshakeError, ConnectionError),
    ],
)
def test_tree(error: type[Exception], base: type[Exception]) -> None:
    """Each error has the base that the tree draws."""
    assert issubclass(error, base)
