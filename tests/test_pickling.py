"""Payloads: what goes in comes out, in the right form; failures say where the fault lies."""

from __future__ import annotations

import array
import collections
import copy
import datetime
import functools
import importlib.util
import math
import os
import pickle
import sys
import threading
import types
import weakref
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distpool import pickling
from distpool.messages import FLAG_GLOBALS
from distpool.pickling import Parcel, SentGlobals, ShippedGlobal, dump, in_message, load, peel, wrap
from support.jobs import square


def trip(obj: Any) -> Any:
    """There and back, with buffers as the transport hands them over: writable memory of the receiver's own."""
    parcel = dump(obj)
    return load(parcel.body, [memoryview(bytearray(each)) for each in parcel.buffers])


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
VALUES: st.SearchStrategy[Any] = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(KEYS, inner)
        | st.tuples(inner, inner, inner)
        | st.sets(KEYS)
        | st.frozensets(KEYS)
        | inner.map(lambda each: functools.partial(print, each))
        | st.builds(collections.deque, st.lists(inner))
    ),
    max_leaves=20,
)


def plain(value: Any) -> Any:
    """Partials compare by identity: compare what is in them."""
    if isinstance(value, functools.partial):
        return ("partial", value.func, plain(value.args))
    if isinstance(value, (list, tuple, collections.deque)):
        return type(value)(plain(each) for each in value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


@given(VALUES)
def test_values_come_back_equal(value: Any) -> None:
    """Any nesting of built-in values arrives equal and of the same types."""
    back = trip(value)
    assert plain(back) == plain(value)
    assert type(back) is type(value)


@given(st.lists(VALUES, max_size=4), st.dictionaries(st.text(), VALUES, max_size=2))
def test_calls_come_back_equal(args: list[Any], kwargs: dict[str, Any]) -> None:
    """A call is a function, a tuple and a dict, whichever path packs it."""
    function, back_args, back_kwargs = trip((square, tuple(args), kwargs))
    assert function is square
    assert plain(back_args) == plain(tuple(args))
    assert plain(back_kwargs) == plain(kwargs)


@given(VALUES)
def test_importable_values_never_pull_code(value: Any) -> None:
    """Without code of __main__ there are no globals, and nothing in front of the body."""
    parcel = dump(value)
    assert parcel.globals is None
    assert wrap(parcel, None) == (0, parcel.body, parcel.buffers)


def test_aliasing_and_cycles_are_kept() -> None:
    """Shared parts stay shared within one message."""
    shared: list[Any] = [1]
    shared.append(shared)
    first, second = trip([shared, shared])
    assert first is second
    assert first[1] is first


@pytest.mark.parametrize(
    ("value", "foreign"),
    [
        (1, False),
        ([datetime.date(2020, 1, 1), collections.Counter("ab")], False),
        ((len, (1,), {}), False),
        (math.sqrt, False),
        ((square, (1,), {}), True),
        ((square, ([1],), {}), True),
        (lambda: 1, True),
        (pytest.Item, True),
        ([pytest], True),
    ],
)
def test_foreign(value: Any, foreign: bool) -> None:
    """Payloads that name packages nobody knows are marked; the mark survives the fast path."""
    assert dump(value).foreign is foreign
    assert dump(value).foreign is foreign


# ------------------------------------------------------------------------------------------------ buffers


def test_arrays_travel_beside_the_pickle() -> None:
    """Large arrays are buffers; small ones are not worth a frame; strange layouts work."""
    numpy = pytest.importorskip("numpy")
    big = numpy.arange(10_000.0).reshape(100, 100)
    parcel = dump(big)
    assert [each.nbytes for each in parcel.buffers] == [80_000]
    assert len(parcel.body) < 300
    assert parcel.nbytes == len(parcel.body) + 80_000
    assert dump(numpy.arange(10)).buffers == []
    for strange in (big.T, big[::2, 1::3], numpy.asfortranarray(big), big[5], numpy.zeros((0, 3)), numpy.array("x")):
        back = trip(strange)
        assert (back == strange).all()
        assert back.shape == strange.shape
    assert trip(big).flags.writeable
    big.flags.writeable = False
    assert not trip(big).flags.writeable


@pytest.mark.parametrize("size", [0, 10, 100_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_arrive_as_what_they_were(kind: type, size: int) -> None:
    """Large bytes and bytearrays travel beside the pickle from the places where messages have them."""
    raw: Any = kind(os.urandom(size))
    values: list[Any] = [raw, (raw, 1), (square, (raw, 2), {}), [raw], {"k": raw}]
    for value in values:
        back = trip(value)
        assert back == value
    assert type(trip(raw)) is kind
    assert type(trip((square, (raw,), {}))[1][0]) is kind
    apart = [bool(dump(value).buffers) for value in values[:3]]
    assert apart == [size > 10_000] * 3


def test_bytearrays_stay_shared() -> None:
    """A bytearray that may occur elsewhere in the message stays in the pickle, which keeps it one object."""
    raw = bytearray(100_000)
    _, (first, (second,)), _ = trip((square, (raw, [raw]), {}))
    assert first is second
    first, second = trip((raw, raw))
    assert first is second


def test_the_sender_does_not_copy() -> None:
    """A buffer is the caller's own memory."""
    raw = bytearray(100_000)
    (buffer,) = dump(raw).buffers
    raw[5] = 9
    assert buffer[5] == 9


def test_memoryviews_and_arrays() -> None:
    """Views keep their shape and are writable as the original was; array.array is a buffer too."""
    ints = array.array("i", range(5000))
    assert trip(ints) == ints
    assert len(dump(ints).buffers) == 1
    assert trip(array.array("i", [1])) == array.array("i", [1])
    view = memoryview(ints)
    back = trip(view)
    assert back == view
    assert back.format == "i"
    assert not back.readonly
    assert trip(memoryview(bytes(10_000))).readonly
    assert trip(view[::2]) == view[::2]
    square_view = memoryview(bytearray(range(12))).cast("B", (3, 4))
    assert trip(square_view) == square_view
    assert trip(memoryview(b"")) == memoryview(b"")


# ------------------------------------------------------------------------------------------------ failures


class Config:
    """Holds whatever a test puts into it."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__ = attributes


class Slotted:
    """The same, with a slot."""

    __slots__ = ("lock",)


def guarded(value: object) -> object:
    """A default argument that cannot travel is set by a test."""
    return value


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda lock: (square, (1, Config(config={"lock": lock})), {}), "argument 'args[1].config[\"lock\"]'"),
        (lambda lock: (square, (1, lock), {}), "argument 'args[1]'"),
        (lambda lock: (square, (), {"key": [0, (lock,)]}), "argument 'kwargs['key'][1][0]'"),
        (lambda lock: (functools.partial(square, lock), (), {}), "'function.args[0]'"),
        (lambda lock: [1, {2: lock}], "'value[1][2]'"),
        (lambda lock: lambda: lock, "'value<closure lock>'"),
        (lambda lock: Config(m=Config(lock=lock).__dict__.get, deep=[lock]), "'value.m.__self__[\"lock\"]'"),
    ],
)
def test_error_names_the_part(make: Any, path: str) -> None:
    """The error says which part cannot travel, and of which type it is."""
    with pytest.raises(TypeError, match="cannot send") as caught:
        dump(make(threading.Lock()))
    assert path in str(caught.value)
    assert "of type _thread.lock: cannot pickle '_thread.lock' object" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


def test_error_in_slots_and_cycles() -> None:
    """The search looks into slots, and ends on cycles."""
    slotted = Slotted()
    slotted.lock = threading.Lock()  # type: ignore[attr-defined]
    loop: list[Any] = []
    loop += [loop, slotted]
    with pytest.raises(TypeError, match=r"'value\[1\]\.lock' of type _thread\.lock"):
        dump(loop)


class Explosive:
    """Its pickling fails in user code."""

    def __reduce__(self) -> Any:
        raise RuntimeError("boom")


def test_error_of_user_code_is_the_cause() -> None:
    """What a __reduce__ raises becomes a TypeError that tells it and has it as cause."""
    with pytest.raises(TypeError, match=r"'args\[0\]\[1\]' of type .*Explosive: RuntimeError: boom") as caught:
        dump((square, ([0, Explosive()],), {}))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_too_deep_nesting_is_an_error() -> None:
    """Nesting beyond the recursion limit is reported, not a crash."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="nested too deeply"):
        dump(deep)
    while deep:  # taken apart by hand: freeing it whole is slow in debug builds
        deep = deep[0]


def test_interrupts_pass() -> None:
    """Only errors are explained; KeyboardInterrupt and the like are not ours."""

    class Interrupted:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dump([Interrupted()])
    assert not in_message()


# ------------------------------------------------------------------------------------------------ by name or by value


def test_test_modules_go_by_name() -> None:
    """Modules that a fresh interpreter would find on sys.path are imported there."""
    assert b"test_pickling" in dump(Config).body
    assert dump(Config).globals is None


def test_module_outside_the_path_goes_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file, on the path or not: by name or by value."""
    (tmp_path / "wandering.py").write_text("def f(): return 1\nclass C: pass\n")
    spec = importlib.util.spec_from_file_location("wandering", tmp_path / "wandering.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "wandering", module)
    spec.loader.exec_module(module)
    parcel = dump(module.f)
    monkeypatch.delitem(sys.modules, "wandering")
    assert load(parcel.body)() == 1
    monkeypatch.setitem(sys.modules, "wandering", module)
    monkeypatch.syspath_prepend(str(tmp_path))
    parcel = dump(module.f)
    monkeypatch.delitem(sys.modules, "wandering")
    other = load(parcel.body)
    assert other is not module.f
    assert other.__module__ == "wandering"
    assert "wandering" in sys.modules
    monkeypatch.delitem(sys.modules, "wandering")


def test_replaced_function_goes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that its module no longer has under its name still travels, even right after it went by name."""
    import support.jobs as jobs

    original = jobs.add
    dump((original, (1, 2), {}))
    monkeypatch.setattr(jobs, "add", square)
    function, args, _ = trip((original, (1, 2), {}))
    assert function is not original
    assert function(*args) == 3


def test_private_namespaces_are_shared_within_a_message() -> None:
    """Functions from one bare namespace go on sharing one."""
    bare: dict[str, Any] = {}
    exec("n = 1\ndef up():\n    global n\n    n += 1\n    return n\ndef look():\n    return n", bare)
    up, look = trip([bare["up"], bare["look"]])
    assert (up(), look(), bare["n"]) == (2, 2, 1)


def test_methods_cells_and_marks() -> None:
    """Odd parts of classes and functions."""
    import dataclasses

    class Local:
        size: int = 3

        @functools.cached_property
        def cached(self) -> int:
            return 4

        def who(self) -> type:
            return __class__  # type: ignore[name-defined, no-any-return]

    local = trip(Local())
    assert type(local) is Local
    assert local.cached == 4
    assert local.who() is Local
    assert trip(types.FunctionType) is types.FunctionType
    assert trip(type(None)) is type(None)
    assert trip(dataclasses.MISSING) is dataclasses.MISSING
    assert trip(types.CellType(5)).cell_contents == 5
    assert trip(sys.stdout) is sys.stdout
    assert trip([1].append).__self__ == [1]
    assert trip({}.keys()) == {}.keys()
    weak = trip(weakref.WeakSet())
    assert len(weak) == 0
    with pytest.raises(TypeError), Path(os.devnull).open() as file:
        dump(file)


# ------------------------------------------------------------------------------------------------ threads


class Nosy:
    """Packs something else while it is packed, and looks whether a message is being made."""

    def __reduce__(self) -> Any:
        inner = dump([Config(a=1), lambda: 1])
        return _seen, (in_message(), len(inner.body) > 0)


def _seen(*facts: bool) -> tuple[bool, ...]:
    return facts


def test_dump_may_be_called_while_dumping() -> None:
    """Re-entrant; `in_message` tells a message from other uses of pickle."""
    assert trip([Nosy(), 1]) == [(True, True), 1]
    assert not in_message()
    assert pickle.loads(pickle.dumps(Nosy())) == (False, True)
    copied: Any = copy.copy(Nosy())
    assert copied == (False, True)


def test_dump_in_many_threads() -> None:
    """Several threads at once, with code by value."""
    results: list[Any] = []

    def work(n: int) -> None:
        for _ in range(50):
            function, config = trip([lambda: n, Config(n=n)])
            results.append(function() == config.n == n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 200


# ------------------------------------------------------------------------------------------------ which globals to send


def shipped(name: str, value: object) -> dict[str, ShippedGlobal]:
    parcel = dump(value)
    return {name: ShippedGlobal(name, value, parcel.body, parcel.buffers)}


def selected(sent: SentGlobals, name: str, value: object) -> bool:
    return [chosen for chosen, _, _ in sent.select(shipped(name, value))] == [name]


def test_select_atoms() -> None:
    """C131, C135: an atom is sent when the name is bound to another one."""
    sent = SentGlobals()
    assert [selected(sent, "v", value) for value in (1, 1, 2, 1, "a", "b", "a", "a")] == [
        True, False, True, True, True, True, True, False,
    ]  # fmt: skip


def test_select_looks_into_mutable_values() -> None:
    """C132, C134, C136: changed contents are sent, unchanged not, equal but other objects are."""
    sent = SentGlobals()
    value: list[Any] = [1]
    assert selected(sent, "v", value)
    assert not selected(sent, "v", value)
    value.append(2)
    assert selected(sent, "v", value)
    assert not selected(sent, "v", value)
    assert selected(sent, "v", list(value))
    assert selected(SentGlobals(), "v", value)


def test_select_is_not_fooled_by_recycled_ids() -> None:
    """An equal object at the address of a dead one is another object."""
    sent = SentGlobals()
    assert all(selected(sent, "v", Config(a=1)) for _ in range(50))
    assert all(selected(sent, "v", [1]) for _ in range(50))


def test_select_sees_changes_in_large_buffers() -> None:
    """One changed byte among millions is seen."""
    sent = SentGlobals()
    value = bytearray(5_000_000)
    assert selected(sent, "v", value)
    value[3_141_592] = 1
    assert selected(sent, "v", value)
    assert not selected(sent, "v", value)


def test_forgotten_and_received_names() -> None:
    """A name whose frame was lost is sent again; one that came from the other side is not returned unchanged."""
    sent = SentGlobals()
    assert selected(sent, "v", 1)
    sent.forget(["v", "other"])
    assert selected(sent, "v", 1)
    value = [1]
    sent.note_received("w", value)
    assert not selected(sent, "w", value)
    value.append(2)
    assert selected(sent, "w", value)


def test_large_globals_sent_again_and_again_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, at the third time, with the name."""
    sent = SentGlobals()
    for step in range(5):
        assert selected(sent, "table", bytearray([step]) * (11 << 20))
    assert len(caplog.records) == 1
    assert "'table' (11 MB)" in caplog.text


def test_globals_travel_in_front_of_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """wrap puts them there once per connection; peel assigns them and leaves the rest unopened, for load."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "first", None, raising=False)
    monkeypatch.setattr(main, "second", None, raising=False)
    parcel = dump((square, (bytes(10_000),), {}))
    big = bytearray(b"x" * 20_000)
    parcel.globals = {**shipped("first", [1]), **shipped("second", big)}
    sent = SentGlobals()
    flags, body, buffers = wrap(parcel, sent)
    assert flags == FLAG_GLOBALS
    rest, rest_buffers = peel(flags, body, buffers)
    assert (main.first, main.second) == ([1], big)
    assert load(rest, rest_buffers)[1] == (bytes(10_000),)
    assert load(*peel(flags, body, buffers))[0] is square
    assert wrap(parcel, sent) == (0, parcel.body, parcel.buffers)
    assert wrap(parcel, None)[0] == FLAG_GLOBALS
    assert load(*peel(0, parcel.body, parcel.buffers))[0] is square


def test_global_that_cannot_be_rebuilt_is_named() -> None:
    """The error at the receiver names the global; the body is not opened."""
    broken = ShippedGlobal("broken", None, b"garbage", [])
    flags, body, buffers = wrap(Parcel(b"", [], {"broken": broken}), None)
    with pytest.raises(RuntimeError, match="'broken'"):
        peel(flags, body, buffers)


def test_public_names() -> None:
    """All names of the room exist."""
    assert all(hasattr(pickling, name) for name in pickling.__all__)
