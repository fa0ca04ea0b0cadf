"""Claims: what is given back, how often, and when."""

from __future__ import annotations

import gc
import threading

from distpool.claims import Claims, by_owner, split_table, table_of, with_table
from distpool.messages import RRID

REF, OTHER = RRID(1, 1), RRID(3, 9)


def test_given_back_as_often_as_it_was_given() -> None:
    """Once for its making and once for each message; a mention does not count."""
    claims = Claims()
    held = [claims.made(2, REF), claims.received(2, REF), claims.received(2, REF), claims.known(2, REF)]
    assert len({id(claim) for claim in held}) == 1
    assert claims.take_dropped() == {}
    held.clear()
    assert claims.is_in_use
    assert claims.take_dropped() == {2: [(REF, 3)]}
    assert not claims.is_in_use
    assert claims.take_dropped() == {}


def test_nothing_is_given_back_that_was_never_given() -> None:
    """A reference that is only mentioned here was given to nobody."""
    claims = Claims()
    claims.known(2, REF)
    assert claims.take_dropped() == {}
    assert not claims.is_in_use


def test_reference_that_comes_again_is_counted_anew() -> None:
    """What is about to be given back is given back, whatever comes meanwhile."""
    claims = Claims()
    claims.received(2, REF)
    held = claims.received(2, REF)
    assert claims.take_dropped() == {2: [(REF, 1)]}
    assert claims.is_in_use
    del held
    assert claims.take_dropped() == {2: [(REF, 1)]}
    assert not claims.is_in_use


def test_each_owner_gets_its_own() -> None:
    """By owner, and by owner for what is sent."""
    claims = Claims()
    held = [claims.received(2, REF), claims.received(4, OTHER)]
    assert by_owner(held) == {2: [REF], 4: [OTHER]}
    assert table_of(held) == [(2, 1, 1), (4, 3, 9)]
    held.clear()
    assert claims.take_dropped() == {2: [(REF, 1)], 4: [(OTHER, 1)]}


def test_claim_in_a_cycle_is_given_back_by_the_collector() -> None:
    """Whatever ends it, its count is not lost."""
    claims = Claims()
    cycle: list[object] = [claims.received(2, REF)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert claims.take_dropped() == {2: [(REF, 1)]}


def test_no_count_is_lost_among_threads() -> None:
    """One reference comes and goes in four threads while a fifth gives back: in the end all of it is given back."""
    claims = Claims()
    given_back = 0
    over = threading.Event()

    def come_and_go() -> None:
        for _ in range(5000):
            claims.received(2, REF)

    def give_back() -> None:
        nonlocal given_back
        while not over.is_set() or claims.dropped:
            given_back += sum(count for _, count in claims.take_dropped().get(2, ()))

    giving = threading.Thread(target=give_back)
    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in [giving, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    giving.join()
    assert given_back == 20_000


def test_table_stands_in_front_of_the_body() -> None:
    """Readable without opening the body, and an empty one, too."""
    for table in ([], [(2, 1, 7), (1, 2**40, 2**50)]):
        numbers, body = split_table(with_table(table, b"body"))
        assert (numbers, bytes(body)) == (table, b"body")
