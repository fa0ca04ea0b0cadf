"""A real ssh server on loopback, with keys of its own, and a client configuration by which one machine is several.

Started once per test run, as root or as any user; nothing of the user's own ssh setup is read or written. Names that
the client configuration knows::

    h1 h2 h3       this machine
    stranger       this machine, with a host key that nobody has seen
    locked         this machine, with a key that the server does not know
    chatty         this machine, with a login shell that talks, and not in whole lines
    full           this machine, with a login shell that finds the disk full
    tcsh           this machine, with that login shell, if it is installed
    nobody-there   a port where nothing listens
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

# Where distributions put it; it is not on the path of ordinary users.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
# Seconds that it may take to listen. Generous.
_START_SECONDS = 30

_SERVER = """\
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 100
MaxSessions 100
LogLevel VERBOSE
SetEnv HOME={folder}/home
"""

_CLIENT = """\
Host nobody-there
    Port 1
Host locked
    IdentityFile {folder}/other_key
Host chatty full tcsh
    IdentityFile {folder}/%n_key
Host * !locked !chatty !full !tcsh
    IdentityFile {folder}/user_key
Host stranger
    UserKnownHostsFile {folder}/empty
    StrictHostKeyChecking yes
Host *
    HostName {address}
    HostKeyAlias this-machine
    Port {port}
    User {user}
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    PasswordAuthentication no
    LogLevel ERROR
"""


# What runs in the place of the command of a login, by host: as if it stood in a start-up file of the shell.
_SHELLS = {
    "chatty": r""""echo 'Welcome to chatty!'; echo 'mind the gap' >&2; printf 'no line end'; """
    r'''eval \"$SSH_ORIGINAL_COMMAND\""''',
    "tcsh": r'''"exec tcsh -c \"$SSH_ORIGINAL_COMMAND\""''',
    "full": r'''"echo 'last login: today' > /dev/full && eval \"$SSH_ORIGINAL_COMMAND\""''',
}


class Sshd:
    """The running server; ``flags`` are what ``sshflags=`` needs to reach it.

    ``address`` is where it listens, and ``prefix`` a command to start it by: for one on another host.
    """

    def __init__(self, folder: Path, program: str, address: str, prefix: Sequence[str]) -> None:
        self.folder = folder
        self.address = address
        self.port = _free_port()
        user = pwd.getpwuid(os.getuid()).pw_name
        for name in ("host_key", "user_key", "other_key", *(f"{name}_key" for name in _SHELLS)):
            _keygen(folder / name)
        keys = [(folder / "user_key.pub").read_text()]
        keys += [f"command={shell} " + (folder / f"{name}_key.pub").read_text() for name, shell in _SHELLS.items()]
        (folder / "authorized_keys").write_text("".join(keys))
        (folder / "known_hosts").write_text("this-machine " + (folder / "host_key.pub").read_text())
        (folder / "empty").write_text("")
        (folder / "sshd_config").write_text(_SERVER.format(folder=folder, port=self.port, address=address))
        client = _CLIENT.format(folder=folder, port=self.port, user=user, address=address)
        (folder / "ssh_config").write_text(client)
        (folder / "home").mkdir()  # the start-up files of whoever runs the tests may say and do anything
        if os.getuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where the part that has no rights lives
        self.log = folder / "sshd.log"
        self.process = subprocess.Popen(
            [*prefix, program, "-D", "-E", str(self.log), "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL
        )
        self._await()

    @property
    def path(self) -> str:
        """A search path on which ``ssh`` is one that uses these flags by itself: for programs that pass none."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n')
        (folder / "ssh").chmod(0o755)
        return os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])

    @property
    def flags(self) -> list[str]:
        """Flags of an ssh client that make it use this server and nothing of the user's."""
        return ["-F", str(self.folder / "ssh_config")]

    def _await(self) -> None:
        limit = time.monotonic() + _START_SECONDS
        while self.process.poll() is None and time.monotonic() < limit:
            try:
                with socket.create_connection((self.address, self.port)) as stream:
                    if stream.recv(4) == b"SSH-":
                        return
            except OSError:
                time.sleep(0.02)
        self.close()
        raise AssertionError(f"sshd does not listen: {self.log.read_text()}")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=60)


def start_sshd(folder: Path, address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Sshd:
    """Start the server; where there is none the test is skipped, but never on the build server."""
    program = shutil.which("sshd", path=_PATH)
    if program is None or shutil.which("ssh") is None:
        reason = "there is no OpenSSH server on this machine: install openssh-server and openssh-client"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; .ci/run installs them where it can", pytrace=False)
        pytest.skip(reason)
    return Sshd(folder, program, address, prefix)
