"""References to values that live in some process: ``Future`` and ``RemoteChannel``, and the verbs on them.

A reference is three numbers: who owns the value (``where``), who made the reference (``whence``), and its number there.
What it names is kept in the owner's ``store``; every operation goes there, except what a Future has already brought
home. The calling thread waits and reads meanwhile; at the owner a waiting operation holds no thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from distpool import messages as m
from distpool.channel import Channel, check_number
from distpool.claims import Claim
from distpool.desk import NOTHING
from distpool.errors import ChannelClosedError, RemoteException
from distpool.light import TYPE_CHECKING, Any, Final, Generic, TypeVar
from distpool.member import Member, default_member, opening_member
from distpool.messages import NULL_ID, RRID
from distpool.pickling import Parcel, dump, dump_arguments, in_message, note_ref
from distpool.store import OWN_STORE_SECONDS
from distpool.transport import Deadline, Waiter

if TYPE_CHECKING:
    from distpool.inbox import Slot
    from distpool.shelf import Reach

T = TypeVar("T")
D = TypeVar("D")

_fetch_lock = threading.Lock()  # protects the values and lists of fetchers of all Futures; held for an instant


class _LocalAnswer(Waiter):
    """The answer of this process's own store, waited for by reading."""

    __slots__ = ("ok", "value")

    def __init__(self) -> None:
        super().__init__()
        self.ok = False
        self.value: Any = None

    def __call__(self, ok: bool, value: Any) -> bool:
        self.ok, self.value = ok, value
        self.complete()
        return True


class RemoteRef:
    """What ``Future`` and ``RemoteChannel`` share: the three numbers, equality, travelling."""

    __slots__ = ("__weakref__", "_claim", "_member", "id", "rrid", "whence", "where")

    def __init__(self, member: Member, where: int, rrid: RRID, is_new: bool = True) -> None:
        self._member = member
        self.where = where
        self.rrid = rrid  # the reference's id: (whence, id)
        self.whence, self.id = rrid
        books = member.books
        self._claim: Claim | None = books.made(where, rrid) if is_new else books.claims.known(where, rrid)
        member.handles[rrid] = self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemoteRef):
            return NotImplemented
        return self.rrid == other.rrid

    def __hash__(self) -> int:
        return hash(self.rrid)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(where={self.where}, whence={self.whence}, id={self.id})"

    def _ask(
        self, op: str, args: tuple[Any, ...] = (), timeout: float | None = None, claim: Claim | None = None
    ) -> Any:
        """Have the owner do something, and wait for its answer at most ``timeout`` seconds."""
        claim = claim or self._claim  # ours until the answer is here, whatever another thread does with this handle
        if claim is None:
            raise self._released()
        if self.where == self._member.pid:
            return self._ask_here(op, args, timeout)
        peer = self._member.peer(self.where)
        frame = self._member.request_within(
            peer, m.REF, _packed(op, args, self.where), self.rrid, timeout, op not in _LOOKS
        )
        try:
            return self._member.open_answer(peer, frame)
        except ChannelClosedError as error:
            bare = _bare(error)
        try:
            raise bare  # the same closed channel raises the same bare error, whoever owns it
        finally:
            # Raised above it would be tied to the one that it was part of: the two would keep each other, and all that
            # was at hand here, until a garbage collection.
            del bare

    def _ask_here(self, op: str, args: tuple[Any, ...], timeout: float | None) -> Any:
        member, answer = self._member, _LocalAnswer()
        request = id(answer)
        member.store.request(self.rrid, op, args, member.pid, request, answer)
        try:
            member.reader.wait(answer, None if timeout is None else Deadline(timeout), eager=True)
        finally:
            # Not withdrawn means that it is being answered at this moment: what it took must not be lost.
            if not answer.done and not member.store.withdraw(member.pid, request):
                if member.store.is_in_own_store(member.pid, request):
                    member.reader.wait(answer, Deadline(OWN_STORE_SECONDS))
                if not answer.done and not member.store.abandon(member.pid, request):
                    member.reader.wait(answer)
        if not answer.done:
            raise TimeoutError(f"{self!r}: {op} had no answer within {timeout} seconds")
        value, answer.value = answer.value, None
        if answer.ok:
            return value
        try:
            raise value
        finally:
            del value  # it would keep itself, and all that was at hand here, until a garbage collection

    def _go_along(self, claim: Claim | None) -> None:
        """This reference is being pickled: whoever gets it counts as one who holds it."""
        self._check_travels()
        if claim is None:
            raise self._released()
        note_ref(claim)

    def release(self) -> None:
        """Give the reference up now: if nobody else holds it, its owner forgets what it kept. Harmless to repeat.

        Otherwise it is given up when the last handle of this process is gone. Of no use here afterwards: RuntimeError.
        """
        self._claim = None
        if self._member.handles.get(self.rrid) is self:  # one that comes again is a new one
            self._member.handles.pop(self.rrid, None)
        self._member.books.give_back()

    def _released(self) -> RuntimeError:
        return RuntimeError(f"{self!r} was given up here by release()")

    def _check_travels(self) -> None:
        if not in_message():
            raise TypeError(
                f"{self!r} has a meaning only inside its cluster: it can be an argument or a result of a call, but it "
                "cannot be pickled into a file or another program"
            )


