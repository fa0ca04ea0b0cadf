"""Starting a clean interpreter that becomes the fork server.

Used by :mod:`.client`, from any thread; holds nothing. The interpreter boots from a socket in the place of its stdin:
first it reads the driver's ``sys.path``, so that distpool is found even where it is not installed, then it serves.
"""

from __future__ import annotations

import marshal
import os
import sys

from distpool.light import socket

from ..errors import LaunchWorkerError

# What the new interpreter runs. Only built-in modules may be imported before sys.path is the driver's: with -c the
# first entry is the current directory, and a stray socket.py there must not be taken for the real one.
_BOOT = """\
# distpool fork server
def boot():
    import gc, marshal, posix, sys
    gc.disable()
    def take(size):
        data = b''
        while len(data) < size:
            more = posix.read(0, size - len(data))
            if not more:
                posix._exit(0)
            data += more
        return data
    sys.path[:] = marshal.loads(take(int.from_bytes(take(4), 'big')))
    from distpool.forkserver.server import serve
    serve(0)
boot()
"""


def start_interpreter(executable: str) -> tuple[socket.socket, int]:
    """Exec a clean Python that boots from its standard input, a socket; returns our end and its pid.

    By posix_spawn: it does not copy our page tables (subprocess would do as well, but importing it costs more than
    the start). The socket becomes descriptor 0; stdout and stderr are ours.
    """
    if not executable:
        raise LaunchWorkerError("sys.executable is empty, so there is no Python to start; pass one (exename=...)")
    ours, theirs = socket.socketpair()
    far = _above_standard(theirs.detach())
    try:
        ours.setblocking(False)
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable_fds()]
        actions.append((os.POSIX_SPAWN_DUP2, far, 0))
        # -u makes the C library's stdout unbuffered, which nothing else does so cheaply: what C code prints would else
        # stay in its buffer and be lost when a worker is killed. Python's own streams are made anew in each worker.
        return ours, _spawn(executable, [executable, "-u", *interpreter_flags(), "-c", _BOOT], actions)
    except OSError as error:
        ours.close()
        raise LaunchWorkerError(f"cannot start {executable!r} as fork server: {error}") from error
    finally:
        os.close(far)


def _spawn(executable: str, argv: list[str], actions: list[tuple[int, ...]]) -> int:
    """posix_spawn in a session of its own, so that the terminal's Ctrl-C does not reach it, with no signal blocked."""
    try:
        return os.posix_spawn(executable, argv, os.environ, file_actions=actions, setsid=True, setsigmask=())
    except NotImplementedError:  # an old C library; the server will call setsid itself, a few milliseconds later
        return os.posix_spawn(executable, argv, os.environ, file_actions=actions, setsigmask=())


def _above_standard(fd: int) -> int:
    """Move a descriptor out of the way of stdin, stdout and stderr, where it lands if the driver has closed its own."""
    if fd > 2:
        return fd
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _inheritable_fds() -> list[int]:
    """List what an exec would hand down by accident: descriptors that C libraries or the user made inheritable."""
    try:
        open_fds = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return []
    return [fd for fd in open_fds if fd > 2 and _is_inheritable(fd)]


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # closed since, such as the one that listed the directory
        return False


def boot_message() -> bytes:
    """Return what the new interpreter reads first: sys.path, with the place of this package if a hook found it."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    data = marshal.dumps(path if home in path else [*path, home])
    return len(data).to_bytes(4, "big") + data


def interpreter_flags() -> list[str]:
    """Return the command-line options this interpreter runs with, as multiprocessing and subprocess pass them on.

    Our own few lines because importing subprocess costs some milliseconds of every start.
    """
    flags = sys.flags
    letters = {"debug": "d", "optimize": "O", "dont_write_bytecode": "B", "no_site": "S", "bytes_warning": "b"}
    options = ["-" + letter * getattr(flags, name) for name, letter in letters.items() if getattr(flags, name) > 0]
    if flags.isolated:
        options.append("-I")
    else:
        names = {"ignore_environment": "-E", "no_user_site": "-s", "safe_path": "-P"}
        options += [option for name, option in names.items() if getattr(flags, name, False)]
    options += ["-W" + option for option in sys.warnoptions]
    if flags.dev_mode:
        options += ["-X", "dev"]
    # importtime would print a second table into the middle of the driver's
    given = {name: value for name, value in sys._xoptions.items() if name not in ("dev", "importtime")}
    for name, value in given.items():
        options += ["-X", name if value is True else f"{name}={value}"]
    return options
