"""Workers that Slurm starts: as a step of the allocation that we are in, or as a job of their own.

Used by who calls ``addprocs(SlurmManager(8, time="1:00:00"))``. Where workers run, what they may use and when they
start is Slurm's affair; they dial back (``dialback``), so their output is not parsed and no port of theirs is opened::

    in an allocation   srun, a child of ours -------------------------------> task 0 .. N-1, each a worker
    elsewhere          sh, a child of ours: sbatch, waits, scancel at the end
                         '--> job script: srun -----------------------------> task 0 .. N-1

The cookie is the first line of standard input, which srun copies to all tasks over its own connections; in a job it is
part of the script, which Slurm keeps where only this user and its administrators can read it.
"""

from __future__ import annotations

import atexit
import os
import shlex
import subprocess
from contextlib import suppress
from typing import Final, Literal

from distpool.managers.dialback import DialBackManager
from distpool.managers.interpreter import package_folder
from distpool.managers.launcher import Launcher
from distpool.managers.launches import Launch
from distpool.tcp import LOOPBACK

# One task's death is no reason to end the others, whatever the site's default; the workers of later launches in the
# same allocation share its cores with those of earlier ones.
STEP_FLAGS: Final = ("--kill-on-bad-exit=0", "--wait=0")
SHARED_FLAGS: Final = ("--overlap",)

# Submits a job (the arguments are its output's path but for the number and ending, then options; the standard input
# is its script), says its id, stays as long as the job does, and cancels it when it is asked to end itself: also by
# the kernel, when our process is gone and nobody reads any more what it prints. A job that was cancelled while it
# started may make its output later than that, so this is removed when the job has gone, or should have.
SUBMIT: Final = """\
end() {
    test -n "$id" || exit 0
    scancel "$id"
    for tenth in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        test -n "$(squeue -h -j "$id" 2>/dev/null)" || break
        sleep 0.1
    done
    test -z "$output" || rm -f "$output$id.out"
    exit 0
}
output=$1
shift
trap '' PIPE
trap end TERM
id=$(sbatch --parsable "$@") || exit 1
id=${id%%;*}
echo "distpool: submitted as job $id"
while state=$(squeue -h -j "$id" -o %T 2>&1); test -n "$state"; do
    case "$state" in *"Invalid job id"*) break ;; esac
    sleep 1 & wait $!
done
"""
SUBMITTED: Final = "distpool: submitted as job "
_END_OF_INPUT: Final = "END OF DISTPOOL INPUT"

# Seconds that an error waits for the last words of srun, and for squeue. The latter takes tens of milliseconds.
LAST_WORDS_SECONDS: Final = 0.5
SQUEUE_SECONDS: Final = 10.0
# How much of a job's output an error repeats: its end.
SHOWN_CHARACTERS: Final = 4000


class SlurmManager(DialBackManager):
    """Starts workers by ``srun`` inside an allocation, by ``sbatch`` elsewhere; their ids follow the tasks' numbers.

    Args:
        count: the number of workers, one task each; None takes as many as the allocation that this process runs in has.
        by: "srun" or "sbatch"; "auto" is srun in an allocation (``SLURM_JOB_ID`` is set), else sbatch.
        at_least: how many of them ``addprocs`` waits for; a job that is queued for long is no reason to wait: with 0
        its workers join when it starts. bind_addr: the address of this machine that the nodes reach, needed whenever
        workers run on other machines (``DialBackManager``).
        options: everything else goes to srun or sbatch as it is: ``partition="long"`` is ``--partition=long``,
        ``cpus_per_task=4`` is ``--cpus-per-task=4``, ``exclusive=True`` is ``--exclusive``.

    Libraries get as many threads as a task has cores (``cpus_per_task``). One worker's death leaves the others; a pool
    replaces it by a step or job of one task. A job ends with its last worker, is cancelled by ``close`` and at the end
    of this program, and prints into ``distpool-JOB.out`` (removed afterwards, unless ``output=`` names another).

    Raises ValueError without ``count`` outside an allocation. ``addprocs`` raises LaunchWorkerError where there is no
    Slurm, and CompositeException when workers do not come: with what srun said, or the state of the job.
    From SlurmClusterManager and ClusterManagers in Julia.
    """

    engine = "Slurm"

    def __init__(
        self,
        count: int | None = None,
        *,
        by: Literal["auto", "srun", "sbatch"] = "auto",
        at_least: int | None = None,
        bind_addr: str = LOOPBACK,
        **options: str | int | bool,
    ) -> None:
        if by not in ("auto", "srun", "sbatch"):
            raise ValueError(f"by={by!r}: it is 'auto', 'srun' or 'sbatch'")
        if count is None:
            count = _tasks_of_allocation()
        super().__init__(count, at_least=at_least, bind_addr=bind_addr)
        self.by = ("srun" if "SLURM_JOB_ID" in os.environ else "sbatch") if by == "auto" else by
        self._options = options

    def __repr__(self) -> str:
        return f"SlurmManager({self.count}, by={self.by!r})"

    def cores_per_worker(self) -> int:
        """What ``cpus_per_task`` says, here or in the allocation."""
        return int(self._options.get("cpus_per_task") or os.environ.get("SLURM_CPUS_PER_TASK") or 1)

    def start(self, launch: Launch) -> None:
        """Run ``srun``, or submit the job."""
        step = _Step() if self.by == "srun" else _Job(launch, "output" in self._options)
        step.start(self, launch, [_option(name, value) for name, value in self._options.items()])
        launch.extra = step
        step.launcher.watch(lambda code, signum: self.no_more_come(launch, step.end(code)))

    def stop(self, launch: Launch) -> None:
        """End the step, or cancel the job, if its last task has not."""
        if launch.extra is not None:
            launch.extra.stop()

    def tell(self, launch: Launch) -> str:
        """What srun said, or the state of the job and what it printed."""
        return str(launch.extra.tell()) if launch.extra is not None else ""


