"""The bytes between a driver and its fork server.

Used by both ends (:mod:`.client` in the driver, :mod:`.server` in the fork server); stateless, for any thread.
Both ends are the same Python on the same machine, started one from the other over a private socket pair: nothing here
is a protocol for strangers. ::

    driver  --  HELLO, LOAD, FORK (with descriptors), KILL, GRANT  -->  fork server
    driver  <--  STARTED, EXITED, FAILED, ROOM, OUTPUT  --------  fork server

Descriptors travel as SCM_RIGHTS with the first byte of their frame. The kernel never glues bytes that carry
descriptors to others that do, so a reader meets them in the order of the frames.
"""

from __future__ import annotations

import struct

# length of the body in bytes, kind, number of descriptors, token (KILL: the operating system's pid)
REQUEST = struct.Struct("!IBBq")
HELLO = 1  # body: pickled dict of what the server needs to know; descriptor: the shared page, if any
# body: pickled dict, the worker's set-up; descriptors: its stream socket, then stdout, stderr (else it gets pipes)
FORK = 2
KILL = 3  # body: one byte, the signal
GRANT = 4  # no body; in the place of the token, how many bytes of output the driver has dealt with since the last one
LOAD = 5  # body: pickled list of the names of modules to import before the next fork

# length of the text in bytes, kind, token, the operating system's pid, status as waitpid returns it
EVENT = struct.Struct("!IBqqq")
STARTED = 1
EXITED = 2
FAILED = 3
# "I have read all you sent and it ends in the middle of a frame": the driver sends on what it had to keep back
ROOM = 4
OUTPUT = 5  # the "text" is bytes that a worker wrote; in the place of its os_pid: 1 for stdout, 2 for stderr

# Bytes of output that may be under way or in the driver's hands; at this bound the server stops reading the pipes, and
# a worker that prints on waits. So a driver that shows output slowly needs no more memory than this, and reports of
# births and deaths never stand behind more. Arbitrary: enough for a millisecond of the fastest printing.
OUTPUT_WINDOW = 1 << 20

MOST_DESCRIPTORS = 16  # in one frame; three are used, the rest is room to grow. The kernel allows 253.
DESCRIPTOR = struct.Struct("@i")  # as SCM_RIGHTS wants them

PRELOAD_TOKEN = -1  # the token of a FAILED event that tells of a module that could not be preloaded
DEFAULT_ENTRY = "distpool.worker:run_forked"
