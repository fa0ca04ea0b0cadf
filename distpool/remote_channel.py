"""``RemoteChannel``: a channel that lives in one process and is used from all.

The handle of this process: what it does is done at the owner, by a message (`refs.RemoteRef`), except where items can
be taken or put without one: this process is the owner, or uses the channel so much that it was lent a way there
(``shortcuts``). Any thread may use it. Owns nothing but the ways that it was lent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from distpool import messages as m
from distpool.channel import Channel, check_number
from distpool.desk import NOTHING
from distpool.errors import ChannelClosedError, RemoteException
from distpool.light import TYPE_CHECKING, Any, Generic, TypeVar
from distpool.member import Member, default_member, opening_member
from distpool.messages import RRID
from distpool.pickling import dump
from distpool.refs import RemoteRef

if TYPE_CHECKING:
    from distpool.inbox import Slot
    from distpool.shelf import Reach

T = TypeVar("T")
D = TypeVar("D")


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
