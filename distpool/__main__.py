"""The command line: run a program with workers, run one that knows nothing of distpool, or be a worker.

``python -m distpool -p 4 script.py`` adds four local workers and runs the script as process 1, as ``julia -p 4`` does.
``python -m distpool run script.py`` runs it with the standard library's pools replaced by ours.
``python -m distpool status`` tells what this machine offers, and what of ours runs here.
``python -m distpool --worker`` is what managers start. Also installed as the command ``distpool``.
"""

from __future__ import annotations

import io
import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    import argparse

    from distpool.managers.machines import MachineSpec

USAGE = """\
%(prog)s [-p N|auto] [--machine-file FILE] [--preload MODULE] script.py [arguments]
       %(prog)s [-p N|auto] [--machine-file FILE] [--preload MODULE] -m module [arguments]
       %(prog)s [-p N|auto] [--machine-file FILE] [--preload MODULE] -c code [arguments]
       %(prog)s run [--workers N] [--summary] script.py | -m module | -c code [arguments]
       %(prog)s status
       %(prog)s --worker[=COOKIE] [--bind-to ADDR[:PORT]]
       %(prog)s --worker --connect ADDR:PORT --ticket T [--cookie-file FILE] [--ident NAME]"""
EPILOG = """\
examples:
  %(prog)s -p auto simulation.py --steps 1000     as many workers as this process may use cores
  %(prog)s -p 2 -c "import distpool; print(distpool.workers())"
  %(prog)s -p 8 --preload numpy analysis.py        numpy is imported once, and shared by the workers
  %(prog)s status                                 cores, memory, engines, processes and problems here
  %(prog)s run --summary -m compileall -q -j 2 src   its multiprocessing and concurrent.futures pools, and joblib's
                                                default, are distpool's: see run --help
  %(prog)s --worker --bind-to 10.0.0.7            be a worker for a driver elsewhere: the cookie comes as
                                                one line on standard input, and where the worker listens
                                                is printed as distpool_worker:PORT#ADDR

environment:
  DISTPOOL_WORKER_TIMEOUT   seconds that a worker and its driver wait for each other (60)
  DISTPOOL_HOST_TIMEOUT     seconds of silence after which another host counts as gone (45)"""

