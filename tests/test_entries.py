"""The table of who holds what: counts come right in any order, and what has gone is not made again."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distpool.entries import Entries
from distpool.messages import RRID

MAKER, W1, W2 = 1, 2, 3
REF = RRID(MAKER, 1)


@pytest.fixture
def entries() -> Entries:
    """A table with one entry, which only its maker holds."""
    table = Entries()
    table.find(REF)
    return table


def test_an_entry_goes_with_its_last_holder(entries: Entries) -> None:
    """And is not made again: what comes too late is told so."""
    entries.add(REF, W1, MAKER, 1)
    assert entries[REF].holders() == {MAKER, W1}
    entries.take_away(REF, MAKER, MAKER, 1)
    assert entries[REF].holders() == {W1}
    entry = entries[REF]
    entry.waiting.add("a request")
    gone = entries.take_away(REF, W1, MAKER, 1)
    assert gone == (REF, entry, ["a request"])
    assert REF not in entries
    assert entries.find(REF) is None
    assert entries.add(REF, W2, W1, 1) is None


def test_a_future_that_nobody_used_leaves_a_tombstone() -> None:
    """Its maker drops it before anything was said about it: what was sent about it may still come."""
    entries = Entries()
    assert entries.take_away(REF, MAKER, MAKER, 1) is None
    assert entries.find(REF) is None


def test_a_tombstone_knows_whether_it_was_set(entries: Entries) -> None:
    """A Future that had its value stays set for those who ask too late."""
    entries[REF].is_set = True
    entries.take_away(REF, MAKER, MAKER, 1)
    assert entries.was_set(REF)
    assert not entries.was_set(RRID(MAKER, 2))


def test_what_only_an_ended_process_held_goes(entries: Entries) -> None:
    """What it gave to others stays, and they are named: only they know what has arrived."""
    entries.add(REF, W1, MAKER, 1)
    entries.add(REF, W2, W1, 1)
    entries.take_away(REF, MAKER, MAKER, 1)
    counted, asked = entries.end(W1)
    assert [each.entry for each in counted] == [entries[REF]]
    assert asked == {W2}
    assert entries[REF].holders() == {W2}
    assert entries.add(REF, W1, W2, 1) is None, "nothing is given to a process that has ended"


@pytest.mark.parametrize("held", [0, 1, 2])
def test_who_was_given_something_by_an_ended_process_has_the_last_word(entries: Entries, held: int) -> None:
    """However much of the news about it has come."""
    entries.add(REF, W2, W1, 1)
    entries.take_away(REF, MAKER, MAKER, 1)
    entries.end(W1)
    entries.settle(W2, W1, {REF: held} if held else {})
    assert (REF in entries) == (held > 0)
    for _ in range(held):
        entries.take_away(REF, W2, W1, 1)
    assert REF not in entries


GIFTS = st.tuples(st.sampled_from([W1, W2]), st.sampled_from([MAKER, W1, W2]), st.integers(1, 3))  # to, by, how many


@given(st.lists(GIFTS), st.randoms())
def test_the_order_of_news_does_not_matter(gifts: list[tuple[int, int, int]], random: Random) -> None:
    """Whoever gave back all that it was given holds nothing in the end, whichever of the two was heard first."""
    entries = Entries()
    entries.find(REF)
    news = [(holder, giver, sign * count) for holder, giver, count in gifts for sign in (1, -1)]
    random.shuffle(news)
    for holder, giver, count in news:
        counted = entries.add(REF, holder, giver, count)
        assert counted is not None
        assert counted.orphans == []
    assert entries[REF].clients == {(MAKER, MAKER): 1}
    entries.take_away(REF, MAKER, MAKER, 1)
    assert REF not in entries
