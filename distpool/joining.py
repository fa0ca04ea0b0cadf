"""A worker's way into a cluster: launched by its manager, connected, told who it is, made a member.

Used by ``membership`` and by pools that own their workers. Runs in the thread that adds workers, and a call thread for
each worker that must be dialled; one addition or removal at a time (the cluster's membership lock)::

    manager.launch -> WorkerConfig -> a stream -> JOIN -> JOINED -> first calls -> member, told to all

Whatever goes wrong with one worker leaves nothing of it, and does not keep the others from joining. A manager may hand
over further workers when ``launch`` has returned: each joins by itself, on a call thread, as soon as it has come.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from distpool import lifecycle
from distpool import messages as m
from distpool.calls import OpenCall
from distpool.cluster import Departure
from distpool.errors import CompositeException, HandshakeError, LaunchWorkerError, ProcessExitedException
from distpool.interrupts import DeferredInterrupt
from distpool.light import Any, Final
from distpool.managers.interface import ClusterManager, WorkerConfig, worker_timeout
from distpool.managers.interpreter import as_worker_process
from distpool.member import Member
from distpool.output import Output, checked_mode
from distpool.peer import Peer, Reply
from distpool.pickling import dump
from distpool.transport import Deadline, Waiter

# Seconds that a worker which was given up has to end before nobody waits for it any more.
GRACE_SECONDS: Final = 2.0
# Seconds that a connection which is too late has to report why. Arbitrary.
REPORT_SECONDS: Final = 1.0


# Who is told of a worker that has joined when ``addprocs`` was over, or why one will not come any more.
OnLate = Callable[[int | None, BaseException | None], None]


class _Launched:
    """Takes the workers as they are launched and begins to connect each at once, each with the whole time limit."""

    def __init__(
        self, member: Member, manager: ClusterManager, limit: float, params: dict[str, Any], on_late: OnLate
    ) -> None:
        self.joining: list[_Joining] = []  # those that addprocs waits for
        self._output = checked_mode(params.get("output", "prefix"))
        self._tls = bool(params.get("tls"))
        self._welcome = _log_request(member, params.get("logging", False))
        self._member = member
        self._manager = manager
        self._limit = limit
        self._on_late = on_late
        self._lock = threading.Lock()  # protects the two below, and what joining has
        self._is_closed = False
        self._is_abandoned = False

    def append(self, config: WorkerConfig) -> None:
        config.deadline = Deadline(self._limit)
        if config.tls is None:
            config.tls = self._tls
        if config.output is None:  # a manager without ways of its own
            config.output = Output(self._output)
        joining = _Joining(self._member, self._manager, config, self._welcome)
        with self._lock:
            is_late = self._is_closed
            if not is_late:
                self.joining.append(joining)
        if self._is_abandoned:
            joining.abandon()
        elif is_late:
            self._member.threads.run(partial(self._join_late, joining))

    def lost(self, error: BaseException) -> None:
        """A worker that was to come later will not come."""
        self._member.threads.run(lambda: self._on_late(None, error))

    def close(self) -> None:
        """The launch is over: who comes now is late."""
        with self._lock:
            self._is_closed = True

    def abandon(self) -> None:
        """An interrupt ends ``addprocs``: what has not joined would be nobody's."""
        with self._lock:
            self._is_closed = self._is_abandoned = True
        for joining in self.joining:
            joining.abandon()

    def _join_late(self, joining: _Joining) -> None:
        member = self._member
        with member.membership_lock:
            problem = joining.finish(Deadline(self._limit))
            if problem is None:
                connect_workers(member, [joining])
                member.roll.tell_members()
        try:
            if problem is None:
                lifecycle.started(member, [joining.pid])
        finally:
            self._on_late(joining.pid if problem is None else None, problem)


