"""The store: entries and their clients, requests that wait without a thread, and what happens when somebody leaves."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from distpool.channel import Channel
from distpool.entries import TOMBSTONES
from distpool.errors import (
    CapturedException,
    ChannelClosedError,
    ProcessExitedException,
    RemoteException,
    remote_exception,
)
from distpool.messages import RRID
from distpool.store import Store

ME, W1, W2, W3 = 1, 2, 3, 4
REF = RRID(ME, 1)


class Asker:
    """Asks a store as one process would, and keeps what it is told. ``delivers`` is what its connection says."""

    def __init__(self, store: Store, client: int = ME) -> None:
        self.store = store
        self.client = client
        self.count = 0
        self.told: list[Any] = []
        self.delivers: Any = True

    def ask(self, op: str, *args: Any, ref: RRID = REF) -> int:
        """Starts a request; its number."""
        self.count += 1
        self.store.request(ref, op, args, self.client, self.count, self.answer)
        return self.count

    def answer(self, ok: bool, value: Any) -> Any:
        if self.delivers is not True and isinstance(self.delivers, Exception):
            raise self.delivers
        self.told.append(value if ok else type(value))
        return self.delivers

    def get(self, op: str, *args: Any, ref: RRID = REF) -> Any:
        """What a request is told that needs no waiting."""
        before = len(self.told)
        self.ask(op, *args, ref=ref)
        (answer,) = self.told[before:]
        return answer


@pytest.fixture
def store() -> Store:
    return Store(run_blocking=lambda work: work())


@pytest.fixture
def driver(store: Store) -> Asker:
    return Asker(store, ME)


@pytest.fixture
def w1(store: Store) -> Asker:
    return Asker(store, W1)


@pytest.fixture
def w2(store: Store) -> Asker:
    return Asker(store, W2)


def failure(text: str = "x") -> RemoteException:
    return remote_exception(W1, CapturedException(ValueError(text)))


# -- entries


def test_first_mention_makes_the_entry(store: Store, w1: Asker) -> None:
    """C088: a reference just made is unknown to its owner; asking makes it known, with its creator as client."""
    assert REF not in store
    assert w1.get("isready") is False
    assert REF in store
    assert len(store) == 1
    assert store.clients(REF) == {ME}


def test_unknown_reference_has_no_channel(store: Store) -> None:
    """channel() and clients() ask about what is there; they make nothing."""
    for look in (store.channel, store.clients):
        with pytest.raises(LookupError, match=r"\(1, 1\)"):
            look(REF)
    assert len(store) == 0


def test_call_adopts_the_entry_of_an_early_question(store: Store, w2: Asker) -> None:
    """C098: a question about a call's result may arrive before the call."""
    w2.ask("fetch")
    store.create(REF)
    store.set_result(REF, True, "done")
    assert w2.told == ["done"]


def test_created_with_a_channel(store: Store, driver: Asker) -> None:
    """The backing channel is the very object that was given; a second one is refused."""
    channel = Channel[int](5)
    store.create(REF, channel)
    assert store.channel(REF) is channel
    assert store.clients(REF) == {ME}
    driver.ask("put", 1)
    assert channel.take() == 1
    with pytest.raises(RuntimeError, match="has a channel already"):
        store.create(REF, Channel(5))


# -- Futures


def test_future_is_written_once(store: Store, driver: Asker, w1: Asker) -> None:
    """C087: not ready, set, ready, fetched; a second put raises RuntimeError and the value stays."""
    assert driver.get("isready") is False
    assert w1.get("set", "OK") is None
    assert driver.get("isready") is True
    for op in ("set", "put"):
        assert w1.get(op, "again") is RuntimeError
    assert driver.get("fetch") == "OK"


def test_putter_gives_its_reference_back(store: Store, driver: Asker) -> None:
    """C088: after a put by the only client the entry is gone, and a second put is refused all the same."""
    assert driver.get("set", 1) is None
    store.del_client(REF, ME)
    assert REF not in store
    assert driver.get("set", 2) is RuntimeError
    assert REF not in store


