"""The fork server: local workers in about a millisecond each, and the truth about how they died.

Used by the local manager. A driver must not fork itself (it has threads and locks), and a fresh interpreter per worker
costs tens of milliseconds and megabytes. So the driver execs one clean, single-threaded interpreter, which preloads
what workers need and forks on demand. It also waits for them, as their parent, and ends them when the driver is gone.
::

    driver                          fork server                     workers
    ForkServer  ---- socket pair ---- serve()  ---- fork --------->  entry(socket, setup)
       |             requests, fds      |  <---- SIGCHLD, status ---    |   |
       |  <---------- events ---------  |  ---- lifeline (a pipe) --->  |   |
       |                                |  <---- stdout, stderr ------  |   |
       `------------------------- the worker's stream socket -----------+   `-- its subprocesses: same group

Rooms: :mod:`.client` (driver side), :mod:`.interpreter` (how it is started), :mod:`.server` (the process itself),
:mod:`.newborn` (a worker's first moments), :mod:`.outputs` (what workers print), :mod:`.frames` (bytes between driver
and server), :mod:`.exits` (exit codes, signals, "out of memory?"). Each side imports those that it needs, and no more:
the server's imports are part of every start.
"""

from __future__ import annotations
