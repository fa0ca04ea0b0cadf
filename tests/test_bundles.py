"""Many parcels in one: a bad one costs only itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distpool.bundles import bundle, unbundle
from distpool.errors import CapturedException
from distpool.pickling import Parcel, dump, dump_exception


@given(st.lists(st.one_of(st.integers(), st.text(), st.binary(max_size=20))), st.integers(0, 2))
def test_items_come_out_in_order(values: list[object], note: int) -> None:
    """With the note that went along."""
    parcel = bundle([(True, dump(value)) for value in values], note)
    got, items = unbundle(parcel.body, parcel.buffers)
    assert got == note
    assert [item.open() for item in items] == values
    assert all(item.ok for item in items)


def test_each_item_has_its_own_buffers() -> None:
    """They follow one another; none is copied."""
    np = pytest.importorskip("numpy")
    arrays = [np.arange(size) for size in (10, 1000, 5)]
    parcel = bundle([(True, dump(array)) for array in arrays])
    assert len(parcel.buffers) == sum(len(dump(array).buffers) for array in arrays)
    _, items = unbundle(parcel.body, parcel.buffers)
    for item, array in zip(items, arrays, strict=True):
        assert (item.open() == array).all()


def test_exception_is_kept_apart_from_values() -> None:
    """`ok` tells before it is opened."""
    parcel = bundle([(True, dump(1)), (False, dump_exception(ValueError("no"))), (True, dump(3))])
    _, items = unbundle(parcel.body, parcel.buffers)
    assert [item.ok for item in items] == [True, False, True]
    captured = items[1].open()
    assert isinstance(captured, CapturedException)
    assert str(captured.ex) == "no"


def test_bad_item_costs_only_itself() -> None:
    """Taking the bundle apart opens nothing."""
    parcel = bundle([(True, dump(1)), (True, Parcel(b"no pickle", [], None, False)), (True, dump(3))])
    _, items = unbundle(parcel.body, parcel.buffers)
    assert items[0].open() == 1
    with pytest.raises(Exception, match="invalid load key"):
        items[1].open()
    assert items[2].open() == 3
