"""Segments and the shared page: copied once, private to each receiver, gone with the last view."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distpool import segments
from distpool.segments import ALIGNMENT, Segment, SharedPage, anonymous_file, fresh_memory, map_buffers, temporary_file

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
both_kinds = pytest.mark.parametrize("create", [None, temporary_file], ids=["memory", "temporary file"])
Create = Callable[[], int] | None


def stored_and_mapped(*buffers: bytes, create: Create = None) -> list[memoryview]:
    """There and back in one process."""
    with Segment.store([memoryview(buffer) for buffer in buffers], create) as segment:
        return map_buffers(os.dup(segment.fd), segment.lengths)


def mapped_files() -> int:
    """How many mappings of our memory files this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:distpool")


def open_fds() -> int:
    return len(os.listdir("/dev/fd"))


def in_a_child(work: Callable[[], object]) -> int:
    """Run this in a forked child; returns its exit status, 0 if it returned."""
    os_pid = os.fork()
    if os_pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(os_pid, 0)[1])


# -- anonymous files


@both_kinds
def test_an_anonymous_file_has_its_size_and_no_name(create: Create) -> None:
    """Nothing appears in /dev/shm or in the directory for temporary files."""
    import tempfile

    places = [place for place in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(place)]

    def named() -> set[str]:
        return {name for place in places for name in os.listdir(place) if name.startswith("distpool-")}

    before = named()
    fd = anonymous_file(12_345, create)
    assert os.fstat(fd).st_size == 12_345
    assert os.fstat(fd).st_nlink == 0
    assert not os.get_inheritable(fd)
    assert named() <= before
    os.close(fd)


def test_an_impossible_size_is_an_error_and_leaves_nothing_open() -> None:
    """The `leaks` fixture counts, too."""
    before = open_fds()
    with pytest.raises((OSError, OverflowError)):
        anonymous_file(-1)
    assert open_fds() == before


def test_without_memory_files_a_temporary_file_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems that have none, or forbid them."""

    def forbidden(*_: object) -> int:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    assert bytes(stored_and_mapped(b"content")[0]) == b"content"


# -- segments


@both_kinds
@given(buffers=st.lists(st.binary(max_size=300), max_size=6))
def test_what_is_stored_is_mapped(create: Create, buffers: list[bytes]) -> None:
    """Any number of buffers of any length, empty ones too, each aligned."""
    views = stored_and_mapped(*buffers, create=create)
    assert [bytes(view) for view in views] == buffers
    assert not any(view.readonly for view in views)
    for view in views:
        if view.nbytes:
            assert np.frombuffer(view, np.uint8).ctypes.data % ALIGNMENT == 0


def test_buffers_of_any_format_are_stored_as_their_bytes() -> None:
    """Two-dimensional, of 8 bytes an item: contiguous is enough."""
    array = np.arange(12.0).reshape(3, 4)
    with Segment.store([array.data, memoryview(b"")]) as segment:
        assert segment.lengths == (96, 0)
        assert segment.nbytes == 128  # the empty one begins at the next multiple of 64
        first, second = map_buffers(os.dup(segment.fd), segment.lengths)
    assert np.array_equal(np.frombuffer(first).reshape(3, 4), array)
    assert second.nbytes == 0


@both_kinds
def test_writing_into_a_view_changes_nobody_elses(create: Create) -> None:
    """Not the sender's, not another receiver's, in this process or in another."""
    source = bytearray(b"original" * 10_000)
    with Segment.store([memoryview(source)], create) as segment:
        (first,) = map_buffers(os.dup(segment.fd), segment.lengths)
        (second,) = map_buffers(os.dup(segment.fd), segment.lengths)
        first[:8] = b"changed!"

        def look_and_write() -> None:
            (third,) = map_buffers(segment.fd, segment.lengths)
            assert bytes(third) == bytes(source)
            third[:8] = b"CHANGED!"

        assert in_a_child(look_and_write) == 0
    assert bytes(first[:8]) == b"changed!"
    assert bytes(second) == bytes(source) == b"original" * 10_000


@linux
def test_a_stored_segment_cannot_be_altered() -> None:
    """Whoever gets the descriptor can neither write to it nor shrink it under a reader's feet."""
    with Segment.store([memoryview(b"fixed")]) as segment:
        with pytest.raises(PermissionError):
            os.pwrite(segment.fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, 0)


