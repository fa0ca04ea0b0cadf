"""What each message does, between two members in this process: answers, withdrawals, what nobody knows."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from socket import socketpair

import pytest

from distpool import messages as m
from distpool.errors import ProcessExitedException, RemoteException
from distpool.member import Member, default_member, opening_member, process_reader
from distpool.peer import Peer, Reply
from distpool.pickling import dump
from distpool.transport import Deadline, Reader, Waiter
from support.aside import interrupt_when

WAIT = 20  # seconds; a limit for what should take none


class Pair:
    """Process 1 and process 2 of a cluster, both in this process."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.driver, self.worker = Member(1, self.reader), Member(2, self.reader)
        near, far = socketpair()
        self.to_worker: Peer = self.driver.connect(2, near)
        self.to_driver: Peer = self.worker.connect(1, far)
        self.driver.cluster.add(self.to_worker)
        self.worker.cluster.add(self.to_driver)

    def close(self) -> None:
        self.to_worker.close()
        self.to_driver.close()
        self.reader.close()

    def call(self, f: object, *args: object) -> object:
        """CALL_FETCH from process 1 to process 2."""
        frame = self.driver.request(self.to_worker, m.CALL_FETCH, dump((f, args, {})))
        return self.driver.open_answer(self.to_worker, frame)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """The process's own reader stays with it, and is no leak of the first test that asks for it."""
    default_member()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two members."""
    pair = Pair()
    yield pair
    pair.close()


def test_call_is_answered_with_the_value(pair: Pair) -> None:
    """One message there, one back."""
    assert pair.call(divmod, 7, 2) == (3, 1)


def test_call_is_answered_with_the_error(pair: Pair) -> None:
    """A RemoteException that is of the original type, too."""
    with pytest.raises(ZeroDivisionError) as caught:
        pair.call(divmod, 1, 0)
    assert isinstance(caught.value, RemoteException)
    assert caught.value.pid == 2


def test_value_that_cannot_travel_is_an_error_of_that_call(pair: Pair) -> None:
    """The connection lives."""
    with pytest.raises(TypeError, match="lock"):
        pair.call(threading.Lock)
    assert pair.call(abs, -1) == 1


def test_unknown_kind_is_ignored(pair: Pair) -> None:
    """It comes from a newer peer: the rest still works, and a descriptor that came along is closed."""
    read_end, write_end = os.pipe()
    pair.to_worker.send(m.LAST_KIND + 1, request=5, body=b"news")
    pair.to_worker.send_descriptor(m.LAST_KIND + 1, 0, write_end)
    assert pair.call(abs, -1) == 1
    assert os.read(read_end, 1) == b""
    os.close(read_end)


@pytest.mark.parametrize("kind", [m.RESULT, m.TASKS_DONE, m.TAKEN_BACK, m.JOINED])
@pytest.mark.parametrize("flags", [0, m.FLAG_LAST])
def test_answer_to_a_request_that_was_given_up_is_ignored(pair: Pair, kind: int, flags: int) -> None:
    """Nobody waits for it any more."""
    pair.to_driver.send(kind, flags, request=12345)
    assert pair.call(abs, -1) == 1


def test_result_that_came_first_is_kept_for_its_request(pair: Pair) -> None:
    """Answers come in any order; each goes to its own request."""
    gate = threading.Event()
    _gates.append(gate)
    slow, fast = Reply(), Reply()
    pair.driver.send_request(pair.to_worker, slow, m.CALL_FETCH, dump((_wait_at_gate, (), {})))
    pair.driver.send_request(pair.to_worker, fast, m.CALL_FETCH, dump((abs, (-4,), {})))
    assert pair.reader.wait(fast, Deadline(WAIT))
    assert not slow.done
    gate.set()
    assert pair.reader.wait(slow, Deadline(WAIT))
    assert pair.driver.open(pair.driver.answer_of(slow)) == "passed"
    _gates.clear()


_gates: list[threading.Event] = []


def _wait_at_gate() -> str:
    _gates[0].wait(WAIT)
    return "passed"


def test_withdraw_forgets_the_request(pair: Pair) -> None:
    """The answer, when it comes, is ignored; withdrawing again is harmless."""
    reply = Reply()
    request = pair.driver.send_request(pair.to_worker, reply, m.CALL_FETCH, dump((abs, (-1,), {})))
    pair.driver.withdraw(pair.to_worker, request)
    pair.driver.withdraw(pair.to_worker, request)
    assert pair.call(abs, -2) == 2
    assert not reply.done
    assert not pair.to_worker.pending


def test_interrupt_withdraws_the_request(pair: Pair) -> None:
    """KeyboardInterrupt comes out of the wait, and nothing is left waiting."""
    gate = threading.Event()
    _gates.append(gate)
    interrupting = interrupt_when(lambda: pair.driver.reader._waiting)
    with pytest.raises(KeyboardInterrupt):
        pair.call(_wait_at_gate)
    interrupting.join()
    assert not pair.to_worker.pending
    gate.set()
    assert pair.call(abs, -2) == 2
    _gates.clear()


def test_request_to_a_process_that_is_gone_fails_at_once(pair: Pair) -> None:
    """Whoever comes after the door for death looks itself."""
    pair.to_driver.close()
    with pytest.raises(ProcessExitedException):
        pair.call(abs, -1)
    with pytest.raises(ProcessExitedException):
        pair.call(abs, -1)


def test_fault_that_is_known_already_is_raised_when_opened(pair: Pair) -> None:
    """A value or an error whose payload was lost says why, to whoever asked for it."""
    for flags in (0, m.FLAG_ERROR):
        reply = Reply()
        pair.to_worker.pending[77] = reply
        pair.to_driver.send(m.RESULT, flags, request=77)
        assert pair.reader.wait(reply, Deadline(WAIT))
        assert reply.frame is not None
        reply.frame.error = OSError("no memory for the segment")
        with pytest.raises(OSError, match="no memory"):
            pair.driver.open_answer(pair.to_worker, reply.frame)


class FakeProcess:
    """A process that has ended before anyone watched it: the one fault of a real one."""

    os_pid = 4242
    detail = None

    def watch(self, on_exit: object) -> None:
        assert callable(on_exit)
        on_exit(7, None)

    def send_signal(self, signum: int) -> None:
        pass


def test_process_that_ended_before_it_was_watched(pair: Pair) -> None:
    """What it sent still counts, and then it departs with its exit code; all of it on the reading thread."""
    from distpool.managers.interface import WorkerConfig

    near, far = socketpair()
    threads: list[int] = []
    departed = Waiter()

    def told(pid: int, error: BaseException) -> None:
        threads.append(threading.get_ident())
        departed.complete()

    pair.driver.cluster.listen(lambda pid: None, told)
    far.close()
    pair.driver.connect(3, near, WorkerConfig(process=FakeProcess()))
    assert pair.reader.wait(departed, Deadline(WAIT))
    departure = pair.driver.cluster.departure(3)
    assert departure is not None
    assert (departure.os_pid, departure.exit_code) == (4242, 7)
    assert 3 not in pair.driver.configs


def test_references_opened_belong_to_the_member_that_opens(pair: Pair) -> None:
    """For the time of one unpickling, and nested."""
    before = opening_member()
    with pair.driver.opening():
        assert opening_member() is pair.driver
        with pair.worker.opening():
            assert opening_member() is pair.worker
        assert opening_member() is pair.driver
    assert opening_member() is before is default_member()


def test_reference_numbers_are_unique_in_the_process(pair: Pair) -> None:
    """Whatever cluster they belong to."""
    numbers = [member.next_rrid().id for member in (pair.driver, pair.worker) for _ in range(100)]
    assert len(set(numbers)) == 200


def test_one_reader_for_all_clusters() -> None:
    """Any waiting thread reads for all."""
    assert process_reader() is process_reader()
    assert default_member().reader is process_reader()
