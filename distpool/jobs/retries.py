"""What to do when a task fails: the user's handlers, and how often to try again.

Made by the pools from the options of a map; asked by dispatch in call threads, for it runs user code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from distpool.light import Any


class Retries:
    """What to do when a task fails: ask ``on_error`` for a value, else try again after a delay, while there is one."""

    def __init__(
        self,
        delays: Iterable[float] = (),
        check: Callable[..., Any] | None = None,
        on_error: Callable[..., Any] | None = None,
    ) -> None:
        self.delays = list(delays)
        self._check = check
        self._check_takes_one = check is not None and _takes_one(check)
        self.on_error = on_error

    def delay(self, attempt: int, error: BaseException) -> float | None:
        """Return the seconds to wait before attempt number ``attempt`` + 1; None when it is not to be tried again."""
        if attempt >= len(self.delays):
            return None
        if self._check is not None:
            verdict = self._check(error) if self._check_takes_one else self._check(attempt + 1, error)
            if isinstance(verdict, tuple):  # Julia's form: (new state, verdict)
                verdict = verdict[-1]
            if not verdict:
                return None
        return self.delays[attempt]


def _takes_one(f: Callable[..., Any]) -> bool:
    import inspect  # slow to import, rarely needed

    try:
        inspect.signature(f).bind(None, None)
    except TypeError:
        return True
    except ValueError:  # a built-in without a signature
        return False
    return False
