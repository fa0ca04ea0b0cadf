"""References to values that live in some process: what all have in common, and ``Future``.

A reference is three numbers: who owns the value (``where``), who made the reference (``whence``), and its number there.
What it names is kept in the owner's ``store``; every operation goes there, except what a Future has already brought
home. The calling thread waits and reads meanwhile; at the owner a waiting operation holds no thread. The other kind of
reference is the one to a channel (`remote_channel`).
"""

from __future__ import annotations

import threading

from distpool import messages as m
from distpool.claims import Claim
from distpool.desk import NOTHING
from distpool.errors import ChannelClosedError, RemoteException
from distpool.light import Any, Final, Generic, TypeVar
from distpool.member import Member, default_member, opening_member
from distpool.messages import RRID
from distpool.pickling import Parcel, dump_arguments, in_message, note_ref
from distpool.store import OWN_STORE_SECONDS
from distpool.transport import Deadline, Waiter

T = TypeVar("T")

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
    Every use raises ProcessExitedException when the owner is gone, RuntimeError after ``release``.

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
