"""Workers on machines that one can log in to by ssh, with the system's own client: keys, agents, jump hosts, aliases.

Used by ``addprocs([...])``. One login for each machine starts all its workers (``hosting``) and stays open as their
lifeline; then each is dialled where it listens, or reached through ssh as well (``tunnel=True``)::

    this process                                          h1
    ssh -T h1 "sh -l -c 'cd ... && python -m distpool     host (stdin: the secret, orders; stdout: header, reports)
        --worker --host 2 ...'"                     --->    |-- worker listening on a port
    TCP, handshake  or  ssh -W ADDR:PORT h1        ===>     '-- worker listening on a port

All machines are logged in to at once. What goes wrong with one is an error that names it, with the other side's own
words, and does not keep the others from joining.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import count

from distpool.cookie import cluster_cookie
from distpool.errors import CompositeException, HandshakeError, LaunchWorkerError
from distpool.interrupts import DeferredInterrupt
from distpool.light import Any, Final
from distpool.managers.commandline import SHELLS, RemoteStart, remote_command, ssh_command, worker_command
from distpool.managers.interface import ClusterManager, Launched, WorkerConfig, worker_timeout
from distpool.managers.interpreter import InterpreterProcess
from distpool.managers.logins import Complaints, Login, RemoteProcess, start_client
from distpool.managers.machines import Bind, Count, Machine, MachineSpec, counted, parse_machine
from distpool.output import Output, checked_mode
from distpool.streams import prove
from distpool.tcp import LOOPBACK, ProvedSocket
from distpool.transport import Deadline, Reader, Waiter

# Variables of ours that workers on other machines get, too, unless env= has them.
FORWARDED_PREFIX: Final = "DISTPOOL_"
# Seconds that the address by which the login came in may take to answer, before the name is tried. Arbitrary.
FIRST_ADDRESS_SECONDS: Final = 10.0
# Seconds that the error of a tunnel waits for what its client has to say.
LAST_WORDS_SECONDS: Final = 1.0

_next_control: Final = count().__next__


class TunnelSocket(ProvedSocket):
    """A worker's connection through an ssh client, on which both sides have proved themselves."""

    shares_memory = False