def test_set_future_stays_ready(store: Store, driver: Asker, w2: Asker) -> None:
    """C089: a client registered too late finds that the Future was set; it does not wait for ever on an empty entry."""
    driver.ask("set", 1)
    store.del_client(REF, ME)
    assert store.add_client(REF, W2) is False
    assert w2.get("isready") is True
    assert w2.get("wait") is None
    assert w2.get("set", 2) is RuntimeError
    assert w2.get("fetch") is RuntimeError
    assert len(store) == 0


def test_entry_is_kept_for_other_clients(store: Store, driver: Asker, w2: Asker) -> None:
    """C089, C102: registered in time, the other client gets the value, and its own put is refused."""
    assert store.add_client(REF, W2) is True
    w2.ask("wait")
    driver.ask("set", 1)
    store.del_client(REF, ME)
    assert store.clients(REF) == {W2}
    assert w2.told == [None]
    assert w2.get("isready") is True
    assert w2.get("set", 2) is RuntimeError
    assert w2.get("fetch") == 1
    store.del_client(REF, W2)
    assert len(store) == 0


def test_none_is_a_value(store: Store, driver: Asker) -> None:
    """C095: a Future of None is ready, and fetched as None."""
    store.set_result(REF, True, None)
    assert driver.get("isready") is True
    assert driver.get("fetch") is None


def test_failed_call_raises_each_time(store: Store, driver: Asker) -> None:
    """C079: fetch and wait raise; the Future is ready, stays so, and its entry keeps its client."""
    store.set_result(REF, False, failure())
    for op in ("fetch", "wait", "fetch"):
        assert issubclass(driver.get(op), RemoteException)
    assert driver.get("isready") is True
    assert store.clients(REF) == {ME}


def test_unwrapped_failure_is_wrapped(store: Store, driver: Asker) -> None:
    """set_result(ok=False) raises at the reader, whatever exception it was given."""
    store.set_result(REF, False, ValueError("x"))
    assert issubclass(driver.get("fetch"), RemoteException)


def test_exception_as_data_is_returned(store: Store, driver: Asker) -> None:
    """C084: a function may return an exception object."""
    value = ValueError("x")
    store.set_result(REF, True, value)
    assert driver.get("fetch") is value


def test_result_after_release_is_dropped(store: Store, driver: Asker) -> None:
    """C101: nobody holds the Future of a running call any more: its result makes no entry that nobody would remove."""
    store.create(REF)
    store.del_client(REF, ME)
    store.set_result(REF, True, 5)
    assert len(store) == 0
    store.del_client(RRID(ME, 2), ME)  # the same, before anything else was said about it
    store.set_result(RRID(ME, 2), True, 5)
    assert len(store) == 0


def test_result_of_a_future_that_was_set_is_dropped(store: Store, driver: Asker, w1: Asker) -> None:
    """The first value counts."""
    w1.ask("set", "mine")
    store.set_result(REF, True, "yours")
    assert driver.get("fetch") == "mine"


def test_closed_future_cannot_be_set(store: Store, driver: Asker, w1: Asker) -> None:
    """Whatever is wrong with the channel is told to who put."""
    driver.ask("close")
    assert w1.get("set", 1) is ChannelClosedError
    store.set_result(REF, True, 1)
    assert driver.get("isready") is False


# -- channels


def test_channel_operations(store: Store, driver: Asker, w1: Asker) -> None:
    """C111: the same steps as at a Channel, by two processes."""
    store.create(REF, Channel(10))
    for item in (1, "Hello", 5.0):
        assert w1.get("put", item) is None
    assert [driver.get(op) for op in ("isready", "fetch", "fetch", "take", "take")] == [True, 1, 1, 1, "Hello"]
    assert [driver.get(op) for op in ("fetch", "wait", "take", "isready")] == [5.0, None, 5.0, False]
    assert [driver.get(op) for op in ("isempty", "isopen", "close", "isopen")] == [True, True, None, False]
    assert w1.get("put", 1) is ChannelClosedError
    assert w1.get("take") is ChannelClosedError


