"""How soon workers are there, by ssh and by each engine, beside the bare command that starts as many Pythons.

    python -m tests.bench.elsewhere [--rounds 7] [--markdown FILE] [local ssh mpi slurm-step slurm-job ray dask]

Needs the extra ``test``, and for each place what its tests need (``tests/engines.sh``); what is missing is left out and
said. Everything is started on this machine: an ssh server, a Slurm of two nodes, a Ray and a Dask of the tests' own.
The two of a row take turns; a figure is the time until `addprocs` returns, or until the bare command has ended.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

BARE = [sys.executable, "-c", "pass"]
EIGHT = [f"m{number}" for number in range(8)]  # names of this machine, to the tests' ssh

Measure = Callable[[], object]


class Row(NamedTuple):
    """What is measured side by side, each until it is there or has ended."""

    title: str
    bare: Measure | None
    ours: Measure


# -- what runs in each place; in a process of its own ------------------------------------------------------------------


def _adding(*args: Any, **options: Any) -> Measure:
    def add() -> object:
        import distpool

        return distpool.addprocs(*args, **options)

    return add


def _running(*commands: Sequence[str]) -> Measure:
    """All at once, until the last has ended."""

    def run() -> None:
        started = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
        assert not any([each.wait(120) for each in started])

    return run


def _workers(n: int) -> str:
    return "1 worker" if n == 1 else f"{n} workers"


def local_rows(_: Sequence[str]) -> Iterator[Row]:
    """Forked from a server that has been started, and fresh interpreters."""
    yield Row("this machine, 1 worker", None, _adding(1))
    yield Row("this machine, 4 workers", None, _adding(4))
    yield Row("this machine, 1 fresh interpreter", _running(BARE), _adding(1, exeflags=["-X", "utf8"]))


def ssh_rows(flags: Sequence[str]) -> Iterator[Row]:
    """Logins to loopback."""
    for title, options in (("ssh, 1 worker", {}), ("ssh, 1 worker, `tunnel=True`", {"tunnel": True})):
        yield Row(title, _running(["ssh", *flags, "h1", *BARE]), _adding(["h1"], sshflags=list(flags), **options))
    logins = [["ssh", *flags, host, *BARE] for host in EIGHT]
    machines = [(host, 8) for host in EIGHT]
    yield Row("ssh, 8 hosts with 8 workers each", _running(*logins), _adding(machines, sshflags=list(flags)))


def mpi_rows(_: Sequence[str]) -> Iterator[Row]:
    """Whatever mpiexec is first in PATH."""
    from distpool import MPIManager

    as_root = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }
    os.environ.update(as_root)
    for n in (1, 4):
        yield Row(f"MPI, {_workers(n)}", _running(["mpiexec", "-n", str(n), *BARE]), _adding(MPIManager(n)))


def slurm_step_rows(_: Sequence[str]) -> Iterator[Row]:
    """Steps of an allocation."""
    from distpool import SlurmManager

    for n in (1, 4):
        yield Row(
            f"Slurm, in an allocation, {_workers(n)}", _running(["srun", "-n", str(n), *BARE]), _adding(SlurmManager(n))
        )


def slurm_job_rows(_: Sequence[str]) -> Iterator[Row]:
    """Jobs of their own."""
    from distpool import SlurmManager

    for n in (1, 4):
        wrap = f"srun {sys.executable} -c pass"
        bare = ["sbatch", "-Q", "--wait", "-o", "/dev/null", "-n", str(n), "--wrap", wrap]
        yield Row(f"Slurm, by `sbatch`, {_workers(n)}", _running(bare), _adding(SlurmManager(n)))


def ray_rows(_: Sequence[str]) -> Iterator[Row]:
    """Actors on a node of four cores."""
    import ray

    from distpool import RayManager
    from support.ray import PORT

    address = f"127.0.0.1:{PORT}"
    ray.init(address=address, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="ERROR")

    class Bare:
        def run(self) -> int:
            return subprocess.run(BARE).returncode

    actor: Any = ray.remote(num_cpus=1)(Bare)

    def bare(n: int) -> Measure:
        return lambda: ray.get([each.run.remote() for each in [actor.remote() for _ in range(n)]])

    for n in (1, 4):
        yield Row(f"Ray, {_workers(n)}", bare(n), _adding(RayManager(n), timeout=120))


def dask_rows(words: Sequence[str]) -> Iterator[Row]:
    """Tasks of two workers with a thread each."""
    from distributed import Client

    from distpool import DaskManager

    client = Client(words[0])

    def bare(n: int) -> Measure:
        return lambda: client.gather([client.submit(subprocess.call, BARE, pure=False) for _ in range(n)])

    for n in (1, 2):
        yield Row(f"Dask, {_workers(n)}", bare(n), _adding(DaskManager(client, n)))


# -- the places --------------------------------------------------------------------------------------------------------


@contextmanager
def _here() -> Iterator[tuple[list[str], list[str]]]:
    yield [], []


@contextmanager
def _ssh() -> Iterator[tuple[list[str], list[str]]]:
    from support.sshd import start_sshd

    with tempfile.TemporaryDirectory() as folder:
        server = start_sshd(Path(folder))
        try:
            yield [], server.flags
        finally:
            server.close()


@contextmanager
def _slurm(*prefix: str) -> Iterator[tuple[list[str], list[str]]]:
    from support import slurm

    _must_not_miss(slurm.missing())
    with slurm.running():
        yield list(prefix), []


@contextmanager
def _ray() -> Iterator[tuple[list[str], list[str]]]:
    from support import ray

    _must_not_miss(ray.missing())
    with ray.running() as cluster:
        yield cluster.inside, []


@contextmanager
def _dask() -> Iterator[tuple[list[str], list[str]]]:
    from support import dask

    _must_not_miss(dask.missing())
    with dask.running() as cluster:
        yield [], [cluster.address]


def _must_not_miss(reason: str) -> None:
    if reason:
        raise RuntimeError(reason)


class Place(NamedTuple):
    """How a program gets there, with a prefix to its command and words for it, and what it measures there."""

    enter: Callable[[], AbstractContextManager[tuple[list[str], list[str]]]]
    rows: Callable[[Sequence[str]], Iterator[Row]]


PLACES = {
    "local": Place(_here, local_rows),
    "ssh": Place(_ssh, ssh_rows),
    "mpi": Place(_here, mpi_rows),
    "slurm-step": Place(lambda: _slurm("salloc", "-Q", "-n", "4"), slurm_step_rows),
    "slurm-job": Place(_slurm, slurm_job_rows),
    "ray": Place(_ray, ray_rows),
    "dask": Place(_dask, dask_rows),
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(place: str, rounds: int, words: Sequence[str]) -> None:
    """Run in the place: print the samples of each row as a line of JSON."""
    import distpool

    for row in PLACES[place].rows(words):
        samples: dict[str, list[float]] = {"bare": [], "ours": []}
        for turn in range(rounds + 1):
            for name, deed in (("bare", row.bare), ("ours", row.ours)):
                if deed is None:
                    continue
                begun = time.perf_counter()
                deed()
                took = time.perf_counter() - begun
                if name == "ours":
                    distpool.rmprocs(*distpool.workers(), waitfor=60)
                if turn:  # the first of each warms up the caches of files, and of the engine
                    samples[name].append(took)
        print(json.dumps([row.title, samples["bare"], samples["ours"]]), flush=True)


def rows_of(place: str, rounds: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """Go there, measure, come back."""
    with PLACES[place].enter() as (prefix, words):
        command = [*prefix, sys.executable, "-m", "tests.bench.elsewhere", "--inside", place, "--rounds", str(rounds)]
        done = subprocess.run(
            [*command, "--", *words],
            stdout=subprocess.PIPE,
            text=True,
            timeout=900,
            cwd=TESTS.parent,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        if done.returncode:
            raise RuntimeError(f"measuring ended with status {done.returncode}")
        for line in done.stdout.splitlines():
            if line.startswith("["):
                title, bare, ours = json.loads(line)
                yield title, bare, ours


def _figure(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples):.2f} s ({min(samples):.2f})" if samples else "–"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.elsewhere", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("words", nargs="*", metavar="PLACE", help=f"of {', '.join(PLACES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each (default 7)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here, too")
    parser.add_argument("--inside", choices=PLACES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        measure(options.inside, options.rounds, options.words)
        return
    if unknown := set(options.words) - PLACES.keys():
        parser.error(f"no such place: {', '.join(sorted(unknown))}; there are {', '.join(PLACES)}")
    load = os.getloadavg()[0]
    lines = ["| | bare command | `addprocs` | ratio of the least |", "| --- | --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    for place in options.words or PLACES:
        try:
            for title, bare, ours in rows_of(place, options.rounds):
                ratio = f"{min(ours) / min(bare):.1f}" if bare else ""
                lines.append(f"| {title} | {_figure(bare)} | {_figure(ours)} | {ratio} |")
                print(lines[-1], flush=True)
        except (Exception, SystemExit) as error:
            print(f"{place}: not measured: {error}", file=sys.stderr, flush=True)
    version = ".".join(map(str, sys.version_info[:3]))
    lines += [
        "",
        f"(Median, in brackets the least of {options.rounds}; Python {version}, {os.cpu_count()} cores, load "
        f"{load:.1f} before and {os.getloadavg()[0]:.1f} after.)",
    ]
    print("\n".join(lines[-2:]))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