class SSHManager(ClusterManager):
    """Starts workers on other machines through the system's ``ssh``; what ``addprocs([...])`` makes of a list.

    A machine is ``"[user@]host[:port] [bind_addr[:bind_port]]"``, or such a text with a number of workers or "auto",
    one for each core there. The same distpool and the same minor version of Python must be installed on each, and
    logging in must need no questions. Workers listen on the address by which the login came in, or on ``bind_addr``;
    from ``bind_port``, if it is given, upwards (``addr:[port]``: begin to look there). Julia's ``SSHManager``.

    >>> SSHManager(["h", ("h", 2), ("g", "auto")]).machines
    {'h': 3, 'g': 'auto'}

    Raises ValueError for a text that is no machine, and for a number that is not positive.
    """

    signals_the_deaf_only = True
    shares_files = False
    workers_meet = True

    def __init__(self, machines: Iterable[MachineSpec]) -> None:
        self.machines: Final[dict[str, Count]] = counted(machines)
        self._reader: Reader | None = None
        self._limit = worker_timeout()

    def __repr__(self) -> str:
        return f"SSHManager(machines={self.machines})"

    def default_addprocs_params(self) -> dict[str, Any]:
        """Return the options of ``addprocs`` for machines, with their defaults.

        ``ssh``, ``sshflags``: the client program, and flags for it behind ours. ``tunnel``: reach the workers through
        ssh instead of the network; they then listen on loopback unless their machine has a ``bind_addr``.
        ``multiplex``: one shared connection for a machine's tunnels; ``max_parallel``: how many tunnels to one machine
        are opened at a time. ``shell``: the family of the login shell, "posix", "csh" or "wincmd". ``venv``: the folder
        of a virtual environment there, instead of ``exename``. ``cmdline_cookie``: give the secret on the command line,
        where everybody on that machine can read it, for systems where standard input does not arrive.
        """
        return {
            **super().default_addprocs_params(),
            "ssh": "ssh",
            "sshflags": [],
            "shell": "posix",
            "cmdline_cookie": False,
            "tunnel": False,
            "multiplex": False,
            "max_parallel": 10,
            "venv": None,
            "preload": (),
        }

    def attach(self, reader: Reader, timeout: float | None = None) -> None:
        """Be told who watches descriptors, and how long logging in may take."""
        self._reader = reader
        self._limit = worker_timeout() if timeout is None else timeout

    # -- starting ------------------------------------------------------------------------------------------------

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Log in to all machines at once and hand their workers over, each machine's as soon as it has answered.

        Raises CompositeException with one LaunchWorkerError for each machine that failed.
        """
        self._launch(self.machines, params, launched)

    def relaunch(self, config: WorkerConfig, params: dict[str, Any], launched: Launched) -> None:
        """Start one worker more on the machine of one that is gone."""
        assert isinstance(config.process, RemoteProcess)
        self._launch({config.process.login.machine.spec: 1}, params, launched)

    def _launch(self, machines: Mapping[str, Count], params: dict[str, Any], launched: Launched) -> None:
        if self._reader is None:
            raise RuntimeError("SSHManager.launch() is for addprocs() to call: it attaches the reader first")
        start = _Start(params, self._secrets(params))  # before anything is started: it checks what it is given
        commands = [(parse_machine(spec), number) for spec, number in machines.items()]
        logging_in = _LoggingIn(self._reader)
        errors: list[Exception] = []
        try:
            for machine, number in commands:
                try:
                    logging_in.begin(machine, start.command(machine, number), start.first_words)
                except LaunchWorkerError as error:
                    errors.append(error)
            deadline = Deadline(self._limit)
            while (login := logging_in.next(deadline)) is not None:
                if login.error is not None:
                    errors.append(login.error)
                else:
                    self._hand_over(login, start, params, launched)
        except BaseException:
            logging_in.abandon()
            raise
        if errors:
            raise CompositeException(errors)

    def _secrets(self, params: Mapping[str, Any]) -> str:
        """What the other side has to be told; certificates only where ssh does not encrypt the connections."""
        return self.secret_line({**params, "tls": bool(params.get("tls")) and not params["tunnel"]})

    def _hand_over(self, login: Login, start: _Start, params: dict[str, Any], launched: Launched) -> None:
        assert login.header is not None
        outputs = [Output(checked_mode(params.get("output", "prefix"))) for _ in login.header.addresses]
        banner = Output(outputs[0].how)
        for line in login.take_banner():
            banner.feed(1, f"{line}\n".encode())
        banner.end()
        for process, (address, port) in zip(login.processes(outputs), login.header.addresses, strict=True):
            launched.append(
                WorkerConfig(
                    process=process,
                    output=process.output,
                    host=login.machine.host,
                    port=port,
                    bind_addr=address,
                    count=len(outputs),
                    exename=params["exename"],
                    exeflags=params["exeflags"],
                    sshflags=params["sshflags"],
                    tunnel=bool(params["tunnel"]),
                    tls=False if params["tunnel"] else None,
                    multiplex=bool(params["multiplex"]),
                    max_parallel=start.max_parallel,
                    enable_threaded_blas=bool(params["enable_threaded_blas"]),
                    userdata=start,
                )
            )

    # -- reaching ------------------------------------------------------------------------------------------------

    def connect(self, pid: int, config: WorkerConfig) -> Any:
        """Dial a worker where its machine says that it listens, or by the machine's name; or open a tunnel to it."""
        if not isinstance(config.process, RemoteProcess):
            return super().connect(pid, config)
        deadline = config.deadline or Deadline(worker_timeout())
        if config.tunnel:
            return self._open_tunnel(config, deadline)
        machine, address = config.process.login.machine, config.bind_addr
        try:
            if address not in (None, machine.host):
                left = deadline.remaining()
                config.deadline = Deadline(FIRST_ADDRESS_SECONDS if left is None else min(FIRST_ADDRESS_SECONDS, left))
                try:
                    config.host = address
                    return super().connect(pid, config)
                except LaunchWorkerError as error:
                    if not isinstance(error.__cause__, OSError) or _is_loopback(address):
                        raise
            config.host, config.deadline = machine.host, deadline
            return super().connect(pid, config)
        except LaunchWorkerError as error:
            raise LaunchWorkerError(
                f"{machine.spec}: {error}; if nothing but ssh gets through to that machine, pass tunnel=True"
            ) from error.__cause__
        finally:
            config.host, config.deadline = machine.host, deadline

    def _open_tunnel(self, config: WorkerConfig, deadline: Deadline) -> socket.socket:
        """Start an ssh client whose standard streams are the connection; nothing listens for it on this machine."""
        assert isinstance(config.process, RemoteProcess)
        assert self._reader is not None
        login = config.process.login
        host = f"[{config.bind_addr}]" if config.bind_addr and ":" in config.bind_addr else config.bind_addr
        config.forward = f"{host}:{config.port}"
        if not login.tunnels_at_once.acquire(timeout=-1 if (left := deadline.remaining()) is None else left):
            raise LaunchWorkerError(f"{login.machine.spec}: timed out waiting for other tunnels to it to be opened")
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                popen = start_client(
                    config.userdata.tunnel_command(login.machine, config.forward), b"", login.machine.spec, theirs
                )
            complaints = Complaints(popen.stderr, self._reader)
            client = config.process.tunnel = InterpreterProcess(popen, self._reader)
            client.watch(lambda code, signum: complaints.close())
            try:
                prove(ours, "initiator", deadline)
            except HandshakeError as error:
                client.send_signal(signal.SIGTERM)
                gone = Waiter()
                client.watch(lambda code, signum: gone.complete())
                self._reader.wait(gone, Deadline(LAST_WORDS_SECONDS))
                said = "".join(f"\nssh said: {line}" for line in complaints.lines)
                raise LaunchWorkerError(f"{login.machine.spec}: no tunnel to its worker: {error}{said}") from error
            return TunnelSocket(fileno=ours.detach())
        finally:
            login.tunnels_at_once.release()

    # -- stopping ------------------------------------------------------------------------------------------------

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Send SIGINT for "interrupt", by the host at the other end; end a tunnel with its worker."""
        if op == "interrupt" and config.process is not None:
            config.process.send_signal(signal.SIGINT)
        elif op == "deregister" and isinstance(config.process, RemoteProcess) and config.process.tunnel is not None:
            config.process.tunnel.send_signal(signal.SIGTERM)


class _Start:
    """What all logins of one ``addprocs`` have in common."""

    def __init__(self, params: Mapping[str, Any], secrets: str) -> None:
        self._params = params
        self.max_parallel = int(params["max_parallel"])
        if self.max_parallel < 1:
            raise ValueError(f"max_parallel={self.max_parallel}: at least one tunnel must be opened at a time")
        if params["shell"] not in SHELLS:
            raise ValueError(f"shell={params['shell']!r}: it is {', '.join(map(repr, SHELLS))}")
        is_in_sight = bool(params["cmdline_cookie"])
        if is_in_sight and secrets != cluster_cookie():
            raise ValueError("cmdline_cookie=True and tls=True: a key must not stand on a command line")
        self._cookie = secrets if is_in_sight else None
        self.first_words = b"" if is_in_sight else f"{secrets}\n".encode("ascii")
        self._shares = bool(params["tunnel"] and params["multiplex"])
        self._sharing: dict[str, tuple[str, ...]] = {}  # by machine
        ours = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED_PREFIX)}
        self._env = {**ours, **{name: str(value) for name, value in dict(params["env"] or {}).items()}}
        self._exename = params["exename"]
        if params["venv"] is not None:
            if self._exename != sys.executable:
                raise ValueError("venv= and exename= both say which Python to start; pass one of them")
            self._exename = f"{os.fspath(params['venv'])}/bin/python"
        if not self._exename:
            raise LaunchWorkerError("exename is empty, so there is no program to start; pass the path of a Python")
        remote_command(params["shell"], self._remote(["true"]))  # what cannot be quoted is the caller's fault, at once

    def command(self, machine: Machine, number: Count) -> list[str]:
        """The words that log in to a machine and start its workers."""
        params = self._params
        bind = machine.bind or (Bind(LOOPBACK) if params["tunnel"] else None)
        options = ["--host", str(number), *(["--bind-to", str(bind)] if bind else [])]
        options += [word for name in params["preload"] for word in ("--load", name)]
        options += ["--threaded-blas"] if params["enable_threaded_blas"] else []
        command = worker_command(self._exename, params["exeflags"], *options, cookie=self._cookie)
        remote = remote_command(params["shell"], self._remote(command))
        master: tuple[str, ...] = ()
        if self._shares:
            self._sharing[machine.spec] = _sharing_flags()
            master = ("-o", "ControlMaster=yes", *self._sharing[machine.spec])
        return ssh_command(params["ssh"], params["sshflags"], machine, *master, command=remote)

    def tunnel_command(self, machine: Machine, target: str) -> list[str]:
        """The words that connect standard input and output to an address as seen from a machine."""
        more = ("-o", "ControlMaster=no", *self._sharing[machine.spec]) if self._shares else ()
        return ssh_command(self._params["ssh"], self._params["sshflags"], machine, *more, "-W", target)

    def _remote(self, command: list[str]) -> RemoteStart:
        directory = os.fspath(self._params["dir"])
        return RemoteStart(directory, directory != os.getcwd(), self._env, command)


def _sharing_flags() -> tuple[str, ...]:
    """Where the clients of one login meet that share its connection: a socket that nobody else uses."""
    folder = os.path.expanduser("~/.ssh")
    os.makedirs(folder, mode=0o700, exist_ok=True)  # as ssh does
    return ("-o", f"ControlPath={folder}/distpool-{os.getpid()}-{_next_control()}", "-o", "ControlPersist=no")


class _LoggingIn:
    """The logins of one launch, in the order in which they are settled."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._logins: list[Login] = []
        self._pending: set[Login] = set()
        self._settled: deque[Login] = deque()
        self._arrival = Waiter()

    def begin(self, machine: Machine, command: list[str], first_words: bytes) -> None:
        """Start to log in to a machine."""
        with DeferredInterrupt():  # else Ctrl-C could leave a client that nobody knows
            self._logins.append(Login(machine, command, first_words, self._reader, self._note))
            self._pending.add(self._logins[-1])

    def _note(self, login: Login) -> None:
        self._settled.append(login)
        self._arrival.complete()

    def next(self, deadline: Deadline) -> Login | None:
        """Return one that has been settled since; wait for it. None when all are. One that is too late has failed."""
        while self._pending:
            self._arrival.done = False  # before looking, so that one that comes meanwhile is not overlooked
            if self._settled:
                login = self._settled.popleft()
                self._pending.discard(login)
                return login
            if not self._reader.wait(self._arrival, deadline):
                for login in list(self._pending):
                    login.fail("timed out waiting for its workers to start; raise timeout= or DISTPOOL_WORKER_TIMEOUT")
        return None

    def abandon(self) -> None:
        """End them all: nobody waits for them, or for what they have started."""
        for login in self._logins:
            login.end()


def _is_loopback(address: str | None) -> bool:
    return address is not None and (address.startswith("127.") or address == "::1")
