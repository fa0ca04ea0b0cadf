"""An engine that places workers one by one, in threads of the test's own process."""

from __future__ import annotations

import threading
from typing import Any

from distpool.managers.hosted import End, HostedWorker, Secret
from distpool.managers.launches import Launch
from distpool.managers.placed import PlacedManager, PlacedProcess


class Threads(PlacedManager):
    """Begins ``count - held`` of its workers at once; the others when the test says so."""

    engine = "threads"

    def __init__(self, count: int, *, held: int = 0, **options: Any) -> None:
        super().__init__(count, **options)
        self.held = held
        self.begun: list[HostedWorker] = []
        self.taken_away: list[int] = []  # idents of those that have not begun
        self._waiting: list[tuple[Launch, PlacedProcess, Secret, list[str]]] = []

    def place(self, launch: Launch, process: PlacedProcess, secret: Secret, command: list[str]) -> None:
        if process.ident < launch.count - self.held:
            self._begin(launch, process, secret, command)
            return
        self._waiting.append((launch, process, secret, command))
        process.has_begun(lambda: self.taken_away.append(process.ident))

    def begin_next(self) -> None:
        """There is room for one more."""
        self._begin(*self._waiting.pop(0))

    def refuse_next(self) -> None:
        """There will never be room for the next."""
        launch, process, _, _ = self._waiting.pop(0)
        self.ended(launch, process, RuntimeError("no room, ever"))

    def _begin(self, launch: Launch, process: PlacedProcess, secret: Secret, command: list[str]) -> None:
        try:
            worker = HostedWorker(command, secret)
        except Exception as error:
            self.ended(launch, process, error)
            return
        self.begun.append(worker)
        process.has_begun(worker.kill)
        threading.Thread(target=lambda: self.ended(launch, process, End(*worker.wait())), daemon=True).start()