# What takes nothing away: when it was asked in vain, nothing is lost with an answer that comes too late.
_LOOKS: Final = ("fetch", "wait", "isready")
_CODES: Final = {op: bytes([code]) for code, op in enumerate(m.OPERATIONS)}


def _packed(op: str, args: tuple[Any, ...], to: int) -> Parcel:
    parcel = dump_arguments(args, {}, to)
    parcel.body = _CODES[op] + parcel.body
    return parcel


def _bare(error: ChannelClosedError) -> ChannelClosedError:
    if isinstance(error, RemoteException):
        original = error.unwrap()
        if isinstance(original, ChannelClosedError):
            original.__cause__ = None
            return original
    return error


class Future(RemoteRef, Generic[T]):
    """A place for one value, written once, that any process of the cluster can wait for. Julia's ``Future``.

    ``Future()`` is owned by this process, ``Future(pid)`` by another; nothing is sent and nothing can fail until it is
    used. The first successful ``fetch`` keeps the value here, so later ones are local and return the same object.

    >>> f = Future()
    >>> f.isready(), f.put("OK").fetch(), f.isready()
    (False, 'OK', True)
    """

    __slots__ = ("_fetchers", "_value")

    def __init__(self, pid: int | None = None) -> None:
        member = default_member()
        super().__init__(member, member.pid if pid is None else pid, member.next_rrid())
        self._value: Any = NOTHING
        self._fetchers: list[Waiter] | None = None  # threads that wait for the one that fetches

    @classmethod
    def of(cls, member: Member, where: int, rrid: RRID, value: Any = NOTHING, is_new: bool = True) -> Future[Any]:
        """Make the handle of a reference that exists."""
        future = cls.__new__(cls)
        RemoteRef.__init__(future, member, where, rrid, is_new)
        future._value = value
        future._fetchers = None
        return future

    def adopt(self, value: Any) -> None:
        """Take over a value that came along with another copy of this reference."""
        if self._value is NOTHING:
            self._value = value
            self._claim = None  # given back with what was dropped

    def put(self, value: T) -> Future[T]:
        """Write the value, which wakes everyone who waits for it. Returns the Future.

        Raises RuntimeError when it has a value already (a RemoteException that is one too, when only the owner knew).
        """
        claim = self._claim  # before looking for the value: without a claim it is there
        if self._value is not NOTHING:
            raise RuntimeError(f"{self!r} has a value already, and is written once")
        self._ask("set", (value,), claim=claim)
        claim = None
        self._keep(value)
        return self

    def fetch(self, timeout: float | None = None) -> T:
        """Wait for the value and return it; it is copied here unless this process owns it.

        ``timeout`` is in seconds; None waits for ever, 0 only looks. Raises what the call raised as a RemoteException
        (each time), ProcessExitedException when the owner is gone, TimeoutError when time is up; the Future stays good.
        """
        deadline = Deadline(timeout)
        while self._value is NOTHING:
            other = self._other_fetcher()
            if other is None:
                self._bring_home(deadline.remaining())
            elif not self._member.reader.wait(other, deadline):
                raise TimeoutError(f"{self!r} has no value after {timeout} seconds")
        return self._value  # type: ignore[no-any-return]

    def _other_fetcher(self) -> Waiter | None:
        """Return what to wait for when another thread is fetching; None when it is this thread's turn.

        One at a time: what the first brings home serves the others.
        """
        with _fetch_lock:
            if self._fetchers is None:
                self._fetchers = []
                return None
            waiter = Waiter()
            self._fetchers.append(waiter)
            return waiter

    def _bring_home(self, timeout: float | None) -> None:
        try:
            claim = self._claim  # before looking for the value: without a claim it is there
            if self._value is NOTHING:  # another thread may have brought or written it
                value = self._ask("fetch", (), timeout, claim)
                claim = None
                self._keep(value)
        finally:
            with _fetch_lock:
                waiters, self._fetchers = self._fetchers, None
            for waiter in waiters or ():
                waiter.complete()

    def _keep(self, value: T) -> None:
        """The value is here: the owner need not keep it for us. The first object that comes is the one from then on.

        Told after it, never with the question for it: meanwhile another thread may send this reference to somebody, who
        relies on our claim until the owner knows of him. A message that waits to be sent keeps the claim, too, and so
        does a thread whose own question is not answered yet.
        """
        with _fetch_lock:
            if self._value is NOTHING:
                self._value = value
        self._claim = None
        self._member.books.give_back()

    def release(self) -> None:
        """Give the reference up now, and the value with it if it is here; see ``RemoteRef.release``."""
        self._value = NOTHING
        super().release()

    def wait(self, timeout: float | None = None) -> Future[T]:
        """Wait for the value without moving it; raises as ``fetch`` does. Returns the Future."""
        claim = self._claim  # before looking for the value: without a claim it is there
        if self._value is NOTHING:
            self._ask("wait", (), timeout, claim)
        return self

    def isready(self) -> bool:
        """True when the value is there, or the call has failed. Asks the owner unless the value is here."""
        claim = self._claim  # before looking for the value: without a claim it is there
        return self._value is not NOTHING or bool(self._ask("isready", claim=claim))

    def __reduce__(self) -> tuple[Any, ...]:
        claim = self._claim  # before looking for the value: without a claim it is there
        if self._value is not NOTHING:  # it goes along, so nobody has to keep it for the receiver
            self._check_travels()
            return future_from, (self.where, *self.rrid, self._value)
        self._go_along(claim)
        return future_from, (self.where, *self.rrid)


