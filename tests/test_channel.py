"""Channel: order, limits, waiting and its end, with threads and without."""

from __future__ import annotations

import copy
import math
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distpool.channel import Channel
from distpool.desk import Ticket
from distpool.errors import ChannelClosedError


class Watched(Channel[Any]):
    """Tells how many requests have begun to wait, so that tests need not sleep."""

    def __init__(self, size: int | float = 0) -> None:
        super().__init__(size)
        self.parked = threading.Semaphore(0)

    def _enter(self, ticket: Ticket) -> bool:
        parked = super()._enter(ticket)
        if parked:
            self.parked.release()
        return parked


def start(f: Callable[..., Any], *args: Any) -> Future[Any]:
    """Runs f in a thread; the future has its result."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(f(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def start_waiting(channel: Watched, f: Callable[..., Any], *args: Any) -> Future[Any]:
    """Runs f in a thread, and returns when it waits at the channel."""
    future = start(f, *args)
    assert channel.parked.acquire(timeout=30)
    return future


class Answers(list[Any]):
    """Collects answers of the asynchronous form."""

    def __call__(self, ok: bool, value: Any) -> None:
        self.append((ok, value))


# -- items and their order


def test_items_come_out_as_they_went_in() -> None:
    """C111: fetch leaves the item, take removes it, and closing ends it."""
    channel: Channel[Any] = Channel(10)
    assert channel.put(1).put("Hello").put(5.0) is channel
    assert channel.isready()
    assert (channel.fetch(), channel.fetch()) == (1, 1)
    assert (channel.take(), channel.take()) == (1, "Hello")
    assert (channel.fetch(), channel.take()) == (5.0, 5.0)
    assert not channel.isready()
    assert channel.isopen()
    channel.close()
    assert not channel.isopen()


def test_the_object_itself_is_stored() -> None:
    """C118: three puts of one object, changed in between, give it three times, with its last value."""
    channel: Channel[list[int]] = Channel(3)
    item = [0]
    for number in (1, 2, 3):
        item[0] = number
        channel.put(item)
    assert [channel.take() is item for _ in range(3)] == [True] * 3
    assert item == [3]


def test_isempty_leaves_the_item() -> None:
    """C114: asking removes nothing and does not wait."""
    channel = Channel[int](1)
    assert channel.isempty()
    channel.put(7)
    assert not channel.isempty()
    assert len(channel) == 1
    assert channel.take() == 7


def test_none_is_an_item() -> None:
    """None is a value as any other, for all forms."""
    channel = Channel[None](1).put(None)
    assert channel.fetch() is None
    assert channel.try_take("nothing") is None
    assert channel.try_take("nothing") == "nothing"


@pytest.mark.parametrize("size", [-1, -0.5, 1.5, math.nan, -math.inf])
def test_impossible_sizes_are_refused(size: float) -> None:
    """C127: a channel cannot hold a negative number of items, or half of one."""
    with pytest.raises(ValueError, match="size of a channel"):
        Channel(size)


def test_unlimited_put_never_waits() -> None:
    """C127: math.inf means no limit."""
    channel = Channel[int](math.inf)
    for number in range(10_000):
        channel.put(number, timeout=0)
    assert list(map(lambda _: channel.take(), range(10_000))) == list(range(10_000))


# -- waiting


def test_put_waits_for_room() -> None:
    """C115: the second put into a channel of size 1 waits for a take."""
    channel = Watched(1).put("a")
    waiting = start_waiting(channel, channel.put, "b")
    assert not waiting.done()
    assert channel.take() == "a"
    assert waiting.result(30) is channel
    assert channel.take() == "b"


def test_take_waits_for_an_item() -> None:
    """C117: a take from an empty channel is released by a put."""
    channel = Watched(1)
    waiting = start_waiting(channel, channel.take)
    channel.put("a")
    assert waiting.result(30) == "a"
    assert channel.isempty()


def test_unbuffered_put_waits_for_its_take() -> None:
    """C127: at size 0 a put ends when somebody has taken the item."""
    channel = Watched(0)
    waiting = start_waiting(channel, channel.put, "a")
    assert channel.isready()
    assert len(channel) == 0
    assert channel.take() == "a"
    waiting.result(30)
    assert not channel.isready()


def test_unbuffered_fetch_raises_at_once() -> None:
    """C121: there is never an item to leave; an error, not a hang."""
    channel = Channel[int](0)
    for fetch in (channel.fetch, channel.try_fetch):
        with pytest.raises(RuntimeError, match="use take"):
            fetch()
    answers = Answers()
    assert channel.request("fetch", None, answers) is None
    assert [type(value) for ok, value in answers if not ok] == [RuntimeError]


def test_unbuffered_wait_waits_for_a_putter() -> None:
    """wait() works without a buffer too, and takes nothing."""
    channel = Watched(0)
    waiting = start_waiting(channel, channel.wait)
    putting = start_waiting(channel, channel.put, "a")
    assert waiting.result(30) is channel
    assert channel.wait() is channel
    assert channel.take() == "a"
    putting.result(30)


def test_one_put_wakes_all_fetchers() -> None:
    """Several waiting fetchers get one item, and it stays for a taker."""
    channel = Watched(1)
    fetching = [start_waiting(channel, channel.fetch) for _ in range(3)]
    waiting = start_waiting(channel, channel.wait)
    channel.put("a")
    assert [each.result(30) for each in fetching] == ["a"] * 3
    assert waiting.result(30) is channel
    assert channel.take() == "a"


def test_fetchers_are_woken_beside_a_taker() -> None:
    """A fetcher does not starve behind a taker that came first."""
    channel = Watched(1)
    taking = start_waiting(channel, channel.take)
    fetching = start_waiting(channel, channel.fetch)
    channel.put("a")
    assert (taking.result(30), fetching.result(30)) == ("a", "a")


def test_takers_are_served_in_order_of_arrival() -> None:
    """C130: five takers wait, five puts come: each item once, in the takers' order."""
    channel = Watched(5)
    taking = [start_waiting(channel, channel.take) for _ in range(5)]
    for number in range(5):
        channel.put(number)
    assert [each.result(30) for each in taking] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, 1, 2])
