"""The values that this process keeps for others, and what is asked of them.

Used by the member, which turns messages into requests, and by references owned by this process. Any thread may enter.
The store owns the table of entries (`entries`, where it is counted who holds what) and that of requests; one lock
protects both, and neither an answer nor anything of a user runs under it. A request that waits holds no thread::

    request --> channel of the entry --- at once, or later ---> answer ---> delivered
                                                                       \\-> not: a taken item goes back to the front
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from distpool.channel import Channel
from distpool.desk import NOTHING, Ticket
from distpool.entries import Counted, Entries, Entry
from distpool.errors import CapturedException, ProcessExitedException, RemoteException, remote_exception
from distpool.light import Any, Final
from distpool.messages import RRID

# answer(True, value) or answer(False, exception). It returns False, or raises, if that could not be delivered; or a
# function that delivers it, run where it may block, which returns False or raises if it cannot.
Answer = Callable[[bool, Any], object]

# How long after the end of its time limit, or its interrupt, a request runs on in a user's own backing store: it cannot
# be withdrawn there, and one that only looks has no time but this. Arbitrary: time to start a thread on a busy machine.
OWN_STORE_SECONDS: Final = 0.1


class _Request:
    """One operation asked for by a client, until it is answered."""

    __slots__ = (
        "answer",
        "args",
        "client",
        "entry",
        "id",
        "is_abandoned",
        "is_answered",
        "op",
        "rrid",
        "store",
        "ticket",
    )

    def __init__(
        self,
        store: Store,
        rrid: RRID,
        entry: Entry,
        op: str,
        args: tuple[Any, ...],
        client: int,
        id: int,
        answer: Answer,
    ) -> None:
        self.store = store
        self.rrid = rrid
        self.entry = entry
        self.op = op
        self.args = args
        self.client = client
        self.id = id
        self.answer = answer
        self.ticket: Ticket | None = None  # while it waits at the channel
        self.is_answered = False
        self.is_abandoned = False  # it runs on in a user's own store, and nobody waits for its answer

    def reply(self, ok: bool, value: Any) -> None:
        """What the channel calls: passes the answer on, and puts an item that cannot be delivered back."""
        store = self.store
        is_unwanted = store._strike(self)
        if not ok or self.op in ("put", "put_many"):
            store._tell(self.answer, ok, value)
            return
        if self.op == "take_many" and isinstance(value[0], RemoteException):
            value = value[0]  # it comes alone
        is_error = isinstance(value, RemoteException)  # such a value is always raised at the receiver, never returned
        shown = None if self.op == "wait" and not is_error else value
        delivered: object = False
        try:
            delivered = not is_unwanted and _delivery(self.answer, not is_error, shown)
        finally:
            if not callable(delivered):
                self._end(value, bool(delivered))
        if callable(delivered):
            deliver = delivered
            store.run_blocking(lambda: self._end(value, _is_done(deliver)))

    def _end(self, value: Any, delivered: bool) -> None:
        if self.op == "take" and not delivered:
            self.store._return(self.entry, self.args, value)
        if self.op == "take_many" and not delivered:
            for item in reversed(value) if isinstance(value, list) else (value,):
                self.store._return(self.entry, (), item)


class Store:
    """The entries of one process, by ref id.

    Args:
        run_blocking: runs a callable in a thread where it may block. Needed for backing stores of a user's own, whose
            methods may wait; channels need no thread.

    >>> store = Store(run_blocking=lambda work: work())
    >>> future = RRID(1, 1)
    >>> store.request(future, "fetch", (), 2, 7, lambda ok, value: print("fetched:", value))
    >>> store.clients(future)
    frozenset({1})
    >>> store.set_result(future, True, "OK")
    fetched: OK
    >>> _ = store.del_client(future, 1)
    >>> future in store
    False
    """

    def __init__(self, run_blocking: Callable[[Callable[[], None]], None]) -> None:
        self.run_blocking = run_blocking
        self._lock = threading.Lock()  # protects all tables below, and the clients and requests of every entry
        self._entries = Entries()
        # Those that wait, or run in a user's own store, by client and request id.
        self._requests: dict[tuple[int, int], _Request] = {}
        self._gone: set[int] = set()  # processes that left; pids are never used twice
        self._returns: deque[tuple[Entry, tuple[Any, ...], Any]] = deque()  # items on the way back
        self._is_returning = False  # some thread is about it

    # -- entries

    def create(self, rrid: RRID, channel: Any = None) -> None:
        """Makes the entry of an id; if something was said about it earlier, adopts the entry that this made.

        Args:
            rrid: the id. One that was released already stays released.
            channel: the backing store; None for a Channel(1).

        Raises:
            RuntimeError: a channel is given, and the id has one.
        """
        with self._lock:
            entry = self._entries.find(rrid, channel)
            if entry is not None and channel is not None and entry.channel is not channel:
                raise RuntimeError(f"reference {tuple(rrid)} has a channel already")

    def channel(self, rrid: RRID) -> Channel[Any]:
        """The backing store of an id: a Channel, or what else the user's factory returned. LookupError if none."""
        return self._known(rrid).channel  # type: ignore[no-any-return]

    def clients(self, rrid: RRID) -> frozenset[int]:
        """The processes that hold a reference. LookupError if the id is not known here."""
        with self._lock:
            return self._known(rrid).holders()

    def __contains__(self, rrid: object) -> bool:
        return rrid in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def set_result(self, rrid: RRID, ok: bool, value: Any) -> None:
        """Writes the result of a call; nothing happens if nobody holds its Future any more, or somebody else set it.

        Args:
            rrid: the id of the call's Future.
            ok: False if the call failed; ``value`` is then the `RemoteException`.
            value: the result.
        """
        if not ok and not isinstance(value, RemoteException):
            value = remote_exception(0, CapturedException(value))
        with self._lock:
            entry = self._entries.find(rrid)
        if entry is not None:
            self._write(entry, value)

    def _write(self, entry: Entry, value: Any) -> tuple[bool, Any]:
        # Marked before it is written: who waits for the value may release the entry at once, and the mark goes with it.
        # Where writing fails, it had a value.
        entry.is_set = True
        return _outcome(entry.channel.try_put, (value,))

    def _known(self, rrid: RRID) -> Entry:
        entry = self._entries.get(rrid)
        if entry is None:
            raise LookupError(f"this process keeps nothing under reference {tuple(rrid)}")
        return entry

    def is_prompt(self, rrid: RRID) -> bool:
        """True when requests about this id may be begun by the reading thread: it has a channel of ours, or none yet.

        Not an unbuffered one: its putter goes on when the item is pickled for the taker (J#29932), which that thread
        leaves to another.
        """
        return rrid not in self._entries or self.fast_channel(rrid) is not None

    def fast_channel(self, rrid: RRID) -> Channel[Any] | None:
        """The channel of an id, if it is one of ours that holds items; None for any other, and if there is none yet."""
        entry = self._entries.get(rrid)
        if entry is None or type(entry.channel) is not Channel or not entry.channel.size > 0:
            return None
        return entry.channel

    # -- who holds what (why the counts come right in the end: see bookkeeping)

    def add_client(self, rrid: RRID, client: int, count: int = 1, giver: int = 0) -> bool:
        """Notes that a process was given a reference, by its creator or by ``giver``.

        Returns False if too late: the id was released, or the process has ended.
        """
        with self._lock:
            counted = self._entries.add(rrid, client, giver or rrid.whence, count)
        return self._let_go(counted) is not None

    def del_client(self, rrid: RRID, client: int, count: int = 1, giver: int = 0) -> object:
        """Notes that a process gave back what it was given by the creator or by ``giver``.

        With the last one the entry goes. Returns what was kept under it then: letting go of it may run a user's code.
        """
        with self._lock:
            counted = self._entries.take_away(rrid, client, giver or rrid.whence, count)
        return self._let_go(counted)

    def client_ended(self, pid: int) -> set[int]:
        """Nothing more will be heard of a process: what only it held goes.

        Returns who was given something by it: how much of that has arrived, only they know, see `settle`.
        """
        with self._lock:
            counted, asked = self._entries.end(pid)
        for each in counted:
            self._let_go(each)
        return asked

    def settle(self, client: int, giver: int, held: dict[RRID, int]) -> list[object]:
        """Sets how often ``client`` holds what it was given by a process that has ended.

        Returns what was kept under the ids that go with it, as `del_client`.
        """
        with self._lock:
            counted = self._entries.settle(client, giver, held)
        return [self._let_go(each) for each in counted]

    def _let_go(self, counted: Counted | None) -> object:
        """Answers the requests that have lost their entry, and returns that: to be dropped under no lock, either."""
        if counted is None:
            return None
        self._abandon(counted.orphans, _released_error(counted.rrid))
        return counted.entry

    def bind(self, rrid: RRID, pid: int) -> None:
        """Closes the channel of an id when process ``pid`` leaves; now if it has left."""
        with self._lock:
            entry = self._entries.find(rrid)
            if entry is not None and pid not in self._gone:
                entry.bound.add(pid)
                return
        if entry is not None:
            self._close_bound(entry, ProcessExitedException(pid))

    def _close_bound(self, entry: Entry, error: ProcessExitedException) -> None:
        if type(entry.channel) is Channel:
            entry.channel.close(error)
        else:
            self.run_blocking(partial(_close, entry.channel))

    def client_gone(self, pid: int, error: ProcessExitedException | None = None) -> None:
        """A process left: its waiting requests are withdrawn, and it gets no items any more.

        Channels that were bound to it are closed, with ``error`` if it says more about its end. What it held is kept
        until `client_ended`: others may tell later what it did before.
        """
        with self._lock:
            self._gone.add(pid)
            bound = [entry for entry in self._entries.values() if pid in entry.bound]
            withdrawn = [request for request in self._requests.values() if request.client == pid]
        self._abandon(withdrawn, ProcessExitedException(pid))
        for entry in bound:
            self._close_bound(entry, error or ProcessExitedException(pid))

    def _abandon(self, requests: list[_Request], error: BaseException) -> None:
        for request in requests:
            if self._leave(request):
                request.reply(False, error)

    # -- requests

    def request(self, rrid: RRID, op: str, args: tuple[Any, ...], client: int, request_id: int, answer: Answer) -> None:
        """Starts an operation on an entry; returns at once, and the answer comes now or later, exactly once.

        Only a request that was withdrawn, by `withdraw` or because its client left, may stay without an answer.

        Args:
            rrid: the id. Its entry is made if need be.
            op: "put", "take", "fetch", "wait", "put_many", "take_many", "isready", "isopen", "isempty", "close", as the
                method of that name (puts and "wait" are answered with None). For Futures: "set", a put that succeeds
                once.
            args: what the method of that name takes. A user's own backing store gets them as they are.
            client: the process that asks.
            request_id: its number for this request, for `withdraw`.
            answer: called under no lock, with ``(True, value)`` or ``(False, exception)``. A `RemoteException` that was
                put is an exception here. If it raises or returns False, a taken item goes back to the front. It may
                return a function that does the work later, in another thread, and has the same choice.
        """
        if op not in _OPS:
            self._tell(answer, False, ValueError(f"there is no operation {op!r} on references"))
            return
        with self._lock:
            entry = self._entries.find(rrid)
        if entry is None:
            self._tell(answer, *self._late(rrid, op))
            return
        request = _Request(self, rrid, entry, op, args, client, request_id, answer)
        if type(entry.channel) is not Channel:  # a subclass may have changed any method
            with self._lock:
                self._requests[client, request_id] = request
            self.run_blocking(lambda: _run_own(request))
        elif len(args) not in _OPS[op]:
            takes = "one value" if 1 in _OPS[op] else "no arguments"
            request.reply(False, TypeError(f"{op} on a channel takes {takes}, not {len(args)} arguments"))
        elif op == "set" or (op == "put" and entry.is_set):
            self._set(request, args[0])
        elif op in ("put", "take", "fetch", "wait", "put_many", "take_many"):
            self._wait_at_channel(request, *args)
        else:
            self._tell(answer, *_outcome(getattr(entry.channel, op), args))

    def withdraw(self, client: int, request_id: int) -> bool:
        """Gives up a request that waits. True: it will never be answered. False: it was, or is being answered.

        What runs in a user's own backing store cannot be withdrawn, only abandoned. Call it after `request` has
        returned.
        """
        with self._lock:
            request = self._requests.get((client, request_id))
        if request is None or not self._leave(request):
            return False
        self._strike(request)
        return True

    def is_in_own_store(self, client: int, request_id: int) -> bool:
        """True while a request runs in a user's own backing store and is not answered."""
        request = self._requests.get((client, request_id))
        return request is not None and request.ticket is None

    def abandon(self, client: int, request_id: int) -> bool:
        """Gives up a request that runs in a user's own backing store. True: it will never be answered.

        It runs on. What a take brings later is for the next take with equal arguments (fetch and isready see it, too);
        a put may still be done.
        """
        with self._lock:
            if not self.is_in_own_store(client, request_id):
                return False
            self._requests.pop((client, request_id)).is_abandoned = True
            return True

    def _wait_at_channel(self, request: _Request, value: Any = None) -> None:
        ticket = request.entry.channel.request(request.op, value, request.reply)
        if ticket is None:
            return
        with self._lock:
            if request.is_answered:  # meanwhile, by another thread
                return
            request.ticket = ticket
            gone, released = request.client in self._gone, self._entries.get(request.rrid) is not request.entry
            if not gone and not released:
                self._requests[request.client, request.id] = request
                request.entry.waiting.add(request)
                return
        self._abandon([request], ProcessExitedException(request.client) if gone else _released_error(request.rrid))

    def _set(self, request: _Request, value: Any) -> None:
        ok, written = self._write(request.entry, value)
        if ok and not written:
            ok, written = False, _written_error(request.rrid)
        self._tell(request.answer, ok, None if ok else written)

    def _late(self, rrid: RRID, op: str) -> tuple[bool, Any]:
        """What to say about an id that was released."""
        with self._lock:
            was_set = self._entries.was_set(rrid)
        if was_set and op in ("isready", "wait"):
            return True, (True if op == "isready" else None)  # a Future that was set stays so
        if was_set and op in ("set", "put"):
            return False, _written_error(rrid)
        return False, _released_error(rrid)

    def _leave(self, request: _Request) -> bool:
        """Takes a request out of its channel; False if its answer is under way."""
        ticket = request.ticket
        return ticket is not None and request.entry.channel.withdraw(ticket)

    def _strike(self, request: _Request) -> bool:
        """Takes a request off the list of those that wait; True if its client has left, or has given it up."""
        with self._lock:
            request.is_answered = True
            if type(request.entry.channel) is not Channel and not request.is_abandoned:
                self._requests.pop((request.client, request.id), None)
            if request.ticket is not None:
                self._requests.pop((request.client, request.id), None)
                request.entry.waiting.discard(request)
                # The two know each other: in a cycle they would keep what was asked for, and the references in it,
                # until a garbage collection, which in an idle process never comes.
                request.ticket = None
            return request.is_abandoned or request.client in self._gone

    def _tell(self, answer: Answer, ok: bool, value: Any) -> None:
        """Answers where nothing depends on whether it arrives."""
        deliver = _delivery(answer, ok, value)
        if callable(deliver):
            self.run_blocking(partial(_run_delivery, deliver))

    def _return(self, entry: Entry, args: tuple[Any, ...], value: Any) -> None:
        """Puts an item back. The next taker may fail too, and so on: a loop, where recursion would end at its limit."""
        with self._lock:
            self._returns.append((entry, args, value))
            if self._is_returning:
                return
            self._is_returning = True
        while True:
            with self._lock:
                if not self._returns:
                    self._is_returning = False
                    return
                entry, args, value = self._returns.popleft()
            put_back = getattr(entry.channel, "put_back", None)
            if put_back is not None:
                _outcome(put_back, (value,))
                continue
            with self._lock:  # a user's own backing store need not have it
                entry.kept.append((args, value))

    def _kept_item(self, entry: Entry, args: tuple[Any, ...], is_taken: bool) -> Any:
        """An item that an earlier take with equal arguments has brought for nobody, or NOTHING."""
        for each in list(entry.kept):
            if each[0] == args:  # the user's code: under no lock
                with self._lock:
                    for index, other in enumerate(entry.kept):
                        if other is each:
                            if is_taken:
                                del entry.kept[index]
                            return each[1]
        return NOTHING