def future_from(where: int, whence: int, number: int, value: Any = NOTHING) -> Future[Any]:
    """Return this process's handle of a Future that came in a message."""
    member, rrid = opening_member(), RRID(whence, number)
    known = member.handles.get(rrid)
    if isinstance(known, Future):
        if value is not NOTHING:
            known.adopt(value)
        return known
    return Future.of(member, where, rrid, value, is_new=False)


class RemoteChannel(RemoteRef, Generic[T]):
    """A channel that lives in one process and is used from all. Julia's ``RemoteChannel``.

    ``RemoteChannel(factory, pid)`` runs ``factory()`` at ``pid``; what it returns, a ``Channel`` or any object with its
    methods, holds the items there. Without a factory it is a channel of size 1. Sending the RemoteChannel sends its
    numbers only. Closing raises ChannelClosedError in whoever waits to put, and in takers once it is empty.

    A method of such an object cannot be ended: out of time, or interrupted, it runs on where it is. What a late
    ``take`` brings is for the next one with equal arguments; a late ``put`` is done although it raised TimeoutError.

    >>> jobs = RemoteChannel(lambda: Channel(10))
    >>> _ = jobs.put(1).put(2)
    >>> jobs.take(), jobs.fetch(), jobs.take(), jobs.isready()
    (1, 2, 2, False)
    """

    __slots__ = ("_reach", "_slot")

    def __init__(self, factory: Callable[[], Any] | None = None, pid: int | None = None) -> None:
        member = default_member()
        where = member.pid if pid is None else pid
        super().__init__(member, where, member.next_rrid())
        # Where to take the first items, and to put items, without asking (``shortcuts``).
        self._reach: Reach | None = None
        self._slot: Slot | None = None
        if factory is None:
            return
        if where == member.pid:
            member.make_channel(self.rrid, factory)
        else:
            peer = member.peer(where)
            parcel = dump((_make_channel, (factory, *self.rrid), {}), where)
            member.open_answer(peer, member.request(peer, m.CALL_FETCH, parcel))

    @classmethod
    def of(cls, member: Member, where: int, rrid: RRID) -> RemoteChannel[Any]:
        """Make the handle of a reference that came in a message."""
        channel = cls.__new__(cls)
        channel._reach = channel._slot = None  # before anybody can find it
        RemoteRef.__init__(channel, member, where, rrid, is_new=False)
        return channel

    def put(self, *args: Any, timeout: float | None = None) -> RemoteChannel[T]:
        """Put an item, waiting while the channel is full. Returns the channel, so that puts can be chained.

        It is in the channel when this returns, whoever looks. A process that puts many small items one after the other
        is given an inbox there, so that most puts cost a few microseconds and no round trip.
        """
        if not self._put_quickly(args):
            self._ask("put", args, timeout)
        return self

    def put_many(self, items: Iterable[T]) -> RemoteChannel[T]:
        """Put several items, one after the other, in one message; waits while the channel is full. Returns the channel.

        Items of others may come between. If the channel is closed meanwhile, those that were in by then stay in.

        >>> RemoteChannel(lambda: Channel(10)).put_many(range(3)).take_many(10)
        [0, 1, 2]
        """
        self._ask("put_many", (list(items),))
        return self

    def take(self, *args: Any, timeout: float | None = None) -> T:
        """Remove and return the first item, waiting for one. Takers are served in the order in which they came.

        A process that takes many items one after the other is given access to the next ones, so that most takes cost a
        few microseconds and no round trip. Nothing else changes by that: an item counts as in the channel until the
        very take that returns it, everybody else can take it until then, and what a process does not take stays. Only
        the moment of copying is earlier: an object that the owner put and goes on changing comes as it was some time
        between put and take.
        """
        item = self._take_quickly(args, timeout is None or timeout > 0)
        return self._ask("take", args, timeout) if item is NOTHING else item  # type: ignore[no-any-return]

    def take_many(self, n: int, timeout: float | None = None) -> list[T]:
        """Wait for an item; remove and return, in one message, those that are there then, the first ``n`` at most."""
        check_number(n)
        return self._ask("take_many", (n,), timeout)  # type: ignore[no-any-return]

    def fetch(self, *args: Any, timeout: float | None = None) -> T:
        """Return the first item and leave it there, waiting for one."""
        return self._ask("fetch", args, timeout)  # type: ignore[no-any-return]

    def wait(self, timeout: float | None = None) -> RemoteChannel[T]:
        """Wait until there is an item. Returns the channel."""
        self._ask("wait", (), timeout)
        return self

    def try_put(self, *args: Any) -> bool:
        """Put an item if there is room at this moment; False otherwise."""
        return self._put_quickly(args) or self._at_once("put", args, NOTHING) is not NOTHING

    def try_take(self, default: D = None) -> T | D:  # type: ignore[assignment]
        """Remove and return the first item, or return ``default`` if there is none at this moment."""
        item = self._take_quickly((), False)
        return self._at_once("take", (), default) if item is NOTHING else item  # type: ignore[no-any-return]

    def try_fetch(self, default: D = None) -> T | D:  # type: ignore[assignment]
        """Return the first item and leave it there, or return ``default`` if there is none at this moment."""
        return self._at_once("fetch", (), default)  # type: ignore[no-any-return]

    def _at_once(self, op: str, args: tuple[Any, ...], default: Any) -> Any:
        try:
            return self._ask(op, args, 0)
        except TimeoutError as error:
            if isinstance(error, RemoteException):  # an item, or what the channel was closed with
                raise
            return default

    def _own_channel(self) -> Channel[Any] | None:
        """The channel itself, if this process keeps it and it needs no more than its own methods."""
        if self.where != self._member.pid:
            return None
        if self._claim is None:
            raise self._released()
        return self._member.store.fast_channel(self.rrid)

    def _put_quickly(self, args: tuple[Any, ...]) -> bool:
        """Put an item where that needs no message and no waiting; False where it needs one."""
        if len(args) != 1:
            return False
        slot = self._slot
        if slot is None:
            channel = self._own_channel()
            return channel is not None and channel.try_put(args[0])
        try:
            return slot.put(args[0])
        finally:
            if slot.is_over:
                self._slot = None

    def _take_quickly(self, args: tuple[Any, ...], may_wait: bool) -> Any:
        """Take the first item where that needs no message; NOTHING where it needs one, or there is none."""
        reach = self._reach
        if reach is None:
            channel = None if args else self._own_channel()
            item = NOTHING if channel is None else channel.try_take(NOTHING)
            # It is raised, and not returned, whoever takes it. The first question is the cheap one.
            if isinstance(item, BaseException) and isinstance(item, RemoteException):
                raise item
            return item
        if args:
            return NOTHING
        item = reach.take() if may_wait else reach.take(0)
        if item is NOTHING and reach.is_over:
            self._reach = None
        return item

    def take_from(self, reach: Reach | None) -> None:
        """See ``shortcuts.Handle``."""
        self._reach = reach if self._claim is not None else None

    def put_into(self, slot: Slot | None) -> None:
        """See ``shortcuts.Handle``."""
        self._slot = slot if self._claim is not None else None

    def release(self) -> None:
        """Give the reference up now; see ``RemoteRef.release``."""
        self._reach = self._slot = None
        super().release()

    def bind(self, pid: int) -> RemoteChannel[T]:
        """Close the channel when process ``pid`` ends: who waits then gets ProcessExitedException. Returns the channel.

        For a consumer that waits for what ``pid`` produces: else it would wait for ever. What is in the channel can
        still be taken. Raises ValueError for a pid that never was a process; one that is gone closes it at once.
        """
        if self.where == self._member.pid:
            _bind(self._member, self.rrid, pid)
        else:
            peer = self._member.peer(self.where)
            parcel = dump((_bind_here, (*self.rrid, pid), {}))
            self._member.open_answer(peer, self._member.request(peer, m.CALL_FETCH, parcel))
        return self

    def isready(self, *args: Any) -> bool:
        """True when there is an item; another process may take it before you do."""
        return bool(self._ask("isready", args))

    def isempty(self) -> bool:
        """True when there is no item; removes none."""
        return bool(self._ask("isempty"))

    def isopen(self) -> bool:
        """True until it is closed, whatever is left in it."""
        return bool(self._ask("isopen"))

    def close(self) -> None:
        """Close it for everybody; what is in it can still be taken."""
        self._ask("close")

    def __iter__(self) -> Iterator[T]:
        """Take items until the channel is closed and empty."""
        while True:
            try:
                item = self.take()
            except ChannelClosedError:
                return
            yield item

    def __enter__(self) -> RemoteChannel[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self._go_along(self._claim)
        return _remote_channel, (self.where, *self.rrid)


def _remote_channel(where: int, whence: int, number: int) -> RemoteChannel[Any]:
    member, rrid = opening_member(), RRID(whence, number)
    known = member.handles.get(rrid)
    return known if isinstance(known, RemoteChannel) else RemoteChannel.of(member, where, rrid)


def _make_channel(factory: Callable[[], Any], whence: int, number: int) -> None:
    default_member().make_channel(RRID(whence, number), factory)


def _bind(member: Member, rrid: RRID, pid: int) -> None:
    if not member.cluster.is_member(pid) and not member.cluster.was_member(pid):
        raise member.cluster.absence(pid)
    member.store.bind(rrid, pid)


def _bind_here(whence: int, number: int, pid: int) -> None:
    _bind(default_member(), RRID(whence, number), pid)


# -- generic verbs (Julia's functions on refs) -------------------------------------------------------------------------


def fetch(x: Any, timeout: float | None = None) -> Any:
    """Return the value of a Future, RemoteChannel or Channel, waiting for it; anything else is returned as it is.

    >>> fetch(5)
    5
    """
    if isinstance(x, (RemoteRef, Channel)):
        return x.fetch(timeout=timeout)  # type: ignore[union-attr]
    return x


def put(ref: Any, *args: Any) -> Any:
    """Put a value into a Future, RemoteChannel, Channel or pool; return that object.

    >>> put(Channel(1), "item").take()
    'item'
    """
    result = _method(ref, "put")(*args)
    return ref if result is None else result


def take(ref: Any, *args: Any) -> Any:
    """Remove and return the first item of a RemoteChannel, Channel or pool; TypeError for a Future, which has none.

    >>> take(put(Channel(1), "item"))
    'item'
    """
    return _method(ref, "take")(*args)


def isready(ref: Any, *args: Any) -> bool:
    """True when ``fetch`` (``take`` for a pool) would return at once."""
    return bool(_method(ref, "isready")(*args))


def isopen(ref: Any) -> bool:
    """True while things can be put into a Channel or RemoteChannel; TypeError for a Future, which is never closed.

    >>> isopen(Channel(1))
    True
    """
    return bool(_method(ref, "isopen")())


def close(ref: Any) -> None:
    """Close a channel; TypeError for a Future."""
    _method(ref, "close")()


def wait(ref: Any, timeout: float | None = None) -> Any:
    """Wait until a Future, channel or pool is ready; return it."""
    _method(ref, "wait")(timeout=timeout)
    return ref


def _method(ref: Any, name: str) -> Any:
    method = getattr(ref, name, None)
    if method is None:
        raise TypeError(f"{name}() is for references, channels and pools; a {type(ref).__name__} has no {name}")
    return method


def remoteref_id(ref: RemoteRef) -> RRID:
    """Return the id of a reference: (whence, id), the same in every process. Julia's ``remoteref_id``."""
    if not isinstance(ref, RemoteRef):
        raise TypeError(f"remoteref_id() takes a Future or a RemoteChannel, not a {type(ref).__name__}")
    return ref.rrid


def channel_from_id(rrid: RRID) -> Channel[Any]:
    """Return the channel behind a reference that this process owns; LookupError for any other."""
    if rrid == NULL_ID:
        raise LookupError("(0, 0) is the id of no reference")
    return default_member().channel(RRID(*rrid))
