"""What a cluster manager promises, and the record that describes one launched worker.

Used by ``membership.addprocs`` and by everyone who writes a manager. ``launch`` runs in the thread of ``addprocs``;
``manage`` and ``kill`` may run on any thread and must not wait for the worker. Errors of a manager are raised by
``addprocs``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from distpool.errors import HandshakeError, LaunchWorkerError
from distpool.light import TYPE_CHECKING, Any, Final, Protocol, socket
from distpool.transport import Deadline, Reader

if TYPE_CHECKING:
    from distpool.output import Output  # workers load this room and have no use for it
    from distpool.tls import SecureSocket

# Seconds that a worker has to join, unless DISTPOOL_WORKER_TIMEOUT or timeout= say otherwise. Julia's number.
WORKER_TIMEOUT: Final = 60.0
# How long an error about a worker's start waits to learn how it exited; the end of its output comes a moment earlier.
EXIT_STATUS_SECONDS: Final = 0.5


def worker_timeout() -> float:
    """Return the time limit for workers to join, read from the environment at each use."""
    return float(os.environ.get("DISTPOOL_WORKER_TIMEOUT", WORKER_TIMEOUT))


class WorkerProcess(Protocol):
    """A handle on an operating-system process that a manager started, and how it ends."""

    os_pid: int | None

    def watch(self, on_exit: Callable[[int | None, int | None], None]) -> None:
        """Call ``on_exit(exit_code, signal)`` once when the process is gone; at once if it is."""

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process and what it started; silent when it is gone."""


class WorkerConfig:
    """All that is known of one worker before it has joined. Every field is None until a manager sets it.

    A manager sets ``stream`` (a connected socket), or ``io`` (the worker's standard output, on which its address line
    comes), or ``host`` and ``port``. Julia's ``WorkerConfig``; ``stream`` is ours, for workers that share a socket
    pair, and so are ``output``, where what the worker prints goes, and ``tls``: whether the connection has to be
    encrypted by distpool, as ``addprocs`` was asked unless the manager says otherwise (False: it is by other means).

    >>> WorkerConfig(host="127.0.0.1", port=9000)
    WorkerConfig(host='127.0.0.1', port=9000)
    """

    __slots__ = (
        "bind_addr",
        "connect_at",
        "connect_idents",
        "count",
        "deadline",
        "enable_threaded_blas",
        "environ",
        "exeflags",
        "exename",
        "forward",
        "host",
        "ident",
        "io",
        "max_parallel",
        "multiplex",
        "ospid",
        "output",
        "port",
        "process",
        "sshflags",
        "stream",
        "tls",
        "tunnel",
        "userdata",
    )

    io: Any
    bind_addr: str | None
    connect_at: tuple[str, int] | None
    deadline: Deadline | None
    output: Output | None
    forward: str | None
    host: str | None
    port: int | None
    stream: socket.socket | None
    process: WorkerProcess | None
    ospid: int | None
    environ: dict[str, Any] | None
    tls: bool | None
    tunnel: bool | None
    ident: Any
    connect_idents: list[Any] | None
    enable_threaded_blas: bool | None
    userdata: Any

    def __init__(self, **fields: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, fields.pop(name, None))
        if fields:
            raise TypeError(f"WorkerConfig has no field {next(iter(fields))!r}; it has {', '.join(self.__slots__)}")

    def __repr__(self) -> str:
        known = ((name, getattr(self, name)) for name in self.__slots__)
        return f"WorkerConfig({', '.join(f'{name}={value!r}' for name, value in known if value is not None)})"


class Launched(Protocol):
    """Where ``launch`` puts the workers it started, as soon as each is started; also later, from any thread."""

    def append(self, config: WorkerConfig, /) -> None:
        """Hand one worker over. One that comes when ``launch`` has returned joins the cluster by itself."""

    def lost(self, error: BaseException, /) -> None:
        """Say that a worker that was to come later will not."""