def test_isempty_removes_nothing(store: Store, driver: Asker) -> None:
    """C114: the item is still there."""
    driver.ask("put", 1)
    assert driver.get("isempty") is False
    assert driver.get("take") == 1


def test_default_channel_has_one_place(store: Store, driver: Asker, w1: Asker) -> None:
    """C115, C117: the second put waits for a take, a take for a put; both hold no thread."""
    driver.ask("put", "a")
    driver.ask("put", "b")
    assert driver.told == [None]
    assert w1.get("take") == "a"
    assert driver.told == [None, None]
    assert w1.get("take") == "b"
    w1.ask("take")
    driver.ask("put", "c")
    assert w1.told[-1] == "c"


def test_takers_in_order_of_arrival(store: Store, driver: Asker, w1: Asker, w2: Asker) -> None:
    """C130: each item once, to who asked first."""
    for asker in (w1, w2, w1):
        asker.ask("take")
    for item in range(3):
        driver.ask("put", item)
    assert (w1.told, w2.told) == ([0, 2], [1])


def test_close_reaches_those_who_wait(store: Store, driver: Asker, w1: Asker, w2: Asker) -> None:
    """C122: a taker and a putter blocked at the owner get the channel's error."""
    w1.ask("take")
    driver.ask("close")
    assert w1.told == [ChannelClosedError]
    other = RRID(ME, 2)
    w2.ask("put", 1, ref=other)
    w2.ask("put", 2, ref=other)
    driver.ask("close", ref=other)
    assert w2.told == [None, ChannelClosedError]
    assert driver.get("take", ref=other) == 1


def test_unbuffered_fetch_is_an_error(store: Store, driver: Asker) -> None:
    """C121: not a hang."""
    store.create(REF, Channel(0))
    assert driver.get("fetch") is RuntimeError


def test_unbuffered_item_is_written_out_before_its_putter_goes_on(store: Store, driver: Asker, w1: Asker) -> None:
    """C119: ten rounds of one object changed in between; each taker writes out what was meant for it."""
    store.create(REF, Channel(0))
    item, written = [0.0], []

    def write_out(ok: bool, value: Any) -> None:
        written.append(value[0])

    for number in range(10):
        if number % 2:
            store.request(REF, "take", (), W1, number, write_out)
        item[0] = number + 1.0
        putting = Asker(store)
        store.request(REF, "put", (item,), ME, number, putting.answer)
        if not number % 2:
            store.request(REF, "take", (), W1, number, write_out)
        assert putting.told == [None]
    assert written == [float(number) for number in range(1, 11)]


@pytest.mark.parametrize("op", ["take", "fetch", "wait"])
def test_remote_exception_as_an_item_is_raised(store: Store, driver: Asker, op: str) -> None:
    """A RemoteException that was put into a channel is raised at whoever receives it."""
    driver.ask("put", failure())
    assert issubclass(driver.get(op), RemoteException)
    assert driver.get("isready") is (op != "take")


@pytest.mark.parametrize(("op", "args"), [("put", ()), ("put", (1, 2)), ("take", (1,)), ("isready", (1,)), ("set", ())])
def test_wrong_number_of_arguments(store: Store, driver: Asker, op: str, args: tuple[Any, ...]) -> None:
    """A plain channel takes no keys."""
    assert driver.get(op, *args) is TypeError


def test_unknown_operation(store: Store, driver: Asker) -> None:
    """It is told so, and makes no entry."""
    assert driver.get("pop") is ValueError
    assert len(store) == 0


# -- delivery that fails


@pytest.mark.parametrize("trouble", [False, OSError("connection reset")])
def test_item_that_cannot_be_delivered_goes_back(store: Store, driver: Asker, w1: Asker, trouble: Any) -> None:
    """C128: the connection says no, or raises: the item is the next one again."""
    store.create(REF, Channel(5))
    w1.delivers = trouble
    w1.ask("take")
    driver.ask("put", "a")
    driver.ask("put", "b")
    assert [driver.get("take"), driver.get("take")] == ["a", "b"]


