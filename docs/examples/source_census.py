"""A census of Python source code: thousands of real files, parsed and measured by a pool of worker processes.

    python docs/examples/source_census.py               the standard library and the installed packages
    python docs/examples/source_census.py src tests     your own code
    python docs/examples/source_census.py --check       is the result the same as without a pool?
    python docs/examples/source_census.py --compare     how long does multiprocessing.Pool take?
    python docs/examples/source_census.py --on slurm    the same elsewhere; also: mpi, ray, the address of a Dask
                                                        scheduler, or machines for ssh, as h1,h2

For each package: size, functions, classes, how much is documented, how complex it is; then the most complex functions,
functions that exist several times but for the names of their variables, and what is called and imported most.
Files that cannot be parsed are reported and skipped.

The report goes to the standard output and depends on nothing but the files; progress and times go to the error output.

What to look at: `census_with_pool` is all that the pool needs. The functions and classes that it sends to the workers
are those of this script. The guard at the end is for `--compare`: multiprocessing needs it where it does not fork.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import multiprocessing
import statistics
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import distpool

# What a file can do to the parser: wrong syntax or encoding, null bytes, nesting too deep, not readable.
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OSError)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Each of these adds a path through a function (McCabe's measure, as the common linters count it).
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.IfExp, ast.ExceptHandler, ast.BoolOp, ast.comprehension)

WIDEST = 70  # characters of a cell in the report


class Function(NamedTuple):
    """One function or method. Two of the same shape differ only in names of variables and values of constants."""

    name: str
    line: int
    lines: int
    lines_of_code: int  # without what stands above its body and its docstring
    complexity: int
    documented: bool
    shape: str


class Report(NamedTuple):
    """What one file contains. `problem` says why it was skipped; then the rest is empty."""

    path: str
    problem: str = ""
    lines: int = 0
    classes: int = 0
    functions: tuple[Function, ...] = ()
    calls: tuple[tuple[str, int], ...] = ()
    imports: tuple[tuple[str, int], ...] = ()


# ---------------------------------------------------------------------------------------------------------------------
# One file: this part runs in the workers


def be_quiet() -> None:
    """Keep the parser's warnings about other people's code to itself. Runs once in each worker."""
    warnings.simplefilter("ignore")


def examine(path: str) -> Report:
    """Parse one file and measure what is in it."""
    try:
        source = Path(path).read_bytes()
        tree = ast.parse(source)
    except UNREADABLE as problem:
        return Report(path, f"{type(problem).__name__}: {problem}".splitlines()[0])
    nodes = descendants(tree)
    functions = tuple(measured(node) for node in nodes if isinstance(node, FUNCTIONS))
    return Report(
        path,
        lines=source.count(b"\n"),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        functions=tuple(sorted(functions)),
        calls=tuple(sorted(Counter(called(node.func) for node in nodes if isinstance(node, ast.Call)).items())),
        imports=tuple(sorted(Counter(module for node in nodes for module in imported(node)).items())),
    )


def descendants(node: ast.AST) -> list[ast.AST]:
    """A node and all below it. Like `ast.walk`, but twice as fast: it leaves the contexts of names alone."""
    nodes = [node]
    for node in nodes:
        for field in node._fields:
            value = None if field == "ctx" else getattr(node, field, None)
            if isinstance(value, ast.AST):
                nodes.append(value)
            elif isinstance(value, list):
                nodes += [item for item in value if isinstance(item, ast.AST)]
    return nodes


def called(function: ast.expr) -> str:
    """The last word of what is called: `join` of `os.path.join(...)`."""
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else "(expression)"


def imported(node: ast.AST) -> list[str]:
    """The top-level modules that an import statement names; those of one's own package do not count."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.partition(".")[0]]
    return []


