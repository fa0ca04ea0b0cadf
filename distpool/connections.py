"""Transports of the user's own, from the worker's side; and which process is at the other end of a connection.

``init_worker`` and ``process_messages`` are for a program that makes itself a worker over streams that its manager's
``connect`` has the other ends of (``start_worker`` is the same over TCP). ``current_peer`` and
``worker_id_from_socket`` are for custom picklers, which may send less to a process that has something already.
"""

from __future__ import annotations

import io
import sys
import threading

from distpool.light import TYPE_CHECKING, Any
from distpool.managers.interface import ClusterManager
from distpool.member import Member, default_member, install_default
from distpool.messages import DRIVER
from distpool.pickling import sending_to
from distpool.transport import Deadline

if TYPE_CHECKING:
    from distpool.streams import Connection


def init_worker(cookie: str, manager: ClusterManager | None = None) -> None:
    """Make this process a worker to be: it has no id yet, and waits for ``process_messages``.

    For programs that a manager with a transport of its own has started; workers that listen on TCP use
    ``start_worker``. Call it before anything else of distpool.

    Args:
        cookie: the cluster's secret, which both sides of each connection prove to know. manager: taken for Julia's
        sake and not used: workers that cannot be handed a socket are connected through process 1.

    Raises RuntimeError when this process has workers or references, or is a worker already; ValueError and TypeError as
    ``cluster_cookie`` does. Julia's ``init_worker``.
    """
    member = default_member()
    if member.pid != DRIVER:
        raise RuntimeError(f"init_worker(): this process is worker {member.pid} already")
    member.books.give_back()  # what was dropped does not count
    if member.cluster.peers() or len(member.store) or member.books.claims.is_in_use:
        raise RuntimeError("init_worker() comes first: this process has workers or references of its own already")
    from distpool.cookie import cluster_cookie  # here and below: who asks for the current peer has no use for these

    cluster_cookie(cookie)
    install_default(_WorkerToBe(0, member.reader), member.reader)


def process_messages(r: Any, w: Any = None, incoming: bool = True) -> threading.Thread:
    """Serve process 1 over a connection that has come in; returns the thread that does, at once.

    To be called after ``init_worker``, with a connected socket, one stream for both directions, or a read stream
    and a write stream: blocking ``read(n)``, ``write(data)``, ``close()``, perhaps ``flush()``. Both sides prove
    themselves, then requests run in that thread and others; SIGINT is left to the caller. The process ends when
    process 1 says so, or with status 1 when the connection ends; ``process_messages(r, w).join()`` does nothing else
    until then. Of a connection that is not admitted standard error tells; the thread ends, another may be tried.

    Raises RuntimeError without ``init_worker`` and for a second connection, ValueError for ``incoming=False``: a worker
    makes no connections by itself, those to other workers go through process 1. Julia's ``process_messages``.
    """
    if not incoming:
        raise ValueError("process_messages(incoming=False): connections outwards are made by distpool itself")
    member = default_member()
    if member.pid == DRIVER:
        raise RuntimeError("process_messages() is for a process that has called init_worker()")
    if not isinstance(member, _WorkerToBe):
        raise RuntimeError(f"process_messages(): this is worker {member.pid}, and has its connection to process 1")
    connection: Connection = r if w is None or w is r else (r, w)
    thread = threading.Thread(target=member.serve, args=(connection,), name="distpool worker", daemon=True)
    thread.start()
    return thread


class _WorkerToBe(Member):
    """What a process is between ``init_worker`` and the first connection that proves itself."""

    def serve(self, connection: Connection) -> None:
        """Be a worker over this connection, if its other side is process 1."""
        from distpool.streams import prove
        from distpool.worker import Worker

        try:
            stream = prove(connection, "acceptor", Deadline(None))
        except Exception as error:  # a stranger, or what the user's streams raise
            print(f"distpool worker: a connection was not admitted: {error}", file=sys.stderr, flush=True)
            return
        with _taking_over:
            is_first = default_member() is self
            if is_first:
                worker = Worker(stream, None, self.reader)
        if is_first:
            worker.serve()
        else:
            stream.close()


_taking_over = threading.Lock()  # held while a worker to be becomes one


def current_peer() -> int:
    """Return the id of the process for which this thread is pickling: for use in ``__reduce__`` and the like.

    The own id when nothing is being pickled for another process; 0 while it is not known who gets what is pickled, as
    for the function of a ``pmap``, which goes to all.

    >>> current_peer() == 1
    True
    """
    if not sending_to.depth:
        return default_member().pid
    return sending_to.pid


def worker_id_from_socket(stream: object) -> int:
    """Return the id of the process at the other end of a connection; -1 when it is none of distpool's.

    ``stream`` is the connection's socket, or one of the streams that a manager's ``connect`` returned for it. An
    in-memory buffer counts as this process. Never blocks. Julia's ``worker_id_from_socket``; inside ``__reduce__``,
    where Julia has the stream at hand, ask ``current_peer()``.

    >>> import io
    >>> worker_id_from_socket(io.BytesIO()), worker_id_from_socket("no connection at all")
    (1, -1)
    """
    member = default_member()
    if isinstance(stream, io.BytesIO):
        return member.pid
    return next((peer.pid for peer in member.cluster.peers() if peer.is_reached_by(stream)), -1)