def test_putters_are_served_in_order_of_arrival(size: int) -> None:
    """Items keep the order in which their putters came, also across the limit."""
    channel = Watched(size)
    putting = [
        start(channel.put, number) if number < size else start_waiting(channel, channel.put, number)
        for number in range(5)
    ]
    assert [channel.take() for _ in range(5)] == [0, 1, 2, 3, 4]
    for each in putting:
        each.result(30)


def test_many_threads_lose_and_double_nothing() -> None:
    """Four producers and four consumers at one small channel: every item arrives once."""
    channel = Channel[int](2)
    producing = [start(lambda first: [channel.put(first + number) for number in range(500)], 500 * i) for i in range(4)]
    consuming = [start(list, channel) for _ in range(4)]
    for each in producing:
        each.result(30)
    channel.close()
    taken = [each.result(30) for each in consuming]
    assert sorted(sum(taken, [])) == list(range(2000))  # noqa: RUF017


# -- time limits and interrupts


def test_zero_only_looks() -> None:
    """timeout=0 does not wait, whatever the operation."""
    channel = Channel[int](1)
    for look in (channel.take, channel.fetch, channel.wait):
        with pytest.raises(TimeoutError, match="Channel size=1"):
            look(timeout=0)
    channel.put(1, timeout=0)
    with pytest.raises(TimeoutError, match="put"):
        channel.put(2, timeout=0)
    assert channel.take(timeout=0) == 1


def test_time_out_withdraws() -> None:
    """C129: a take that timed out takes nothing later."""
    channel = Channel[int](1)
    with pytest.raises(TimeoutError, match=r"take waited 0\.01 s"):
        channel.take(timeout=0.01)
    channel.put(1)
    with pytest.raises(TimeoutError, match="put"):
        channel.put(2, timeout=0.01)
    assert channel.take() == 1
    assert channel.isempty()


def test_longest_possible_time_limit() -> None:
    """A limit beyond what the platform can sleep is taken for what it means."""
    channel = Watched(1)
    waiting = start_waiting(channel, channel.take, 1e300)
    channel.put("a")
    assert waiting.result(30) == "a"


