"""What is to be done: sizes, windows, what comes back, and which error wins; without any worker."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from distpool.errors import RemoteException
from distpool.futures import Raised, TaskFuture
from distpool.jobs import ENVELOPE_SECONDS, GROWTH, CallJob, MapJob, Pace, Retries, Run, StreamJob
from distpool.jobs.inputs import FIRST_NUMBERS, FIRST_TASKS
from distpool.member import Member
from distpool.pickling import dump, load
from distpool.transport import Reader
from support.givers import Giver


def drain(job: MapJob | StreamJob, size: int) -> list[Run]:
    """All runs of a job, of that size."""
    return list(iter(lambda: job.next_run(size), None))


def stream(**options: Any) -> StreamJob:
    """A stream over 0, 1, 2 ..."""
    defaults: dict[str, Any] = {"is_ordered": True, "buffer_size": None, "workers": 2, "schedule": lambda job: None}
    return StreamJob(abs, (count(),), **{**defaults, **options})


def test_envelopes_begin_with_one_task_and_grow() -> None:
    """By at most a factor, up to what keeps a worker busy for some milliseconds."""
    job = MapJob(abs, (range(10),))
    sizes = [job.size]
    for _ in range(12):
        job.learn(job.size, job.size * 1e-6)
        sizes.append(job.size)
    assert sizes[0] == 1
    assert all(sizes[i + 1] <= sizes[i] * GROWTH for i in range(12))
    assert sizes[-1] == pytest.approx(ENVELOPE_SECONDS / 1e-6, rel=0.01)


def test_long_tasks_go_one_by_one() -> None:
    """And not ahead: the window is one envelope."""
    job = MapJob(abs, (range(10),))
    job.learn(1, 0.5)
    assert job.size == 1
    assert job.window() == 1


def test_short_tasks_have_one_envelope_ahead() -> None:
    """As soon as it is known that they are short."""
    job = MapJob(abs, (range(10),))
    assert job.window() == 1
    job.learn(1, 1e-5)
    assert job.window() == 2


def test_large_items_keep_envelopes_small() -> None:
    """Memory stays bounded."""
    job = MapJob(abs, (range(10),))
    job.item_bytes = 4 << 20
    for _ in range(5):
        job.learn(1, 1e-6)
    assert job.size == 2


def test_explicit_batch_size_is_honoured() -> None:
    """Whatever is measured."""
    job = MapJob(abs, (range(100),), batch_size=7)
    job.learn(7, 1e-6)
    assert job.next_size(4) == 7


def test_envelopes_get_smaller_near_the_end_of_known_input() -> None:
    """So that all workers end together."""
    job = MapJob(abs, (range(16),))
    for _ in range(5):
        job.learn(1, 5e-4)
    assert job.next_size(4) == 2
    assert MapJob(abs, (iter(range(16)),)).next_size(4) == 1  # length_hint knows an iterator's rest, too


def test_last_envelopes_are_worth_their_message() -> None:
    """Tasks of a microsecond are not spread one by one at the end."""
    job = MapJob(abs, (range(1000),))
    for _ in range(9):
        job.learn(1, 1e-6)
    assert job.next_size(400) == 199


def test_a_map_begins_with_the_pace_of_the_last() -> None:
    """But not with thousands: its items may be large. Single maps, and those with a batch size, are left alone."""
    pace = Pace()
    first = MapJob(abs, (range(10_000),), pace=pace)
    assert first.size == 1
    for _ in range(9):
        first.learn(1, 1e-6)
    assert first.size > FIRST_NUMBERS
    for numbers in (range(10_000), list(range(10_000)), [0.5] * 10_000):
        assert MapJob(abs, (numbers,), pace=pace).size == FIRST_NUMBERS
    for others in (iter(range(10_000)), [b""] * 10_000, []):
        assert MapJob(abs, (others,), pace=pace).size == FIRST_TASKS
    assert MapJob(abs, (range(10_000), iter(range(10_000))), pace=pace).size == FIRST_TASKS
    assert MapJob(abs, (range(10_000),), pace=pace, batch_size=3).size == 3
    assert MapJob(abs, (range(10_000),)).size == 1


def test_runs_are_numbered_in_input_order() -> None:
    """Each begins where the one before ended."""
    runs = drain(MapJob(abs, (range(10),)), 4)
    assert [(run.first, run.items) for run in runs] == [(0, [0, 1, 2, 3]), (4, [4, 5, 6, 7]), (8, [8, 9])]


def test_several_iterables_end_with_the_shortest() -> None:
    """As the built-in map."""
    job = MapJob(pow, ([1, 2, 3], [4, 5]))
    (run,) = drain(job, 9)
    assert run.items == [(1, 4), (2, 5)]
    parcel, _ = job.pack(run)
    how, items = load(parcel.body, parcel.buffers)
    assert items == run.items
    assert how == job.how


def test_what_came_back_goes_out_before_new_input() -> None:
    """In the order in which it was put there."""
    job = MapJob(abs, (range(3),))
    job.returned.extend([Run(50, ["a"]), Run(60, ["b"])])
    assert [run.first for run in drain(job, 2)] == [50, 60, 0, 2]
    assert not job.is_hungry
    job.returned.append(Run(0, [0]))
    assert job.is_hungry


def test_input_is_read_lazily() -> None:
    """Not one item more than asked for."""
    numbers = count()
    job = MapJob(abs, (numbers,))
    job.next_run(5)
    assert next(numbers) == 5


def failing(after: int) -> Iterator[int]:
    """An input that fails."""
    yield from range(after)
    raise LookupError("the input's own error")


def test_error_of_the_input_keeps_what_came_before() -> None:
    """It is raised as it is, when the results are asked for."""
    job = MapJob(abs, (failing(3),))
    run = job.next_run(10)
    assert run is not None
    assert run.items == [0, 1, 2]
    assert job.next_run(10) is None
    assert job.waiter.done
    with pytest.raises(LookupError, match="own error"):
        job.results()


def test_results_are_in_input_order() -> None:
    """However they came."""
    job = MapJob(abs, (range(6),))
    first, second = drain(job, 3)
    job.settle(second, 4, [14, 15])
    job.settle(first, 0, [10, 11, 12])
    assert not job.is_finished
    job.settle(second, 3, [13])
    assert job.is_finished
    assert job.waiter.done
    assert job.results() == [10, 11, 12, 13, 14, 15]


def test_error_of_the_lowest_index_wins() -> None:
    """Though a later task failed earlier; what is before it is waited for, what is behind it is not."""
    job = MapJob(abs, (count(),))
    run = job.next_run(10)
    assert run is not None
    job.settle(run, 7, [Raised(KeyError("seven"))])
    assert not job.is_hungry
    assert not job.is_finished
    job.settle(run, 3, [Raised(ValueError("three"))])
    job.settle(run, 0, [0, 1])
    assert not job.is_finished
    job.settle(run, 2, [2])
    assert job.is_finished
    with pytest.raises(ValueError, match="three"):
        job.results()


def test_error_of_a_task_comes_before_the_inputs() -> None:
    """When both are known."""
    job = MapJob(abs, (failing(1),))
    run = job.next_run(5)
    assert run is not None
    job.settle(run, 0, [Raised(KeyError("task"))])
    with pytest.raises(KeyError):
        job.results()


def test_ordered_stream_gives_results_in_order() -> None:
    """One that comes early waits for its turn."""
    job = stream()
    first, second = job.next_run(2), job.next_run(2)
    assert first is not None
    assert second is not None
    job.settle(second, 2, [2, 3])
    with pytest.raises(IndexError):
        job.take()
    job.settle(first, 0, [0, 1])
    assert [job.take() for _ in range(4)] == [0, 1, 2, 3]


def test_unordered_stream_gives_results_as_they_come() -> None:
    """Whatever their number."""
    job = stream(is_ordered=False)
    first, second = job.next_run(2), job.next_run(2)
    assert first is not None
    assert second is not None
    job.settle(second, 2, [2, 3])
    assert [job.take() for _ in range(2)] == [2, 3]


def test_stream_reads_no_further_ahead_than_told() -> None:
    """Though the input has no end; taking a result makes room for one."""
    job = stream(buffer_size=5)
    while job.is_hungry:
        run = job.next_run(job.next_size(2))
        assert run is not None
        job.settle(run, run.first, list(run.items))
        job.learn(1, 1e-6)
    assert job.read == 5
    job.take()
    assert job.is_hungry
    assert job.next_size(2) == 1


def test_stream_without_a_bound_has_one_of_its_own() -> None:
    """A few envelopes for each worker."""
    job = stream()
    while job.is_hungry:
        job.next_run(job.next_size(2))
    assert job.read == 8


def test_stream_is_finished_when_all_is_consumed() -> None:
    """And not when all is read."""
    job = StreamJob(abs, ([1],), is_ordered=True, buffer_size=None, workers=1, schedule=lambda job: None)
    (run,) = drain(job, 5)
    assert not job.is_finished
    job.settle(run, 0, [1])
    assert not job.is_finished
    job.take()
    assert job.is_finished


def test_demand_wakes_a_waiting_consumer_else_schedules() -> None:
    """Workers do not wait for a slow consumer."""
    scheduled: list[StreamJob] = []
    job = stream(schedule=scheduled.append)
    job.demand()
    assert scheduled == [job]
    job.consumer_waits = True
    job.demand()
    assert job.waiter.done
    assert scheduled == [job]


def test_calls_that_came_back_can_be_cancelled_again() -> None:
    """Until they are sent again."""
    reader = Reader()
    member = Member(1, reader)
    job = CallJob(abs, lambda job: None)
    futures: list[TaskFuture[int]] = [TaskFuture(member, Giver(member)) for _ in range(3)]
    job.waiting.extend((dump(((number,), {})), future) for number, future in enumerate(futures))
    run = job.next_run(10)
    assert run is not None
    assert not futures[0].cancel()
    job.put_first(run)
    assert futures[0].cancel()
    again = job.next_run(10)
    assert again is not None
    assert [future for _, future in again.items] == futures[1:]
    assert futures[1].cancel(running=True)
    assert job.unwanted(again) == [0]
    reader.close()


def test_cancelled_calls_are_left_out() -> None:
    """And the futures of the others get their results."""
    reader = Reader()
    member = Member(1, reader)
    job = CallJob(abs, lambda job: None)
    futures: list[TaskFuture[int]] = [TaskFuture(member, Giver(member)) for _ in range(3)]
    job.waiting.extend((dump(((number,), {})), future) for number, future in enumerate(futures))
    futures[1].cancel()
    run = job.next_run(10)
    assert run is not None
    assert [future for _, future in run.items] == [futures[0], futures[2]]
    job.settle(run, 0, ["a"])
    job.settle(run, 1, [Raised(ValueError("b"))])
    assert futures[0].result(0) == "a"
    with pytest.raises(ValueError, match="b"):
        futures[2].result(0)
    assert not job.is_hungry
    reader.close()


def test_delays_of_retries_in_turn() -> None:
    """As many attempts as there are delays."""
    retries = Retries([0.1, 0.2])
    error = ValueError()
    assert [retries.delay(attempt, error) for attempt in range(3)] == [0.1, 0.2, None]


def test_check_may_refuse() -> None:
    """With the exception alone, or the number of the attempt first; Julia's pair of state and verdict counts, too."""
    error = ValueError()
    assert Retries([1], lambda e: isinstance(e, KeyError)).delay(0, error) is None
    assert Retries([1], lambda attempt, e: attempt == 1).delay(0, error) == 1
    assert Retries([1], lambda attempt, e: ("state", False)).delay(0, error) is None
    assert not isinstance(error, RemoteException)
