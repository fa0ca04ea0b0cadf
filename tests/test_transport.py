"""The reader: who reads, when the role passes on, and that nothing is lost on the way."""

from __future__ import annotations

import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import pytest
from conftest import StartScript

from distpool.interrupts import DeferredInterrupt
from distpool.polling import Poller
from distpool.transport import Deadline, Reader, Waiter
from support.aside import interrupt_when
from support.leaks import eventually

WAIT = 20  # seconds; a limit for what should take none


class Line:
    """A connection of one byte per message, and what came on it: in which thread, in which order."""

    def __init__(self, reader: Reader) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.waiters: list[Waiter] = []  # one for each byte to come; the first byte completes the first
        self.received = b""
        self.readers: list[int] = []
        self.fault: Exception | None = None  # raised after the next byte
        self.action: Callable[[], object] | None = None  # called, once, with the next byte
        self.writable = threading.Event()
        self.reader = reader
        reader.register(self)

    def fileno(self) -> int:
        return self.near.fileno()

    def on_readable(self) -> None:
        try:
            data = self.near.recv(1)
        except BlockingIOError:
            return
        self.received += data
        self.readers.append(threading.get_ident())
        if self.action is not None:
            action, self.action = self.action, None
            action()
        if self.waiters and data:
            self.waiters.pop(0).complete()
        if self.fault is not None:
            raise self.fault

    def on_writable(self) -> None:
        self.writable.set()
        self.reader.watch_writable(self, False)

    def expect(self) -> Waiter:
        """A waiter for the next byte."""
        waiter = Waiter()
        self.waiters.append(waiter)
        return waiter

    def say(self) -> None:
        """Sends a byte from the other side."""
        self.far.send(b"x")

    def close(self) -> None:
        self.reader.unregister(self)
        self.near.close()
        self.far.close()


class MakeReader(Protocol):
    """What `make_reader` is."""

    def __call__(self, on_takeover: Callable[[], None] | None = None) -> Reader: ...


POLLERS = [pytest.param(select.poll, id="poll")]
if hasattr(select, "epoll"):
    POLLERS.append(pytest.param(select.epoll, id="epoll"))


@pytest.fixture(params=POLLERS)
def make_reader(request: pytest.FixtureRequest) -> Iterator[MakeReader]:
    """Readers that are closed after the test; with epoll, and with poll where the system had no epoll."""
    readers: list[Reader] = []

    def make(on_takeover: Callable[[], None] | None = None) -> Reader:
        readers.append(Reader(on_takeover, Poller(request.param())))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


@pytest.fixture
def reader(make_reader: MakeReader) -> Reader:
    """One reader."""
    return make_reader()


@pytest.fixture
def line(reader: Reader) -> Iterator[Line]:
    """One connection."""
    line = Line(reader)
    yield line
    line.close()


