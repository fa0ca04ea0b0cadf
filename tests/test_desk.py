"""Desk: a channel whose items lie on a shelf and in inboxes is one queue, whoever uses it by whatever way."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distpool.channel import Channel
from distpool.desk import NOTHING, Ticket
from distpool.errors import ChannelClosedError
from distpool.inbox import PLACES, Inbox, Slot
from distpool.shelf import RECORDS, VAIN_RECORDS, Reach, Shelf, opened
from distpool.transport import Reader


class Unread:
    """A reader that never reads: what comes into an inbox is seen when the channel is looked at."""

    def register(self, handler: object) -> None: ...

    def unregister(self, handler: object) -> None: ...


def shelf_for(channel: Channel[Any]) -> Shelf:
    """A new shelf, lent to others."""
    shelf = Shelf(lambda item, limit: body if len(body := pickle.dumps(item)) <= limit else None)
    assert channel.lend(shelf)
    return shelf


def reach_of(channel: Channel[Any], shelf: Shelf) -> Reach:
    """What another process has; what it tells is heard at once."""

    def tell(record: bytes) -> None:
        if record:
            channel.put_back(opened(record))
        else:
            channel.look()

    return Reach(shelf.open(), tell)


class DeskMachine(RuleBasedStateMachine):
    """Against a model that is one list, with two that take from the shelf, two that put into inboxes, and askers."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[int] = []
        self.putters: list[tuple[int, list[int]]] = []
        self.takers: list[tuple[int, bool]] = []  # and whether they take many
        self.told: dict[int, Any] = {}
        self.expected: dict[int, Any] = {}
        self.tickets: dict[int, Ticket] = {}
        self.is_open = True
        self.count = 0
        self.returned = 0

    @initialize(size=st.sampled_from([1, 3, 20, math.inf]))
    def make(self, size: float) -> None:
        self.size = size
        self.channel: Channel[int] = Channel(size)
        shelf = shelf_for(self.channel)
        self.reaches = [reach_of(self.channel, shelf) for _ in range(2)]
        inboxes = [Inbox(self.channel, Unread()) for _ in range(2)]
        assert all(self.channel.listen_to(inbox) for inbox in inboxes)
        self.slots = [Slot(*inbox.open()) for inbox in inboxes]

    # -- the model

    def number(self) -> int:
        self.count += 1
        return self.count

    def arrive(self, item: int) -> None:
        if self.takers:
            number, takes_many = self.takers.pop(0)
            self.expected[number] = [item] if takes_many else item
        else:
            self.items.append(item)

    def admit(self) -> None:
        while self.putters and (self.takers or len(self.items) < self.size):
            number, values = self.putters[0]
            self.arrive(values.pop(0))
            if not values:
                self.expected[number] = None
                self.putters.pop(0)

    def pop(self) -> int:
        item = self.items.pop(0)
        self.admit()
        return item

    def ask(self, op: str, value: Any, number: int) -> None:
        def answer(ok: bool, value: Any) -> None:
            assert number not in self.told, "answered twice"
            self.told[number] = value if ok else type(value)

        ticket = self.channel.request(op, value, answer)
        if ticket is not None:
            self.tickets[number] = ticket

    # -- putting

    @rule()
    def put_here(self) -> None:
        item = self.number()
        if not self.is_open:
            with pytest.raises(ChannelClosedError):
                self.channel.try_put(item)
            return
        has_room = bool(self.takers) or (not self.putters and len(self.items) < self.size)
        assert self.channel.try_put(item) == has_room
        if has_room:
            self.arrive(item)

    @rule(which=st.sampled_from([0, 1]), times=st.integers(1, 12))
    def put_elsewhere(self, which: int, times: int) -> None:
        for _ in range(times):
            item = self.number()
            if self.slots[which].put(item):
                assert self.is_open
                # What is put back does not ask for room: the place may have been kept before.
                assert self.takers or (not self.putters and len(self.items) < self.size + self.returned)
                self.arrive(item)

    @rule(number=st.integers(1, 5))
    def ask_to_put(self, number: int) -> None:
        items = [self.number() for _ in range(number)]
        name = self.number()
        if not self.is_open:
            self.expected[name] = ChannelClosedError
        else:
            self.putters.append((name, list(items)))
            self.admit()
        if number == 1:
            self.ask("put", items[0], name)
        else:
            self.ask("put_many", items, name)

    @rule()
    def put_back(self) -> None:
        item = self.number()
        self.channel.put_back(item)
        self.returned += 1
        if self.takers:
            self.arrive(item)
        else:
            self.items.insert(0, item)

    # -- taking

    @rule()
    def take_here(self) -> None:
        if self.items:
            expected = self.pop()
            assert self.channel.try_take(NOTHING) == expected
        elif self.is_open:
            assert self.channel.try_take(NOTHING) is NOTHING

    @rule(which=st.sampled_from([0, 1]), times=st.integers(1, 12))
    def take_elsewhere(self, which: int, times: int) -> None:
        for _ in range(times):
            item = self.reaches[which].take()
            if item is NOTHING:
                return
            assert item == self.pop()

    @rule(number=st.integers(1, 5))
    def ask_to_take(self, number: int) -> None:
        name = self.number()
        if self.items and number == 1:
            self.expected[name] = self.pop()
        elif self.items:
            taken: list[int] = []
            while self.items and len(taken) < number:  # putters that are let in meanwhile count
                taken.append(self.pop())
            self.expected[name] = taken
        elif self.is_open:
            self.takers.append((name, number > 1))
        else:
            self.expected[name] = ChannelClosedError
        self.ask("take" if number == 1 else "take_many", None if number == 1 else number, name)

    # -- the rest

    @rule()
    def lay_out(self) -> None:
        self.channel.stock()

    @rule()
    def fetch(self) -> None:
        if self.items:
            assert self.channel.try_fetch(NOTHING) == self.items[0]
        elif self.is_open:
            assert self.channel.try_fetch(NOTHING) is NOTHING

    @rule()
    def duplicate(self) -> None:
        twin = copy.copy(self.channel)
        assert [twin.take() for _ in range(len(twin))] == self.items

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.tickets)))
        waits = [each for each in self.takers if each[0] == name] + [each for each in self.putters if each[0] == name]
        assert self.channel.withdraw(self.tickets.pop(name)) == bool(waits)
        self.takers = [each for each in self.takers if each[0] != name]
        self.putters = [each for each in self.putters if each[0] != name]

    @precondition(lambda self: self.count > 60)
    @rule()
    def close(self) -> None:
        self.channel.close()
        self.is_open = False
        for name, _ in [*self.takers, *self.putters]:
            self.expected[name] = ChannelClosedError
        self.takers, self.putters = [], []

    @invariant()
    def all_agree(self) -> None:
        if self.count:
            assert len(self.channel) == len(self.items)
            assert self.channel.isready() == bool(self.items)
            assert self.told == self.expected


