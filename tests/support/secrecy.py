"""A transport of the user's own: sockets of the module ``ssl``, made by the user at both ends.

``python -c PROGRAM`` is such a worker. Everything else here runs in the test's own process.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import distpool
from distpool.authority import authority
from support.elsewhere import IMPORTS

PROGRAM = """
import socket, ssl, sys
import distpool
from support.secrecy import accepting
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
context = accepting(sys.stdin.readline().replace("|", "\\n"))
distpool.init_worker(sys.stdin.readline().strip())
distpool.process_messages(context.wrap_socket(connection, server_side=True)).join()
sys.exit("the connection was not admitted")
"""


def certificate() -> str:
    """A key and a certificate, in PEM."""
    made = authority().issue("worker")
    return made.key + made.certificate


def accepting(pem: str) -> ssl.SSLContext:
    """What the listening side needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def dialling() -> ssl.SSLContext:
    """What the other side needs, if it trusts whoever listens; the cookie tells them apart."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def encrypted_pair() -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """The two ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one, other = socket.create_connection(server.getsockname()), server.accept()[0]
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(accepting(certificate()).wrap_socket, other, server_side=True)
        return dialling().wrap_socket(one), accepted.result(30)


class OverSsl(distpool.ClusterManager):
    """Starts a worker and dials it with ``ssl``."""

    def __init__(self) -> None:
        self.connections: list[ssl.SSLSocket] = []
        self.started: list[subprocess.Popen[str]] = []

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **IMPORTS},
        )
        self.started.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin:
            stdin.write(certificate().replace("\n", "|") + f"\n{distpool.cluster_cookie()}\n")
        launched.append(distpool.WorkerConfig(host="127.0.0.1", port=int(process.stdout.readline())))

    def manage(self, pid: int, config: distpool.WorkerConfig, op: str) -> None:
        """Nothing to do."""

    def connect(self, pid: int, config: distpool.WorkerConfig) -> ssl.SSLSocket:
        self.connections.append(dialling().wrap_socket(socket.create_connection((config.host, config.port))))
        return self.connections[-1]

    def end(self) -> None:
        """End what is left, at the end of a test."""
        for process in self.started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
