"""What is to be done: the tasks of one map, one stream or one submitted function, and where their results go.

A job knows its callable, its input and its results; it does not know workers. ``dispatch`` asks a job for the next
tasks and tells it what became of them::

    input --next_run(n)--> dispatch --> workers --> dispatch --settle(first, results)--> results
                 ^                                    |
                 +--returned (taken back, retried) <--+

User code (the input's iterator, pickling of items) runs in ``next_run`` and in ``pack``, called by the thread that owns
the job or by a call thread, never by the reading thread; ``settle`` runs on the reading thread and only puts results
away. Rooms, each using those above it:

    retries  what to do when a task fails
    job      what dispatch needs of every job
    feed     inputs that are read in a thread of their own
    inputs   maps and streams, which read the user's iterables
    promised maps that no thread owns
    single   calls that were submitted one by one
"""

from __future__ import annotations

from .inputs import InputJob, MapJob, Pace, StreamJob
from .job import ENVELOPE_SECONDS, GROWTH, Job, Run, next_number
from .promised import PromisedMap
from .retries import Retries
from .single import CallJob

__all__ = [
    "ENVELOPE_SECONDS",
    "GROWTH",
    "CallJob",
    "InputJob",
    "Job",
    "MapJob",
    "Pace",
    "PromisedMap",
    "Retries",
    "Run",
    "StreamJob",
    "next_number",
]
