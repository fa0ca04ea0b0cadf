"""Who gets what, when: tasks in envelopes to the workers of one pool, and what becomes of them.

Used by the pools, one ``Dispatch`` per pool. Every task is tracked alone; an envelope is only how tasks travel. A
worker has a small window of envelopes, sized by measured durations; what has not started is taken back when another
worker is idle, or when its worker dies::

    job --next_run--> sending --TASKS--> worker --TASKS_DONE--> results --settle--> job
     ^                                     |                       |
     +------ returned <--- sharing, TAKE_BACK; judging, death -----+

Threads: ``pump`` runs user code (input, pickling) and is called by the job's owner or a call thread; everything else
may run on the reading thread and only moves records. Rooms, each using those above it:

    slots     what a worker has in flight
    ledger    slots, jobs and who waits for them, under the one lock of a pool
    sharing   work for whoever has room; what has not started is taken back for the idle
    holding   threads that wait: to hold a worker, or for the end of all work
    listing   jobs, from being taken on to the end
    limits    tasks that take too long, or shall stop: interrupted, then killed
    turnover  workers that have done their share: whoever owns them is told
    judging   tasks that failed: the user's handlers, further attempts
    results   what comes from workers, and what is lost with them
    here      this process as a worker
    sending   tasks into envelopes, envelopes to workers
    background maps that no thread owns
    front     Dispatch, and the loops of a thread that owns a job
"""

from __future__ import annotations

from .front import Dispatch

__all__ = ["Dispatch"]