# The operations, and how many arguments each takes at a channel.
_OPS: Final = {
    **dict.fromkeys(("put", "set", "put_many", "take_many"), (1,)),
    **dict.fromkeys(("take", "fetch", "wait", "isready", "isopen", "isempty"), (0,)),
    "close": (0, 1),
}


def _close(channel: Any) -> None:
    _outcome(lambda: channel.close(), ())


def _run_own(request: _Request) -> None:
    """Runs an operation on a user's own backing store."""
    if request.entry.kept and request.op in ("take", "fetch", "isready"):
        ok, item = _outcome(request.store._kept_item, (request.entry, request.args, request.op == "take"))
        if item is not NOTHING:
            request.reply(ok, True if ok and request.op == "isready" else item)
            return
    method = "put" if request.op == "set" else request.op
    request.reply(*_outcome(lambda *args: getattr(request.entry.channel, method)(*args), request.args))


def _outcome(f: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, f(*args)
    except BaseException as error:  # user code; whoever asked gets it, not the thread that happened to run it
        return False, error


def _delivery(answer: Answer, ok: bool, value: Any) -> object:
    """False: not delivered. A function: it delivers later, and returns whether it did."""
    try:
        outcome = answer(ok, value)
    except Exception:  # the receiver is gone, or the value cannot travel: here it only counts that it did not arrive
        return False
    return outcome if callable(outcome) else outcome is not False


def _is_done(deliver: Callable[[], object]) -> bool:
    try:
        return deliver() is not False
    except Exception:  # as for an answer
        return False


def _run_delivery(deliver: Callable[[], object]) -> None:
    _is_done(deliver)


def _written_error(rrid: RRID) -> RuntimeError:
    return RuntimeError(f"Future {tuple(rrid)} has a value already; it is written once")


def _released_error(rrid: RRID) -> RuntimeError:
    return RuntimeError(f"reference {tuple(rrid)} was released: no process held it any more, and its value is gone")
