"""Section N, the low level: ids of references, which process is at the other end, lines of output."""

from __future__ import annotations

import io
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool.member import default_member
from support.piped import Piped

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers


class Told:
    """Says, once it has been unpickled, for whom it was pickled."""

    def __init__(self, peer: int | None = None) -> None:
        self.peer = peer

    def __reduce__(self) -> tuple[Any, ...]:
        return Told, (distpool.current_peer(),)


def told(item: Told) -> tuple[int | None, int]:
    """Return for whom the argument was pickled, and who we are."""
    return item.peer, distpool.myid()


def tell(_: object = None) -> Told:
    """Return something that is pickled on its way back."""
    return Told()


def ask_other(pid: int) -> tuple[int | None, int]:
    """Send one from here to another worker."""
    return distpool.remotecall_fetch(told, pid, Told())


# -- references --------------------------------------------------------------------------------------------------------


@pytest.mark.case("C214")
def test_ids_of_references(workers: StartWorkers) -> None:
    """C214: whence is the maker, where the owner; no two share an id; usable as a key."""
    (w1,) = workers(1)
    channel: distpool.RemoteChannel[int] = distpool.RemoteChannel(lambda: distpool.Channel(1), pid=w1)
    rrid = distpool.remoteref_id(channel)
    assert (rrid.whence, channel.where) == (1, w1)
    assert rrid == (1, rrid.id)
    futures: list[distpool.Future[int]] = [distpool.Future(w1) for _ in range(100)]
    ids = {distpool.remoteref_id(ref): ref for ref in (channel, *futures)}
    assert len(ids) == 101
    assert ids[rrid] is channel
    made_there: distpool.Future[int] = distpool.remotecall_fetch(distpool.Future, w1)
    assert distpool.remoteref_id(made_there).whence == w1
    assert distpool.remotecall_fetch(distpool.remoteref_id, w1, channel) == rrid, "the same everywhere"
    with pytest.raises(TypeError, match="not a list"):
        distpool.remoteref_id([])


@pytest.mark.case("C215")
def test_the_channel_behind_a_reference(workers: StartWorkers) -> None:
    """C215: at the owner the very object; elsewhere, and for unknown ids, LookupError; nothing is created."""
    (w1,) = workers(1)
    mine: distpool.Channel[str] = distpool.Channel(2)
    channel: distpool.RemoteChannel[str] = distpool.RemoteChannel(lambda: mine)
    rrid = distpool.remoteref_id(channel)
    assert distpool.channel_from_id(rrid) is mine
    distpool.channel_from_id(rrid).put("seen")
    assert distpool.remotecall_fetch(distpool.take, w1, channel) == "seen"
    kept = len(default_member().store)
    for unknown in ((1, 10**9), (0, 0), (w1, 1)):
        with pytest.raises(LookupError):
            distpool.channel_from_id(unknown)
    assert len(default_member().store) == kept
    with pytest.raises(LookupError):
        distpool.remotecall_fetch(distpool.channel_from_id, w1, tuple(rrid))


def test_isopen_is_for_channels() -> None:
    """The verb for Channel and RemoteChannel; a Future is never closed."""
    channels: list[Any] = [distpool.Channel(1), distpool.RemoteChannel(lambda: distpool.Channel(1))]
    for channel in channels:
        assert distpool.isopen(channel)
        distpool.close(channel)
        assert not distpool.isopen(channel)
    with pytest.raises(TypeError, match="isopen"):
        distpool.isopen([])


# -- for whom something is pickled -------------------------------------------------------------------------------------


@pytest.mark.case("C216")
def test_the_receiver_is_known_to_reducers(workers: StartWorkers) -> None:
    """C216: inside a custom reducer, current_peer() is the process that gets it, in every kind of message."""
    w1, w2 = workers(2)
    assert distpool.remotecall_fetch(told, w1, Told()) == (w1, w1)
    assert distpool.remotecall_fetch(told, w2, Told()) == (w2, w2)
    assert distpool.remotecall(told, w2, Told()).fetch() == (w2, w2)
    assert distpool.remotecall_wait(told, w1, Told()).fetch() == (w1, w1)
    assert distpool.remotecall_fetch(tell, w1).peer == 1
    assert distpool.remotecall(tell, w1).fetch().peer == 1
    assert distpool.remotecall_fetch(ask_other, w1, w2) == (w2, w2)
    channel: distpool.RemoteChannel[Told] = distpool.RemoteChannel(lambda: distpool.Channel(1), pid=w1)
    channel.put(Told())
    assert distpool.remotecall_fetch(lambda: channel.take().peer, w1) == w1
    assert all(peer == pid for peer, pid in distpool.pmap(told, [Told() for _ in range(20)]))
    assert {item.peer for item in distpool.pmap(tell, range(20))} == {1}


