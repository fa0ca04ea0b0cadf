"""How a process ended, in words that an error can carry.

Used by whoever turns an ``exited`` event into a :class:`ProcessExitedException`. Pure functions, any thread.
"""

from __future__ import annotations

import os


def describe_exit(status: int) -> tuple[int | None, int | None]:
    """Split a wait status into ``(exit code, signal)``; exactly one of them is None.

    >>> describe_exit(3 << 8), describe_exit(9)
    ((3, None), (None, 9))
    """
    code = os.waitstatus_to_exitcode(status)
    return (code, None) if code >= 0 else (None, -code)


def oom_kills() -> int | None:
    """Count the processes near us that the kernel has killed for want of memory so far; None where it does not say.

    Two readings with a SIGKILL between them tell whether "out of memory?" is a fair guess. Reads a few hundred bytes
    of the narrowest record there is: our own control group (version 2, then 1), else the whole machine.
    """
    for path in _oom_records():
        try:
            with open(path) as record:
                for line in record:
                    name, _, count = line.partition(" ")
                    if name == "oom_kill":
                        return int(count)
        except (OSError, ValueError):
            continue
    return None


def _oom_records() -> list[str]:
    """Name the files that may hold an ``oom_kill`` line, best first."""
    paths = []
    try:
        with open("/proc/self/cgroup") as groups:
            for line in groups:
                _, controllers, group = line.rstrip("\n").split(":", 2)
                if not controllers:  # version 2: one group for all controllers
                    paths.append(f"/sys/fs/cgroup{group}/memory.events")
                elif controllers == "memory":
                    paths.append(f"/sys/fs/cgroup/memory{group}/memory.oom_control")
    except OSError:
        return []
    # Inside a container the group's path may be the host's, while the group itself is mounted as the root.
    return [*paths, "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat"]
