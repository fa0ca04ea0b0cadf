"""Worker pools: who is a member, who is idle, and work for whoever is.

``WorkerPool`` is the everyday object: over given processes, or with workers of its own (``processes=N``), which live
in a private cluster, are replaced when they die and removed when the pool closes. ``CachingPool`` keeps each callable
at the workers between calls. The default pool has every worker that ``addprocs`` made. Rooms, each using those above
it:

    abstract     what every pool promises
    handles      a pool as other processes see it
    owned        the workers of a pool's own
    making       what the user gave becomes jobs
    promising    what a pool offers to those who build on it
    worker_pool  WorkerPool
    caching      CachingPool
    default      the default pool, and remote
"""

from __future__ import annotations