class _Joining:
    """One worker on its way in: connected (at once, or on a call thread), then asked to join."""

    def __init__(self, member: Member, manager: ClusterManager, config: WorkerConfig, welcome: dict[str, Any]) -> None:
        self.pid = member.cluster.next_pid()
        self._welcome = welcome  # what it is told beside its id and the others'
        assert config.output is not None
        config.output.assign(self.pid)
        self.reply = Reply()
        self._member = member
        self._manager = manager
        self._config = config
        self._lock = threading.Lock()  # protects the two below: who connects may be late
        self._peer: Peer | None = None
        self._is_given_up = False
        self._connected = Waiter()
        self._connection: Any = None  # as the manager returned it
        self._problem: Exception | None = None  # why it could not be connected
        self._first_calls: list[OpenCall] = []  # each is sent when the one before has been answered
        config.process = as_worker_process(config.process, member.reader)
        if config.stream is not None:
            self._begin(config.stream)
            self._connected.complete()
        else:
            member.threads.run(self._connect)

    def _connect(self) -> None:
        """Have the manager connect it; what goes wrong is the worker's set-up error. Runs on a call thread."""
        try:
            self._connection = self._manager.connect(self.pid, self._config)
            _check_encryption(self._connection, self._config)
            self._begin(_proved(self.pid, self._connection, self._config))
        except Exception as error:
            self._problem = error
        self._connected.complete()

    def _begin(self, stream: Any) -> None:
        with self._lock:
            if self._is_given_up:
                stream.close()
                return
            self._peer = self._member.connect(self.pid, stream, self._config)
        if not self._manager.shares_files_with(self._config.host):
            self._member.roll.note_elsewhere(self.pid)
        members, leaving = self._member.roll.membership()
        welcome = {**self._welcome, "pid": self.pid, "members": members, "leaving": leaving}
        welcome["is_spread"] = self._member.roll.is_spread
        welcome["host_timeout"] = os.environ.get("DISTPOOL_HOST_TIMEOUT")
        self._member.send_request(self._peer, self.reply, m.JOIN, dump(welcome))
        for parcel in self._member.first_calls:
            self._first_calls.append(OpenCall(self._member, self._peer, parcel))
        for one, other in pairwise(self._first_calls):
            one.following = other
        if self._first_calls:
            self._first_calls[0].start()

    def finish(self, deadline: Deadline) -> Exception | None:
        """Wait for its answer and make it a member; return what went wrong instead."""
        reader = self._member.reader
        too_late = f"worker {self.pid} did not join in time; raise timeout= or DISTPOOL_WORKER_TIMEOUT"
        # Connecting has the same time limit and knows better why it took too long: it gets a moment to say so.
        if not reader.wait(self._connected, Deadline((deadline.remaining() or 0.0) + REPORT_SECONDS)):
            return self._give_up(LaunchWorkerError(too_late))
        if self._problem is not None:
            return self._give_up(self._problem)
        if not reader.wait(self.reply, deadline, eager=True):
            return self._give_up(LaunchWorkerError(too_late))
        if self.reply.error is not None:
            return self._give_up(LaunchWorkerError(_stillborn(self.pid, self.reply.error)))
        facts = self._member.open(self._member.answer_of(self.reply))
        self._config.ospid = facts["os_pid"]
        self._config.environ = {"cpu_threads": facts["cpus"]}
        try:
            for call in self._first_calls:
                call.value(deadline)
        except Exception as error:
            text = f"worker {self.pid} could not run what everywhere(persist=True) asks of all that join: {error}"
            problem = LaunchWorkerError(text)
            problem.__cause__ = error
            return self._give_up(problem)
        assert self._peer is not None
        self._member.managers[self.pid] = self._manager  # before it can die as a member, and be deregistered
        if not self._member.cluster.add(self._peer):
            self._member.managers.pop(self.pid, None)
            return self._give_up(LaunchWorkerError(f"worker {self.pid} ended when it had just joined"))
        self._manager.manage(self.pid, self._config, "register")
        return None

    def abandon(self) -> None:
        """Kill it if it has not joined, without waiting for its end."""
        if not self._member.cluster.is_member(self.pid):
            with self._lock:
                self._is_given_up = True
            self._kill()

    def _give_up(self, error: Exception) -> Exception:
        """Leave nothing of it: neither the process, if we have it, nor the connection."""
        with self._lock:
            self._is_given_up = True
            peer = self._peer
        process = self._config.process
        self._kill()
        if process is not None:
            gone = Waiter()
            process.watch(lambda code, signum: gone.complete())
            self._member.reader.wait(gone, Deadline(GRACE_SECONDS))
        elif peer is not None:
            self._member.cluster.depart(peer, Departure(was_asked=True))
        elif self._connection is not None:
            from distpool.streams import give_up  # only for workers that are connected by their manager

            give_up(self._connection)  # ends the handshake that may still wait on it
        return error

    def _kill(self) -> None:
        if self._config.process is not None:
            self._config.process.send_signal(9)
        help_to_end(self._manager, self.pid, self._config)


def _check_encryption(connection: Any, config: WorkerConfig) -> None:
    """Nobody who asks for encryption must get none unawares: raises LaunchWorkerError."""
    is_encrypted = hasattr(connection, "is_ready") or hasattr(connection, "cipher")  # ours, or one of ``ssl``
    if config.tls and connection is not config.stream and not is_encrypted:
        raise LaunchWorkerError(
            "tls=True, but this worker is reached by a transport of its manager's own, which distpool does not "
            "encrypt; a manager whose transport is safe says so: WorkerConfig(tls=False)"
        )


