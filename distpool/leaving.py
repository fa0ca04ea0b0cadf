"""A worker's way out: asked to end (EXIT), and killed when it does not within the grace time.

Used by ``membership``, by pools that own their workers, and at the end of the program. A worker leaves the membership
at once; its pending calls fail when its process is gone, and whoever removes it waits for that.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence

from distpool import messages as m
from distpool.joining import help_to_end
from distpool.light import Final
from distpool.managers import forks, interpreter  # noqa: F401  # for the order of exit handlers, see the last line
from distpool.member import Member, existing_default
from distpool.messages import DRIVER
from distpool.output import wait_until_shown
from distpool.peer import Peer, Reply
from distpool.serving import NOTHING
from distpool.transport import Deadline, Waiter

# Seconds between asking a worker to end and killing it. Short, for a local process that does not obey is stuck.
GRACE_SECONDS: Final = 2.0
# The same at the end of the program: with the kill after it, everything is over within two seconds.
FAREWELL_SECONDS: Final = 1.0
# Seconds that the removal of a worker waits for the end of its output, which comes before its end is known, or just
# then. Only a program that it left behind can keep the output open. Arbitrary.
LAST_WORDS_SECONDS: Final = 0.5


def retire_workers(member: Member, pids: Sequence[int]) -> None:
    """End workers that are not needed any more, and wait for it, without keeping others from joining meanwhile."""
    _await_end(member, begin_removal(member, pids), None)
    with member.membership_lock:
        member.roll.tell_members()


def remove_workers(member: Member, pids: Sequence[int], waitfor: float | None = None) -> None:
    """``rmprocs`` in a given cluster, waiting."""
    with member.membership_lock:
        finish_removal(member, begin_removal(member, pids), waitfor)


def drain_and_remove(member: Member, pids: Sequence[int], waitfor: float | None) -> None:
    """``rmprocs(drain=True)`` in a given cluster."""
    deadline = Deadline(waitfor)
    drain(member, pids, deadline)
    remove_workers(member, pids, None if waitfor is None else max(GRACE_SECONDS, deadline.remaining() or 0.0))


def drain(member: Member, pids: Sequence[int], deadline: Deadline) -> None:
    """Give workers nothing more and wait until what they run and have been given is done, at most till the deadline."""
    replies = []
    for pid in pids:
        peer = member.cluster.terminate(pid)
        if peer is not None:
            replies.append(Reply())
            member.send_request(peer, replies[-1], m.EXIT, NOTHING)
    for reply in replies:
        member.reader.wait(reply, deadline)


def begin_removal(member: Member, pids: Sequence[int]) -> list[Leaving]:
    """Take workers out of the membership and ask them to end; those that are gone are left out."""
    peers = [peer for pid in pids if (peer := member.cluster.terminate(pid) or member.cluster.leaving(pid)) is not None]
    leaving = [Leaving(member, peer) for peer in peers]  # before they are asked: one that is gone is forgotten
    for peer in peers:
        config, manager = member.configs.get(peer.pid), member.managers.get(peer.pid)
        peer.send(m.EXIT)
        if config is not None and manager is not None:
            help_to_end(manager, peer.pid, config)
    return leaving


def finish_removal(member: Member, leaving: Sequence[Leaving], waitfor: float | None) -> None:
    """Wait until the processes have ended, killing those that do not obey; tell the others."""
    left = _await_end(member, leaving, waitfor)
    member.roll.tell_members()
    if left:
        raise TimeoutError(f"processes {left} are not gone after {waitfor} seconds; they have been killed and will be")


def _await_end(member: Member, leaving: Sequence[Leaving], waitfor: float | None) -> list[int]:
    """Wait until the processes have ended, killing those that do not obey; return those that have not even then."""
    deadline = Deadline(waitfor)
    grace = Deadline(GRACE_SECONDS if waitfor is None else min(GRACE_SECONDS, waitfor / 2))
    for each in leaving:
        member.reader.wait(each, grace, eager=True)
    stubborn = [each for each in leaving if not each.done]
    for each in stubborn:
        each.kill()
    for each in stubborn:
        member.reader.wait(each, deadline)
    for each in leaving:
        each.forget()
    _await_output(leaving)
    return [each.pid for each in leaving if not each.done]


class Leaving(Waiter):
    """A worker that is being removed. Done when it has departed; for one thread to wait for."""

    __slots__ = ("_member", "_peer", "output", "pid", "shows_itself")

    def __init__(self, member: Member, peer: Peer) -> None:
        super().__init__()
        self.pid = peer.pid
        config = member.configs.get(peer.pid)
        self.output = config.output if config is not None else None  # where what it printed goes
        process = config.process if config is not None else None
        # Its manager takes its output from the process, and has a way of its own to show the end of it.
        self.shows_itself = process is not None and not getattr(process, "dials_back", False)
        self._member = member
        self._peer = peer
        member.cluster.listen(departed=self._departed)
        if member.cluster.departure(peer.pid) is not None:
            self.complete()

    def _departed(self, pid: int, error: BaseException) -> None:
        if pid == self.pid:
            self.complete()

    def kill(self) -> None:
        """End it by force: by a signal if there is a handle on it, else by closing its connection."""
        import logging  # rarely needed

        config, log = self._member.configs.get(self.pid), logging.getLogger("distpool")
        if config is not None and config.process is not None:
            log.warning("worker %d did not end when asked; it is killed", self.pid)
            config.process.send_signal(9)
        elif config is not None:  # what can be done without a handle on it
            log.warning("worker %d did not end when asked; its connection is closed", self.pid)
            self._member.roll.give_up(self._peer)

    def forget(self) -> None:
        """Nobody waits for its end any more."""
        self._member.cluster.unlisten(departed=self._departed)


def _await_output(gone: Sequence[Leaving]) -> None:
    """Wait, within bounds, until what ended workers have printed is shown; something may hold their output open."""
    deadline = Deadline(LAST_WORDS_SECONDS)
    for each in gone:
        if each.done and each.output is not None:
            each.output.wait_for_end(deadline)
    wait_until_shown()


def leave(member: Member) -> None:
    """End every worker of a cluster, within bounds: for the end of a pool or of the process."""
    with member.membership_lock:  # before looking: one that is just joining must not be overlooked
        finish_removal(member, begin_removal(member, [peer.pid for peer in member.cluster.peers()]), None)


def _leave_at_exit() -> None:
    """Let the workers of the default cluster end in good order, so that what they have printed is not lost.

    Without the membership lock: a thread that adds or removes workers just now may never give it back. What is left
    after the bounded time is killed with the fork server, whose exit handler was registered earlier and so runs later.
    """
    member = existing_default()
    if member is None or member.pid != DRIVER:
        return
    leaving = begin_removal(member, member.cluster.procs())
    if leaving:
        deadline = Deadline(FAREWELL_SECONDS)
        for each in leaving:
            member.reader.wait(each, deadline)
        # Of processes on this machine their managers show what is left, in exit handlers of their own.
        _await_output([each for each in leaving if not each.shows_itself])
    member.roll.print_notices()


# Handlers run last one first, and those of these rooms end at once what is left: so they are loaded before this line.
atexit.register(_leave_at_exit)