def measured(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    """Size, complexity and shape of one function."""
    documented = ast.get_docstring(function, clean=False) is not None
    body = function.body[1:] if documented else function.body
    complexity = 1
    words: list[str] = []
    renamed: dict[str, str] = {}
    for node in descendants(ast.Module([function.args, *body], [])):  # type: ignore[list-item]  # any node will do
        words.append(word(node, renamed))
        if isinstance(node, BRANCHES):
            complexity += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 1
    shape = hashlib.blake2b(" ".join(words).encode(errors="replace"), digest_size=8).hexdigest()
    last = function.end_lineno or function.lineno
    lines_of_code = last - body[0].lineno + 1 if body else 0
    lines = last - function.lineno + 1
    return Function(function.name, function.lineno, lines, lines_of_code, complexity, documented, shape)


def word(node: ast.AST, renamed: dict[str, str]) -> str:
    """What a node adds to the shape of its function: its kind; variables by number, constants by type."""
    if isinstance(node, ast.Name):
        return renamed.setdefault(node.id, f"v{len(renamed)}")
    if isinstance(node, ast.arg):
        return "arg " + renamed.setdefault(node.arg, f"v{len(renamed)}")
    if isinstance(node, ast.Attribute):
        return "." + node.attr
    if isinstance(node, ast.Constant):
        return type(node.value).__name__
    return type(node).__name__


# ---------------------------------------------------------------------------------------------------------------------
# All files: without a pool, with ours, with the standard library's


def census_here(paths: list[str]) -> Iterable[Report]:
    """One file after the other, in this process."""
    with warnings.catch_warnings():
        be_quiet()
        yield from map(examine, paths)


def census_with_pool(paths: list[str], workers: int | None, where: str = "") -> Iterable[Report]:
    """The same in worker processes; reports come as they are ready."""
    with distpool.WorkerPool(**whose(workers, where), initializer=be_quiet) as pool:
        yield from pool.imap_unordered(examine, paths)


def whose(workers: int | None, where: str) -> dict[str, Any]:
    """What the pool is told of its workers: local ones, those of an engine, or machines."""
    engines = {"mpi": distpool.MPIManager, "slurm": distpool.SlurmManager, "ray": distpool.RayManager}
    if not where:
        return {"processes": workers}
    if where in engines:
        return {"manager": engines[where](workers or 4)}
    if where.startswith("tcp://"):
        from distributed import Client

        return {"manager": distpool.DaskManager(Client(where), workers)}
    return {"machines": [(machine, workers or "auto") for machine in where.split(",")]}


def census_with_multiprocessing(paths: list[str], workers: int | None, chunksize: int = 1) -> Iterable[Report]:
    """The same with the standard library's pool, for comparison."""
    with multiprocessing.Pool(workers, initializer=be_quiet) as pool:
        yield from pool.imap_unordered(examine, paths, chunksize)
        pool.close()
        pool.join()


def collected(reports: Iterable[Report]) -> list[Report]:
    """In the order of their paths, whatever order they came in."""
    return sorted(reports, key=attrgetter("path"))


def timed(census: Callable[[], Iterable[Report]]) -> tuple[list[Report], float]:
    """The reports and the seconds that they took, from opening the pool to closing it."""
    start = time.perf_counter()
    reports = collected(census())
    return reports, time.perf_counter() - start


# ---------------------------------------------------------------------------------------------------------------------
# Input and progress


def default_roots() -> list[Path]:
    """Where this Python keeps its standard library and its installed packages."""
    paths = sysconfig.get_paths()
    return [Path(paths["stdlib"]), *sorted({Path(paths["purelib"]), Path(paths["platlib"])})]


def sources(root: Path) -> list[str]:
    """The Python files below a folder, or the file itself; installed packages inside the standard library not twice."""
    if root.is_file():
        return [str(root)]
    found = (path for path in root.rglob("*.py") if "site-packages" not in path.relative_to(root).parts)
    return sorted(str(path) for path in found if path.is_file())


def with_progress(reports: Iterable[Report], total: int) -> Iterator[Report]:
    """Pass reports on and show on the error output how many there were: by tqdm if installed, else in a plain line."""
    if not sys.stderr.isatty():
        return iter(reports)
    try:
        from tqdm import tqdm
    except ImportError:
        return with_plain_progress(reports, total)
    return iter(tqdm(reports, total=total, unit=" files", leave=False))


def with_plain_progress(reports: Iterable[Report], total: int) -> Iterator[Report]:
    """One line that is written over and over, a hundred times in all."""
    for done, report in enumerate(reports, 1):
        yield report
        percent = done * 100 // total
        if percent > (done - 1) * 100 // total:
            print(f"\r{done:,} of {total:,} files, {percent} %", end="", file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr, flush=True)  # to the beginning of the line, and erase it


# ---------------------------------------------------------------------------------------------------------------------
# The report


def shown(path: str, roots: list[Path]) -> str:
    """A path from the innermost root that it was found in."""
    inside = [root for root in roots if Path(path).is_relative_to(root)]
    root = max(inside, key=lambda root: len(root.parts))
    return str(Path(path).relative_to(root)) if path != str(root) else root.name


def shortened(text: str) -> str:
    """The end of a text that is too long: of paths, it says more than the beginning."""
    return text if len(text) <= WIDEST else "…" + text[1 - WIDEST :]


def print_table(title: str, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    """Columns as wide as they must be; numbers to the right, with thousands apart; text to the left."""
    if not rows:
        return
    cells = [[f"{cell:,}" if isinstance(cell, int) else shortened(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    to_right = [not isinstance(cell, str) for cell in rows[0]]
    print(f"\n{title}\n")
    for line in [list(header), *cells]:
        aligned = (f"{c:>{w}}" if right else f"{c:<{w}}" for c, w, right in zip(line, widths, to_right, strict=True))
        print("  " + "  ".join(aligned).rstrip())


def print_packages(reports: list[Report], roots: list[Path], top: int) -> None:
    """One line per package, the largest first."""
    packages: dict[str, list[Report]] = {}
    for report in reports:
        packages.setdefault(Path(shown(report.path, roots)).parts[0].removesuffix(".py"), []).append(report)
    largest = sorted(packages.items(), key=lambda item: (-sum(report.lines for report in item[1]), item[0]))
    header = ("package", "files", "lines", "functions", "classes", "documented %", "mean complexity")
    lines = [package_line(name, of_it) for name, of_it in largest[:top]]
    print_table(f"The largest of {len(packages):,} packages", header, [*lines, package_line("all", reports)])


def package_line(name: str, reports: list[Report]) -> tuple[object, ...]:
    """Sums and means over the files of one package."""
    functions = [function for report in reports for function in report.functions]
    documented = round(100 * sum(function.documented for function in functions) / max(1, len(functions)))
    complexity = round(sum(function.complexity for function in functions) / max(1, len(functions)), 1)
    lines, classes = sum(report.lines for report in reports), sum(report.classes for report in reports)
    return name, len(reports), lines, len(functions), classes, documented, complexity


def print_functions(
    title: str, size: Callable[[Function], int], reports: list[Report], roots: list[Path], top: int
) -> None:
    """The functions with the largest of some measure."""
    found = [(-size(function), report.path, function) for report in reports for function in report.functions]
    rows = [(f.complexity, f.lines, f.name, f"{shown(path, roots)}:{f.line}") for _, path, f in sorted(found)[:top]]
    print_table(title, ("complexity", "lines", "function", "where"), rows)


def print_duplicates(reports: list[Report], roots: list[Path], top: int, least: int) -> None:
    """Functions of the same shape; first those whose copies take most lines."""
    groups: dict[str, list[tuple[Function, str]]] = {}
    for report in reports:
        for function in report.functions:
            if function.lines_of_code >= least:
                groups.setdefault(function.shape, []).append((function, report.path))
    repeated = [group for group in groups.values() if len(group) > 1]
    rows: list[tuple[int, int, int, str, str, str]] = []
    for group in repeated:
        sizes = [function.lines_of_code for function, _ in group]
        first, second = (f"{shown(path, roots)}:{function.line}" for function, path in group[:2])
        rows.append((sum(sizes) - max(sizes), len(group), sizes[0], group[0][0].name, first, second))
    rows.sort(key=lambda row: (-row[0], row[4]))
    copies = sum(len(group) - 1 for group in repeated)
    title = f"Near duplicates: {copies:,} functions of {least} lines or more repeat another but for names and constants"
    print_table(title, ("lines spared", "copies", "lines", "function", "where", "also in"), rows[:top])


def print_counts(title: str, word: str, counts: Iterable[tuple[tuple[str, int], ...]], top: int) -> None:
    """The most frequent words."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(dict(count))
    most = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    print_table(title, (word, "times"), most[:top])


def print_report(reports: list[Report], roots: list[Path], options: argparse.Namespace) -> None:
    """Everything, to the standard output."""
    good = [report for report in reports if not report.problem]
    bad = [report for report in reports if report.problem]
    print(f"{len(reports):,} files: {len(good):,} read, {len(bad):,} skipped")
    print_packages(good, roots, options.top)
    print_functions("Most complex functions", attrgetter("complexity"), good, roots, options.top)
    print_functions("Longest functions", attrgetter("lines"), good, roots, options.top)
    print_duplicates(good, roots, options.top, options.least)
    print_counts("Most called", "function", (report.calls for report in good), options.top)
    print_counts("Most imported", "module", (report.imports for report in good), options.top)
    print_table("Skipped", ("file", "why"), [(shown(report.path, roots), report.problem) for report in bad])


def parsed_arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="A census of Python source code, taken by a pool of processes.")
    parser.add_argument("paths", nargs="*", type=Path, help="folders or files (default: this Python's own)")
    parser.add_argument("--workers", type=int, help="processes (default: one per usable core; 0: none)")
    parser.add_argument(
        "--on", default="", metavar="WHERE", help="mpi, slurm, ray, tcp://DASK or h1,h2 (default: here)"
    )
    parser.add_argument("--limit", type=int, default=5000, help="read at most so many files (default 5000; 0: all)")
    parser.add_argument("--top", type=int, default=10, help="lines per table (default 10)")
    parser.add_argument("--least", type=int, default=8, help="least lines of a near duplicate (default 8)")
    parser.add_argument("--check", action="store_true", help="compare the result with that of this process alone")
    parser.add_argument("--compare", action="store_true", help="compare the time with multiprocessing.Pool's")
    parser.add_argument("--rounds", type=int, default=3, help="how often --compare runs each (default 3)")
    return parser.parse_args()


def say(text: str) -> None:
    """To the error output, where times go."""
    print(text, file=sys.stderr, flush=True)


def check(reports: list[Report], paths: list[str]) -> None:
    """Take the census again without a pool; end the program if it differs."""
    expected, seconds = timed(partial(census_here, paths))
    say(f"check: {'' if reports == expected else 'NOT '}equal to the result of one process, which took {seconds:.2f} s")
    if reports != expected:
        raise SystemExit(1)


def compare(paths: list[str], workers: int | None, rounds: int) -> None:
    """Take the census with each pool in turn and say the middle time of each."""
    contenders = {
        "distpool.WorkerPool.imap_unordered": partial(census_with_pool, paths, workers),
        "multiprocessing.Pool.imap_unordered": partial(census_with_multiprocessing, paths, workers),
        "multiprocessing.Pool.imap_unordered, chunksize=16": partial(census_with_multiprocessing, paths, workers, 16),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, census in contenders.items():
            seconds[name].append(timed(census)[1])
    say(f"compare: the middle of {rounds} runs, opening and closing the pool included")
    for name, taken in seconds.items():
        say(f"  {name:<52}{statistics.median(taken):7.2f} s")


def main() -> None:
    """Run the command."""
    options = parsed_arguments()
    roots = [path.resolve() for path in options.paths or default_roots()]
    found = list(dict.fromkeys(path for root in roots for path in sources(root)))
    paths = found[: options.limit or None]
    if len(paths) < len(found):
        say(f"{len(found):,} files found, the first {len(paths):,} are read (--limit)")
    census = census_here(paths) if options.workers == 0 else census_with_pool(paths, options.workers, options.on)
    reports, seconds = timed(lambda: with_progress(census, len(paths)))
    say(f"{len(reports):,} files in {seconds:.2f} s, {len(reports) / seconds:,.0f} per second")
    print_report(reports, roots, options)
    if options.check:
        check(reports, paths)
    if options.compare:
        compare(paths, options.workers, options.rounds)


if __name__ == "__main__":
    main()