class Interrupt(Exception):
    pass


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Raises Interrupt in the main thread, once, as Ctrl-C raises KeyboardInterrupt."""
    raised = threading.Event()

    def raise_once(number: int, frame: object) -> None:
        if not raised.is_set():
            raised.set()
            raise Interrupt

    def interrupt_main_thread() -> None:
        main = threading.main_thread().ident
        assert main is not None
        # Again and again, because Python misses a signal that comes just before the thread begins to sleep.
        while not raised.wait(0.02):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_once)
    yield interrupt_main_thread
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("op", ["take", "fetch", "wait", "put"])
def test_interrupted_wait_is_withdrawn(op: str, interrupt: Callable[[], None]) -> None:
    """Ctrl-C while waiting: later items are not lost to, or put by, a call that has ended."""
    channel = Watched(1)
    if op == "put":
        channel.put("first")

    def interrupt_when_parked() -> None:
        channel.parked.acquire()
        interrupt()

    interrupting = start(interrupt_when_parked)
    with pytest.raises(Interrupt):
        getattr(channel, op)(*(["second"] if op == "put" else []))
    interrupting.result(30)
    if op == "put":
        assert channel.take() == "first"
        assert channel.isempty()
    else:
        channel.put("a", timeout=0)
        assert channel.take(timeout=0) == "a"


def test_interrupt_after_the_answer_puts_the_item_back() -> None:
    """An item that arrived just before the interrupt is not lost."""

    class Interrupted(Channel[str]):
        def _enter(self, ticket: Ticket) -> bool:
            super()._enter(ticket)
            Channel.put(self, "late")  # answers the taker, who is interrupted before it looks
            raise KeyboardInterrupt

    channel = Interrupted(1)
    with pytest.raises(KeyboardInterrupt):
        channel.take()
    assert channel.try_take() == "late"


# -- without waiting


def test_try_forms_tell_instead_of_waiting() -> None:
    """False or the default where the other form would wait."""
    channel = Channel[str](1)
    assert channel.try_take() is None
    assert channel.try_fetch("none") == "none"
    assert channel.try_put("a")
    assert not channel.try_put("b")
    assert channel.try_fetch() == "a"
    assert channel.try_take() == "a"


def test_try_forms_at_an_unbuffered_channel() -> None:
    """They succeed where somebody waits at the other side."""
    channel = Watched(0)
    assert not channel.try_put("a")
    taking = start_waiting(channel, channel.take)
    assert channel.try_put("b")
    assert taking.result(30) == "b"
    putting = start_waiting(channel, channel.put, "c")
    assert channel.try_take() == "c"
    putting.result(30)


def test_try_forms_at_a_closed_channel() -> None:
    """They raise as the waiting forms do; what is inside still comes out."""
    channel = Channel[str](2).put("a")
    channel.close()
    with pytest.raises(ChannelClosedError):
        channel.try_put("b")
    assert channel.try_fetch() == "a"
    assert channel.try_take() == "a"
    for look in (channel.try_take, channel.try_fetch):
        with pytest.raises(ChannelClosedError):
            look()


# -- the end


def test_closed_channel_gives_what_it_has() -> None:
    """C122: closed with one item left it is ready and not open; then take raises."""
    channel = Channel[int](2).put(1)
    channel.close()
    assert channel.isready()
    assert not channel.isopen()
    assert channel.take() == 1
    assert not channel.isready()
    for wait in (channel.take, channel.fetch, channel.wait):
        with pytest.raises(ChannelClosedError, match="closed"):
            wait()
    with pytest.raises(ChannelClosedError):
        channel.put(2)


@pytest.mark.parametrize("op", ["take", "fetch", "wait"])
def test_close_releases_who_waits_for_an_item(op: str) -> None:
    """C122: whoever is blocked in a take gets the channel's error."""
    channel = Watched(1)
    waiting = [start_waiting(channel, getattr(channel, op)) for _ in range(2)]
    channel.close()
    errors = [each.exception(30) for each in waiting]
    assert [type(error) for error in errors] == [ChannelClosedError] * 2
    assert errors[0] is not errors[1]


@pytest.mark.parametrize("size", [0, 1])
def test_close_releases_who_waits_for_room(size: int) -> None:
    """C122: a putter that waits gets the channel's error, and its item is not in it."""
    channel = Watched(size)
    if size:
        channel.put("a")
    waiting = start_waiting(channel, channel.put, "b")
    channel.close()
    assert isinstance(waiting.exception(30), ChannelClosedError)
    assert list(channel) == ["a"] * size


def test_closed_unbuffered_channel_does_not_hang() -> None:
    """C120: a take that fails leaves nothing behind that a later operation could hang on."""
    channel = Channel[int](0)
    channel.close()
    for _ in range(2):
        with pytest.raises(ChannelClosedError):
            channel.take()
        with pytest.raises(ChannelClosedError):
            channel.put(1)