class ClusterManager:
    """Starts, reaches and stops workers of one kind. Subclass it and give ``launch``.

    Julia's ``ClusterManager``: the four methods mean the same; ``manage`` does nothing by default, and ``launched`` may
    be appended to from any thread without a condition.
    """

    # ``manage("interrupt")`` is asked for only when the worker has not confirmed the order to stop in time.
    signals_the_deaf_only = False
    # Its workers see the files that this process sees. Where they do not, functions of modules that are not installed
    # travel by value.
    shares_files = True
    # Other workers may dial its workers, at the address by which process 1 has reached them.
    workers_meet = False

    def shares_files_with(self, host: str | None) -> bool:
        """Whether a worker sees our files, whose ``WorkerConfig.host`` this is; by default ``shares_files``."""
        return self.shares_files

    def attach(self, reader: Reader, timeout: float | None = None) -> None:
        """Be told, before each launch, who watches descriptors and how many seconds ``addprocs`` gives a worker."""

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Start the processes and append a ``WorkerConfig`` for each; return when all are launched."""
        raise NotImplementedError(f"{type(self).__name__} has to define launch(params, launched)")

    def relaunch(self, config: WorkerConfig, params: dict[str, Any], launched: Launched) -> None:
        """Start one worker in the place of one that is gone or will be, and append it, now or when it has come.

        By default none, and a pool gets smaller.
        """

    @property
    def can_relaunch(self) -> bool:
        """Whether it defines ``relaunch``: pools ask before they count on it."""
        return type(self).relaunch is not ClusterManager.relaunch

    def close(self) -> None:
        """Have no more workers come of what was launched: the pool that they were for ends. By default nothing."""

    @property
    def awaits_more(self) -> bool:
        """Whether workers may still come of what was launched."""
        return False

    def connect(self, pid: int, config: WorkerConfig) -> Any:
        """Reach a worker that was launched: return a connected socket, or byte streams of any other kind.

        Runs on a thread of its own per worker. By default: the worker's address is read from its output or taken from
        ``host`` and ``port``, dialled, and the handshake made. Raises LaunchWorkerError when any of this fails.

        A transport of one's own returns one object or a pair ``(read_stream, write_stream)`` with blocking ``read(n)``,
        ``write(data)`` and ``close()``, perhaps ``flush()``; the worker gives the other ends to ``process_messages``.
        Both sides then prove that they know the cluster's cookie, over these very streams.
        """
        if config.stream is not None:
            return config.stream
        return _reach(pid, config, config.deadline or Deadline(worker_timeout()))

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Be told of "register", "deregister", "interrupt" and "finalize" of a worker."""

    def kill(self, pid: int, config: WorkerConfig) -> None:
        """Help a worker to its end, and close what the manager holds of it; by default there is nothing to do.

        Called once for each worker that is removed, when it has just been asked to end, and for one that could not
        join; never for one that died by itself. A worker with a ``process`` that does not end in time gets SIGKILL
        from distpool; without one, its connection is closed, and a worker ends when its connection does.
        """

    def default_addprocs_params(self) -> dict[str, Any]:
        """Return the options that ``addprocs`` takes for this manager, with their defaults: Julia's, and ours."""
        return {**default_addprocs_params(), "logging": False, "output": "prefix", "tls": False}

    def secret_line(self, params: Mapping[str, Any]) -> str:
        """Return what a worker that listens or dials has to be told, as one line without its end: the cluster's cookie.

        With ``tls=True`` in ``params`` it brings a key and certificates along, for one worker or all of a launch. To be
        written to the worker's standard input, or handed over by any other way that only its user can see.
        """
        from distpool.cookie import cluster_cookie  # forked workers need none of this
        from distpool.credentials import secret_line

        if not params.get("tls"):
            return cluster_cookie()
        from distpool.authority import authority

        return secret_line(cluster_cookie(), authority().issue("worker"))


def default_addprocs_params(manager: ClusterManager | None = None) -> dict[str, Any]:
    """Return the options of ``addprocs`` with their defaults: those that every manager knows, or those of ``manager``.

    >>> sorted(default_addprocs_params())
    ['dir', 'enable_threaded_blas', 'env', 'exeflags', 'exename', 'lazy', 'topology']
    """
    if manager is not None:
        return manager.default_addprocs_params()
    return {
        "topology": "all_to_all",
        "dir": os.getcwd(),
        "exename": sys.executable,
        "exeflags": "",
        "env": [],
        "enable_threaded_blas": False,
        "lazy": True,
    }


def _reach(pid: int, config: WorkerConfig, deadline: Deadline) -> socket.socket | SecureSocket:
    """Find out where a worker listens and connect to it; later lines of its output are shown from then on."""
    # Here, because workers load this room, and those that share a socket pair need nothing of it.
    from distpool.managers.startup import WorkerOutput

    if config.io is None:
        if config.host is None or config.port is None:
            raise LaunchWorkerError("the manager has set neither stream, nor io, nor host and port of WorkerConfig")
        return _dial(config.host.rpartition("@")[2], config.port, config, deadline)
    output = WorkerOutput(config.io)
    try:
        host, config.port = output.read_address(deadline)
        config.host = config.host or host
        output.show_startup()
        stream = _dial(host, config.port, config, deadline)
    except Exception as error:
        output.close()
        if not isinstance(error, LaunchWorkerError):
            raise
        raise LaunchWorkerError(f"{error}{_exit_status(config.process)}") from error.__cause__
    output.forward(config.output, pid)
    return stream


def _dial(host: str, port: int, config: WorkerConfig, deadline: Deadline) -> socket.socket | SecureSocket:
    from distpool.tcp import ProvedSocket, dial, greet  # as above

    config.bind_addr, config.connect_at = host, (host, port)
    try:
        stream = dial(host, port, deadline)
    except OSError as error:
        raise LaunchWorkerError(f"cannot connect to the worker at {host}, port {port}: {error}") from error
    try:
        if config.tls:
            from distpool.authority import authority

            encrypted = authority().encryption.dialled(stream)
            greet(encrypted, deadline)
            encrypted.is_proved = True
            return encrypted
        greet(stream, deadline)
    except HandshakeError as error:
        stream.close()
        raise LaunchWorkerError(f"the worker at {host}, port {port} was not admitted: {error}") from error
    return ProvedSocket(fileno=stream.detach())


def _exit_status(process: WorkerProcess | None) -> str:
    """How the process has ended, as the end of a sentence; empty when it lives or nobody knows."""
    if process is None:
        return ""
    import threading  # as above; only for workers that failed

    known = threading.Event()
    status: list[int | None] = []

    def ended(code: int | None, signum: int | None) -> None:
        status.extend((code, signum))
        known.set()

    process.watch(ended)
    if not known.wait(EXIT_STATUS_SECONDS):
        return ""
    code, signum = status
    if code is None and signum is None:
        return ""
    return f"\nthe process ended with {f'signal {signum}' if code is None else f'exit code {code}'}"