TestDeskMachine = DeskMachine.TestCase
TestDeskMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


@pytest.fixture
def reader() -> Iterator[Reader]:
    """One that reads, in its background thread."""
    reader = Reader()
    yield reader
    reader.close()


def test_shelf_holds_the_objects_themselves() -> None:
    """What the owner takes back, by whatever way, is what it put and no copy."""
    channel: Channel[Any] = Channel(20)
    shelf_for(channel)
    items = [[number] for number in range(4)]
    for item in items:
        channel.put(item)
    channel.stock()
    assert channel.fetch() is items[0]
    assert channel.take() is items[0]
    channel.put_back(items[0])
    assert [channel.take() is item for item in items] == [True] * 4


def test_copies_are_made_when_items_are_laid_out() -> None:
    """What another process takes is as it was then."""
    channel: Channel[Any] = Channel(20)
    reach = reach_of(channel, shelf_for(channel))
    item = [1]
    channel.put(item)
    channel.stock()
    item.append(2)
    assert reach.take() == [1]


def test_item_that_does_not_fit_stops_the_shelf() -> None:
    """Nothing overtakes an item that must be asked for."""
    channel: Channel[Any] = Channel(20)
    reach = reach_of(channel, shelf_for(channel))
    channel.put_many(["small", "x" * 1000, "small too"])
    channel.stock()
    assert (reach.take(), reach.take()) == ("small", NOTHING)
    assert channel.take() == "x" * 1000
    assert channel.take() == "small too"


def test_shelf_takes_as_many_as_it_has_room_for() -> None:
    """A long queue is laid out piece by piece, and in order."""
    channel: Channel[int] = Channel(math.inf)
    reach = reach_of(channel, shelf_for(channel))
    channel.put_many(range(10 * RECORDS))
    channel.stock()
    # Who takes tells when it is time to lay out more, so nobody need ask.
    assert [reach.take() for _ in range(10 * RECORDS)] == list(range(10 * RECORDS))
    assert len(channel) == 0


def test_shelf_that_nobody_uses_is_not_filled_for_ever() -> None:
    """After some hundred items that only the owner took, nothing more is laid out."""
    channel: Channel[int] = Channel(math.inf)
    shelf = shelf_for(channel)
    channel.put_many(range(10 * RECORDS))
    for _ in range(VAIN_RECORDS + RECORDS):
        channel.stock()
        channel.take()
    assert shelf.count() == 0
    shelf.revive()
    channel.stock()
    assert shelf.count() > 0


class Final:
    """Its end uses the channel that it was in."""

    def __init__(self, channel: Channel[Any]) -> None:
        self.channel: Channel[Any] | None = channel

    def __del__(self) -> None:
        if self.channel is not None:
            self.channel.put("the end")

    def __getstate__(self) -> object:
        return {"channel": None}


