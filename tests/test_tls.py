"""Encrypted connections: credentials, the authority, the socket that encrypts, and workers that are reached over it."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from conformance import deeds
from hypothesis import given
from hypothesis import strategies as st

import distpool
from distpool import tcp
from distpool.authority import Authority, authority
from distpool.cookie import MAX_CHARACTERS
from distpool.credentials import Credentials, Part, parse_secret_line, secret_line
from distpool.errors import HandshakeError, LaunchWorkerError
from distpool.member import default_member
from distpool.tls import MAX_HANDSHAKE_BYTES, PIECE_BYTES, Encryption, SecureSocket
from distpool.transport import Deadline
from support import jobs
from support.fake_ssh import FakeSsh
from support.listeners import COMMAND, Commands, listening
from support.piped import Piped

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers

OVER_TCP: dict[str, Any] = {"exeflags": ["-X", "utf8"]}  # any flag asks for an interpreter of one's own, which listens
CLUSTER = Authority()
TESTS = Path(__file__).parent


def credentials(part: Part, of: Authority = CLUSTER) -> Credentials:
    return of.issue(part)


@contextmanager
def connected(dialling: Encryption, accepting: Encryption) -> Iterator[tuple[SecureSocket, SecureSocket]]:
    """Both ends of a connection, blocking, before a byte was sent."""
    one, other = socket.socketpair()
    with one, other:
        yield dialling.dialled(one), accepting.accepted(other)


@pytest.fixture
def ends() -> Iterator[tuple[SecureSocket, SecureSocket]]:
    """A driver's end that has dialled a worker's, and their handshake done."""
    with connected(CLUSTER.encryption, Encryption(credentials("worker"), "driver")) as (driver, worker):
        thread = threading.Thread(target=driver.sendall, args=(b"hello",))
        thread.start()
        assert worker.recv(5) == b"hello"
        thread.join()
        yield driver, worker


def failures(dialling: Encryption, accepting: Encryption) -> tuple[OSError, OSError]:
    """Let two ends try; what each of them raised."""
    found: dict[str, OSError] = {}

    def attempt(name: str, end: SecureSocket) -> None:
        end.settimeout(20)
        try:
            end.sendall(name.encode())
            if not end.recv(1):
                raise ConnectionError("closed")
        except OSError as error:
            found[name] = error
            end.close()

    with connected(dialling, accepting) as (one, other):
        threads = [threading.Thread(target=attempt, args=pair) for pair in (("dialling", one), ("accepting", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found["dialling"], found["accepting"]


# -- what is told to workers -------------------------------------------------------------------------------------------


@given(cookie=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=MAX_CHARACTERS))
def test_a_secret_line_is_one_line_and_comes_back(cookie: str) -> None:
    """With certificates or without; no cookie can be taken for a line with certificates."""
    told = Credentials("authority\n", "certificate\n", "key\n")
    for line, expected in ((secret_line(cookie), None), (secret_line(cookie, told), told)):
        assert line.isascii()
        assert "\n" not in line
        assert parse_secret_line(line) == (cookie, expected)


@pytest.mark.parametrize("line", ["x" * 256, "[" + " " * 300 + "]", '{"cookie": "c"}' + " " * 300, "{" + " " * 300])
def test_a_long_line_that_is_none_is_refused(line: str) -> None:
    """And not repeated: it may be somebody's secret."""
    with pytest.raises(ValueError, match=r"too many for a cookie \(255\)") as caught:
        parse_secret_line(line)
    assert line.strip() not in str(caught.value)


def test_a_key_is_not_shown() -> None:
    """Neither credentials nor what is made of them print the key."""
    assert "PRIVATE" in CLUSTER.issue("worker").key
    assert "PRIVATE" not in repr(CLUSTER.issue("worker"))


# -- the connection ----------------------------------------------------------------------------------------------------


def test_only_the_newest_version_of_tls(ends: tuple[SecureSocket, SecureSocket]) -> None:
    """1.3 has no renegotiation, no weak ciphers, nothing to choose."""
    for end in ends:
        assert end._tls.version() == "TLSv1.3"