def test_a_file_too_small_for_its_buffers_is_refused_and_closed() -> None:
    """Reading it would be a SIGBUS."""
    fd = anonymous_file(10)
    with pytest.raises(ValueError, match="10 bytes"):
        map_buffers(fd, [11])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


@linux
def test_the_mapping_goes_with_the_last_view() -> None:
    """Arrays over a view keep it alive, and nothing else does."""
    before = mapped_files()
    views = stored_and_mapped(bytes(5000), bytes(5000))
    array = np.frombuffer(views[1], np.uint8)
    assert mapped_files() == before + 1
    del views
    gc.collect()
    assert mapped_files() == before + 1
    assert array.sum() == 0
    del array
    gc.collect()
    assert mapped_files() == before


def test_three_thousand_mappings_need_no_descriptors() -> None:
    """All alive at once under a limit of 256 open files."""
    before, (soft, hard) = open_fds(), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        views = [stored_and_mapped(b"%d" % number)[0] for number in range(3000)]
        assert open_fds() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [int(bytes(view)) for view in views] == list(range(3000))


def test_lengths_beyond_four_gigabytes() -> None:
    """A sparse file of more than 5 GiB, touched at its ends only."""
    gigabyte = 1 << 30
    fd = anonymous_file(5 * gigabyte + ALIGNMENT + 3)
    os.pwrite(fd, b"first", 0)
    os.pwrite(fd, b"last", 5 * gigabyte - 4)
    os.pwrite(fd, b"end", 5 * gigabyte + ALIGNMENT)
    first, second = map_buffers(fd, [5 * gigabyte + 1, 3])
    assert first.nbytes == 5 * gigabyte + 1
    assert (bytes(first[:5]), bytes(first[-5:-1]), bytes(second)) == (b"first", b"last", b"end")


def test_more_than_one_write_makes_a_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems limit the size of a write; the limit is made small here instead of the buffer large."""
    monkeypatch.setattr(segments, "_MOST_BYTES_PER_WRITE", 7)
    assert bytes(stored_and_mapped(b"a buffer of many writes")[0]) == b"a buffer of many writes"


def test_without_ctypes_mapping_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then each mapping costs a descriptor (before Python 3.13)."""
    monkeypatch.setattr(segments, "_libc", lambda: None)
    assert bytes(stored_and_mapped(b"content")[0]) == b"content"


def test_a_lack_of_descriptors_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a wrong buffer or a leak."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Segment.store([memoryview(b"x")])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 4096, (2 << 20) - 1, 2 << 20, 20_000_001])
def test_fresh_memory_is_zero_and_writable(size: int) -> None:
    """Of exactly the size asked for, on both sides of where huge pages begin."""
    memory = fresh_memory(size)
    assert memory.nbytes == size
    if size:
        memory[-1] = 7
        assert (memory[0] if size > 1 else 0, memory[-1]) == (0, 7)


# -- the shared page


@both_kinds
def test_all_processes_see_one_page(create: Create) -> None:
    """Words written by a process that is then killed stay; each slot is eight words of 64 bits."""
    page = SharedPage.create(3, create)
    page.slot(1)[7] = 2**64 - 1

    def write_and_die() -> None:
        other = SharedPage.open(os.dup(page.fd))
        assert other.slots == 3
        assert other.slot(1)[7] == 2**64 - 1
        other.slot(2)[0] = 42
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(write_and_die) == -signal.SIGKILL
    assert [page.slot(index).tolist() for index in range(3)] == [[0] * 8, [0] * 7 + [2**64 - 1], [42] + [0] * 7]
    page.close()
    page.close()
    assert page.slot(2)[0] == 42


def test_slots_are_handed_out_once_until_freed() -> None:
    """By several threads; None when all are taken; a slot comes back zeroed."""
    page = SharedPage.create(40)
    taken: list[int | None] = []
    threads = [threading.Thread(target=lambda: taken.extend(page.allocate() for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index for index in taken if index is not None) == list(range(40))
    assert page.allocate() is None
    page.slot(5)[0] = 1
    page.free(5)
    assert page.slot(5)[0] == 1
    assert page.allocate() == 5
    assert page.slot(5)[0] == 0
    page.close()


def test_wrong_slots_are_refused() -> None:
    """Neither beyond the page nor freed twice."""
    page = SharedPage.create(2)
    with pytest.raises(IndexError):
        page.slot(2)
    with pytest.raises(IndexError):
        page.slot(-1)
    with pytest.raises(ValueError, match="not allocated"):
        page.free(0)
    page.close()
