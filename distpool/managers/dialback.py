"""Workers that an engine starts and that dial back: what the managers of MPI, Slurm and other engines have in common.

The engine only has to run ``python -m distpool --worker --connect HOST:PORT --ticket T`` somewhere, with the cookie on
standard input or in a file; what it does with output and exit statuses does not matter. The workers come to a listener
of ours, prove that they know the cookie, and say which launch they belong to::

    launch --> start(launch): the engine's own way ---> worker
    Door   <== handshake, introduction (dialling) ====== worker          admitted on the reading thread
    Launch <-- its place: which worker of which launch                   on a call thread (launches)
       |---- answer: directory, path, environment -----> worker
       '---> launched.append(WorkerConfig(stream=...)) -> JOIN

``launch`` returns when the number that was asked for has come; who comes later joins by itself, so a cluster may grow
while a map runs. Whoever has no launch that waits for him (it is over, or never was) is turned away, and ends. An
engine's manager defines ``start`` and ``stop``, and ``tell`` if it knows more than we do; ``shares_files = False`` if
its workers stand on machines with other files. Owns: the listener while a launch goes on, the launches.
"""

from __future__ import annotations

import atexit
import json
import logging
import threading
import weakref
from contextlib import suppress
from functools import partial
from typing import Any, Final

from distpool.door import Door, Encrypt, send_answer
from distpool.errors import CompositeException, LaunchWorkerError
from distpool.managers.interface import ClusterManager, Launched, WorkerConfig, worker_timeout
from distpool.managers.launches import ANSWER_SECONDS, Launch, Looks, Place, Refused
from distpool.tcp import LOOPBACK, advertised_address, listen, parse_bind_to
from distpool.threads import CallThreads
from distpool.transport import Deadline, Reader

# The longest introduction: a ticket, a rank and the name of a host.
MAX_INTRODUCTION_BYTES: Final = 1024
# How many may stand before a driver's door at a time: hundreds of workers come at once, and more wait in the kernel.
MAX_STRANGERS: Final = 128
# Seconds that an engine's program has to end when its last worker was asked to, before it is stopped. More than a
# worker has for what it does at its exit (leaving.GRACE_SECONDS).
GRACE_SECONDS: Final = 4.0


