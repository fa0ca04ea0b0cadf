"""What becomes of a task that has failed: the user's handlers decide, else the failure is its result.

Used by the rooms that see failures. Handlers are user code, so they run in call threads.
"""

from __future__ import annotations

from distpool.dispatch.listing import Listing
from distpool.dispatch.sharing import Sharing
from distpool.futures import Outcome, Raised
from distpool.jobs import Job, Run
from distpool.member import Member


class Judging:
    """Asks the handlers of a job, and has tasks tried again."""

    def __init__(self, sharing: Sharing, listing: Listing, member: Member) -> None:
        self._sharing = sharing
        self._listing = listing
        self._member = member

    def failed(self, job: Job, run: Run, index: int, outcome: Outcome) -> None:
        """A task has failed, for whatever reason: judge it elsewhere if the user wants that, else it is its result."""
        if job.retries is None or job.is_stopped:
            job.settle(run, run.first + index, [outcome])
        else:
            self._member.threads.run(lambda: self._judge(job, run, index, outcome))

    def doubtful(self, job: Job, run: Run, results: list[tuple[int, Outcome]]) -> None:
        """Open results now, because the user has handlers for those that do not open."""
        self._member.threads.run(lambda: self._open_and_judge(job, run, results))

    def _open_and_judge(self, job: Job, run: Run, results: list[tuple[int, Outcome]]) -> None:
        for index, outcome in results:
            try:
                value = outcome.value()
            except BaseException as error:  # the user's objects
                self._judge(job, run, index, Raised(error))
            else:
                job.settle(run, run.first + index, [value])

    def _judge(self, job: Job, run: Run, index: int, outcome: Outcome) -> None:
        """Ask the user's handlers. In a call thread."""
        assert job.retries is not None
        error = outcome.exception()
        try:
            if job.retries.on_error is not None:
                job.settle(run, run.first + index, [job.retries.on_error(_original(error))])
                return
        except Exception as raised:  # what the handler raises takes the place of the error (Julia's rule)
            error, outcome = raised, Raised(raised)
        try:
            delay = job.retries.delay(run.attempt, _original(error))
        except Exception as raised:
            delay, outcome = None, Raised(raised)
        if delay is None:
            job.settle(run, run.first + index, [outcome])
            return
        again = Run(run.first + index, [run.items[index]], run.attempt + 1)
        if delay > 0:
            self._member.reader.call_later(delay, lambda: self._again(job, again))
        else:
            self._again(job, again)

    def _again(self, job: Job, run: Run) -> None:
        job.put_back(run)
        self._listing.fail_if_broken(job)  # meanwhile the last worker may have gone
        self._sharing.feed()


def _original(error: BaseException) -> BaseException:
    captured = getattr(error, "captured", None)
    return captured.ex if captured is not None else error