def test_close_with_an_error_raises_it() -> None:
    """Everyone gets that error, each with a traceback of its own length; the first close counts."""
    channel = Channel[int](1)
    channel.close(ValueError("no more paper"))
    channel.close(KeyError("too late"))
    depths = []
    for _ in range(3):
        with pytest.raises(ValueError, match="no more paper") as seen:
            channel.take()
        depths.append(len(seen.traceback))
    assert len(set(depths)) == 1
    with pytest.raises(ValueError, match="no more paper"):
        list(channel)


def test_close_takes_exceptions_only() -> None:
    """Anything else is refused at the call."""
    with pytest.raises(TypeError, match="exception or nothing"):
        Channel(1).close("done")  # type: ignore[arg-type]


def test_iteration_ends_when_closed_and_empty() -> None:
    """C112: a thread copies one channel into another until the first is closed."""
    source, target = Channel[Any](10), Channel[Any](10)
    copying = start(lambda: [target.put(item) for item in source])
    source.put(1).put("Hello")
    source.close()
    copying.result(30)
    assert (target.take(), target.take()) == (1, "Hello")
    with pytest.raises(ChannelClosedError):
        source.put(2)


def test_producer_and_consumer_over_one_place() -> None:
    """C113: ten items through a channel of size 1, then its end."""
    channel = Channel[int](1)

    def produce() -> None:
        for number in range(10):
            channel.put(number)
        channel.close()

    producing = start(produce)
    assert list(channel) == list(range(10))
    producing.result(30)


# -- bind


def test_bound_to_a_thread_that_ends() -> None:
    """The channel closes when its producer ends."""
    channel = Channel[int](1)
    thread = threading.Thread(target=lambda: channel.put(1).put(2))
    assert channel.bind(thread) is channel
    thread.start()
    assert list(channel) == [1, 2]
    thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_bound_to_a_thread_that_fails() -> None:
    """Bound before its start, a thread's error is what the channel raises."""

    def fail() -> None:
        raise ValueError("paper jam")

    channel = Channel[int](1)
    thread = threading.Thread(target=fail)
    channel.bind(thread)
    thread.start()
    with pytest.raises(ValueError, match="paper jam"):
        channel.take()
    thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_bound_to_a_thread_that_exits() -> None:
    """sys.exit in a thread is an ordinary end."""

    def leave() -> None:
        raise SystemExit(3)

    channel = Channel[int](1)
    thread = threading.Thread(target=leave)
    channel.bind(thread)
    thread.start()
    assert list(channel) == []
    thread.join()