@pytest.mark.case("C216")
def test_the_receiver_is_known_in_this_thread_only(workers: StartWorkers) -> None:
    """Outside of messages it is the own pid, also right after one, and while another message is made within one."""
    (w1,) = workers(1)
    assert distpool.current_peer() == 1
    assert distpool.remotecall_fetch(distpool.current_peer, w1) == w1

    class Failing:
        def __reduce__(self) -> tuple[Any, ...]:
            raise ValueError(f"not for {distpool.current_peer()}")

    with pytest.raises(TypeError) as caught:
        distpool.remotecall_fetch(len, w1, Failing())
    assert str(caught.value.__cause__) == f"not for {w1}"
    assert distpool.current_peer() == 1


@pytest.mark.case("C216")
def test_the_process_behind_a_socket(workers: StartWorkers) -> None:
    """C216: the connection's own socket leads to its process; an unrelated one to -1; a buffer is here."""
    (w1,) = workers(1)
    stream = default_member().cluster.peer(w1)._stream
    assert distpool.worker_id_from_socket(stream) == w1
    one, other = socket.socketpair()
    with one, other:
        assert distpool.worker_id_from_socket(one) == -1
    assert distpool.worker_id_from_socket(io.BytesIO()) == 1
    assert distpool.remotecall_fetch(lambda: distpool.worker_id_from_socket(io.BytesIO()), w1) == w1
    distpool.rmprocs(w1)
    assert distpool.worker_id_from_socket(stream) == -1, "it is nobody's any more"


@pytest.mark.case("C216")
@pytest.mark.usefixtures("no_cluster")
def test_the_process_behind_a_stream() -> None:
    """Of a transport of the user's, either stream will do."""
    manager = Piped(1)
    (pid,) = distpool.addprocs(manager)
    (process,) = manager.started
    assert distpool.worker_id_from_socket(process.stdin) == pid
    assert distpool.worker_id_from_socket(process.stdout) == pid
    distpool.rmprocs(pid)
    assert distpool.worker_id_from_socket(process.stdin) == -1
    manager.wait()


# -- output ------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print on both streams, through Python and below it."""
    print(text)
    print(text, file=sys.stderr)
    sys.stdout.flush()
    os.write(1, f"C {text}\n".encode())


@pytest.mark.case("C241")
def test_lines_of_workers(workers: StartWorkers, capfd: pytest.CaptureFixture[str]) -> None:
    """C241a, b: each line with its number, on the stream it was written to, never mixed within a line."""
    pids = workers(2)
    for pid in pids:
        distpool.remotecall_fetch(say, pid, "hi" * 2000)
    distpool.rmprocs(pids)
    out, err = capfd.readouterr()
    for pid in pids:
        assert f"From worker {pid}:\t{'hi' * 2000}\n" in out
        assert f"From worker {pid}:\tC {'hi' * 2000}\n" in out
        assert f"From worker {pid}:\t{'hi' * 2000}\n" in err
    assert out.count("\n") == 4
    assert err.count("\n") == 2


@pytest.mark.case("C241")
def test_a_line_without_an_end(workers: StartWorkers, capfd: pytest.CaptureFixture[str]) -> None:
    """C241b: is shown when the worker ends."""
    (pid,) = workers(1)
    distpool.remotecall_fetch(os.write, pid, 1, b"no line end")
    distpool.rmprocs(pid)
    assert capfd.readouterr().out.strip() == f"From worker {pid}:\tno line end"


@pytest.mark.case("C241")
def test_a_hook_that_raises(workers: StartWorkers, capfd: pytest.CaptureFixture[str]) -> None:
    """C241c: default formatting, nothing lost."""

    def hook(pid: int, stream: str, line: str) -> str:
        raise RuntimeError("the hook")

    (pid,) = workers(1, output=hook)
    distpool.remotecall_fetch(print, pid, "hi")
    distpool.remotecall_fetch(print, pid, "hi again")
    distpool.rmprocs(pid)
    out = capfd.readouterr().out
    assert f"From worker {pid}:\thi\n" in out
    assert f"From worker {pid}:\thi again\n" in out


# -- the four names of managers are methods ----------------------------------------------------------------------------


def test_a_manager_must_define_launch(no_cluster: None) -> None:
    """The others have defaults."""

    class Nothing(distpool.ClusterManager):
        pass

    with pytest.raises(NotImplementedError, match="launch"):
        distpool.addprocs(Nothing())
    manager, config = Nothing(), distpool.WorkerConfig()
    manager.manage(1, config, "register")
    manager.kill(1, config)
    with pytest.raises(distpool.LaunchWorkerError, match="neither stream, nor io"):
        manager.connect(2, config)


def test_imports_stay_light(run_script: RunScript) -> None:
    """A forked worker loads nothing of transports, relays or tests."""
    done = run_script(
        """
        import distpool, sys
        (pid,) = distpool.addprocs(1)
        loaded = distpool.remotecall_fetch(lambda: [name for name in __import__("sys").modules], pid)
        print({"distpool.streams", "distpool.relays", "distpool.testing", "distpool.connections"} & set(loaded))
        """
    )
    assert done == (0, "set()\n", "")