def in_thread(call: Callable[[], object]) -> threading.Thread:
    """Starts a thread."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


# -- deadlines and waiters ------------------------------------------------------------------------


def test_deadline_without_end_never_passes() -> None:
    """None has no end."""
    assert Deadline(None).remaining() is None
    assert not Deadline(None).has_passed


def test_deadline_of_zero_has_passed() -> None:
    """Zero means: only look."""
    assert Deadline(0).has_passed
    assert Deadline(-1).remaining() == 0
    assert not Deadline(float("inf")).has_passed


def test_wait_for_what_is_done_returns_at_once(reader: Reader) -> None:
    """Nothing is read for it."""
    waiter = Waiter()
    waiter.complete()
    waiter.complete()  # harmless to repeat
    assert reader.wait(waiter, Deadline(0))


def test_wait_ends_with_the_deadline(reader: Reader) -> None:
    """It says that the event is not there."""
    assert not reader.wait(Waiter(), Deadline(0.01))


@pytest.mark.parametrize("seconds", [1e6, 1e12, float("inf")])
def test_limits_longer_than_systems_can_wait(reader: Reader, seconds: float) -> None:
    """Who leads and who follows wait for the event, whatever the limit."""
    waiters = [Waiter(), Waiter(), Waiter()]
    waiting = [in_thread(partial(reader.wait, waiter, Deadline(seconds))) for waiter in waiters]
    eventually(lambda: len(reader._waiting) == 3 and len(reader._followers) == 2)
    for waiter in waiters:
        waiter.complete()
    for thread in waiting:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_waiter_can_be_used_again(reader: Reader, line: Line) -> None:
    """With `done` set back before looking, no event is overlooked."""
    waiter = Waiter()
    for count in range(1, 200):
        waiter.done = False
        line.waiters.append(waiter)
        in_thread(line.say) if count % 2 else line.say()
        assert reader.wait(waiter, Deadline(WAIT))
        assert len(line.received) == count


# -- who reads ------------------------------------------------------------------------------------


def test_one_thread_reads_at_a_time(reader: Reader, line: Line) -> None:
    """The role may pass from one to the other between two messages, and never within one."""
    handling = threading.Lock()
    overlaps: list[bool] = []
    last = Waiter()

    def handle() -> None:
        overlaps.append(not handling.acquire(False))
        if len(overlaps) < 2000:
            line.action = handle
            line.say()  # readable again, for whoever else would read
        else:
            last.complete()
        handling.release()

    line.action = handle
    waiters = [line.expect() for _ in range(30)]
    threads = [in_thread(lambda w=waiter: reader.wait(w, Deadline(WAIT))) for waiter in waiters]  # type: ignore[misc]
    line.say()
    assert reader.wait(last, Deadline(WAIT))
    for thread in threads:
        thread.join(WAIT)
    assert not any(overlaps)


def test_eager_wait_spins_and_then_sleeps(reader: Reader, line: Line) -> None:
    """Whether it finds something at once or not, the answer is the same."""
    for count in range(1, 60):
        waiter = line.expect()
        line.say()
        assert reader.wait(waiter, Deadline(WAIT), eager=True)
        assert len(line.received) == count
        assert not reader.wait(Waiter(), Deadline(0.0001), eager=True)


def test_background_thread_reads_when_nobody_waits(reader: Reader, line: Line) -> None:
    """After a tick it takes the role, in a thread of its own."""
    arrived = threading.Event()
    line.action = arrived.set
    line.say()
    assert arrived.wait(WAIT)
    assert line.readers != [threading.get_ident()]


def test_background_thread_tells_that_it_takes_over(make_reader: MakeReader) -> None:
    """A worker uses it to learn that its main thread is busy."""
    told = threading.Event()
    reader = make_reader(told.set)
    line = Line(reader)
    assert told.wait(WAIT)
    line.close()


def test_waiting_thread_reads_itself(reader: Reader, line: Line) -> None:
    """No hand-over: the background thread, though it sleeps in its poll, steps aside for a thread that waits."""
    arrived = threading.Event()
    line.action = arrived.set
    line.say()
    assert arrived.wait(WAIT)
    assert not reader.wait(Waiter(), Deadline(0.05))  # we lead now, or have led
    last = Waiter()

    def say_and_listen() -> None:
        line.waiters.append(last)
        line.say()

    reader.call_later(0.05, say_and_listen)
    assert reader.wait(last, Deadline(WAIT))
    assert line.readers[-1] == threading.get_ident()


def test_background_thread_takes_over_again(reader: Reader, line: Line) -> None:
    """After any number of waits: whoever stops leading leaves the role to it."""
    for _ in range(5):
        waiter = line.expect()
        line.say()
        assert reader.wait(waiter, Deadline(WAIT))
        arrived = threading.Event()
        line.action = arrived.set
        line.say()
        assert arrived.wait(WAIT)


def test_background_thread_comes_back_after_a_long_lead(reader: Reader, line: Line) -> None:
    """It parks while one thread leads for long, and is called when that stops."""
    assert not reader.wait(Waiter(), Deadline(0.05))  # ten ticks
    arrived = threading.Event()
    line.action = arrived.set
    line.say()
    assert arrived.wait(WAIT)


def test_nudge_lets_the_background_read(reader: Reader, line: Line) -> None:
    """Something is outstanding that nobody waits for."""
    for _ in range(20):
        arrived = threading.Event()
        line.action = arrived.set
        line.say()
        reader.nudge()
        assert arrived.wait(WAIT)


# -- followers ------------------------------------------------------------------------------------


def start_waiting(reader: Reader, waiters: list[Waiter]) -> list[threading.Thread]:
    """One thread for each waiter; returns when all of them lead or follow."""
    entered = threading.Semaphore(0)
    reader.on_wait = lambda begins: entered.release() if begins else None
    threads = [in_thread(lambda w=waiter: reader.wait(w, Deadline(WAIT))) for waiter in waiters]  # type: ignore[misc]
    for _ in threads:
        assert entered.acquire(timeout=WAIT)
    reader.on_wait = None
    return threads


def test_follower_is_woken_by_the_leader(reader: Reader, line: Line) -> None:
    """Whoever leads completes the others' waiters, in any order."""
    waiters = [line.expect() for _ in range(8)]
    line.waiters.reverse()
    threads = start_waiting(reader, waiters)
    for _ in waiters:
        line.say()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_role_is_passed_on(reader: Reader, line: Line) -> None:
    """The leader's own answer comes first each time, and the next thread leads."""
    waiters = [line.expect() for _ in range(8)]
    threads = start_waiting(reader, waiters)
    for thread, waiter in zip(threads, waiters, strict=True):
        line.say()
        thread.join(WAIT)
        assert waiter.done


