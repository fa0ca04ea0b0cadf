"""A pool as the future of a task sees it, where there is none."""

from __future__ import annotations

from distpool.futures import Promise
from distpool.member import Member
from distpool.turns import InTurn


class Giver:
    """Its tasks have always begun, and it notes which ones were to be stopped."""

    def __init__(self, member: Member) -> None:
        self.callbacks = InTurn(member.threads.run, member.reader.call_later)
        self.stopped: list[Promise] = []

    def stop_call(self, promise: Promise) -> None:
        self.stopped.append(promise)

    def recall(self, promise: Promise) -> None:
        """There is nobody who could give it back."""
