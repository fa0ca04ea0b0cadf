"""Claims: what is given back, how often, and when."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

from distpool.claims import Claims, Row, by_owner, split_table, table_of, with_table
from distpool.messages import RRID

REF, OTHER = RRID(1, 1), RRID(3, 9)


def rows(claims: Claims) -> dict[int, list[Row]]:
    """What was received and is to be given back."""
    dropped = claims.take_dropped()
    assert not dropped.own
    return dropped.rows


def test_given_back_as_often_as_it_was_given() -> None:
    """Once for each message, to the credit of its sender; a mention does not count."""
    claims = Claims()
    held = [claims.received(2, REF, 1), claims.received(2, REF, 1), claims.received(2, REF, 4), claims.known(2, REF)]
    assert len({id(claim) for claim in held}) == 1
    assert rows(claims) == {}
    held.clear()
    assert claims.is_in_use
    assert rows(claims) == {2: [(REF, 1, 2), (REF, 4, 1)]}
    assert not claims.is_in_use
    assert rows(claims) == {}


def test_what_was_never_sent_is_given_back_apart() -> None:
    """A reference that was made here: once sent, its end must not overtake the news of that."""
    claims = Claims()
    held = [claims.made(2, REF), claims.made(2, RRID(1, 2))]
    claims.sent(held[1:])
    held.clear()
    dropped = claims.take_dropped()
    assert (dropped.own, dropped.rows) == ({2: [(REF, 1, 1)]}, {2: [(RRID(1, 2), 1, 1)]})


def test_nothing_is_given_back_that_was_never_given() -> None:
    """A reference that is only mentioned here was given to nobody."""
    claims = Claims()
    claims.known(2, REF)
    assert rows(claims) == {}
    assert not claims.is_in_use


def test_reference_that_comes_again_takes_over_what_was_dropped() -> None:
    """Nothing is given back while it is held again; then all of it."""
    claims = Claims()
    claims.received(2, REF, 1)
    held = claims.received(2, REF, 3)
    assert rows(claims) == {}
    assert claims.held(2, 1) == claims.held(2, 3) == [(REF, 1)]
    assert claims.held(2, 4) == claims.held(4, 1) == []
    del held
    assert rows(claims) == {2: [(REF, 1, 1), (REF, 3, 1)]}
    assert not claims.is_in_use
    assert claims.held(2, 1) == []


class Ending:
    """Runs a user's code when it ends."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.then = then

    def __del__(self) -> None:
        self.then()


def test_claim_that_comes_again_while_it_is_destroyed() -> None:
    """Python destroys deep structures in steps, and runs finalisers between the death of an object and its end."""
    claims = Claims()
    held: list[object] = []
    for depth in range(120):
        rrid = RRID(1, depth)
        structure: object = claims.received(2, rrid, 1)
        for _ in range(depth):
            structure = [structure]
        # The last is destroyed first.
        structure = [Ending(lambda rrid=rrid: held.append(claims.received(2, rrid, 1))), structure]  # type: ignore[misc]
        del structure
    held.clear()
    assert sum(count for _, _, count in rows(claims)[2]) == 240


def test_finaliser_that_makes_the_same_claim() -> None:
    """A garbage collection may run it at the very moment when the claim is made."""
    claims = Claims()
    held: list[object] = []
    threshold = gc.get_threshold()
    try:
        for number in range(30):
            rrid = RRID(1, number)
            gc.collect()
            cycle: list[object] = [Ending(lambda rrid=rrid: held.append(claims.received(2, rrid, 1)))]  # type: ignore[misc]
            cycle.append(cycle)
            del cycle
            gc.set_threshold(gc.get_count()[0] + number)  # soon, wherever that is
            held.append(claims.received(2, rrid, 1))
            gc.set_threshold(0)
            gc.collect()
    finally:
        gc.set_threshold(*threshold)
    assert (len({id(claim) for claim in held}), len(held)) == (30, 60)
    held.clear()
    assert sorted(rows(claims)[2]) == [(RRID(1, number), 1, 2) for number in range(30)]


def test_each_owner_gets_its_own() -> None:
    """By owner, and by owner for what is sent."""
    claims = Claims()
    held = [claims.received(2, REF, 1), claims.received(4, OTHER, 1)]
    assert by_owner(held) == {2: [REF], 4: [OTHER]}
    assert table_of(held) == [(2, 1, 1), (4, 3, 9)]
    held.clear()
    assert rows(claims) == {2: [(REF, 1, 1)], 4: [(OTHER, 1, 1)]}


def test_claim_in_a_cycle_is_given_back_by_the_collector() -> None:
    """Whatever ends it, its count is not lost."""
    claims = Claims()
    cycle: list[object] = [claims.received(2, REF, 1)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert rows(claims) == {2: [(REF, 1, 1)]}


def test_no_count_is_lost_among_threads() -> None:
    """One reference comes and goes in four threads while a fifth gives back: in the end all of it is given back."""
    claims = Claims()
    given_back = 0
    over = threading.Event()

    def come_and_go() -> None:
        for _ in range(5000):
            claims.received(2, REF, 1)

    def give_back() -> None:
        nonlocal given_back
        while not over.is_set() or claims.dropped:
            given_back += sum(count for _, _, count in claims.take_dropped().rows.get(2, ()))

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
