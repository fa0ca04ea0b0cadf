"""Several calls at once: order of outcomes, one process's calls one after the other, failures apart."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from distpool import CompositeException, ProcessExitedException, myid
from distpool.fanout import Call, Outcome, fan_out, raise_failures
from distpool.member import default_member
from support import jobs

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


def test_outcomes_stand_in_the_order_of_the_calls(workers: StartWorkers) -> None:
    """Values and errors, of others and of this process."""
    w1, w2 = workers(2)
    calls = [
        (1, Call(myid)),
        (w2, Call(jobs.fail, "w2")),
        (w1, Call(myid)),
        (1, Call(jobs.fail, "here")),
        (w2, Call(myid)),
    ]
    outcomes = fan_out(default_member(), calls)
    assert [outcome.pid for outcome in outcomes] == [1, w2, w1, 1, w2]
    assert [outcome.value for outcome in outcomes] == [1, None, w1, None, w2]
    assert [type(outcome.error and outcome.error.__cause__) for outcome in outcomes].count(ValueError) == 2


def test_a_dead_process_fails_all_its_calls(workers: StartWorkers) -> None:
    """Those under way and those that were to follow; the other process is not concerned."""
    w1, w2 = workers(2)
    outcomes = fan_out(default_member(), [(w1, Call(jobs.vanish)), (w1, Call(myid)), (w2, Call(myid))])
    assert [type(outcome.error) for outcome in outcomes] == [ProcessExitedException, ProcessExitedException, type(None)]
    assert outcomes[2].value == w2


def test_nothing_is_sent_when_one_call_cannot_be_pickled(workers: StartWorkers) -> None:
    """TypeError, before the first is sent."""
    w1, w2 = workers(2)
    with pytest.raises(TypeError, match=r"args\[0\]"):
        fan_out(default_member(), [(w1, Call(jobs.vanish)), (w2, Call(jobs.identity, threading.Lock()))])
    assert [outcome.value for outcome in fan_out(default_member(), [(w1, Call(myid))])] == [w1]


def test_raise_failures() -> None:
    """All of them in one error, which knows where it went well; none, no error."""
    raise_failures([Outcome(2, "value")])
    with pytest.raises(CompositeException) as caught:
        raise_failures([Outcome(2, error=KeyError("a")), Outcome(3, 1), Outcome(4, error=KeyError("b"))])
    assert [str(error) for error in caught.value] == ["'a'", "'b'"]
    assert caught.value.pids == [3]
