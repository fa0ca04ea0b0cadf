"""``everywhere`` and ``remotecall_eval``: code that runs in many processes, at top level of ``__main__``.

Used by users, in any thread. Code text is compiled here, so that a mistake in it is an error here, before anything is
sent; it travels as code. Where the text stands in the caller's file, it keeps its file name and lines, so tracebacks
show them. Owns nothing; what ``persist`` keeps for workers to come is kept by the member.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from types import ModuleType

from distpool.errands import run_program, run_silently
from distpool.fanout import Call, Outcome, fan_out, raise_failures
from distpool.light import TYPE_CHECKING, Any
from distpool.member import Member, default_member
from distpool.messages import DRIVER

if TYPE_CHECKING:
    from distpool.programs import Text


def everywhere(
    what: str | os.PathLike[str] | Callable[..., Any],
    /,
    *args: Any,
    pids: int | Iterable[int] | None = None,
    persist: bool = False,
    collect: bool = False,
    **kwargs: Any,
) -> Any:
    """Run code, a file or a callable in all processes, this one included; wait for all of them.

    Code text runs at top level of ``__main__`` in each process, so what it defines is there for everything sent later.
    It does not see the caller's local variables: what it needs is given by keyword, and becomes a name of ``__main__``
    too (``everywhere("", table=table)`` just defines ``table``). Public names of distpool need no import, and
    ``__file__`` is the caller's file. A ``pathlib.Path`` names a file of such code; it is read here, and relative names
    start at the directory of the caller's file. A callable is called with ``args`` and ``kwargs``, except those that
    are named like the options below (use ``functools.partial``).

    All processes are asked at the same time; this one comes last, in the calling thread. What is sent to several is
    pickled once, and large buffers are shared. Modules that code for several processes imports are imported here first
    (where that works), so that each is compiled once.

    Args:
        pids: None for all processes (``procs()``); one pid; or several. One that is named twice runs it twice.
        persist: also run it on each worker that joins later, before it gets other work. Kept once it has succeeded.
        collect: return a dict from pid to value.

    Returns the value (of the callable, or of the text's last expression) when ``pids`` is one pid, the dict with
    ``collect``, else None, and values stay where they are.

    Raises SyntaxError and TypeError (what cannot be pickled) before anything is sent. What fails in one process does
    not stop the others: for one pid the RemoteException or ProcessExitedException is raised, else a CompositeException
    with all of them, in the order of ``pids``, those of this process last. ValueError for a pid that never was,
    RuntimeError for ``persist`` on a worker.

    Julia's ``@everywhere``; an error in the own process is a RemoteException here as well.

    >>> everywhere("unit = 60")
    >>> everywhere("unit * hours", hours=24, pids=1)
    1440
    >>> everywhere(max, 3, 4, collect=True)
    {1: 4}
    """
    member = default_member()
    if persist and member.pid != DRIVER:
        raise RuntimeError(f"everywhere(persist=True) was called on process {member.pid}: only process 1 adds workers")
    targets = targets_of(member, pids)
    is_wanted = collect or isinstance(pids, int)
    call, silent = _calls(what, args, kwargs, "__main__", len(targets) > 1)
    if persist:
        outcomes = _run_and_keep(member, pids, call if is_wanted else silent, silent)
    else:
        chosen = call if is_wanted else silent
        outcomes = fan_out(member, [(pid, chosen) for pid in targets])
    return _result(member, outcomes, isinstance(pids, int) and not collect, collect)


def remotecall_eval(module: str | ModuleType, pids: int | Iterable[int] | None, code: str | os.PathLike[str]) -> Any:
    """Run code text at top level of a named module, in the processes ``pids``; the function beneath ``everywhere``.

    The module is imported there if need be. Returns the value of the last expression for one pid, else None; errors as
    for ``everywhere``. Julia's ``remotecall_eval``.

    >>> remotecall_eval("math", 1, "pi > 3")
    True
    """
    member = default_member()
    name = module.__name__ if isinstance(module, ModuleType) else module
    targets = targets_of(member, pids)
    call, silent = _calls(code, (), {}, name, len(targets) > 1)
    is_single = isinstance(pids, int)
    return _result(member, fan_out(member, [(pid, call if is_single else silent) for pid in targets]), is_single, False)


def targets_of(member: Member, pids: int | Iterable[int] | None) -> list[int]:
    """Check the pids: one that is gone fails alone, one that never was is a mistake."""
    if pids is None:
        return member.cluster.procs()
    targets = [pids] if isinstance(pids, int) else list(pids)
    for pid in targets:
        if not isinstance(pid, int):
            raise TypeError(f"pids={pids!r}: process ids are whole numbers, not {type(pid).__name__}")
        if not member.cluster.is_member(pid) and not member.cluster.was_member(pid):
            raise ValueError(f"there is no process {pid}; procs() lists those there are: {member.cluster.procs()}")
    return targets


def _calls(
    what: str | os.PathLike[str] | Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    module: str,
    is_for_several: bool,
) -> tuple[Call, Call]:
    """The call that returns its value, and the one that leaves it where it is."""
    if isinstance(what, (str, os.PathLike)):
        if args:
            raise TypeError("everywhere(code, ...) takes values for the code by keyword: everywhere('y = 2 * x', x=1)")
        text = _text(what)
        if is_for_several:
            text.import_modules()
        program = text.program(module)
        return Call(run_program, program, kwargs, True), Call(run_program, program, kwargs, False)
    if not callable(what):
        raise TypeError(f"everywhere() takes code text, a path or a callable, not a {type(what).__name__}")
    return Call(what, *args, **kwargs), Call(run_silently, what, *args, **kwargs)


def _text(what: str | os.PathLike[str]) -> Text:
    from distpool import programs  # needs the compiler's modules, which most programs do not

    frame = programs.calling_frame()
    return programs.text_of(what, frame) if isinstance(what, str) else programs.text_of_file(what, frame)


def _run_and_keep(member: Member, pids: int | Iterable[int] | None, call: Call, silent: Call) -> list[Outcome]:
    """Keep it for workers to come; one that is joining now has either run it already or is among the targets."""
    parcel = silent.parcel()
    with member.membership_lock:
        targets = targets_of(member, pids)
        # The same code again (a notebook's cell) takes the place of the first.
        member.first_calls = [each for each in member.first_calls if each.body != parcel.body or each.buffers]
        member.first_calls.append(parcel)
    outcomes = fan_out(member, [(pid, call) for pid in targets])
    if any(outcome.error is not None for outcome in outcomes):
        with member.membership_lock:
            member.first_calls = [each for each in member.first_calls if each is not parcel]
    return outcomes


def _result(member: Member, outcomes: list[Outcome], is_single: bool, collect: bool) -> Any:
    if is_single:
        (outcome,) = outcomes
        if outcome.error is not None:
            raise outcome.error
        return outcome.value
    away = [outcome for outcome in outcomes if outcome.pid != member.pid]
    raise_failures(away + [outcome for outcome in outcomes if outcome.pid == member.pid])
    return {outcome.pid: outcome.value for outcome in outcomes} if collect else None
