"""Failures travel whole: type, attributes, chain, notes, traceback; what cannot travel is replaced, never lost."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import threading
import traceback
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distpool.errors import (
    CapturedException,
    CompositeException,
    ProcessExitedException,
    RemoteException,
    RemoteStandIn,
    remote_exception,
)
from distpool.pickling import capture, dump, dump_exception, load, load_exception
from distpool.pickling.exception_state import flatten


def raised(exception: BaseException) -> BaseException:
    """The exception with a traceback."""
    try:
        raise exception
    except BaseException as error:
        return error


def sent(exception: BaseException) -> CapturedException:
    """Captured, dumped, loaded."""
    parcel = dump_exception(raised(exception))
    return load_exception(parcel.body, parcel.buffers)


class Two(Exception):
    """Calls super with one text, takes two arguments."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


class Silent(Exception):
    """Never calls super().__init__, has a keyword-only argument and a slot."""

    __slots__ = ("slot",)

    def __init__(self, *, code: int) -> None:
        self.code = code
        self.slot = code + 1


class Files(OSError):
    """An OSError whose __init__ is its own."""

    def __init__(self, name: str) -> None:
        super().__init__(2, "gone", name)
        self.extra = name


class OwnRule(Exception):
    """Reduces itself."""

    def __init__(self, n: int, origin: str = "init") -> None:
        super().__init__("text")
        self.n, self.origin = n, origin

    def __reduce__(self) -> Any:
        return OwnRule, (self.n, "reduce")


class Strict(Exception):
    """A __new__ of its own."""

    def __new__(cls, *, key: str) -> Strict:
        self = super().__new__(cls, key)
        self.key = key
        return self

    def __init__(self, *, key: str) -> None:
        super().__init__(key)

    key: str