def test_bound_to_a_thread_that_runs() -> None:
    """A thread that was started already closes the channel too."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    channel = Channel[int](1).bind(thread)
    assert channel.isopen()
    go.set()
    assert list(channel) == []


def test_bound_to_a_future() -> None:
    """A future closes it with its error, if any, also if it is done already or cancelled."""
    done, failed, cancelled = Future[int](), Future[int](), Future[int]()
    channels = [Channel[int](1).bind(future) for future in (done, failed, cancelled)]
    assert all(channel.isopen() for channel in channels)
    done.set_result(1)
    failed.set_exception(ValueError("x"))
    cancelled.cancel()
    for channel, error in zip(channels, (ChannelClosedError, ValueError, CancelledError), strict=True):
        with pytest.raises(error):
            channel.take()
    assert not Channel[int](1).bind(done).isopen()


def test_bound_to_anything_else() -> None:
    """Only what ends can be bound to."""
    with pytest.raises(TypeError, match="thread or a future"):
        Channel(1).bind("thread")


# -- the asynchronous form


def test_request_is_answered_once_now_or_later() -> None:
    """None for what is answered at once, a ticket for what waits."""
    channel = Channel[str](1)
    taken, put = Answers(), Answers()
    assert channel.request("take", None, taken) is not None
    assert channel.request("put", "a", put) is None
    assert channel.request("put", "b", put) is None
    assert channel.request("put", "c", put) is not None
    assert channel.request("fetch", None, taken) is None
    assert channel.request("wait", None, taken) is None
    assert channel.request("take", None, taken) is None
    assert taken == [(True, "a"), (True, "b"), (True, "b"), (True, "b")]
    assert put == [(True, None)] * 3


def test_unknown_request_is_refused() -> None:
    """The message names what a channel knows."""
    with pytest.raises(ValueError, match="put, take, fetch, wait"):
        Channel(1).request("pop", None, print)


@pytest.mark.parametrize("op", ["take", "fetch", "wait", "put"])
def test_withdrawn_request_is_never_answered(op: str) -> None:
    """C128: and it takes no item from those who still wait."""
    channel = Channel[str](0 if op == "put" else 1)
    answers, others = Answers(), Answers()
    ticket = channel.request(op, "a", answers)
    assert ticket is not None
    assert channel.withdraw(ticket)
    assert not channel.withdraw(ticket)
    channel.request("take", None, others)
    channel.put("b", timeout=0)
    assert others == [(True, "b")]
    assert answers == []


def test_answered_request_cannot_be_withdrawn() -> None:
    """False tells that the answer was given."""
    channel = Channel[str](1)
    ticket = channel.request("take", None, Answers())
    assert ticket is not None
    channel.put("a")
    assert not channel.withdraw(ticket)


def test_put_back_goes_to_the_front() -> None:
    """An item that could not be delivered is the next one again, even above the limit, even if closed."""
    channel = Channel[str](2).put("a").put("b")
    item = channel.take()
    channel.put("c").put_back(item)
    assert len(channel) == 3
    assert not channel.try_put("d")
    channel.close()
    assert list(channel) == ["a", "b", "c"]


def test_put_back_goes_to_who_waits() -> None:
    """A taker that waits gets it at once; so do all fetchers."""
    channel = Channel[str](1)
    answers = Answers()
    for op in ("fetch", "take", "take"):
        channel.request(op, None, answers)
    channel.put_back("a")
    assert answers == [(True, "a"), (True, "a")]
    assert channel.isempty()


def test_put_back_at_an_unbuffered_channel() -> None:
    """The returned item comes before those of waiting putters."""
    channel = Channel[str](0)
    channel.request("put", "b", Answers())
    channel.put_back("a")
    assert channel.isready()
    assert (channel.take(), channel.take()) == ("a", "b")
    assert channel.isempty()


@pytest.mark.parametrize("first", ["take", "put"])
def test_taker_is_answered_before_its_putter(first: str) -> None:
    """C119: the putter may change the object again only when the taker's answer has made use of it."""
    channel = Channel[str](0)
    order: list[str] = []
    for op in ("take", "put") if first == "take" else ("put", "take"):
        channel.request(op, "a", (lambda name: lambda ok, value: order.append(name))(op))
    assert order == ["take", "put"]


def test_answers_may_use_the_channel() -> None:
    """No lock is held while an answer runs."""
    channel = Channel[int](1)
    seen: list[int] = []

    def put_next(ok: bool, value: int) -> None:
        seen.append(value)
        if value < 5:
            channel.request("take", None, put_next)
            channel.put(value + 1)

    channel.request("take", None, put_next)
    channel.put(0)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_an_interrupted_answer_does_not_cost_the_others_theirs() -> None:
    """Ctrl-C may strike in the thread that happens to answer for several."""

    def interrupted(ok: bool, value: str) -> None:
        raise KeyboardInterrupt

    channel = Channel[str](1)
    answers = Answers()
    channel.request("fetch", None, interrupted)
    channel.request("fetch", None, answers)
    channel.request("take", None, answers)
    with pytest.raises(KeyboardInterrupt):
        channel.put("a")
    assert answers == [(True, "a"), (True, "a")]


# -- copies


@pytest.mark.parametrize("copied_by", [copy.copy, copy.deepcopy, lambda channel: pickle.loads(pickle.dumps(channel))])
def test_copy_is_independent(copied_by: Callable[[Any], Any]) -> None:
    """C126: a channel that is sent arrives as a copy with its items."""
    channel = Channel[int](2).put(1)
    channel.request("fetch", None, Answers())
    copied = copied_by(channel)
    copied.put(2)
    assert (len(channel), len(copied), copied.size) == (1, 2, 2)
    assert [copied.take(), copied.take()] == [1, 2]


def test_copy_of_a_closed_channel_is_closed() -> None:
    """With the same items and the same error."""
    channel = Channel[int](2).put(1)
    channel.close(ValueError("x"))
    copied = pickle.loads(pickle.dumps(channel))
    assert copied.take() == 1
    with pytest.raises(ValueError, match="x"):
        copied.take()


@pytest.mark.parametrize(
    ("channel", "text"),
    [
        (Channel(0), "<Channel size=0, 0 items, open>"),
        (Channel[int](math.inf).put(1), "<Channel size=inf, 1 item, open>"),
    ],
)
def test_repr(channel: Channel[Any], text: str) -> None:
    """Size, items and state; no item is shown."""
    assert repr(channel) == text