def test_role_is_passed_on_by_those_who_give_up(reader: Reader, line: Line) -> None:
    """Threads whose time is up as they are called to lead pass the call on: nobody else would do it."""
    for _ in range(30):
        last = line.expect()
        patient = start_waiting(reader, [last])
        threads = [in_thread(lambda: reader.wait(Waiter(), Deadline(0.006))) for _ in range(6)]
        for thread in threads:
            thread.join(WAIT)
        line.say()
        patient[0].join(WAIT)
        assert not patient[0].is_alive()


def test_many_threads_wait_at_once(reader: Reader) -> None:
    """Under contention every answer reaches its thread: a lost wake-up would be a hang here."""
    lines = [Line(reader) for _ in range(6)]
    failed: list[int] = []

    def talk(line: Line) -> None:
        for number in range(150):
            waiter = line.expect()
            line.say()
            if not reader.wait(waiter, Deadline(WAIT), eager=number % 2 == 0):
                failed.append(number)
                return

    threads = [in_thread(lambda line=line: talk(line)) for line in lines]  # type: ignore[misc]
    for thread in threads:
        thread.join(60)
    for line in lines:
        line.close()
    assert not failed


def test_event_brought_by_another_thread_ends_the_wait_of_the_leader(reader: Reader) -> None:
    """The leader sleeps in a poll; what completes its waiter is no message."""
    for _ in range(50):
        waiter = Waiter()
        helper = in_thread(waiter.complete)
        assert reader.wait(waiter, Deadline(WAIT))
        helper.join()


def test_wait_inside_a_handler_raises(reader: Reader, line: Line) -> None:
    """The thread that reads would wait for itself."""
    errors: list[RuntimeError] = []

    def wait() -> None:
        with pytest.raises(RuntimeError, match="reading thread cannot wait") as caught:
            reader.wait(Waiter(), Deadline(1))
        errors.append(caught.value)

    line.action = wait
    waiter = line.expect()
    line.say()
    assert reader.wait(waiter, Deadline(WAIT))
    assert len(errors) == 1


def test_on_wait_is_told_of_begin_and_end(reader: Reader) -> None:
    """A worker learns so that user code waits; a waiter that is done already does not count."""
    told: list[bool] = []
    reader.on_wait = told.append
    reader.wait(Waiter(), Deadline(0))
    done = Waiter()
    done.complete()
    reader.wait(done)
    assert told == [True, False]


# -- handlers and timers --------------------------------------------------------------------------