SAMPLES: list[BaseException] = [
    ValueError("x", 2),
    KeyError("k"),
    Two(1, 2),
    Silent(code=3),
    Files("f.txt"),
    Strict(key="k"),
    OSError(2, "No such file", "a.txt", None, "b.txt"),
    OSError("one"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    SyntaxError("bad", ("file.py", 3, 4, "x y", 3, 6)),
    ImportError("no", name="mod", path="/p"),
    StopIteration(5),
    SystemExit(3),
    KeyboardInterrupt(),
    AttributeError("a", name="n", obj=threading.Lock()),
    json.JSONDecodeError("msg", "doc", 1),
    subprocess.CalledProcessError(3, ["cmd"], b"out"),
    asyncio.CancelledError("c"),
    ProcessExitedException(3, signal=9, running="f"),
    CompositeException([ValueError("a"), KeyError("b")], pids=[4]),
    RecursionError("deep"),
]


def public(exception: BaseException) -> dict[str, Any]:
    return {name: value for name, value in sorted(vars(exception).items()) if not name.startswith("_")}


@pytest.mark.parametrize("exception", SAMPLES, ids=lambda each: type(each).__name__)
def test_exceptions_come_back_as_they_were(exception: BaseException) -> None:
    """Type, text, arguments, attributes; as failures and as mere values."""
    parcel = dump([exception])
    for back in (sent(exception).ex, load(parcel.body)[0]):
        assert type(back) is type(exception)
        assert str(back) == str(exception)
        assert repr(back) == repr(exception)
        assert repr(public(back)) == repr(public(exception))
        for name in ("errno", "filename", "filename2", "lineno", "text", "name", "path", "value", "code", "slot"):
            assert getattr(back, name, None) == getattr(exception, name, None)


def test_own_reduce_is_respected() -> None:
    """A class that reduces itself is rebuilt its own way, and still keeps its traceback."""
    back = sent(OwnRule(4)).ex
    assert isinstance(back, OwnRule)
    assert (back.n, back.origin) == (4, "reduce")
    assert back.__traceback__ is not None


@given(st.lists(st.one_of(st.integers(), st.text(), st.binary(), st.none()), max_size=4), st.text())
def test_arguments_of_any_kind(args: list[Any], note: str) -> None:
    """Whatever the arguments are."""
    exception = RuntimeError(*args)
    exception.__notes__ = [note]
    back = sent(exception).ex
    assert back.args == tuple(args)
    assert back.__notes__ == [note]


def outer() -> None:
    inner()


def inner() -> None:
    raise Two(1, 2)


@pytest.mark.case("C080")
def test_traceback_travels() -> None:
    """C080: function names, files and lines of the remote frames, the failing function innermost."""
    try:
        outer()
    except Two as error:
        there = traceback.extract_tb(error.__traceback__)
        parcel = dump_exception(error)
    captured = load_exception(parcel.body, parcel.buffers)
    here = traceback.extract_tb(captured.ex.__traceback__)
    assert [(f.name, f.filename, f.lineno) for f in here] == [(f.name, f.filename, f.lineno) for f in there]
    assert here[-1].name == "inner"
    assert "raise Two(1, 2)" in captured.traceback
    assert captured.traceback.endswith("Two: 1 and 2\n")
    with pytest.raises(Two):
        raise captured.ex


def test_frames_of_ours_are_left_out() -> None:
    """The frames of distpool that called the user's function are cut off; those below it stay."""
    module = types.ModuleType("distpool.imagined")
    exec("def run(f):\n    return f()", vars(module))

    def user() -> None:
        module.run(inner)

    try:
        module.run(user)
    except Two as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this test's own frame
        captured = capture(error)
    names = [frame.name for frame in traceback.extract_tb(captured.ex.__traceback__)]
    assert names == ["user", "run", "inner"]
    assert captured.hops == ()


def test_thousands_of_frames() -> None:
    """A RecursionError travels with both ends of its traceback."""

    def down() -> None:
        down()

    with pytest.raises(RecursionError) as caught:
        down()
    parcel = dump_exception(caught.value)
    frames = flatten(load_exception(parcel.body).ex.__traceback__)
    assert frames is not None
    assert len(frames) == 200


@pytest.mark.case("C082")
def test_chain_and_notes_travel() -> None:
    """C082: cause, context, the suppress flag and notes, each with its traceback; cycles end."""
    try:
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as error:
            raise KeyError("k") from error
    except KeyError as error:
        error.__notes__ = ["a note"]
        try:
            raise Two(1, 2)
        except Two as last:
            parcel = dump_exception(last)
    two = load_exception(parcel.body).ex
    assert isinstance(two, Two)
    assert two.__cause__ is None
    assert not two.__suppress_context__
    key = two.__context__
    assert isinstance(key, KeyError)
    assert key.__notes__ == ["a note"]
    assert key.__suppress_context__
    assert isinstance(key.__cause__, ZeroDivisionError)
    assert key.__cause__.__traceback__ is not None
    loop = ValueError("loop")
    loop.__cause__ = KeyError("other")
    loop.__cause__.__cause__ = loop
    back = sent(loop).ex
    assert back.__cause__ is not None
    assert back.__cause__.__cause__ is back


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with 3.11")
def test_groups_travel() -> None:
    """Members keep their own tracebacks; groups nest."""
    group_class: Any = ExceptionGroup  # type: ignore[name-defined, unused-ignore]  # noqa: F821
    group = group_class("all", [raised(Two(1, 2)), group_class("sub", [raised(KeyError("k"))])])
    back: Any = sent(group).ex
    assert type(back) is type(group)
    assert back.message == "all"
    assert back.exceptions[0].b == 2
    assert back.exceptions[0].__traceback__ is not None
    assert back.exceptions[1].exceptions[0].args == ("k",)


@pytest.mark.case("C083")
def test_unpicklable_attribute_gives_a_stand_in() -> None:
    """C083: type name, text, traceback and reason arrive; the rest of the chain as itself."""
    exception = Two(1, 2)
    exception.lock = threading.Lock()  # type: ignore[attr-defined]
    exception.__cause__ = raised(KeyError("k"))
    captured = sent(exception)
    stand_in = captured.ex
    assert isinstance(stand_in, RemoteStandIn)
    assert stand_in.type_name.endswith("Two")
    assert stand_in.text == "1 and 2"
    assert "Two: 1 and 2" in stand_in.formatted
    assert isinstance(stand_in.__cause__, KeyError)
    assert stand_in.__traceback__ is not None
    assert "lock" in stand_in.__notes__[0]
    assert "Two: 1 and 2" in captured.traceback


def test_only_the_unpicklable_one_of_a_chain_is_replaced() -> None:
    """A cause that cannot travel does not cost the exception itself."""
    cause = KeyError(threading.Lock())
    exception = Two(1, 2)
    exception.__cause__ = cause
    back = sent(exception).ex
    assert type(back) is Two
    assert isinstance(back.__cause__, RemoteStandIn)
    assert back.__cause__.type_name == "KeyError"


class Unloadable(Exception):
    """Pickles, but does not load."""

    def __reduce__(self) -> Any:
        return _refuse, ("never",)


def _refuse(text: str) -> Any:
    raise LookupError(text)


class Changeling(Exception):
    """Comes back as something else."""

    def __reduce__(self) -> Any:
        return str, ("a text",)


@pytest.mark.parametrize("exception", [Unloadable("u"), Changeling("c")])
def test_exception_that_does_not_load_gives_a_stand_in(exception: Exception) -> None:
    """It is tried at the sender, who still knows all about it."""
    stand_in = sent(exception).ex
    assert isinstance(stand_in, RemoteStandIn)
    assert type(exception).__name__ in stand_in.type_name


def test_failure_to_rebuild_at_the_receiver_gives_a_stand_in() -> None:
    """If the receiver cannot rebuild it, the text that came along serves; the decode error is cause and note."""
    parcel = dump_exception(raised(Two(1, 2)))
    head = list(pickle.loads(parcel.body))
    head[-1] = b"garbage"
    captured = load_exception(pickle.dumps(tuple(head)))
    assert isinstance(captured.ex, RemoteStandIn)
    assert captured.ex.text == "1 and 2"
    assert captured.ex.__cause__ is not None
    assert "could not be rebuilt" in captured.ex.__notes__[0]
    assert "in raised" in captured.traceback


class Rude(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_broken_str_is_no_obstacle() -> None:
    """Type and traceback arrive although __str__ raises."""
    captured = sent(Rude())
    assert type(captured.ex) is Rude
    assert "Rude" in captured.traceback


@pytest.mark.case("C082")
def test_hops_are_listed_and_the_root_stays_the_root() -> None:
    """C082: a remote exception caught on its way adds a hop, not a layer."""
    first = sent(Two(1, 2))
    second = capture(raised(remote_exception(3, first)))
    assert second.ex is first.ex
    assert second.traceback == first.traceback
    assert second.hops == (3,)
    parcel = dump_exception(raised(remote_exception(3, first)))
    final = remote_exception(2, load_exception(parcel.body, parcel.buffers))
    assert isinstance(final, Two)
    assert isinstance(final, RemoteException)
    assert final.hops == [2, 3]
    assert isinstance(final.unwrap(), Two)


def test_remote_exceptions_as_values() -> None:
    """A RemoteException in a result keeps its parts."""
    error = remote_exception(3, sent(Two(1, 2)))
    parcel = dump({"error": error})
    back = load(parcel.body)["error"]
    assert isinstance(back, RemoteException)
    assert isinstance(back, Two)
    assert back.pid == 3
    assert back.captured.traceback == error.captured.traceback


def test_large_arguments_travel_beside_the_pickle() -> None:
    """Buffers of exceptions are out of band, too."""
    numpy = pytest.importorskip("numpy")
    parcel = dump_exception(raised(ValueError(numpy.ones(10_000))))
    assert len(parcel.buffers) == 1
    assert load_exception(parcel.body, parcel.buffers).ex.args[0].sum() == 10_000