def _proved(pid: int, connection: Any, config: WorkerConfig) -> Any:
    """What a manager's ``connect`` returned, as a socket on which both sides have proved themselves."""
    from distpool.streams import prove  # only for workers that are connected by their manager

    try:
        return prove(connection, "initiator", config.deadline or Deadline(worker_timeout()))
    except HandshakeError as error:
        raise LaunchWorkerError(f"worker {pid} was not admitted: {error}") from error


def help_to_end(manager: ClusterManager, pid: int, config: WorkerConfig) -> None:
    """Have a manager do its part when a worker is removed; what it raises is logged, for the removal must go on."""
    try:
        manager.kill(pid, config)
    except Exception:  # somebody else's code
        import logging  # rarely needed

        logging.getLogger("distpool").exception("%r.kill failed for worker %d", manager, pid)


def add_workers(
    member: Member,
    manager: ClusterManager,
    params: dict[str, Any],
    timeout: float | None = None,
    *,
    instead_of: WorkerConfig | None = None,
    on_late: OnLate | None = None,
) -> list[int]:
    """``addprocs`` in a given cluster; or one worker instead of one that is gone, if the manager can do that."""
    limit = worker_timeout() if timeout is None else timeout
    if params.get("tls"):
        from distpool.authority import authority  # rarely asked for, and slow to import

        authority()  # that something is missing is told before anything is launched
    lifecycle.watch_exits(member)
    lifecycle.starting(member, manager, params)
    with member.membership_lock:
        member.cluster.agree_on(params.get("topology", "all_to_all"), bool(params.get("lazy", True)))
        launched = _Launched(member, manager, limit, params, on_late or _log_late)
        manager.attach(member.reader, limit)
        failure: Exception | None = None
        try:
            if instead_of is None:
                manager.launch(params, launched)
            else:
                manager.relaunch(instead_of, params, launched)
        except Exception as error:  # the manager's own: raised below, after those that did start have joined
            failure = error
        except BaseException:
            with DeferredInterrupt():  # the next one would leave a worker that is nobody's
                launched.abandon()
            raise
        launched.close()
        deadline = Deadline(limit)
        try:
            outcomes = [joining.finish(deadline) for joining in launched.joining]
        except BaseException:
            with DeferredInterrupt():  # the next one would leave a worker that is nobody's
                launched.abandon()
            raise
        errors = [outcome for outcome in outcomes if outcome is not None]
        if isinstance(failure, CompositeException):  # the manager has an error for each that did not start
            errors, failure = [*failure.exceptions, *errors], None
        pids = sorted(joining.pid for joining in launched.joining if member.cluster.is_member(joining.pid))
        if instead_of is not None and launched.joining and not pids and not errors:
            errors = [LaunchWorkerError("a worker ended when it had just joined")]  # so nothing more is to come
        connect_workers(member, launched.joining)
        member.roll.tell_members()
    lifecycle.started(member, pids)
    if failure is not None:
        raise failure
    if errors:
        problem = CompositeException(errors)
        problem.pids = pids
        raise problem
    return pids


def _log_request(member: Member, level: object) -> dict[str, Any]:
    """Return what a worker is told about log records; makes this process take them, if they are wanted."""
    if level is False or level is None:
        return {}
    from distpool import logs  # here: it imports logging

    return {"logging": logs.receive(member, level)}


def _log_late(pid: int | None, error: BaseException | None) -> None:
    """Nobody waits for a late worker, so what goes wrong with it is logged."""
    if error is not None:
        import logging  # rarely needed

        logging.getLogger("distpool").warning("a worker did not join: %s", error)


def connect_workers(member: Member, newcomers: Sequence[_Joining]) -> None:
    """Note who may talk to whom; with ``lazy=False``, and always in a custom topology, connect those pairs now."""
    if member.cluster.topology == "custom":
        idents = {config.ident: pid for pid, config in member.configs.items() if config.ident is not None}
        for joining in newcomers:
            wanted = member.configs[joining.pid].connect_idents if joining.pid in member.configs else None
            for ident in wanted or ():
                if ident in idents:
                    member.cluster.links.add(frozenset((joining.pid, idents[ident])))
    if not member.cluster.is_lazy or member.cluster.topology == "custom":
        met = member.introductions.introduce_all()
        member.reader.wait(met, Deadline(worker_timeout()))


def _stillborn(pid: int, error: BaseException) -> str:
    """Say how a worker ended that had not joined: nothing of the user's ran there, so nothing is lost."""
    how = error.what_happened() if isinstance(error, ProcessExitedException) else str(error)
    return f"worker {pid} ended before it had joined: {how}. What it printed may say why; nothing had run on it yet."
