"""What travels between processes: the kinds of messages and the ids they carry.

Used by every room above. Nothing here has behaviour; a frame's header (``wire``) holds the fields that must be readable
without unpickling: kind, flags, request id and ref id. The payload is opened by whoever asked for it, never by the
reader.

=============  ====================================  ==========================================================
kind           payload                               answered by
=============  ====================================  ==========================================================
CALL           (f, args, kwargs)                     nothing: the result is stored at the target under the ref; with a
                                                     request id by an empty RESULT when f is done
CALL_WAIT      (f, args, kwargs)                     RESULT without a value, when f is done
CALL_FETCH     (f, args, kwargs)                     RESULT with the value
DO             (f, args, kwargs)                     nothing
RESULT         a value, or a captured exception      --
REF            one byte, the operation; arguments   RESULT, perhaps much later
WITHDRAW       --                                    the REF request it names is, at once: withdrawn, or the answer
FUNCTION       a callable                            nothing: kept at the worker under the number in ``ref``
FORGET         --                                    nothing: the worker drops the callable ``ref``
TASKS          one envelope of tasks                 TASKS_DONE, one or several
TASKS_DONE     results of a part of an envelope      --
TAKE_BACK      --                                    TAKEN_BACK with what had not started
INTERRUPT      --                                    the running call fails with KeyboardInterrupt
JOIN           who you are, whom you know            JOINED
JOINED         os pid and facts of the new member    --
MEMBERS        pids of the cluster; of those leaving --
EXIT           --                                    the process ends
MEET           --                                    RESULT, when we are connected to process ``ref``
NEIGHBOUR      --                                    nothing: the descriptor is a connection to process ``ref``;
                                                     without one, there is a tunnel to it (``relays``)
EXPECT         --                                    RESULT: where process ``ref`` finds our door (``visits``)
VISIT          an address, and the secret if needed  RESULT, when we are connected to process ``ref``, which is there
RELAY          bytes from ``whence`` to ``ref``      nothing: process 1 passes it on; ``request`` more may be sent
ADDED          [(ref id, pid, how many)]             nothing: those processes hold references now; ``ref`` is the owner
DROPPED        [(ref id, giver, how many)]           nothing: process ``whence`` gives references back to owner ``ref``
SETTLE         --                                    SETTLED: owner ``whence`` asks ``ref`` what it holds of what it was
                                                     given by process ``request``, which has ended
SETTLED        [(ref id, how many)]                  nothing
SHELF          --                                    nothing: the descriptor is where to take the first items of a
                                                     channel (``shortcuts``)
SLOT           --                                    nothing: the descriptor is where to put items into a channel
PLACES         --                                    nothing: the descriptor is where places for the next slot come from
TAKEN          an item that comes back, if any       nothing: its sender has taken one of those items
LOG            fields of a log record                nothing: process 1 handles it
=============  ====================================  ==========================================================
"""

from __future__ import annotations

from distpool.light import Final, NamedTuple


class RRID(NamedTuple):
    """The id of a remote reference: the process that made it, and its number there.

    Julia's ``RRID``. Numbers count from 1 in each process and are never used twice; ``(0, 0)`` is no reference.

    >>> RRID(1, 7) == RRID(1, 7), RRID(1, 7).whence
    (True, 1)
    """

    whence: int
    id: int


NULL_ID: Final = RRID(0, 0)

DRIVER: Final = 1  # the process that called addprocs first is process 1, always (Julia's rule)

# Kinds. Values are part of the protocol: a new kind gets a new number, none is used twice.
CALL: Final = 1
CALL_WAIT: Final = 2
CALL_FETCH: Final = 3
DO: Final = 4
RESULT: Final = 5
REF: Final = 6
WITHDRAW: Final = 7
FUNCTION: Final = 8
FORGET: Final = 9
TASKS: Final = 10
TASKS_DONE: Final = 11
TAKE_BACK: Final = 12
TAKEN_BACK: Final = 13
INTERRUPT: Final = 14
JOIN: Final = 15
JOINED: Final = 16
MEMBERS: Final = 17
EXIT: Final = 18
MEET: Final = 20
NEIGHBOUR: Final = 21
ADDED: Final = 22
DROPPED: Final = 23
LOG: Final = 24
RELAY: Final = 25
SHELF: Final = 26
TAKEN: Final = 27
SLOT: Final = 28
PLACES: Final = 29
SETTLE: Final = 30
SETTLED: Final = 31
EXPECT: Final = 32
VISIT: Final = 33
LAST_KIND: Final = VISIT

# Flags of a frame.
FLAG_GLOBALS: Final = 1  # the payload begins with names to assign in the receiver's __main__ (pickling)
FLAG_ERROR: Final = 2  # a RESULT that carries a captured exception
FLAG_LAST: Final = 4  # the TASKS_DONE that ends its envelope
FLAG_APART: Final = 8  # the items of this payload were pickled one by one: one bad item costs only itself
FLAG_WITHDRAWN: Final = 16  # the RESULT of a request that its caller has withdrawn in time: there is no value
FLAG_REFS: Final = 32  # the payload begins with the references in it, so that they count before it is opened
FLAG_TIMED: Final = 128  # tasks with a time limit: note when each begins
FLAG_PLAIN: Final = 64  # opening the payload runs no code but that of builtins and well-known packages

# The operations on a reference, by the byte that stands for each.
OPERATIONS: Final = (
    "put",
    "set",
    "take",
    "fetch",
    "wait",
    "isready",
    "isopen",
    "isempty",
    "close",
    "put_many",
    "take_many",
)
