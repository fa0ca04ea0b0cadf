"""How many cores there are to use, and who is asked to add and remove. Real workers are in the conformance tests."""

from __future__ import annotations

import os

import pytest

from distpool import addprocs, myid, nprocs, nworkers, procs, rmprocs, workers
from distpool.errors import ProcessExitedException
from distpool.joining import _stillborn
from distpool.membership import Removal, usable_cores


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """The default cluster's reader stays with the process, and is no leak of the first test that asks for it."""
    myid()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_usable_cores_follow_the_affinity() -> None:
    """A process that may use one core has one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= usable_cores() <= len(before)


def test_alone() -> None:
    """Before any addprocs."""
    if workers() == [1]:
        assert (myid(), procs(), nprocs(), nworkers()) == (1, [1], 1, 1)


@pytest.mark.parametrize("what", [-1, True, "two", 1.5])
def test_addprocs_refuses_what_is_no_number(what: object) -> None:
    """At the call."""
    with pytest.raises((TypeError, ValueError)):
        addprocs(what)  # type: ignore[arg-type]


def test_addprocs_refuses_unknown_options() -> None:
    """And names those there are."""
    with pytest.raises(TypeError, match="topology"):
        addprocs(1, nonsense=1)


def test_rmprocs_of_a_process_that_never_was() -> None:
    """A ValueError."""
    with pytest.raises(ValueError, match="never was"):
        rmprocs(987654)


def test_rmprocs_of_process_1_only_warns() -> None:
    """It cannot be removed."""
    with pytest.warns(RuntimeWarning, match="process 1"):
        rmprocs(1)


def test_removal_raises_what_it_met() -> None:
    """When waited for; TimeoutError while it goes on."""
    removal = Removal([2])
    assert not removal.isready()
    with pytest.raises(TimeoutError, match=r"\[2\]"):
        removal.wait(0)

    def fail() -> None:
        raise OSError("no")

    removal.run(fail)
    assert removal.isready()
    with pytest.raises(OSError, match="no"):
        removal.wait()


def test_worker_that_ends_before_it_joins_has_lost_no_work() -> None:
    """The error says how it ended, and does not advise to run anything again."""
    text = _stillborn(7, ProcessExitedException(7, exit_code=3))
    assert "exited with code 3" in text
    assert "lost" not in text
    assert "no reply" in _stillborn(7, RuntimeError("no reply"))