# -- everything at once, against a model


class ChannelMachine(RuleBasedStateMachine):
    """Random requests against plain lists: who waits, in which order, and what everybody is told."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[int, Any] = {}  # number of a request: what it was told
        self.told: dict[int, Any] = {}
        self.tickets: dict[int, Ticket] = {}
        self.items: list[int] = []
        self.takers: list[int] = []
        self.watchers: list[int] = []
        self.putters: list[int] = []  # a putter's number is its item, too
        self.is_open = True
        self.count = 0

    @initialize(size=st.sampled_from([0, 1, 3, math.inf]))
    def make(self, size: float) -> None:
        self.size = size
        self.channel = Channel[int](size)

    def ask(self, op: str, now: bool) -> int:
        number = self.count
        self.count += 1

        def answer(ok: bool, value: Any) -> None:
            assert number not in self.told, "answered twice"
            self.told[number] = value if ok else type(value)

        ticket = self.channel.request(op, number, answer)
        assert (ticket is None) == now
        if ticket is not None:
            self.tickets[number] = ticket
        return number

    def arrive(self, item: int) -> bool:
        """Who waits for an item is served; False if nobody takes it away."""
        self.expected.update(dict.fromkeys(self.watchers, item))
        self.watchers = []
        if self.takers:
            self.expected[self.takers.pop(0)] = item
            return True
        return False

    @rule()
    def put(self) -> None:
        waits = self.is_open and not self.takers and len(self.items) >= self.size
        number = self.ask("put", not waits)
        if not self.is_open:
            self.expected[number] = ChannelClosedError
            return
        if self.arrive(number):
            self.expected[number] = None
        elif waits:
            self.putters.append(number)
        else:
            self.items.append(number)
            self.expected[number] = None

    @rule()
    def take(self) -> None:
        here = self.items or self.putters
        number = self.ask("take", bool(here) or not self.is_open)
        if not here:
            self.expected[number] = ChannelClosedError
            if self.is_open:
                del self.expected[number]
                self.takers.append(number)
            return
        if not self.items:
            self.expected[number] = self.putters[0]
            self.expected[self.putters.pop(0)] = None
            return
        self.expected[number] = self.items.pop(0)
        if self.putters and len(self.items) < self.size:
            self.expected[self.putters[0]] = None
            self.items.append(self.putters.pop(0))

    @rule(op=st.sampled_from(["fetch", "wait"]))
    def look(self, op: str) -> None:
        refused = op == "fetch" and self.size == 0
        here = [*self.items, *self.putters]
        number = self.ask(op, refused or bool(here) or not self.is_open)
        if refused:
            self.expected[number] = RuntimeError
        elif here:
            self.expected[number] = here[0]
        elif self.is_open:
            self.watchers.append(number)
        else:
            self.expected[number] = ChannelClosedError

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.tickets)))
        queue = next((each for each in (self.takers, self.watchers, self.putters) if number in each), None)
        assert self.channel.withdraw(self.tickets.pop(number)) == (queue is not None)
        if queue is not None:
            queue.remove(number)

    @rule()
    def put_back(self) -> None:
        item = self.count
        self.count += 1
        self.channel.put_back(item)
        if not self.arrive(item):
            self.items.insert(0, item)

    @rule()
    def try_put(self) -> None:
        item = self.count
        self.count += 1
        if not self.is_open:
            with pytest.raises(ChannelClosedError):
                self.channel.try_put(item)
        elif self.takers or len(self.items) < self.size:
            assert self.channel.try_put(item)
            if not self.arrive(item):
                self.items.append(item)
        else:
            assert not self.channel.try_put(item)

    @precondition(lambda self: self.count > 10)
    @rule()
    def close(self) -> None:
        self.channel.close()
        self.is_open = False
        self.expected.update(dict.fromkeys([*self.takers, *self.watchers, *self.putters], ChannelClosedError))
        self.takers, self.watchers, self.putters = [], [], []

    @invariant()
    def told_what_was_expected(self) -> None:
        if self.count:
            assert self.told == self.expected
            assert len(self.channel) == len(self.items)
            assert self.channel.isready() == bool(self.items or self.putters)
            assert not ((self.items or self.putters) and (self.takers or self.watchers))


TestChannelMachine = ChannelMachine.TestCase
TestChannelMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