class _Step:
    """The workers of a launch as a step of our allocation."""

    launcher: Launcher

    def start(self, manager: SlurmManager, launch: Launch, options: list[str]) -> None:
        command = ["srun", *_step(launch), *SHARED_FLAGS, f"--ntasks={launch.count}", *options, *launch.command()]
        output = launch.params.get("output", "prefix")
        self.launcher = Launcher(command, manager.reader, says=f"{launch.secret}\n".encode(), output=output)

    def end(self, code: int | None) -> str:
        """Why no more workers will come."""
        return f"srun has ended with status {code}"

    def stop(self) -> None:
        self.launcher.end()

    def tell(self) -> str:
        said = self.launcher.last_words(LAST_WORDS_SECONDS)
        return f"what srun printed:\n{said}" if said else "srun printed nothing"


class _Job:
    """The workers of a launch as a job of their own."""

    launcher: Launcher

    def __init__(self, launch: Launch, prints_elsewhere: bool) -> None:
        self._id = ""  # not submitted yet
        folder = os.path.abspath(launch.params["dir"])
        self._prefix = "" if prints_elsewhere else os.path.join(folder, "distpool-")  # of its output's path
        self._os_pid = os.getpid()  # a forked copy of this process does not end it

    def start(self, manager: SlurmManager, launch: Launch, options: list[str]) -> None:
        words = ["--job-name=distpool", f"--ntasks={launch.count}", *options]
        if self._prefix:
            words.append(f"--output={self._output('%j')}")
        # srun does not take this from its job (since Slurm 22.05).
        cpus = [option for option in options if option.startswith("--cpus-per-task=")]
        step = shlex.join(["srun", *_step(launch), *cpus, *launch.command()])
        script = f"#!/bin/sh\nexec {step} <<'{_END_OF_INPUT}'\n{launch.secret}\n{_END_OF_INPUT}\n"
        output = launch.params.get("output", "prefix")
        self.launcher = Launcher(
            ["sh", "-c", SUBMIT, "sbatch", self._prefix, *words],
            manager.reader,
            says=script.encode(),
            output=output,
            on_line=self._hear,
            name="sbatch",
        )
        # ``stop`` comes some seconds after the last worker has gone: this program may end before that.
        atexit.register(self._remove_output)

    def _hear(self, line: str) -> bool:
        if not line.startswith(SUBMITTED):
            return False
        self._id = line.removeprefix(SUBMITTED)
        return True

    def _output(self, job: str) -> str:
        return f"{self._prefix}{job}.out"

    def end(self, code: int | None) -> str:
        """Why no more workers will come."""
        return f"job {self._id} has ended" if self._id else f"sbatch has ended with status {code}"

    def stop(self) -> None:
        self.launcher.end()
        atexit.unregister(self._remove_output)
        self._remove_output()

    def _remove_output(self) -> None:
        if self._id and self._prefix and os.getpid() == self._os_pid:
            with suppress(OSError):  # whoever cancelled it has, or there is none where the folder is not shared
                os.unlink(self._output(self._id))

    def tell(self) -> str:
        said = self.launcher.last_words(LAST_WORDS_SECONDS)
        texts = [f"what sbatch printed:\n{said}"] if said else []
        if self._id:
            texts += [f"job {self._id} is {_state(self._id)}"]
        if self._id and self._prefix:
            with suppress(OSError):
                with open(self._output(self._id), errors="replace") as file:
                    printed = file.read()[-SHOWN_CHARACTERS:].strip()
                texts += [f"what it printed:\n{printed}"] if printed else []
        return "\n".join(texts)


def _step(launch: Launch) -> list[str]:
    """The flags of every srun: it starts where the package is found, and the workers then go where they shall be."""
    return [*STEP_FLAGS, f"--chdir={package_folder()}"]


def _option(name: str, value: str | int | bool) -> str:
    """A keyword as an option of Slurm's.

    >>> _option("cpus_per_task", 4), _option("exclusive", True)
    ('--cpus-per-task=4', '--exclusive')
    """
    flag = "--" + name.replace("_", "-")
    return flag if value is True else f"{flag}={value}"


def _tasks_of_allocation() -> int:
    """How many tasks ``srun`` starts here by itself: as many as were asked for, else one for each node."""
    tasks = os.environ.get("SLURM_NTASKS") or os.environ.get("SLURM_JOB_NUM_NODES")
    if tasks is None:
        raise ValueError("SlurmManager() without a number is for programs inside an allocation (salloc, sbatch)")
    return int(tasks)


def _state(job: str) -> str:
    """What Slurm says of a job: its state, and why it waits."""
    try:
        asked = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%T (%r)"], capture_output=True, text=True, timeout=SQUEUE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"in a state that squeue does not tell: {error}"
    return asked.stdout.strip() or "not in the queue any more"