class DialBackManager(ClusterManager):
    """Has an engine start ``count`` workers, which connect to this process. To be subclassed, one engine each.

    Args:
        count: the number of workers. at_least: how many of them ``addprocs`` waits for (None: all); the others join
        when they come, also while a map runs, and 0 waits for none.
        bind_addr: ``ADDR[:PORT]`` of this machine that the workers can reach; loopback unless given. ``0.0.0.0`` is
        every interface. Strangers who find the port are kept out by the cookie.

    Raises ValueError for numbers that make no sense or an address that is none. ``addprocs`` raises CompositeException,
    with what the engine says, when too few have come within its ``timeout``; those that have come stay.
    """

    engine = "the engine"  # for errors

    def __init__(self, count: int, *, at_least: int | None = None, bind_addr: str = LOOPBACK) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{type(self).__name__}({count!r}): the number of workers, from 1 on")
        if at_least is not None and not 0 <= at_least <= count:
            raise ValueError(f"at_least={at_least!r}: from 0 to the number of workers, {count}")
        self.count = count
        self.at_least = count if at_least is None else at_least
        self._bind = parse_bind_to(bind_addr)
        self._reader: Reader | None = None
        self._timeout = worker_timeout()
        self._threads = CallThreads("distpool arrivals")
        self._lock = threading.Lock()  # protects the three below
        self._launches: dict[str, Launch] = {}  # by ticket, until all of their workers are gone
        self._door: Door | None = None  # while there are launches
        self._address = ""
        _managers.add(self)

    def default_addprocs_params(self) -> dict[str, Any]:
        """Return the options of ``addprocs`` with their defaults; ``preload`` names modules to import at the start."""
        return {**super().default_addprocs_params(), "preload": ()}

    # -- for the manager of an engine ------------------------------------------------------------------------------

    def start(self, launch: Launch) -> None:
        """Have the engine start ``launch.count`` processes that run ``launch.command()``; return without waiting.

        Call ``no_more_come(launch, reason)`` when that is known.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define start(launch)")

    def stop(self, launch: Launch) -> None:
        """End what the engine still runs of a launch, if anything; on a call thread. Called once, when all workers
        are gone."""
        raise NotImplementedError(f"{type(self).__name__} has to define stop(launch)")

    def complete(self, launch: Launch) -> None:
        """All workers of a launch have come, or it is over: give up what only newcomers need."""

    def tell(self, launch: Launch) -> str:
        """Return what the engine knows about workers that have not come; empty for nothing."""
        return ""

    def cores_per_worker(self) -> int:
        """Return how many cores each worker has: what libraries are told unless ``enable_threaded_blas`` is set."""
        return 1

    def no_more_come(self, launch: Launch, reason: str) -> None:
        """Say that of this launch nobody will come any more, and why. Any thread; harmless when all have come."""
        launch.over(reason)
        self._settle(launch)

    def will_not_come(self, launch: Launch, ident: object, reason: str) -> None:
        """Say that of one worker, for engines that know; the launch is over when that is true of all that are missing.

        Any thread; harmless when the worker has come.
        """
        launch.fail(ident, reason)
        self._look_for_hope(launch)

    def _look_for_hope(self, launch: Launch) -> None:
        if failure := launch.failure:
            self.no_more_come(launch, failure)

    @property
    def reader(self) -> Reader:
        """Who watches descriptors for the cluster that the workers are for."""
        if self._reader is None:
            raise RuntimeError(
                f"{type(self).__name__}.launch() is for addprocs() to call: it attaches the reader first"
            )
        return self._reader

    # -- as a cluster manager --------------------------------------------------------------------------------------

    def attach(self, reader: Reader, timeout: float | None = None) -> None:
        """Be told by ``addprocs`` who watches descriptors, and how long workers may take."""
        self._reader = reader
        self._timeout = worker_timeout() if timeout is None else timeout

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Have the engine start the workers; return when enough have come."""
        self._run(self._new_launch(self.count, params, launched), self.at_least)

    def relaunch(self, config: WorkerConfig, params: dict[str, Any], launched: Launched) -> None:
        """Have the engine start one worker more, which joins when it has come."""
        self._run(self._new_launch(1, params, launched), 0)

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Take note of workers that are gone."""
        if op == "deregister":
            self._gone(config)

    def kill(self, pid: int, config: WorkerConfig) -> None:
        """Take note of a worker that is asked to end, or could not join: it ends when its connection does."""
        self._gone(config)

    @property
    def awaits_more(self) -> bool:
        """Whether a launch goes on of which some have not come yet."""
        return any(launch.awaits_more for launch in self._open_launches())

    def close(self) -> None:
        """Let no more workers come; what the engine has queued is cancelled. Those that have come go on."""
        for launch in self._open_launches():
            launch.over(f"{type(self).__name__}.close() was called")
            self.complete(launch)
            self._settle(launch, at_once=True)

    def end_with_us(self) -> None:
        """As ``close``, for the end of this process, when nobody needs to be told."""
        for launch in self._open_launches():
            launch.close("the driver ends")
            self._settle(launch, at_once=True)

    def _open_launches(self) -> list[Launch]:
        with self._lock:
            return list(self._launches.values())

    def _new_launch(self, count: int, params: dict[str, Any], launched: Launched) -> Launch:
        return Launch(
            count, params, launched, self.secret_line(params), Looks(self.cores_per_worker(), self.shares_files_with)
        )

    def _run(self, launch: Launch, at_least: int) -> None:
        launch.address = self._open_door(launch)
        try:
            self.start(launch)
            self.reader.wait(launch.arrivals(at_least), Deadline(self._timeout))
            limit = f"{self._timeout:g} s; raise timeout= or DISTPOOL_WORKER_TIMEOUT"
            missing = launch.go_on(f"not within {limit}")
        except BaseException as error:
            launch.over(str(error) or "it was interrupted")
            launch.send_home()
            self._settle(launch, at_once=True)
            raise
        if missing:
            problem = self._problem(launch, missing)
            self.complete(launch)
            self._settle(launch, at_once=True)
            raise problem

    def _problem(self, launch: Launch, missing: int) -> CompositeException:
        text = f"{missing} of {launch.count} workers of {self.engine} did not come: {launch.reason}"
        if words_of_engine := self.tell(launch):
            text += f"\n{words_of_engine}"
        rest = f"another worker of {self.engine} did not come, either"
        return CompositeException([LaunchWorkerError(text if place == 0 else rest) for place in range(missing)])

    # -- the door --------------------------------------------------------------------------------------------------

    def _open_door(self, launch: Launch) -> str:
        """Take note of a launch; return where its workers shall connect to."""
        host, port = self._bind
        encrypt = _encryption() if launch.params.get("tls") else None
        with self._lock:
            if self._door is not None and self._door.is_encrypting is not bool(encrypt):
                raise LaunchWorkerError(
                    f"tls={bool(encrypt)}, but workers of {self!r} are here or still to come with "
                    f"tls={not encrypt}, at the same port; use another manager"
                )
            if self._door is None:
                try:
                    listener = listen(host, port)
                except (OSError, ValueError) as error:
                    raise LaunchWorkerError(f"cannot listen on bind_addr={host!r}, port {port}: {error}") from error
                address, port = advertised_address(listener)
                self._address = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
                self._door = Door(
                    listener,
                    self.reader,
                    self._admit,
                    longest_introduction=MAX_INTRODUCTION_BYTES,
                    most=MAX_STRANGERS,
                    complain=_complain,
                    encrypt=encrypt,
                )
            self._launches[launch.ticket] = launch
            return self._address

    def _admit(self, stream: Any, name: str, introduction: bytes) -> None:
        """Somebody knows the secret. On the reading thread."""
        self._threads.run(partial(self._receive, stream, name, introduction))

    def _receive(self, stream: Any, name: str, introduction: bytes) -> None:
        try:
            facts = json.loads(introduction)
            with self._lock:
                launch = self._launches.get(facts["ticket"])
            if launch is None:
                raise Refused("its launch is over")
            if "output_of" in facts:
                launch.receive_output(stream, facts["output_of"], self.reader)
            else:
                launch.receive_worker(stream, facts)
                if launch.is_complete:
                    self.complete(launch)
                self._look_for_hope(launch)
        except Refused as error:
            with suppress(OSError):
                send_answer(stream, {"refused": str(error)}, Deadline(ANSWER_SECONDS))
            stream.close()
            _complain(f"a worker from {name} was turned away: {error}")
        except (ValueError, TypeError, KeyError, OSError) as error:
            stream.close()
            _complain(f"a connection from {name} has proved itself, but came to nothing: {error!r}")

    # -- ends ------------------------------------------------------------------------------------------------------

    def _gone(self, config: WorkerConfig) -> None:
        place = config.userdata
        if isinstance(place, Place) and place.launch.remove(place):
            self._settle(place.launch)

    def _settle(self, launch: Launch, at_once: bool = False) -> None:
        """If a launch has no worker left and none to come, forget it and see to it that nothing of it remains."""
        if not launch.is_empty:
            return
        with self._lock:
            if self._launches.pop(launch.ticket, None) is None:
                return
            door = None
            if not self._launches:
                door, self._door = self._door, None
        if door is not None:
            self.reader.run_soon(door.close)
        if at_once:
            self._stop(launch)
        else:
            self.reader.call_later(GRACE_SECONDS, partial(self._threads.run, partial(self._stop, launch)))

    def _stop(self, launch: Launch) -> None:
        self.stop(launch)
        self.reader.run_soon(launch.stop_printing)


def _encryption() -> Encrypt:
    from distpool.authority import authority  # slow to import, and an extra

    return authority().encryption.accepted


def _complain(text: str) -> None:
    """Say what is nobody's result: strangers at the door, workers that came too late."""
    logging.getLogger("distpool").warning(text)


# Those with launches that go on; what their engines have queued must not outlive this process.
_managers: weakref.WeakSet[DialBackManager] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for manager in list(_managers):
        with suppress(Exception):  # the program ends, and there is nobody to tell
            manager.end_with_us()
