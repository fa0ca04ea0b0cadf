"""The tables of callbacks and statuses, and how callbacks run."""

from __future__ import annotations

import threading

import pytest

from distpool.callbacks import EXITED, STARTED, Callbacks
from distpool.threads import CallThreads


@pytest.fixture
def callbacks() -> Callbacks:
    return Callbacks(CallThreads("test callbacks", idle_seconds=0.1))


def test_all_of_an_event_run_at_the_same_time(callbacks: Callbacks) -> None:
    """None waits for another to end."""
    together = threading.Barrier(3)
    for key in ("a", "b", "c"):
        callbacks.add(STARTED, lambda pid: together.wait(20), key)
    running = callbacks.begin(STARTED, 2)
    assert [each.wait(20) for each in running] == [True] * 3
    assert [each.error for each in running] == [None] * 3


def test_error_is_kept_for_whoever_waits(callbacks: Callbacks) -> None:
    """And the others run."""
    said: list[int] = []
    callbacks.add(STARTED, lambda pid: 1 // 0, "bad")
    callbacks.add(STARTED, said.append, "good")
    bad, good = callbacks.begin(STARTED, 2)
    assert bad.wait(20)
    assert good.wait(20)
    assert isinstance(bad.error, ZeroDivisionError)
    assert (good.error, said) == (None, [2])


def test_key_is_the_function_unless_given(callbacks: Callbacks) -> None:
    """Each key belongs to one event."""

    def told(pid: int) -> None: ...

    assert callbacks.add(STARTED, told, None) is told
    with pytest.raises(ValueError, match="already"):
        callbacks.add(STARTED, told, None)
    with pytest.raises(TypeError, match="2 arguments"):
        callbacks.add(EXITED, told, None)
    with pytest.raises(KeyError):
        callbacks.remove(EXITED, told)
    callbacks.remove(STARTED, told)
    assert callbacks.begin(STARTED, 2) == []


def test_statuses_are_by_worker_and_key(callbacks: Callbacks) -> None:
    """What is forgotten is forgotten for that worker alone."""
    callbacks.set_status("reading", "mine", 2)
    callbacks.set_status("writing", "yours", 2)
    callbacks.set_status("idle", "mine", 3)
    assert (callbacks.status("mine", 2), callbacks.status("yours", 2), callbacks.status("other", 2)) == (
        "reading",
        "writing",
        None,
    )
    callbacks.forget(2)
    assert (callbacks.status("mine", 2), callbacks.status("mine", 3)) == (None, "idle")
