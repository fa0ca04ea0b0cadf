"""Objects to payloads and back: what may travel, in which form, and what goes along with it.

Used by every room that sends or opens a payload, in any thread; all functions may run in several threads at once and
re-entrantly. Users meet this room only through what arrives. Rooms, each using those above it:

    gathering        what is noted beside the bytes while a message is being made
    importable       would the receiver find it by importing?  by name or by value
    descriptors      file descriptors, which only the connection can pass on
    functions        functions and classes by value, taken apart and put together
    exception_state  exceptions with traceback, cause, context, notes
    kinds            the rule for each type of object
    culprit          which part could not be pickled
    parcel           dump, load: an object, its buffers, the globals it needs
    globals_         wrap, peel: which globals a connection still has to send
    captured         capture, dump_exception, load_exception: failures

>>> load(dump([1, "two", {3.0: None}]).body)
[1, 'two', {3.0: None}]
"""

from __future__ import annotations

from .captured import capture, dump_exception, load_exception
from .descriptors import Descriptor, Received, duplicates, is_attachment
from .exception_state import detached
from .functions import mentioned_names, shipped_namespace
from .gathering import in_message, note_ref, sending_to
from .globals_ import SentGlobals, peel, peel_beside, wrap
from .importable import note_spread
from .kinds import register_reducer
from .parcel import (
    Parcel,
    ShippedGlobal,
    dump,
    dump_arguments,
    dump_bare,
    dump_flat,
    dump_small,
    goes_by_name,
    is_plain,
    load,
)

__all__ = [
    "Descriptor",
    "Parcel",
    "Received",
    "SentGlobals",
    "ShippedGlobal",
    "capture",
    "detached",
    "dump",
    "dump_arguments",
    "dump_bare",
    "dump_exception",
    "dump_flat",
    "dump_small",
    "duplicates",
    "goes_by_name",
    "in_message",
    "is_attachment",
    "is_plain",
    "load",
    "load_exception",
    "mentioned_names",
    "note_ref",
    "note_spread",
    "peel",
    "peel_beside",
    "register_reducer",
    "sending_to",
    "shipped_namespace",
    "wrap",
]
