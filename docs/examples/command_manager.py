"""Workers at the other end of any command that opens a shell: a transport that is neither TCP nor a socket.

    python command_manager.py                                          two workers behind a local shell each
    python command_manager.py "ssh host sh" "docker exec -i box sh" "sudo -u nobody sh"
    python command_manager.py --python venv/bin/python "ssh host sh"   where python3 is not the one that has distpool

Each command is started once. Its standard input and output are the connection: nothing listens, no port is opened, and
what guards the command (a login, a container, another user) guards the worker. The other side needs a Python with
distpool in it, nothing else.

What a transport of one's own takes: ``launch`` starts something, ``connect`` returns a stream to read from and one to
write to, and at the other end a program gives its two ends to ``process_messages``. distpool does the rest: both sides
prove that they know the cluster's cookie, and calls, maps, references and calls among workers go over the streams.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

import distpool

READY = b"distpool: ready\n"
# What the other side runs. The two streams become descriptors of their own: what tasks print goes to standard error,
# where it cannot get between the messages.
WORKER = f"""\
import os
import distpool
reading, writing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
writing.write({READY!r})
writing.flush()
distpool.init_worker(reading.readline().decode().strip())
distpool.process_messages(reading, writing).join()
"""


class CommandManager(distpool.ClusterManager):
    """Starts one worker behind each command. ``python`` is the interpreter on the other side."""

    def __init__(self, commands: Sequence[str], python: str = "python3") -> None:
        self.commands = commands
        self.python = python

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        """Start the commands, all before any is waited for."""
        for command in self.commands:
            process = subprocess.Popen(
                shlex.split(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in our terminal is for us; we pass on what is for workers
            )
            launched.append(distpool.WorkerConfig(process=process, userdata=process))

    def connect(self, pid: int, config: distpool.WorkerConfig) -> tuple[IO[bytes], IO[bytes]]:
        """Have the shell become a worker, and tell it the secret: by its input, never on a command line."""
        reading, writing = config.userdata.stdout, config.userdata.stdin
        with suppress(OSError, ValueError):  # it has ended already, and so will what it says
            _say(writing, f"exec {self.python} -c {shlex.quote(WORKER)}\n")
        # A shell may read ahead, so it is told no more than this until Python has taken over; a banner is passed over.
        for line in reading:
            if line == READY:
                _say(writing, f"{distpool.cluster_cookie()}\n")
                return reading, writing
        raise distpool.LaunchWorkerError(
            f"{shlex.join(config.userdata.args)!r} ended before a worker had begun; what it said stands above. "
            f"{self.python} must be there, and have distpool: else name another one (--python)"
        )


def _say(writing: IO[bytes], text: str) -> None:
    writing.write(text.encode())
    writing.flush()


def where(number: int) -> str:
    """Some work."""
    return f"{number} squared is {number * number}, says worker {distpool.myid()} on {platform.node()}"


def main() -> None:
    """Start the workers, let each do its share, and let the first call the second."""
    parser = argparse.ArgumentParser(description="Run workers behind commands that open a shell.")
    parser.add_argument("commands", nargs="*", default=["sh", "sh"], metavar="COMMAND")
    parser.add_argument("--python", help="the interpreter on the other side (python3; for local shells this one)")
    options = parser.parse_args()
    is_here = options.commands == parser.get_default("commands")
    python = options.python or (shlex.quote(sys.executable) if is_here else "python3")
    try:
        pids = distpool.addprocs(CommandManager(options.commands, python))
    except distpool.CompositeException as failures:
        sys.exit("\n".join(map(str, failures.exceptions)))
    for answer in distpool.pmap(where, range(1, 7)):
        print(answer)
    around = distpool.remotecall_fetch(distpool.remotecall_fetch, pids[0], distpool.myid, pids[-1])
    print(f"worker {pids[0]} called worker {around}")


if __name__ == "__main__":
    main()
