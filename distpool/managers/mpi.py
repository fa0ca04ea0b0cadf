"""Workers that ``mpiexec`` starts: wherever MPI programs run, on all hosts that it knows.

Used by who calls ``addprocs(MPIManager(8))``. MPI is only the launcher here: workers are ordinary ones, talk over TCP,
and need no ``mpi4py``; a task may use MPI all the same, for the workers are its ranks. They dial back (``dialback``)::

    mpiexec -n N sh -c "(worker); exit 0"     one program, a child of ours
       '--> rank 0 .. N-1: sh --> python -m distpool --worker --connect ... --cookie-file FILE
                                 here or on other hosts; the ranks are the workers' idents, and their order

The cookie comes in a file of mode 600: standard input reaches rank 0 only, and the others would wait for it for ever.
The shell in between is there because launchers end all ranks when one dies. Each has flags against that, all different,
and those of MPICH 5.0 do not help against a signal; a rank that always ends well, whatever became of its worker, works
with each of them (tried with MPICH 4.0 and 5.0, Open MPI 4.1 and 5.0).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from distpool.errors import LaunchWorkerError
from distpool.managers.dialback import DialBackManager
from distpool.managers.interpreter import package_folder, words
from distpool.managers.launcher import Launcher
from distpool.managers.launches import Launch
from distpool.tcp import LOOPBACK

# What each rank runs, with the worker's command as its arguments.
WRAPPER: Final = '"$@" || echo "a worker has ended with status $?" >&2; exit 0'
# Seconds that an error waits for the launcher's last words.
LAST_WORDS_SECONDS: Final = 0.5


class MPIManager(DialBackManager):
    """Starts ``count`` workers with ``mpiexec``; their ids follow their ranks, which are also their ``ident``.

    Args:
        count: the number of workers, ``mpiexec -n``. mpiexec: the launcher, a name, path or list of words; a name is
        looked for in PATH, then beside this Python, where ``pip install distpool[mpi]`` has put one.
        flags: further words for it, such as ``["-hosts", "n1,n2"]``, ``["--hostfile", "FILE"]``,
        ``["-bind-to", "core"]``: where workers run and what they get is its affair.
        cookie_dir: the folder for the file with the cookie, which is there while a launch goes on, and which only this
        user can read. The system's folder for temporary files unless given; with workers on other hosts it must be one
        that all of them see, such as your home. at_least, bind_addr: as for all engines (``DialBackManager``).

    ``addprocs`` raises LaunchWorkerError when there is no such launcher, and CompositeException, with what the launcher
    has printed, when workers do not come. One worker's death leaves the others; pools replace it by a launch of one.
    Julia's ``MPIManager`` (MPIClusterManagers) in its TCP mode.
    """

    engine = "mpiexec"

    def __init__(
        self,
        count: int,
        mpiexec: str | Sequence[str] = "mpiexec",
        flags: Sequence[str] = (),
        *,
        cookie_dir: str | os.PathLike[str] | None = None,
        at_least: int | None = None,
        bind_addr: str = LOOPBACK,
    ) -> None:
        super().__init__(count, at_least=at_least, bind_addr=bind_addr)
        self._mpiexec = words(mpiexec)
        if not self._mpiexec:
            raise ValueError("mpiexec= is empty, so there is no launcher; pass its path")
        self._flags = words(flags)
        self._cookie_dir = cookie_dir

    def __repr__(self) -> str:
        return f"MPIManager({self.count})"

    def start(self, launch: Launch) -> None:
        """Run ``mpiexec``."""
        path = _write_secret(launch.secret, self._cookie_dir)
        try:
            rank = ["sh", "-c", WRAPPER, "distpool", *launch.command("--cookie-file", path)]
            launcher = Launcher(
                [*_located(self._mpiexec), *self._flags, "-n", str(launch.count), *rank],
                self.reader,
                directory=package_folder(),
                output=launch.params.get("output", "prefix"),
            )
        except BaseException:
            os.unlink(path)
            raise
        launch.extra = launcher, path
        launcher.watch(lambda code, signum: self.no_more_come(launch, f"mpiexec has ended ({_how(code, signum)})"))

    def stop(self, launch: Launch) -> None:
        """End ``mpiexec`` if it has not ended with its last rank, and with it what is left of them."""
        self.complete(launch)
        if launch.extra is not None:
            launch.extra[0].end()

    def complete(self, launch: Launch) -> None:
        """Nobody needs the cookie's file any more."""
        if launch.extra is not None:
            with suppress(FileNotFoundError):
                os.unlink(launch.extra[1])

    def tell(self, launch: Launch) -> str:
        """What ``mpiexec`` and the ranks have printed."""
        said = launch.extra[0].last_words(LAST_WORDS_SECONDS) if launch.extra is not None else ""
        return f"what mpiexec printed:\n{said}" if said else "mpiexec printed nothing"


def _located(mpiexec: Sequence[str]) -> Sequence[str]:
    """The launcher's words; one that is not in PATH may be beside this Python."""
    name, *more = mpiexec
    beside = os.path.join(os.path.dirname(sys.executable), name)
    return [beside, *more] if shutil.which(name) is None and os.path.exists(beside) else mpiexec


def _write_secret(secret: str, folder: str | os.PathLike[str] | None) -> str:
    """Write the cookie to a new file that only this user can read; return its path."""
    try:
        fd, path = tempfile.mkstemp(prefix="distpool-", dir=folder)  # of mode 600
    except OSError as error:
        raise LaunchWorkerError(f"cannot write the cookie for the workers to cookie_dir={folder!r}: {error}") from error
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(f"{secret}\n")
    return path


def _how(code: int | None, signum: int | None) -> str:
    return f"exit code {code}" if code is not None else f"signal {signum}"
