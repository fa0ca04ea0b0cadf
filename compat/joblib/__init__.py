"""A joblib backend: ``Parallel``, and all that is built on it (scikit-learn), on distpool's workers.

Importing this module is all it takes; then, as for any backend of joblib's (1.4 or newer)::

    import distpool.compat.joblib
    import joblib

    with joblib.parallel_config(backend="distpool", n_jobs=4):
        GridSearchCV(...).fit(X, y)                       # whatever uses joblib inside
        joblib.Parallel()(joblib.delayed(f)(x) for x in xs)

``Parallel(n_jobs=4, backend="distpool")`` and ``parallel_backend("distpool")`` do as well. See ``DistpoolBackend`` for
what it does with each option, and where it differs from loky, joblib's own. ``shutdown()`` ends the idle workers.

>>> import joblib
>>> with joblib.parallel_config(backend="distpool", n_jobs=2):
...     joblib.Parallel()(joblib.delayed(pow)(x, 2) for x in range(5))
[0, 1, 4, 9, 16]
>>> shutdown()
"""

from __future__ import annotations

from joblib import register_parallel_backend  # type: ignore[import-untyped]  # it has no types
from joblib.parallel import EXTERNAL_BACKENDS  # type: ignore[import-untyped]

from .backend import DistpoolBackend
from .warm import shutdown

__all__ = ["DistpoolBackend", "register", "shutdown"]


def register() -> None:
    """Make "distpool" known to joblib. Done when this module is imported, and by joblib when it looks for the name."""
    register_parallel_backend("distpool", DistpoolBackend)


EXTERNAL_BACKENDS["distpool"] = register
register()
