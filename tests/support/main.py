"""This process's ``__main__``, for tests that define things in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def main_kept() -> Iterator[None]:
    """Take away afterwards what was defined meanwhile, and put back what was replaced."""
    main = vars(sys.modules["__main__"])
    before = dict(main)
    yield
    for name in main.keys() - before.keys():
        del main[name]
    main.update(before)
