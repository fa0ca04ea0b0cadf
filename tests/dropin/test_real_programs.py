"""Programs that nobody here wrote, on the drop-ins: they do what they do without, and give the same.

Some take a pool or an executor; the others make one for themselves, which is ours under ``install()``. Beside these:
joblib and scikit-learn in test_joblib.py, asyncio in test_futures_calls.py, a console program in test_run.py.
"""

from __future__ import annotations

import asyncio
import compileall
import io
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
import dask.bag
import emcee
import numpy as np
import pytest
import tqdm.contrib.concurrent
from scipy import integrate, optimize

import distpool
from distpool.compat import install, uninstall
from distpool.compat.futures import ProcessPoolExecutor
from distpool.compat.multiprocessing.pool import Pool
from support import dropins

RUN = ("-m", "distpool", "run", "--workers", "2")


@pytest.fixture(autouse=True, scope="module")
def _standard_library_at_work() -> None:
    """Its resource tracker, and the first piece of its heap: made before the first leak census."""
    resource_tracker.ensure_running()
    multiprocessing.Value("i")


@pytest.fixture(params=[Pool, ProcessPoolExecutor])
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Either door."""
    with request.param(2) as made:
        yield made


@pytest.fixture
def no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the thread that tqdm keeps for bars that stand still."""
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)


@pytest.fixture
def pools_made() -> Iterator[Callable[[], int]]:
    """The standard library's classes make ours: so many up to now."""
    install(workers=2)
    before = distpool.usage().pools
    yield lambda: distpool.usage().pools - before
    uninstall()


# -- given a pool


def minimum(**options: Any) -> Any:
    return optimize.differential_evolution(
        dropins.rosenbrock, [(-2, 2)] * 3, maxiter=15, popsize=8, rng=1, updating="deferred", polish=False, **options
    )


def test_scipy_optimize(pool: Any) -> None:
    """``workers=pool.map``: every generation is a map."""
    found, expected = minimum(workers=pool.map), minimum()
    assert found.x.tolist() == expected.x.tolist()
    assert (found.fun, found.nfev, found.nit) == (expected.fun, expected.nfev, expected.nit)


def chain(**options: Any) -> Any:
    np.random.seed(1)
    start = np.random.randn(16, 3)
    sampler = emcee.EnsembleSampler(16, 3, dropins.log_density, args=[2.0], **options)
    sampler.run_mcmc(start, 30)
    return sampler.get_chain()


def test_emcee(pool: Any) -> None:
    """Walkers move by ``pool.map``; the chain is that of one process, number by number."""
    assert chain(pool=pool).tolist() == chain().tolist()


def total() -> Any:
    """A graph of two layers and a reduction."""
    return dask.bag.from_sequence(range(100), npartitions=8).map(dropins.square).filter(lambda x: x % 3 == 0).sum()


def test_dask(pool: Any) -> None:
    """A pool for its scheduler of processes, by argument and by configuration; lambdas travel as dask packs them."""
    expected = total().compute(scheduler="synchronous")
    assert total().compute(scheduler="processes", pool=pool) == expected
    with dask.config.set(pool=pool, scheduler="processes"):
        assert total().compute() == expected
        with pytest.raises(ZeroDivisionError):
            dask.delayed(dropins.reciprocal)(0).compute()


def test_dask_on_an_executor() -> None:
    """``scheduler=executor``: its own calls, closures, are ours to send."""
    with ProcessPoolExecutor(2) as executor:
        assert total().compute(scheduler=executor) == total().compute(scheduler="synchronous")


def test_asyncio() -> None:
    """Many calls at once, one of which fails."""

    async def main(executor: ProcessPoolExecutor) -> list[Any]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, dropins.reciprocal, x) for x in (1, 2, 0, 4)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with ProcessPoolExecutor(2) as executor:
        first, second, failed, last = asyncio.run(main(executor))
    assert [first, second, last] == [1, 0.5, 0.25]
    assert type(failed) is ZeroDivisionError


# -- making their own


def test_scipy_makes_its_own_pool(pools_made: Callable[[], int]) -> None:
    """``workers=2``: a ``multiprocessing.Pool`` inside scipy."""
    assert minimum(workers=2).x.tolist() == minimum().x.tolist()
    found = integrate.quad_vec(dropins.wave, 0, 10, workers=2)[0]
    assert found == pytest.approx(integrate.quad_vec(dropins.wave, 0, 10)[0], abs=1e-12)
    assert pools_made() == 2


def test_tqdm_process_map(no_monitor: None, pools_made: Callable[[], int]) -> None:
    """The bar goes to its end with what is done, the lock that keeps bars apart is set in the workers."""
    shown = io.StringIO()
    numbers = list(range(50))
    mapped = tqdm.contrib.concurrent.process_map(dropins.square, numbers, max_workers=2, chunksize=1, file=shown)
    assert mapped == [x * x for x in numbers]
    assert "50/50" in shown.getvalue()
    assert pools_made() == 1


def compiled(folder: Path, workers: int) -> tuple[Any, str, dict[str, bytes]]:
    """Verdict, output and files of a run that begins with sources alone."""
    for old in folder.glob("__pycache__/*.pyc"):
        old.unlink()
    with redirect_stdout(io.StringIO()) as said:
        verdict = compileall.compile_dir(folder, workers=workers, quiet=1)
    return bool(verdict), said.getvalue(), {new.name: new.read_bytes() for new in folder.glob("__pycache__/*.pyc")}


def test_compileall(pools_made: Callable[[], int], tmp_path: Path) -> None:
    """The same files, byte by byte."""
    for number in range(12):
        (tmp_path / f"module{number}.py").write_text(f"def f(x):\n    return x + {number}\n")
    parallel = compiled(tmp_path, 2)
    assert pools_made() == 1
    assert len(parallel[2]) == 12
    assert parallel == compiled(tmp_path, 1)
    (tmp_path / "bad.py").write_text("def (\n")
    assert compiled(tmp_path, 2)[0] is False


UGLY = "def f( x ):\n  return {'a':x,\n  'b':%d}\n"


def test_black(run_script: Any, tmp_path: Path) -> None:
    """Formats; with --diff the workers print, one at a time under a lock of a manager of black's."""
    results = []
    for python in ((), RUN):
        folder = tmp_path / str(len(results))
        folder.mkdir()
        for number in range(8):
            (folder / f"module{number}.py").write_text(UGLY % number)
        (folder / "bad.py").write_text("def (\n")
        env = {"BLACK_CACHE_DIR": str(folder / "cache"), "BLACK_NUM_WORKERS": "2"}
        for option in ("--diff", "--quiet"):
            text = f"import black, os; os.chdir({str(folder)!r}); black.main([{option!r}, '.'])"
            code, out, err = run_script(text, python=python, env=env)
            shown = sorted(line for line in out.splitlines() if line[:3] not in ("---", "+++"))  # those tell the time
            results.append((code, shown, "error: cannot format bad.py" in err))
        results.append([path.read_text() for path in sorted(folder.glob("*.py"))])
    assert results[:3] == results[3:]
    assert results[0][0] == 123  # black's code for a file that it cannot read
    assert results[2][1] == 'def f(x):\n    return {"a": x, "b": 0}\n'
