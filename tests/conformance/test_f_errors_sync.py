"""Section F, what needs `sync`: many failures of one block as one error. C085 is in test_f_errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from distpool import CompositeException, RemoteException, spawn, sync
from support import jobs

if TYPE_CHECKING:
    from conftest import StartWorkers


def spawn_five() -> None:
    """The block with five failing tasks."""
    with sync():
        for number in range(5):
            spawn(jobs.fail, f"task {number}")


@pytest.mark.case("C086")
def test_five_failures_of_one_block(workers: StartWorkers) -> None:
    """C086: all five, in the order in which they were begun; the text has the first and the count of the others."""
    workers(2)
    with pytest.raises(CompositeException) as caught:
        spawn_five()
    errors = caught.value.exceptions
    assert len(caught.value) == 5
    assert [error.unwrap().args for error in errors if isinstance(error, RemoteException)] == [
        (f"task {number}",) for number in range(5)
    ]
    text = str(caught.value)
    assert "task 0" in text
    assert text.endswith("... and 4 more exceptions.")
    assert "task 1" not in text