# Options whose value is the next word; all others stand alone or are written with "=".
_WITH_VALUE = (
    "-p",
    "--procs",
    "--machine-file",
    "--bind-to",
    "--host",
    "--load",
    "--connect",
    "--ticket",
    "--cookie-file",
    "--ident",
    "--workers",
    "--preload",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says; ``argv`` are its words without the program's name."""
    words = sys.argv[1:] if argv is None else list(argv)
    command = COMMANDS.get(words[0]) if words else None
    if command is not None:
        command(words[1:])
        return
    ours, program = split_command(words)
    parser = _parser()
    options = parser.parse_args(ours)
    if options.worker is not None:
        if program or options.procs is not None or options.machine_file is not None or options.preload:
            parser.error("--worker runs no program and starts no workers: it is one")
        _be_worker(parser, options)
    for name in ("bind_to", "connect", "ticket", "ident", "cookie_file"):
        if getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is for a worker: it goes with --worker")
    if options.preload and options.procs is None and options.machine_file is None:
        parser.error("--preload is for the workers that -p or --machine-file add, and there are none")
    found = _arranged(parser, program)
    if options.procs is not None:
        _check_modules(parser, options.preload)
    machines = None if options.machine_file is None else _machines(parser, options.machine_file)
    if options.procs is not None:
        _add(None if options.procs < 0 else options.procs, options.preload)
    if machines is not None:
        _add(machines, options.preload)
    found.run()


def _arranged(parser: argparse.ArgumentParser, words: Sequence[str]) -> Program:
    """Find the program and set this process up for it."""
    if not words:
        parser.error("there is nothing to run: give a script, -m module or -c code (--help shows examples)")
    if len(words) == 1 and words[0] in ("-m", "-c"):
        parser.error(f"argument expected for {words[0]}")
    sys.excepthook = _show_error
    found, arguments = find_program(words)
    found.arrange(arguments)
    return found


def _show_error(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Show what ends the program as the interpreter does that runs it alone: without what stands here and above."""
    ours, rest = None, trace
    while rest is not None and (ours is None or rest.tb_frame.f_code.co_filename == __file__):
        if rest.tb_frame.f_code.co_filename == __file__:
            ours = rest
        rest = rest.tb_next
    trace = trace if ours is None else ours.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


def _run(words: Sequence[str]) -> None:
    """``distpool run``: run a program that knows nothing of us, with our pools."""
    import argparse

    from distpool.compat import install  # type: ignore[import-not-found]  # there when installed: see test_gates

    parser = argparse.ArgumentParser(
        prog="distpool run",
        usage="%(prog)s [--workers N] [--summary] script.py | -m module | -c code [arguments]",
        description="Run a program with the process pools of multiprocessing and concurrent.futures, and joblib's "
        "default backend, replaced by distpool's, wherever it makes them; otherwise as python does.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="of a pool for which the program gives no number (the usable cores)"
    )
    parser.add_argument("--summary", action="store_true", help="at the end, say on standard error what the pools did")
    ours, program = split_command(words)
    options = parser.parse_args(ours)
    if options.workers is not None and options.workers < 1:
        parser.error("--workers: a pool needs at least one worker")
    found = _arranged(parser, program)
    install(options.workers)
    if options.summary:
        import atexit

        atexit.register(_summarize, time.monotonic())  # before the program's own functions, so that it runs after them
    found.run()


def _status(words: Sequence[str]) -> None:
    """``distpool status``: tell what this machine offers, and what of ours runs here."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="distpool status",
        description="Tell what this machine offers to distpool, which of its processes run here, and what is wrong.",
        allow_abbrev=False,
    )
    parser.parse_args(words)
    from distpool.status import show

    show()


def _summarize(begun: float) -> None:
    from distpool import usage

    done = usage()
    print(
        f"distpool: pools: {done.pools}; tasks: {done.tasks}, {done.task_seconds:.2f} s of work in "
        f"{time.monotonic() - begun:.2f} s; workers: {done.workers_started} started, {done.workers_died} died, "
        f"{done.workers_replaced} replaced",
        file=sys.stderr,
    )


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return our options, and the program with its arguments, which may look like options of ours.

    >>> split_command(["-p", "2", "script.py", "-p", "3"])
    (['-p', '2'], ['script.py', '-p', '3'])
    """
    place = 0
    while place < len(words):
        word = words[place]
        if word in ("-m", "-c") or not word.startswith("-") or word == "-":
            break
        place += 2 if word in _WITH_VALUE else 1
    return list(words[:place]), list(words[place:])


def _parser() -> argparse.ArgumentParser:
    import argparse  # only here: what imports this module for its functions does not pay for it

    from distpool import __version__

    parser = argparse.ArgumentParser(
        prog="distpool",
        usage=USAGE,
        epilog=EPILOG,
        description="Run a program with workers, or be one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-p", "--procs", type=_count, metavar="N|auto", help="add N local workers first; auto: as many as usable cores"
    )
    parser.add_argument(
        "--machine-file",
        metavar="FILE",
        help="add workers on other machines through ssh: on each line [count*][user@]host[:port] [bind_addr[:port]]",
    )
    parser.add_argument(
        "--preload",
        action="append",
        default=[],
        metavar="MODULE",
        help="have these workers share a module that is imported once on each machine; may be given again",
    )
    parser.add_argument("--version", action="version", version=f"distpool {__version__}")
    worker = parser.add_argument_group("to be a worker")
    worker.add_argument(
        "--worker",
        nargs="?",
        const=True,
        metavar="COOKIE",
        help="listen for a driver that knows the secret: a line of standard input, or COOKIE, which every user of the "
        "machine can read in the list of processes",
    )
    worker.add_argument(
        "--bind-to", metavar="ADDR[:PORT]", help="listen on this numeric address (127.0.0.1) and port (any free one)"
    )
    worker.add_argument(
        "--connect",
        metavar="ADDR:PORT",
        help="listen nowhere, but go to a driver that listens there, as an engine's manager has its workers do",
    )
    worker.add_argument("--ticket", metavar="T", help="with --connect: which launch of the driver's this worker is of")
    worker.add_argument("--ident", metavar="NAME", help="with --connect: which one of them (the launcher's rank)")
    worker.add_argument(
        "--cookie-file", metavar="FILE", help="with --connect: a file of mode 600 that has the cookie as its only line"
    )
    worker.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # of a manager: see listening, dialling
    # Of an SSH manager: see hosting.
    worker.add_argument("--host", type=_count, help=argparse.SUPPRESS)
    worker.add_argument("--load", action="append", default=[], help=argparse.SUPPRESS)
    worker.add_argument("--threaded-blas", action="store_true", help=argparse.SUPPRESS)
    return parser


def _count(text: str) -> int | None:
    """The number of workers; -1 stands for auto, as argparse takes None for "not given"."""
    if text == "auto":
        return -1
    if not text.isascii() or not text.isdigit():
        raise ValueError(text)
    return int(text)


def _be_worker(parser: argparse.ArgumentParser, options: argparse.Namespace) -> NoReturn:
    if options.host is not None:
        _be_host(parser, options)
    if options.connect is not None:
        _dial_back(parser, options)
    from distpool import listening
    from distpool.tcp import LOOPBACK, parse_bind_to

    bind_to = options.bind_to or LOOPBACK
    try:
        parse_bind_to(bind_to)
    except ValueError as error:
        parser.error(f"--bind-to: {error}")
    if options.child:
        listening.start_child(bind_to)
    try:
        listening.start_watched_worker(None if options.worker is True else options.worker, bind_to)
    except ValueError as error:
        parser.error(f"--worker: {error}")


def _dial_back(parser: argparse.ArgumentParser, options: argparse.Namespace) -> NoReturn:
    from distpool.dialling import dial_back

    if options.worker is not True or options.ticket is None:
        parser.error("--connect goes with --worker, without a cookie, and with --ticket")
    try:
        dial_back(
            options.connect,
            options.ticket,
            cookie_file=options.cookie_file,
            ident=options.ident,
            is_child=options.child,
        )
    except ValueError as error:
        parser.error(f"--connect: {error}")


def _be_host(parser: argparse.ArgumentParser, options: argparse.Namespace) -> NoReturn:
    from distpool.hosting import host_workers
    from distpool.managers.machines import parse_bind

    try:
        bind = None if options.bind_to is None else parse_bind(options.bind_to)
    except ValueError as error:
        parser.error(f"--bind-to: {error}")
    count = "auto" if options.host < 0 else options.host
    cookie = None if options.worker is True else options.worker
    host_workers(count, bind, cookie, preload=options.load, threaded=options.threaded_blas)


def _machines(parser: argparse.ArgumentParser, path: str) -> Sequence[MachineSpec]:
    """The machines of a file; read before the program is arranged to run, so that a bad one costs nothing."""
    from distpool.managers.machines import read_machine_file

    try:
        return read_machine_file(path)
    except (OSError, ValueError) as error:
        parser.error(f"--machine-file: {error}")


def _check_modules(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """The workers would do without a module that is not there; who has asked for it should know."""
    import importlib.util

    for name in names:
        try:
            is_there = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            is_there = False
        if not is_there:
            parser.error(f"--preload: there is no module {name!r}")


def _add(what: int | Sequence[MachineSpec] | None, preload: Sequence[str]) -> None:
    from distpool.errors import CompositeException, LaunchWorkerError
    from distpool.membership import addprocs

    try:
        addprocs(what, preload=preload)
    except LaunchWorkerError as error:
        sys.exit(f"distpool: {error}")
    except CompositeException as error:
        sys.exit("distpool: " + "\n".join(str(each) for each in error.exceptions))


class Program:
    """A script, ``-m module`` or ``-c code``, found and compiled: what ``__main__`` will be.

    Not run by runpy: it puts the old ``__main__`` back when the program's last line is done, but threads, exit handlers
    and functions that workers ask for still belong to the program then.
    """

    def __init__(self, name: str, folder: str, code: types.CodeType, facts: dict[str, Any]) -> None:
        self._name = name  # its sys.argv[0]
        self._folder = folder  # its sys.path[0]
        self._code = code
        self._facts = facts  # what its __main__ knows of itself

    def arrange(self, arguments: Sequence[str]) -> None:
        """Set ``sys.argv`` and ``sys.path`` as the interpreter would; before workers are added, who take them over."""
        sys.argv[:] = [self._name, *arguments]
        if not getattr(sys.flags, "safe_path", False):  # the first entry is then no folder of a script's
            sys.path[0] = self._folder

    def run(self) -> None:
        """Run it as ``__main__``."""
        main_module = types.ModuleType("__main__")
        main_module.__dict__.update({"__builtins__": __builtins__, **self._facts})
        sys.modules["__main__"] = main_module
        exec(self._code, main_module.__dict__)


def find_program(words: Sequence[str]) -> tuple[Program, list[str]]:
    """Return the program and its arguments; ends this process with a message when there is no such program."""
    if words[0] == "-c":
        return Program("-c", "", compile(words[1], "<string>", "exec"), {}), list(words[2:])
    if words[0] == "-m":
        return _find_module(words[1]), list(words[2:])
    return _find_script(words[0]), list(words[1:])


def _find_script(path: str) -> Program:
    place = os.path.abspath(path)
    try:
        with io.open_code(place) as file:
            code = compile(file.read(), place, "exec")
    except OSError as error:
        print(f"distpool: can't open file {path!r}: {error}", file=sys.stderr)
        if path.isidentifier():
            print(f"distpool: it is no command either: these are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    return Program(path, os.path.dirname(os.path.realpath(path)), code, {"__file__": place})


def _find_module(name: str) -> Program:
    import importlib.util

    folder = os.getcwd()
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder  # modules of the current directory first, as with python -m
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        sys.exit(f"distpool: cannot find module {name!r}: {error}")
    loader: Any = spec.loader if spec is not None else None
    code = loader.get_code(spec.name) if spec is not None and hasattr(loader, "get_code") else None
    if spec is None or code is None:
        sys.exit(f"distpool: there is no module {name!r} that could be run")
    facts = {"__file__": spec.origin, "__spec__": spec, "__loader__": loader, "__package__": spec.parent}
    return Program(spec.origin or name, folder, code, facts)


# The first word of a command line that is no option and no program.
COMMANDS: Final[dict[str, Callable[[Sequence[str]], None]]] = {"run": _run, "status": _status}


if __name__ == "__main__":
    main()