def test_finalisers_of_items_run_under_no_lock() -> None:
    """The owner drops its object when it sees that another process has taken it."""
    channel: Channel[Any] = Channel(math.inf)
    reach = reach_of(channel, shelf_for(channel))
    for _ in range(RECORDS):
        channel.put(Final(channel))
    channel.stock()
    for _ in range(RECORDS):
        assert isinstance(reach.take(), Final)
    assert len(channel) == 0
    channel.put("seen")
    channel.stock()
    assert channel.take() == "seen"
    channel.stock()
    assert channel.take() == "the end"
    channel.take_many(2 * RECORDS)


class Interrupts:
    """Opening it is interrupted, the first time."""

    interrupted = False

    def __setstate__(self, state: object) -> None:
        if not Interrupts.interrupted:
            Interrupts.interrupted = True
            raise KeyboardInterrupt

    def __getstate__(self) -> object:
        return 1


def test_interrupted_take_gives_the_item_back() -> None:
    """It goes back in front."""
    channel: Channel[Any] = Channel(20)
    reach = reach_of(channel, shelf_for(channel))
    channel.put_many([Interrupts(), 2])
    channel.stock()
    Interrupts.interrupted = False
    with pytest.raises(KeyboardInterrupt):
        reach.take()
    assert len(channel) == 2
    assert isinstance(channel.take(), Interrupts)


def test_end_of_a_shelf_is_seen() -> None:
    """When the owner has gone, who takes is told so."""
    channel: Channel[int] = Channel(20)
    shelf = shelf_for(channel)
    reach = reach_of(channel, shelf)
    assert reach.take() is NOTHING
    assert not reach.is_over
    shelf.close()
    assert reach.take() is NOTHING
    assert reach.is_over


def test_inbox_serves_who_waits(reader: Reader) -> None:
    """A thread that waits in take gets what comes into an inbox, without anybody looking."""
    channel: Channel[int] = Channel(20)
    inbox = Inbox(channel, reader)
    assert channel.listen_to(inbox)
    slot = Slot(*inbox.open())
    assert slot.put(1)
    assert channel.take(timeout=30) == 1


def test_inbox_of_a_process_that_has_gone(reader: Reader) -> None:
    """What it put is there; the places that were kept for it are free."""
    channel: Channel[int] = Channel(20)
    inbox = Inbox(channel, reader)
    assert channel.listen_to(inbox)
    slot = Slot(*inbox.open())
    assert slot.put(1)
    del slot
    for number in range(2, 21):
        channel.put(number, timeout=30)
    assert [channel.take() for _ in range(20)] == list(range(1, 21))


def test_places_are_limited_and_come_again(reader: Reader) -> None:
    """One process does not get all places; it gets new ones when the others have been used."""
    channel: Channel[int] = Channel(1000)
    inbox = Inbox(channel, reader)
    assert channel.listen_to(inbox)
    slot = Slot(*inbox.open())
    count = 0
    while slot.put(count):
        count += 1
        if count == 5 * PLACES:
            break
        if count % PLACES == 0:
            assert len(channel) == count
    assert count == 5 * PLACES


def test_who_waits_for_room_is_not_overtaken(reader: Reader) -> None:
    """Not even by a place that was kept before items were put back beyond the limit."""
    channel: Channel[int] = Channel(4)
    inbox = Inbox(channel, reader)
    assert channel.listen_to(inbox)
    slot = Slot(*inbox.open())
    for number in range(4):
        channel.put_back(number)
    assert channel.request("put", 4, lambda ok, value: None) is not None
    assert not slot.put(5)


@pytest.mark.parametrize("item", [int, {1: RuntimeError("x")}, "x" * 5000, 1j], ids=["class", "error", "long", "named"])
def test_what_needs_more_than_its_bytes_is_asked_for(item: object, reader: Reader) -> None:
    """Inboxes are opened under a lock: nothing may run by that, not even an import."""
    channel: Channel[Any] = Channel(20)
    inbox = Inbox(channel, reader)
    assert channel.listen_to(inbox)
    slot = Slot(*inbox.open())
    assert not slot.put(item)
    assert len(channel) == 0


def test_numbers_whose_bytes_look_like_names_go_through(reader: Reader) -> None:
    """Only containers of containers are looked at for names, and asked for in vain now and then."""
    channel: Channel[Any] = Channel(math.inf)
    inbox = Inbox(channel, reader)
    assert channel.listen_to(inbox)
    slot = Slot(*inbox.open())
    assert all(slot.put(number) for number in range(300))
    assert slot.put((1, (2, 3)))
    assert [channel.take() for _ in range(301)] == [*range(300), (1, (2, 3))]


def test_closed_channel_takes_nothing_in(reader: Reader) -> None:
    """What the kernel had before counts, and nothing after."""
    channel: Channel[int] = Channel(math.inf)
    inbox = Inbox(channel, reader)
    assert channel.listen_to(inbox)
    slot = Slot(*inbox.open())
    assert slot.put(1)
    channel.close()
    assert not slot.put(2)
    assert slot.is_over
    assert list(channel) == [1]
    assert not channel.listen_to(Inbox(channel, reader))