@pytest.mark.parametrize(("dialling", "accepting"), [("driver", "worker"), ("worker", "driver")])
def test_either_side_may_dial(dialling: Part, accepting: Part) -> None:
    """A driver dials a worker that listens, and a worker dials back."""
    pair = Encryption(credentials(dialling), accepting), Encryption(credentials(accepting), dialling)
    with connected(*pair) as (one, other):
        thread = threading.Thread(target=one.sendall, args=(b"it is me",))
        thread.start()
        assert other.recv(100) == b"it is me"
        thread.join()


def test_another_cluster_is_refused() -> None:
    """Certificates of another driver, made by the same program, are worth nothing."""
    stranger = Authority()
    dialling, accepting = failures(CLUSTER.encryption, Encryption(credentials("worker", stranger), "driver"))
    assert isinstance(dialling, HandshakeError)
    assert "none of this cluster's" in str(dialling)
    assert isinstance(accepting, HandshakeError)
    assert "tls=True must be set for both sides, and by the same driver" in str(accepting)


@pytest.mark.parametrize("is_dialling", [True, False])
def test_a_worker_cannot_play_the_driver(is_dialling: bool) -> None:
    """A worker's certificate is good for a worker: who steals one cannot command the others."""
    thief, worker = Encryption(credentials("worker"), "worker"), Encryption(credentials("worker"), "driver")
    errors = failures(thief, worker) if is_dialling else failures(worker, thief)[::-1]
    assert "is not that of a driver" in str(errors[1])


