"""Numbered cases, section N: which workers are connected to which, and when.

Connections are counted in the workers themselves; the one to process 1 counts. A custom topology needs a manager that
says who is to know whom: a local one that numbers its workers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from conformance import deeds
from distpool import Channel, RemoteChannel, RemoteException, addprocs, myid, remotecall_fetch, rmprocs
from distpool.managers.local import LocalManager
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


def connections() -> int:
    """Runs in a worker: how many processes it is connected to."""
    from distpool.member import default_member

    return len(default_member().cluster.peers())


def total(pids: list[int]) -> int:
    """The connections of all these workers."""
    return sum(remotecall_fetch(connections, pid) for pid in pids)


def local_ports() -> list[int]:
    """Runs in a worker: the ports of this machine that its internet sockets have."""
    import psutil

    return sorted({each.laddr.port for each in psutil.Process().net_connections("inet")})


def reaches(one: int, other: int) -> bool:
    """Whether one worker can call another."""
    try:
        return bool(remotecall_fetch(deeds.relay, one, myid, other) == other)
    except RemoteException as error:
        if "topology" not in str(error):
            raise
        return False


@pytest.mark.case("C232")
def test_master_worker_keeps_workers_apart(workers: StartWorkers) -> None:
    """C232: a worker cannot call another; the driver reaches all, and all know of all."""
    pids = workers(4, topology="master_worker")
    with pytest.raises(RemoteException, match="topology") as caught:
        remotecall_fetch(deeds.relay, pids[0], myid, pids[1])
    assert isinstance(caught.value, RuntimeError)
    assert [remotecall_fetch(myid, pid) for pid in pids] == pids
    assert [remotecall_fetch(deeds.counts, pid) for pid in pids] == [deeds.counts()] * 4
    assert total(pids) == 4


class Numbered(LocalManager):
    """Gives the workers the numbers 1, 2, ... and wants each connected to all later ones of its parity."""

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        class Numbering:
            count = 0

            def append(self, config: Any) -> None:
                self.count += 1
                config.ident = self.count
                config.connect_idents = list(range(self.count + 2, 9, 2))
                launched.append(config)

        super().launch(params, Numbering())


@pytest.mark.case("C233")
def test_custom_topology_connects_by_ident() -> None:
    """C233: eight workers, each to be connected to the later ones of its parity: those pairs, in both directions."""
    pids = sorted(addprocs(Numbered(8), topology="custom"))
    assert total(pids) == 8 + 2 * 2 * 6
    for (a, one), (b, other) in product(enumerate(pids), enumerate(pids)):
        if one != other and (a < 3 or b < 3):
            assert reaches(one, other) is (a % 2 == b % 2), (a, b)


@pytest.mark.case("C234")
def test_topology_stays_while_there_are_workers(workers: StartWorkers) -> None:
    """C234: another topology is refused as long as there is a worker, and allowed after the last."""
    pids = workers(2)
    with pytest.raises(RuntimeError, match="topology"):
        addprocs(1, topology="master_worker")
    assert sorted(distpool.workers()) == pids
    rmprocs(pids)
    one, other = workers(2, topology="master_worker")
    assert not reaches(one, other)


@pytest.mark.case("C235")
def test_lazy_connections_come_with_the_first_call(workers: StartWorkers) -> None:
    """C235: eight workers have one connection each; each new pair that talks brings two ends, a known one none."""
    pids = workers(8)
    assert total(pids) == 8
    chance = random.Random(235)
    met: set[frozenset[int]] = set()
    while len(met) < 10:
        one, other = chance.sample(pids, 2)
        met.add(frozenset((one, other)))
        assert reaches(one, other)
        assert total(pids) == 8 + 2 * len(met)


@pytest.mark.case("C236")
def test_eager_connections_are_there_at_once(workers: StartWorkers) -> None:
    """C236: with lazy=False all pairs are connected when addprocs returns; later workers cannot be lazy, but eager."""
    pids = workers(8, lazy=False)
    assert total(pids) == 64
    with pytest.raises(ValueError, match="lazy"):
        addprocs(1, lazy=True)
    pids += workers(1, lazy=False)
    assert total(pids) == 81


@pytest.mark.case("C238")
@pytest.mark.parametrize("options", [{}, {"restrict": False}], ids=["forked", "listening"])
def test_eager_connections_use_up_no_ports(workers: StartWorkers, options: dict[str, Any]) -> None:
    """C238: many connections need few ports: a forked worker none, one that listens no other than that one."""
    pids = workers(3, lazy=False, **options)
    assert total(pids) == 9
    ports = [remotecall_fetch(local_ports, pid) for pid in pids]
    assert [len(each) for each in ports] == [1 if options else 0] * 3


@pytest.mark.case("C237")
def test_busy_worker_is_met_at_once(workers: StartWorkers) -> None:
    """C237: a worker in pure Python code is connected and answers a worker that it has never met (D#151)."""
    w1, w2 = workers(2)
    started: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
    busy = Aside(remotecall_fetch, deeds.say_and_spin, w2, started, 30.0)
    assert started.take(timeout=20) == w2
    assert reaches(w1, w2)
    remotecall_fetch(deeds.stop_spinning, w2)  # it was still spinning: else this would come too late for it to matter
    assert busy.result(20) > 0


def test_worker_that_ends_is_met_no_more(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """A connected pair loses its one connection when one of the two is removed, and the other goes on."""
    w1, w2, w3 = workers(3)
    assert reaches(w1, w2)
    rmprocs(w2)
    eventually(lambda: remotecall_fetch(connections, w1) == 1)
    with pytest.raises(distpool.ProcessExitedException):
        remotecall_fetch(deeds.relay, w1, myid, w2)
    assert reaches(w1, w3)