def test_item_goes_to_the_next_who_waits(store: Store, driver: Asker, w1: Asker, w2: Asker) -> None:
    """What the first taker does not get, the second gets at once."""
    w1.delivers = False
    w1.ask("take")
    w2.ask("take")
    driver.ask("put", "a")
    assert w2.told == ["a"]


def test_any_number_of_dead_takers(store: Store, driver: Asker, w1: Asker, w2: Asker) -> None:
    """Ten thousand deliveries fail in a row; the item survives them all."""
    w1.delivers = False
    for _ in range(10_000):
        w1.ask("take")
    w2.ask("take")
    driver.ask("put", "a")
    assert w2.told == ["a"]


def test_failed_fetch_keeps_its_client(store: Store, driver: Asker) -> None:
    """A Future's value that did not arrive can be fetched again."""
    store.set_result(REF, True, 5)
    driver.delivers = False
    driver.ask("fetch")
    assert store.clients(REF) == {ME}
    driver.delivers = True
    assert driver.get("fetch") == 5


def test_interrupted_delivery_puts_the_item_back(store: Store, driver: Asker) -> None:
    """Ctrl-C may strike in the thread that delivers."""

    def interrupted(ok: bool, value: Any) -> None:
        raise KeyboardInterrupt

    store.request(REF, "take", (), W1, 1, interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver.ask("put", "a")
    assert store.channel(REF).take() == "a"


# -- withdrawing and leaving


@pytest.mark.parametrize("op", ["take", "fetch", "wait"])
def test_withdrawn_request_takes_nothing(store: Store, driver: Asker, w1: Asker, op: str) -> None:
    """C096, C129: a request that timed out is never answered; the next pair of put and take works."""
    number = w1.ask(op)
    assert store.withdraw(W1, number) is True
    assert store.withdraw(W1, number) is False
    driver.ask("put", "a")
    assert w1.told == []
    assert driver.get("take") == "a"


def test_withdrawn_put_puts_nothing(store: Store, driver: Asker, w1: Asker) -> None:
    """The item of a put that timed out is not in the channel."""
    driver.ask("put", "a")
    number = w1.ask("put", "b")
    assert store.withdraw(W1, number) is True
    assert driver.get("take") == "a"
    assert driver.get("isready") is False


def test_answered_request_cannot_be_withdrawn(store: Store, driver: Asker, w1: Asker) -> None:
    """False tells the caller that an answer was given; likewise for what was never asked."""
    number = w1.ask("take")
    driver.ask("put", "a")
    assert store.withdraw(W1, number) is False
    assert store.withdraw(W1, 99) is False


def test_gone_client_takes_nothing(store: Store, driver: Asker, w1: Asker, w2: Asker) -> None:
    """C128: a worker that waits in take is removed; the next item goes to another."""
    w1.ask("take")
    store.client_gone(W1)
    assert w1.told == [ProcessExitedException]
    driver.ask("put", "X")
    assert w2.get("take") == "X"


def test_ended_client_holds_nothing(store: Store, w1: Asker) -> None:
    """C106: the only process that held a channel dies: the entry goes when its last news are here, others stay."""
    mine, shared = RRID(W1, 1), RRID(W1, 2)
    store.create(mine)
    store.create(shared)
    store.client_gone(W1)
    store.add_client(shared, W2, giver=W1)  # what it said last, by another way
    assert mine in store
    assert store.client_ended(W1) == {W2}
    assert mine not in store
    assert store.clients(shared) == {W2}


def test_late_messages_of_the_ended_change_nothing(store: Store, driver: Asker, w1: Asker) -> None:
    """What was still under way from, or about, a process that left neither waits nor registers it nor loses an item."""
    store.create(REF)
    store.client_gone(W1)
    w1.ask("take")
    assert w1.told == [ProcessExitedException]
    assert store.client_ended(W1) == set()
    assert store.add_client(REF, W1) is False
    store.del_client(REF, W1)
    driver.ask("put", "a")
    w1.ask("take")
    assert w1.told == [ProcessExitedException]
    assert driver.get("take") == "a"
    assert store.clients(REF) == {ME}
    store.del_client(REF, ME)
    assert REF not in store


def test_entry_is_not_made_for_the_ended(store: Store, w1: Asker, w2: Asker) -> None:
    """A first mention after the creator's end: whoever has that reference was given it by a message cut short."""
    store.client_gone(W1)
    store.client_ended(W1)
    ref = RRID(W1, 1)
    store.set_result(ref, True, 5)
    assert w2.get("isready", ref=ref) is RuntimeError
    assert store.add_client(ref, W2, giver=W3) is False
    store.del_client(ref, W2, giver=W1)
    assert len(store) == 0


def test_giver_ends_between_news_and_message(store: Store) -> None:
    """It had told that W2 holds three more, and W2 got one of them: what W2 says counts, then and later."""
    store.create(REF)
    store.add_client(REF, W1)
    store.add_client(REF, W2, 3, giver=W1)
    store.del_client(REF, ME)
    assert store.client_ended(W1) == {W2}
    assert store.clients(REF) == {W2}
    store.settle(W2, W1, {REF: 1})
    assert store.clients(REF) == {W2}
    store.del_client(REF, W2, giver=W1)
    assert len(store) == 0


def test_giver_ends_before_its_news(store: Store) -> None:
    """W2 got references, one of them twice, that the owner never heard of: no count stays below zero."""
    other = RRID(ME, 2)
    store.create(REF)
    store.create(other)
    store.add_client(REF, W2, giver=W1)
    store.client_ended(W1)
    store.settle(W2, W1, {REF: 2, other: 1, RRID(ME, 3): 1})
    assert RRID(ME, 3) not in store
    store.del_client(other, ME)
    assert store.clients(other) == {W2}
    for ref, count in ((REF, 2), (other, 1)):
        store.del_client(ref, W2, count, giver=W1)
    assert other not in store
    store.del_client(REF, W2, giver=W1)  # and once more, that nobody has told of
    assert store.clients(REF) == {ME}


def test_settled_by_nobody(store: Store) -> None:
    """Nothing of what was told has arrived: what only that kept goes, and who waits for it is told."""
    told = Asker(store, W2)
    store.create(REF)
    store.add_client(REF, W2, giver=W1)
    told.ask("take")
    store.del_client(REF, ME)
    store.client_ended(W1)
    assert store.settle(W2, W1, {})
    assert len(store) == 0
    assert told.told == [RuntimeError]


def test_release_tells_those_who_wait(store: Store, w1: Asker) -> None:
    """Nobody holds the reference any more, so nothing can come: no wait for ever."""
    w1.ask("take")
    store.del_client(REF, ME)
    assert w1.told == [RuntimeError]
    assert w1.get("take") is RuntimeError


def test_release_spares_a_channel_of_the_users(store: Store) -> None:
    """The factory's channel may be in use elsewhere; only the entry goes."""
    channel = Channel[int](1)
    store.create(REF, channel)
    store.del_client(REF, ME)
    assert channel.isopen()


# -- clients


def test_clients_are_counted_by_weight(store: Store) -> None:
    """C105: a process that was given a reference twice gives it back twice; the entry goes with the last."""
    store.create(REF)
    for _ in range(2):
        assert store.add_client(REF, W2) is True
    assert store.clients(REF) == {ME, W2}
    store.del_client(REF, ME)
    assert store.clients(REF) == {W2}
    store.del_client(REF, W2)
    assert store.clients(REF) == {W2}
    store.del_client(REF, W2)
    assert REF not in store


def test_a_reference_may_be_given_back_before_it_is_announced(store: Store) -> None:
    """The receiver's news can overtake the sender's: the entry waits for both, and goes with them."""
    store.create(REF)
    store.del_client(REF, W2)
    store.del_client(REF, ME)
    assert store.clients(REF) == frozenset()
    assert REF in store
    assert store.add_client(REF, W2) is True
    assert REF not in store


def test_added_client_makes_the_entry(store: Store) -> None:
    """A Future that was just made and sent on: its creator and the receiver hold it."""
    assert store.add_client(REF, W2) is True
    assert store.clients(REF) == {ME, W2}


def test_channel_items_do_not_release(store: Store, driver: Asker) -> None:
    """C104: put and fetch on a channel leave the entry; dropping the handle removes it."""
    driver.ask("put", 1)
    driver.ask("fetch")
    assert store.clients(REF) == {ME}
    store.del_client(REF, ME)
    assert len(store) == 0


def test_late_add_does_not_make_it_again(store: Store) -> None:
    """C107: what was released stays released."""
    store.create(REF)
    store.del_client(REF, ME)
    assert store.add_client(REF, W2) is False
    store.create(REF)
    assert len(store) == 0


def test_tombstones_are_bounded(store: Store) -> None:
    """Ten thousand references come and go; what is remembered of them does not grow without end."""
    for number in range(TOMBSTONES + 10):
        store.create(RRID(ME, number))
        store.del_client(RRID(ME, number), ME)
    assert len(store) == 0
    assert store.add_client(RRID(ME, 0), W2) is True  # so long ago that it is not known any more
    assert store.add_client(RRID(ME, 10), W2) is False


def test_no_request_is_remembered_when_answered(store: Store, driver: Asker, w1: Asker) -> None:
    """C109: a thousand takes, waited for or not, leave nothing in the tables."""
    for number in range(1000):
        w1.ask("take")
        driver.ask("put", number)
        store.withdraw(W1, w1.ask("fetch"))
    assert w1.told == list(range(1000))
    assert store._requests == {}
    assert store._entries[REF].waiting == set()


class Value:
    """Asks its store when it dies, as a user's finaliser may."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __del__(self) -> None:
        self.store.add_client(RRID(ME, 77), ME)


@pytest.mark.parametrize("release", [lambda store: store.del_client(REF, ME), lambda store: store.client_ended(ME)])
def test_finalisers_of_values_run_outside_the_lock(store: Store, release: Callable[[Store], None]) -> None:
    """A value freed with its entry may use the store."""
    value = Value(store)
    freed = weakref.ref(value)
    store.set_result(REF, True, value)
    store.create(RRID(W1, 5))
    del value
    release(store)
    gc.collect()
    assert freed() is None


# -- a user's own backing store


class Dictionary:
    """Julia's example: a channel with keys."""

    def __init__(self) -> None:
        self.items: dict[Any, Any] = {}

    def put(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def take(self, key: Any) -> Any:
        return self.items.pop(key)

    def fetch(self, key: Any) -> Any:
        return self.items[key]

    def isready(self, key: Any) -> bool:
        return key in self.items


def test_own_store_gets_all_arguments(store: Store, driver: Asker) -> None:
    """C123: keys are passed through; errors of its methods are told."""
    store.create(REF, Dictionary())
    assert driver.get("put", "a", 1) is None
    assert driver.get("isready", "a") is True
    assert driver.get("fetch", "a") == 1
    assert driver.get("take", "a") == 1
    assert driver.get("isready", "a") is False
    assert driver.get("take", "a") is KeyError
    assert driver.get("put", "only a key") is TypeError
    assert driver.get("close") is AttributeError


def test_own_store_as_a_future(store: Store, driver: Asker) -> None:
    """The Future operations use its put and fetch."""
    store.create(REF, Channel2(1))
    driver.ask("set", 1)
    assert driver.get("fetch") == 1


class Channel2(Channel[Any]):
    """A subclass may have changed any method, so it counts as a store of the user's own."""


@pytest.fixture
def threads() -> list[threading.Thread]:
    return []


@pytest.fixture
def threaded(threads: list[threading.Thread]) -> Store:
    """A store that runs what may block in threads."""

    def in_thread(work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work))
        threads[-1].start()

    return Store(run_blocking=in_thread)


def test_own_store_may_block(threaded: Store, threads: list[threading.Thread]) -> None:
    """Its methods run where they may wait; the request returns at once, and cannot be withdrawn."""
    driver, backing = Asker(threaded), Channel2(1)
    threaded.create(REF, backing)
    number = driver.ask("take")
    assert threaded.withdraw(ME, number) is False
    backing.put("a")
    threads[0].join(30)
    assert driver.told == ["a"]
    assert threaded.abandon(ME, number) is False
    assert threaded._requests == {}


class Keyed(Dictionary):
    """Takes wait for their key."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def put(self, key: Any, value: Any) -> None:
        with self.changed:
            super().put(key, value)
            self.changed.notify_all()

    def take(self, key: Any) -> Any:
        with self.changed:
            self.changed.wait_for(lambda: key in self.items)
            return super().take(key)


def test_own_store_is_abandoned(threaded: Store, threads: list[threading.Thread]) -> None:
    """A take that nobody waits for any more goes on; what it brings is for the next one with the same key."""
    driver, w1, backing = Asker(threaded), Asker(threaded, W1), Keyed()
    threaded.create(REF, backing)
    number = w1.ask("take", "k")
    assert threaded.is_in_own_store(W1, number)
    assert threaded.abandon(W1, number) is True
    assert threaded.abandon(W1, number) is False
    backing.put("k", 1)
    threads[0].join(30)
    assert w1.told == []
    backing.put("other", 2)
    for key in ("other", "k"):
        driver.ask("take", key)
        threads[-1].join(30)
    assert driver.told == [2, 1]
    backing.put("k", 3)
    driver.ask("take", "k")
    threads[-1].join(30)
    assert driver.told == [2, 1, 3]
    assert threaded._requests == {}


def test_own_store_keeps_what_was_not_delivered(store: Store, driver: Asker, w1: Asker) -> None:
    """It goes back where the store has a method for it, and is for the next taker where not."""
    store.create(REF, Channel2(1))
    driver.delivers = False
    store.channel(REF).put("a")
    driver.ask("take")
    assert store.channel(REF).take() == "a"
    other = RRID(ME, 2)
    store.create(other, Dictionary())
    store.channel(other).put("k", 1)
    driver.ask("take", "k", ref=other)
    assert store.channel(other).isready("k") is False  # type: ignore[call-arg]
    assert w1.get("take", "k", ref=other) == 1
    assert w1.get("take", "k", ref=other) is KeyError


# -- threads


def test_answers_may_use_the_store(store: Store, driver: Asker) -> None:
    """No lock is held while an answer runs."""
    told: list[Any] = []

    def answer(ok: bool, value: Any) -> None:
        told.append(value)
        store.request(RRID(ME, 2), "put", (value,), ME, 2, lambda ok, value: None)
        store.del_client(REF, ME)

    store.request(REF, "take", (), ME, 1, answer)
    driver.ask("put", "a")
    assert told == ["a"]
    assert driver.get("take", ref=RRID(ME, 2)) == "a"
    assert REF not in store


def test_every_item_survives_clients_that_come_and_go() -> None:
    """Takers are withdrawn, and die, while items come: each item reaches exactly one that lives."""
    store = Store(run_blocking=lambda work: work())
    store.create(REF, Channel(10))
    store.add_client(REF, W1)
    got: list[int] = []
    lock = threading.Lock()

    def keep(ok: bool, value: Any) -> bool:
        if ok:
            with lock:
                got.append(value)
        return True

    def setter(event: threading.Event) -> Callable[[bool, Any], None]:
        return lambda ok, value: event.set()

    def come_and_go(first: int) -> None:
        for pid in range(first, first + 50):
            for number in range(4):
                store.request(REF, "take", (), pid, number, lambda ok, value: False)
            store.withdraw(pid, 0)
            store.client_gone(pid)

    def put(first: int) -> None:
        for item in range(first, first + 250):
            taken = threading.Event()
            store.request(REF, "put", (item,), ME, item, setter(taken))
            store.request(REF, "take", (), ME, 10_000 + item, keep)
            assert taken.wait(30)

    threads = [threading.Thread(target=come_and_go, args=(100 * (i + 1),)) for i in range(3)]
    threads += [threading.Thread(target=put, args=(250 * i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(got) == list(range(500))
    assert store._requests == {}
