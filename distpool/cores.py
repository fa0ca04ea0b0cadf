"""How many cores this process may really use: what ``processes=None`` means; and how a worker is kept to one of them.

The number of cores of the machine is not it: the process may be pinned to some of them, or live in a control group
with a quota of processor time, as in a container.
"""

from __future__ import annotations

import os

from distpool.light import Final

# Workers use one core each unless asked otherwise (Julia turns BLAS down in the same way): with as many workers as
# cores, libraries that start a thread per core would run cores x cores threads.
THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def usable_cores() -> int:
    """Return how many cores this process may really use: its affinity, and the quota of its control group; at least 1.

    A quota of one and a half counts as two. As many workers start where nobody says how many. Never fails.

    >>> usable_cores() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, quota) if quota is not None else cores)


def _cgroup_quota() -> int | None:
    """Read the quota of version 2, then of version 1; an empty or odd file means none (some containers have such)."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            amount, period = file.read().split()[:2]
        return None if amount == "max" else -(-int(amount) // int(period))
    except (OSError, ValueError):
        pass
    try:
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:
            quota = int(file.read())
        with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
            return -(-quota // int(file.read())) if quota > 0 else None
    except (OSError, ValueError):
        return None