def test_who_shows_no_certificate_is_refused() -> None:
    """Encryption alone is not enough."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    one, other = socket.socketpair()
    with one, other:
        end = Encryption(credentials("worker"), "driver").accepted(other)
        found: list[OSError] = []

        def accept() -> None:
            try:
                end.recv(1)
            except OSError as error:
                found.append(error)
                end.close()

        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(OSError, match=r"certificate|ALERT|EOF|closed"):  # noqa: SIM117
            with context.wrap_socket(one) as stream:
                stream.recv(1)
        thread.join()
    assert "peer did not return a certificate" in str(found[0])


@given(data=st.binary(min_size=1, max_size=3000))
def test_garbage_is_a_handshake_error(data: bytes) -> None:
    """Whatever comes instead of TLS, the error is ours."""
    one, other = socket.socketpair()
    with one, other:
        end = WORKERS.accepted(other)
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        with pytest.raises(HandshakeError):
            end.recv(1)


def test_a_stranger_cannot_send_for_ever() -> None:
    """One that sends the pieces of an endless first message is given up."""
    one, other = socket.socketpair()
    with one, other:
        end = WORKERS.accepted(other)
        # Records of the handshake with the beginning of a first message of 100,000 bytes.
        message = b"\x01" + (100_000).to_bytes(3, "big") + bytes(100_000)
        for place in range(0, 2 * MAX_HANDSHAKE_BYTES, 1 << 12):
            one.sendall(b"\x16\x03\x01\x10\x00" + message[place : place + (1 << 12)])
        with pytest.raises(HandshakeError):
            end.recv(1)


def test_what_is_changed_on_the_way_ends_the_connection(ends: tuple[SecureSocket, SecureSocket]) -> None:
    """One bit is enough: nothing of it is taken, and what came before counts."""
    driver, worker = ends
    driver.sendall(b"before")
    assert worker.recv(100) == b"before"
    between, wire = socket.socketpair()
    with between, wire:
        real, driver._stream = driver._stream, between
        driver.sendall(b"the order")
        record = bytearray(wire.recv(1 << 16))
        record[-1] ^= 1
        real.sendall(record)
        driver._stream = real
        with pytest.raises(ssl.SSLError):
            worker.recv_into(memoryview(bytearray(100)))


def test_the_end_is_the_end(ends: tuple[SecureSocket, SecureSocket]) -> None:
    """What was sent before arrives, then the end, as from any socket."""
    driver, worker = ends
    driver.sendall(b"last words")
    driver.close()
    assert worker.recv(100) == b"last words"
    assert worker.recv(100) == b""
    assert worker.recv_into(memoryview(bytearray(10))) == 0


def test_sends_that_do_not_fit(ends: tuple[SecureSocket, SecureSocket]) -> None:
    """Without blocking: what is not reported as sent is offered again, first, and arrives once, whole, in order."""
    driver, worker = ends
    driver.setblocking(False)
    worker.setblocking(False)
    sent = bytes(range(256)) * 40_000
    left, got = [memoryview(sent[:5]), memoryview(sent[5:300_000]), memoryview(sent[300_000:])], bytearray()
    vain = 0
    while len(got) < len(sent):
        try:
            count = driver.sendmsg(left) if left else 0
        except BlockingIOError:
            vain += 1
            count = 0
        while count:
            taken = min(count, left[0].nbytes)
            left[0] = left[0][taken:]
            left = left if left[0] else left[1:]
            count -= taken
        place = memoryview(bytearray(100_003))
        try:
            got += place[: worker.recv_into(place)]
        except BlockingIOError:
            continue
    assert vain > 0
    assert bytes(got) == sent


def test_what_came_along_is_pending(ends: tuple[SecureSocket, SecureSocket]) -> None:
    """No poll tells of bytes that were received with others and not asked for; this does."""
    driver, worker = ends
    assert not worker.has_pending()
    driver.sendall(b"x" * 1000)
    assert worker.recv(1, socket.MSG_PEEK)
    assert worker.recv(10) == b"x" * 10
    assert worker.has_pending()
    assert worker.recv(1, socket.MSG_PEEK) == b"?"
    assert worker.recv(2000) == b"x" * 990
    assert not worker.has_pending()


def test_both_directions_at_once(ends: tuple[SecureSocket, SecureSocket]) -> None:
    """Two threads send while two receive, on the same two ends."""
    size = 20 * PIECE_BYTES
    results: dict[int, int] = {}

    def receive(key: int, end: SecureSocket) -> None:
        total, place = 0, memoryview(bytearray(size))
        while total < size:
            try:
                count = end.recv_into(place[total:])
            except BlockingIOError:
                continue
            total += count
        results[key] = place[:: size // 64].tobytes().count(b"a"[0] + key)

    def send(key: int, end: SecureSocket) -> None:
        left = memoryview(bytes([b"a"[0] + key]) * size)
        while left:
            try:
                left = left[end.send(left) :]
            except BlockingIOError:
                continue

    for end in ends:
        end.setblocking(False)
    threads = [threading.Thread(target=send, args=(key, ends[key])) for key in (0, 1)]
    threads += [threading.Thread(target=receive, args=(key, ends[1 - key])) for key in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: 64, 1: 64}


# -- workers -----------------------------------------------------------------------------------------------------------


class Eavesdropper(distpool.ClusterManager):
    """Starts a listening worker, and sits on the connection to it: notes all bytes, and may change one."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.flip_at = -1  # the place in what the worker sends
        self.is_flipped = threading.Event()
        self._from_worker = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._ends: list[socket.socket] = []

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(self.secret_line(params).encode() + b"\n")
        self.process.stdin.close()
        address = tcp.parse_address_line(self.process.stdout.readline().decode())
        assert address is not None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            launched.append(distpool.WorkerConfig(host="127.0.0.1", port=port, process=self.process))
            front, back = listener.accept()[0], socket.create_connection(address)
        self._ends = [front, back]
        threading.Thread(target=self._pass_on, args=(front, back, False), daemon=True).start()
        threading.Thread(target=self._pass_on, args=(back, front, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, goal: socket.socket, is_from_worker: bool) -> None:
        try:
            while data := bytearray(source.recv(1 << 16)):
                self.heard += data
                if is_from_worker:
                    place = self.flip_at - self._from_worker
                    self._from_worker += len(data)
                    if self.flip_at >= 0 and place < len(data):
                        data[max(place, 0)] ^= 1
                        self.flip_at = -1
                        self.is_flipped.set()
                goal.sendall(data)
            goal.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        for end in self._ends:
            end.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest.mark.parametrize("tls", [False, True])
def test_nobody_on_the_way_can_read(no_cluster: None, tls: bool) -> None:
    """Arguments and results are seen without TLS (so this test can see) and not with it; the cookie never is."""
    with closing(Eavesdropper()) as manager:
        (pid,) = distpool.addprocs(manager, tls=tls)
        assert distpool.remotecall_fetch(jobs.identity, pid, "a word between us") == "a word between us"
        assert distpool.remotecall_fetch(jobs.identity, pid, bytearray(b"many words " * 100_000))
        heard = bytes(manager.heard)
        distpool.rmprocs(pid)
    assert (b"a word between us" in heard) is not tls
    assert (b"many words many words" in heard) is not tls
    assert (distpool.__version__.encode() in heard) is not tls
    assert distpool.cluster_cookie().encode() not in heard


def test_nobody_on_the_way_can_change_a_word(no_cluster: None) -> None:
    """One flipped bit ends the connection, and so the worker; whoever waited is told."""
    with closing(Eavesdropper()) as manager:
        (pid,) = distpool.addprocs(manager, tls=True)
        manager.flip_at = manager._from_worker + 20
        with pytest.raises(distpool.ProcessExitedException):
            distpool.remotecall_fetch(jobs.identity, pid, "x" * 1000)
        assert manager.is_flipped.is_set()


def test_workers_over_tls(workers: StartWorkers) -> None:
    """In one word; calls, maps, references, calls among workers, much data, many buffers in one message."""
    first, second = workers(2, tls=True, **OVER_TCP)
    assert distpool.remotecall_fetch(jobs.square, first, 7) == 49
    assert distpool.pmap(jobs.square, range(300)) == [x * x for x in range(300)]
    assert distpool.fetch(distpool.remotecall(jobs.add, second, 1, 2)) == 3
    large = bytes(range(256)) * 100_000
    assert distpool.remotecall_fetch(jobs.identity, second, bytearray(large)) == large
    many = [bytearray(bytes([n % 256]) * (n % 700)) for n in range(4000)]
    assert distpool.remotecall_fetch(jobs.identity, first, many) == many
    assert distpool.remotecall_fetch(lambda: distpool.remotecall_fetch(jobs.square, second, 9), first) == 81


def test_secrets_are_not_where_others_look(workers: StartWorkers) -> None:
    """Neither the command line nor the environment of a worker has the cookie or a key."""
    (pid,) = workers(1, tls=True, **OVER_TCP)
    process = psutil.Process(distpool.remotecall_fetch(os.getpid, pid))
    shown = " ".join([*process.cmdline(), *(f"{name}={value}" for name, value in process.environ().items())])
    assert "PRIVATE" not in shown
    assert distpool.cluster_cookie() not in shown


def test_workers_on_a_socket_pair_need_none(workers: StartWorkers) -> None:
    """Forked workers have no connection that anybody else can reach: TLS is satisfied by that."""
    (pid,) = workers(1, tls=True)
    assert distpool.remotecall_fetch(jobs.square, pid, 3) == 9


def test_own_transports_are_not_taken_for_encrypted(no_cluster: None) -> None:
    """Whoever asks for encryption must not get none unawares."""
    manager = Piped(1)
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(manager, tls=True)
    assert "WorkerConfig(tls=False)" in str(caught.value.exceptions[0])
    for process in manager.started:
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
    manager.wait()


def test_a_worker_that_was_not_told(no_cluster: None) -> None:
    """A manager that hands over the cookie alone: the driver says what it saw, and what to look at."""
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(Commands((*COMMAND, "--worker")), tls=True)
    error = caught.value.exceptions[0]
    assert isinstance(error, LaunchWorkerError)
    assert "encryption" in str(error)


def test_a_plain_driver_at_an_encrypted_door(no_cluster: None) -> None:
    """The other way round; the worker lives on."""
    line = secret_line(distpool.cluster_cookie(), authority().issue("worker"))
    with listening(cookie=line) as listener:
        with listener.visit() as stream, pytest.raises(HandshakeError):
            tcp.greet(stream, Deadline(20))
        with listener.visit() as stream:
            tcp.greet(authority().encryption.dialled(stream), Deadline(20))


def test_a_wrong_cookie_inside_of_tls(no_cluster: None) -> None:
    """Certificates say who made the worker; the cookie is asked for all the same."""
    with (
        listening(cookie=secret_line("another", authority().issue("worker"))) as listener,
        listener.visit() as stream,
        pytest.raises(HandshakeError, match="knows another secret"),
    ):
        tcp.greet(authority().encryption.dialled(stream), Deadline(20))


def test_without_the_extra(run_script: RunScript) -> None:
    """The error names what to install, before anything is launched; nothing else needs it."""
    done = run_script(
        """
        import sys
        sys.modules["cryptography"] = None
        import distpool
        distpool.addprocs(1, exeflags=["-X", "utf8"])
        try:
            distpool.addprocs(1, tls=True)
        except ImportError as error:
            print(error, distpool.nprocs())
        """
    )
    assert "pip install 'distpool[tls]' 2" in done.stdout.strip()


def test_workers_need_no_extra_and_others_no_tls(workers: StartWorkers) -> None:
    """What a worker loads: the standard library's TLS if it was told to use it, and never the authority's library."""
    for tls, expected in ((False, set()), (True, {"ssl", "distpool.tls"})):
        (pid,) = workers(1, tls=tls, **OVER_TCP)
        loaded = set(distpool.remotecall_fetch(jobs.modules, pid))
        assert loaded & {"ssl", "cryptography", "distpool.tls", "distpool.authority"} == expected


def neighbours() -> list[tuple[int, bool]]:
    """Runs in a worker: to which others it has a connection over the network, and whether that is encrypted."""
    peers = default_member().cluster.peers()
    return sorted((p.pid, p.is_encrypted) for p in peers if p.pid != 1 and p._stream.family == socket.AF_INET)


def test_workers_that_dial_each_other_encrypt_that_too(no_cluster: None, tmp_path: Path) -> None:
    """What goes encrypted to the driver goes so to other workers; to one without certificates, through the driver."""
    ssh = str(FakeSsh(tmp_path).program)
    first, second = distpool.addprocs(["h1", "h2"], ssh=ssh, tls=True)
    (plain,) = distpool.addprocs(["h3"], ssh=ssh)
    (local,) = distpool.addprocs(1)
    large = bytes(range(256)) * 20_000
    for one, other in ((first, second), (second, plain), (local, first), (plain, local)):
        assert distpool.remotecall_fetch(deeds.relay, one, jobs.identity, other, large) == large
    assert distpool.remotecall_fetch(neighbours, first) == [(second, True)]
    assert distpool.remotecall_fetch(neighbours, second) == [(first, True)]
    assert distpool.remotecall_fetch(neighbours, local) == [(plain, False)]


# -- no secret, no port ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.7"])
def test_no_port_for_others_without_a_secret(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever binds outward with an empty cookie is refused before the port is open; loopback is allowed."""
    monkeypatch.setattr(tcp, "cluster_cookie", lambda: "")
    with pytest.raises(ValueError, match=f"refused to listen on {address} with an empty cookie"):
        tcp.listen(address, 0)
    tcp.listen("127.0.0.1", 0).close()


def test_a_worker_without_a_secret_ends(no_cluster: None) -> None:
    """At the command line as well."""
    done = subprocess.run(
        [*COMMAND, "--worker=", "--bind-to", "0.0.0.0"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "with an empty cookie" in done.stdout + done.stderr


WORKERS = Encryption(credentials("worker"), "driver")
