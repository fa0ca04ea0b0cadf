"""The bytes between a driver and its fork server.

Used by both ends (:mod:`.client` in the driver, :mod:`.server` in the fork server); stateless, for any thread.
Both ends are the same Python on the same machine, started one from the other over a private socket pair: nothing here
is a protocol for strangers. ::

    driver  --  HELLO, FORK (with descriptors), KILL  -->  fork server
    driver  <--  STARTED, EXITED, FAILED, ROOM  ---------  fork server

Descriptors travel as SCM_RIGHTS with the first byte of their frame. The kernel never glues bytes that carry
descriptors to others that do, so a reader meets them in the order of the frames.
"""

from __future__ import annotations

import struct

# length of the body in bytes, kind, number of descriptors, token (KILL: the operating system's pid)
REQUEST = struct.Struct("!IBBq")
HELLO = 1  # body: pickled dict of what the server needs to know; descriptor: the shared page, if any
FORK = 2  # body: pickled dict, the worker's set-up; descriptors: its stream socket, then stdout, stderr
KILL = 3  # body: one byte, the signal

# length of the text in bytes, kind, token, the operating system's pid, status as waitpid returns it
EVENT = struct.Struct("!IBqqq")
STARTED = 1
EXITED = 2
FAILED = 3
# "I have read all you sent and it ends in the middle of a frame": the driver sends on what it had to keep back
ROOM = 4

MOST_DESCRIPTORS = 16  # in one frame; three are used, the rest is room to grow. The kernel allows 253.
DESCRIPTOR = struct.Struct("@i")  # as SCM_RIGHTS wants them

PRELOAD_TOKEN = -1  # the token of a FAILED event that tells of a module that could not be preloaded
DEFAULT_ENTRY = "distpool.worker:run_forked"
