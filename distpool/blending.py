"""An exception that is an instance of two classes: one of ours, and one that knows nothing of it.

Used by `errors.remote_exception`, so not before something has failed. Any thread may enter. Owns the classes that were
made, weakly. Not a line of the other class is run: neither ``__init__`` and ``__new__``, which may want arguments that
nobody has any more, nor what registers subclasses.
"""

from __future__ import annotations

import weakref
from abc import ABCMeta

from distpool.light import Any, Final

# Weak on both sides: a class of two refers to the original's, so if the table held it, no class that a notebook
# redefines would ever be freed. It lives as long as its instances and is made again when needed.
_made: Final[weakref.WeakKeyDictionary[type, weakref.ref[type]]] = weakref.WeakKeyDictionary()

# How the fields of classes in C, and __slots__, look in a class: "getset" and "member" descriptors.
_FIELDS: Final = (type(BaseException.__dict__["args"]), type(OSError.__dict__["errno"]))
_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: not one of the interpreter's own static classes


def blend(ex: Any, ours: type[BaseException], name: str) -> Any:
    """Make an instance of ``ours`` and of the class of ``ex``, with what ``ex`` holds: fields, slots, ``__dict__``.

    Args:
        ex: the exception.
        ours: comes first in the method order; always the same class. Its ``__init__`` is not run.
        name: begins the name of the class, as in ``name(ValueError)``.

    Raises TypeError, or whatever comes of a class that does not go along.
    """
    both = _class_of_both(ours, type(ex), name)
    static: Any = both
    while static.__flags__ & _HEAP_TYPE:  # up to the class in C that decides the layout: Python insists on its __new__
        static = static.__base__
    # A group is the one built-in that cannot be made empty and filled later.
    needed = (ex.message, ex.exceptions) if static.__name__ == "BaseExceptionGroup" else ()
    made: BaseException = static.__new__(both, *needed)
    _copy_fields(ex, made)
    return made


def _class_of_both(ours: type[BaseException], original: type[BaseException], name: str) -> type:
    known = _made.get(original)
    both: Any = known() if known is not None else None
    if both is None:
        # A class statement in effect, but without running a user's metaclass: registries again.
        meta = type(original)
        make = ABCMeta if issubclass(meta, ABCMeta) else type
        both = make.__new__(meta, f"{name}({original.__name__})", (ours, original), {"__module__": ours.__module__})
        _made[original] = weakref.ref(both)
    return both  # type: ignore[no-any-return]


def _copy_fields(source: BaseException, target: BaseException) -> None:
    """Copies what an instance holds, without running a line of its class."""
    own = dict(object.__getattribute__(source, "__dict__"))
    if "__notes__" in own:
        own["__notes__"] = list(own["__notes__"])  # notes added to the copy are not the original's
    object.__getattribute__(target, "__dict__").update(own)
    for cls in type(source).__mro__:
        for name, field in vars(cls).items():
            if isinstance(field, _FIELDS) and not name.startswith("__"):
                try:  # noqa: SIM105  # contextlib is not worth its import here
                    field.__set__(target, field.__get__(source))
                except (AttributeError, TypeError):
                    pass  # an empty slot, or a field that only __new__ sets