def test_handler_that_raises_costs_its_connection_only(
    reader: Reader, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the background thread as in a waiting one: it is reported and watched no more, everything else goes on."""
    reported: list[BaseException | None] = []
    seen = threading.Event()

    def hook(args: threading.ExceptHookArgs) -> None:
        reported.append(args.exc_value)
        seen.set()

    monkeypatch.setattr(threading, "excepthook", hook)
    bad = Line(reader)
    bad.fault = RuntimeError("a fault of ours")
    bad.say()
    assert seen.wait(WAIT)
    worse = Line(reader)
    worse.fault = ValueError("another")
    waiter = worse.expect()
    worse.say()
    assert reader.wait(waiter, Deadline(WAIT))
    bad.say()
    arrived = threading.Event()
    line.action = arrived.set
    line.say()
    assert arrived.wait(WAIT)
    assert reported == [bad.fault, worse.fault]
    assert bad.received == b"x"
    bad.close()
    worse.close()


def test_handler_is_told_when_it_can_write(reader: Reader, line: Line) -> None:
    """And not before it wants to know, nor after."""
    reader.watch_writable(line, True)
    assert line.writable.wait(WAIT)
    line.writable.clear()
    waiter = line.expect()
    line.say()
    assert reader.wait(waiter, Deadline(WAIT))
    assert not line.writable.is_set()


def test_unregistered_handler_is_not_called(reader: Reader, line: Line) -> None:
    """What comes later stays in the socket."""
    other = Line(reader)
    reader.unregister(other)
    reader.unregister(other)  # harmless to repeat
    reader.watch_writable(other, True)
    other.say()
    waiter = line.expect()
    line.say()
    assert reader.wait(waiter, Deadline(WAIT))
    assert other.received == b""
    other.close()


def test_handler_may_unregister_another_of_the_same_turn(reader: Reader) -> None:
    """A connection that is closed by another's handler is not called any more."""
    lines = [Line(reader), Line(reader)]
    closed: list[Line] = []

    def close(line: Line) -> None:
        if not closed:
            closed.append(line)
            line.close()

    lines[0].action, lines[1].action = lambda: close(lines[1]), lambda: close(lines[0])
    waiter = Waiter()
    lines[0].waiters, lines[1].waiters = [waiter], [waiter]
    for line in lines:
        line.say()
    assert reader.wait(waiter, Deadline(WAIT))
    assert closed[0].received == b""
    for line in lines:
        if line not in closed:
            line.close()


def test_timer_may_bring_what_its_own_thread_waits_for(reader: Reader) -> None:
    """The thread that runs a timer as it leads looks again before it sleeps."""
    for _ in range(20):
        waiter = Waiter()
        reader.call_later(0.001, waiter.complete)
        assert reader.wait(waiter, Deadline(WAIT))


def test_timers_run_in_the_order_of_their_times(reader: Reader) -> None:
    """Whoever reads runs them; each once."""
    order: list[int] = []
    waiter = Waiter()

    def last() -> None:
        order.append(3)
        waiter.complete()

    def schedule() -> None:  # on the reading thread, so that none runs before all are there
        reader.call_later(0.03, last)
        reader.call_later(0.02, lambda: order.append(2))
        reader.call_later(0.01, lambda: order.append(1))
        reader.call_later(0, lambda: order.append(0))

    reader.call_later(0, schedule)
    assert reader.wait(waiter, Deadline(WAIT))
    assert order == [0, 1, 2, 3]


def test_timer_runs_when_nobody_waits(reader: Reader) -> None:
    """The background thread is started for it, even without any connection."""
    ran = threading.Event()
    reader.call_later(0.01, ran.set)
    assert ran.wait(WAIT)


def test_earlier_timer_shortens_a_poll_that_has_begun(reader: Reader) -> None:
    """A timer that comes before the one the leader sleeps for is not late."""
    late = reader.call_later(3600, lambda: None)
    waiter = Waiter()
    helper = in_thread(lambda: reader.call_later(0.01, waiter.complete))
    assert reader.wait(waiter, Deadline(WAIT))
    helper.join()
    late.cancel()


def test_cancelled_timer_does_nothing(reader: Reader) -> None:
    """Cancelling is harmless, before and after."""
    ran: list[int] = []
    waiter = Waiter()
    timer = reader.call_later(0.2, lambda: ran.append(1))
    timer.cancel()
    done = reader.call_later(0.25, waiter.complete)
    assert reader.wait(waiter, Deadline(WAIT))
    done.cancel()
    assert ran == []


def test_timer_that_raises_is_reported_and_the_next_runs(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in one does not stop the reader."""
    reported: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))
    error = KeyError("a fault of ours")

    def fail() -> None:
        raise error

    for _ in range(2):
        ran = threading.Event()
        reader.call_later(0, fail)
        reader.call_later(0.001, ran.set)
        assert ran.wait(WAIT)
    assert reported == [error, error]


def test_takeover_that_raises_does_not_end_the_background(
    make_reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported, and the thread takes the role again at the next tick."""
    reported = threading.Semaphore(0)
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.release())

    def fail() -> None:
        raise RuntimeError("a fault of ours")

    line = Line(make_reader(fail))
    for _ in range(3):
        assert reported.acquire(timeout=WAIT)
    line.close()


def test_close_gives_everything_back(census: Callable[[], object], make_reader: MakeReader) -> None:
    """The background thread ends, the descriptors are closed (the leak check counts); closing again is harmless."""
    reader = make_reader()
    line = Line(reader)
    assert not reader.wait(Waiter(), Deadline(0.001))
    line.close()
    thread = reader._thread
    reader.close()
    reader.close()
    assert thread is not None
    assert not thread.is_alive()


# -- Ctrl-C ---------------------------------------------------------------------------------------


def test_interrupt_ends_a_wait(reader: Reader) -> None:
    """A waiting main thread gets KeyboardInterrupt, and its handler of SIGINT back."""
    handler = signal.getsignal(signal.SIGINT)
    interrupting = interrupt_when(lambda: reader._waiting)
    with pytest.raises(KeyboardInterrupt):
        reader.wait(Waiter(), Deadline(WAIT))
    interrupting.join()
    assert signal.getsignal(signal.SIGINT) is handler


def test_interrupt_ends_the_wait_of_a_follower(reader: Reader, line: Line) -> None:
    """It need not lead for that; the role stays with the one who has it."""
    waiter = line.expect()
    leader = start_waiting(reader, [waiter])[0]
    interrupting = interrupt_when(lambda: reader._followers)
    with pytest.raises(KeyboardInterrupt):
        reader.wait(Waiter(), Deadline(WAIT))
    interrupting.join()
    line.say()
    leader.join(WAIT)
    assert waiter.done


def test_interrupt_inside_a_handler_waits_until_it_is_done(reader: Reader) -> None:
    """A message is handled to its end; then the wait is interrupted, though its event is there."""
    finished: list[int] = []
    waiter = Waiter()

    def handle() -> None:
        if threading.current_thread() is not threading.main_thread():
            reader.call_later(0.01, handle)  # we have not begun to lead
            return
        signal.raise_signal(signal.SIGINT)
        waiter.complete()
        finished.append(1)

    reader.call_later(0.01, handle)
    with pytest.raises(KeyboardInterrupt):
        reader.wait(waiter, Deadline(WAIT))
    assert finished == [1]


def test_handler_of_the_user_is_called_between_messages(reader: Reader) -> None:
    """Whatever handles SIGINT is called as ever; one that returns does not end the wait."""
    waiter = Waiter()
    calls: list[int] = []

    def handler(signum: int, frame: object) -> None:
        calls.append(signum)
        if len(calls) == 2:
            waiter.complete()

    before = signal.signal(signal.SIGINT, handler)
    try:
        interrupting = [interrupt_when(lambda: reader._waiting), interrupt_when(lambda: len(calls) == 1)]
        assert reader.wait(waiter, Deadline(WAIT))
        for each in interrupting:
            each.join()
        assert calls == [signal.SIGINT, signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_handler_that_is_replaced_while_waiting_stays_replaced(reader: Reader) -> None:
    """ "Ctrl-C again to kill": a handler may put another in its place."""
    waiter = Waiter()

    def handler(signum: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        waiter.complete()

    before = signal.signal(signal.SIGINT, handler)
    try:
        interrupting = interrupt_when(lambda: reader._waiting)
        assert reader.wait(waiter, Deadline(WAIT))
        interrupting.join()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_deferred_interrupt_comes_at_the_end() -> None:
    """What must not be cut in two is not."""
    done = False

    def act() -> None:
        nonlocal done
        with DeferredInterrupt():
            signal.raise_signal(signal.SIGINT)
            done = True

    with pytest.raises(KeyboardInterrupt):
        act()
    assert done


COUNTING = """
    import signal, socket, threading
    from distpool.transport import Deadline, Reader, Waiter

    class Line:
        def __init__(self):
            self.near, self.far = socket.socketpair()
            self.near.setblocking(False)
            self.count = 0
        def fileno(self):
            return self.near.fileno()
        def on_readable(self):
            data = self.near.recv(1 << 16)
            for _ in data:      # as slow as a message, so that interrupts come here too
                self.count += 1
            if self.count == TOTAL:
                everything.complete()

    TOTAL, everything = 400_000, Waiter()
    inside = False

    def handler(signum, frame):     # raises like Python's own, but spares what this script does between its waits
        global inside
        if inside:
            inside = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handler)
    reader, line, interrupts = Reader(), Line(), 0
    reader.register(line)
    threading.Thread(target=line.far.sendall, args=(b"x" * TOTAL,), daemon=True).start()
    print("ready", flush=True)
    while not (everything.done and interrupts):
        try:
            inside = True
            reader.wait(Waiter() if everything.done else everything, Deadline(0.01))
            inside = False
        except KeyboardInterrupt:
            interrupts += 1
    inside = False
    print("count", line.count, flush=True)
"""


def test_no_message_is_lost_by_real_interrupts(start_script: StartScript) -> None:
    """A process that is hit by SIGINT again and again while it reads has read everything in the end."""
    script = start_script(COUNTING)
    script.wait_for("ready")
    while "count" not in script.stdout and script.process.poll() is None:
        script.send(signal.SIGINT)
    finished = script.wait()
    assert "count 400000" in finished.stdout, finished
