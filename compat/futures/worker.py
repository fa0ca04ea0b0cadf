"""What an executor runs in its workers beside the user's calls. Light, for each worker loads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any


def logged(initializer: Callable[..., object], initargs: Iterable[Any]) -> None:
    """Run an initializer. What it raises is logged here, too, as the standard library does."""
    try:
        initializer(*initargs)
    except BaseException:
        import logging  # slow to import

        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        raise


def each(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    """Run a chunk of a map whose executor submits chunks itself."""
    return [fn(*args) for args in chunk]
