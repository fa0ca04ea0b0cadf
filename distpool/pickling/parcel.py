"""An object becomes a parcel: a body, large buffers beside it, and the names of ``__main__`` it needs.

Used by everyone who sends or opens payloads, in any thread, several at once and re-entrantly (an object's
``__reduce__`` may pickle again). Owns nothing; what is noted on the way is in `gathering`.

    dump(obj)  ->  simple call or atom?   plain pickle
                   else                   Packer, one pass: decides for each object (see `kinds`)
                                              |            \\
                                            body, buffers   names mentioned by by-value code
                                                              |   each its own small parcel, and so on
                                                            globals
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import partial
from types import BuiltinFunctionType, FunctionType

from distpool.light import Any, Final, pickle

from .descriptors import is_attachment
from .gathering import Gathering, Mentioned, UnsendableGlobal, sending_to
from .importable import forget_names, known_functions
from .kinds import APART, judge, known_verdict

_ATOMS: Final = frozenset({int, float, bool, str, type(None)})
_FUNCTIONS: Final = (FunctionType, BuiltinFunctionType)
_TEXTS: Final = frozenset({str, bytes})
_FEW: Final = 8  # arguments looked at one by one on the fast path; more cost as much as the general path


class Parcel:
    """A pickled object. ``globals`` is None unless code of ``__main__`` in it mentions names there.

    ``foreign``: opening it may run code of packages that nobody here knows, so it is packed apart from other items.
    """

    __slots__ = ("body", "buffers", "foreign", "globals", "refs")

    def __init__(
        self,
        body: bytes,
        buffers: list[memoryview],
        globals: dict[str, ShippedGlobal] | None = None,
        foreign: bool = False,
        refs: list[Any] | None = None,
    ) -> None:
        self.body = body
        self.buffers = buffers
        self.globals = globals
        self.foreign = foreign
        self.refs = refs  # claims on the remote references in it; they live as long as the parcel

    @property
    def nbytes(self) -> int:
        """Size of body and buffers, without the globals."""
        return len(self.body) + sum(buffer.nbytes for buffer in self.buffers)


class ShippedGlobal:
    """One name of ``__main__`` (or ``module:name`` for a module that cannot be imported) with its value, pickled."""

    __slots__ = ("body", "buffers", "name", "value")

    def __init__(self, name: str, value: object, body: bytes, buffers: list[memoryview]) -> None:
        self.name = name
        self.value = value  # only to compare identities: what travels was pickled at the time of the call
        self.body = body
        self.buffers = buffers


def dump(obj: object, to: int = 0) -> Parcel:
    """Pickle an object, by value where the receiver could not import it.

    Args:
        to: the process that gets it, if it is known already: what ``current_peer()`` tells user code in it.

    Raises:
        TypeError: something in it cannot be pickled; the message says where it is, the cause is the original error.
    """
    if type(obj) is tuple and len(obj) == 3:
        function, arguments, keywords = obj
        if type(function) in _FUNCTIONS and type(arguments) is tuple and not keywords and len(arguments) <= _FEW:
            foreign = known_functions(function)
            if foreign is not None and type(keywords) is dict:
                for argument in arguments:
                    if type(argument) not in _ATOMS and not _is_flat(argument):
                        break
                else:
                    try:
                        return Parcel(pickle.dumps(obj, 5), [], None, foreign)
                    except pickle.PicklingError:  # replaced in its module since we looked
                        forget_names()
    elif type(obj) in _ATOMS or _is_flat(obj):
        return Parcel(pickle.dumps(obj, 5), [])
    return _dump_any(obj, to)


def dump_arguments(arguments: tuple[Any, ...], keywords: dict[str, Any], to: int = 0) -> Parcel:
    """``dump((arguments, keywords))``, at plain pickle speed for a few plain arguments: what ``submit`` does most."""
    if not keywords and len(arguments) <= _FEW:
        for argument in arguments:
            if type(argument) not in _ATOMS and not _is_flat(argument):
                break
        else:
            return Parcel(pickle.dumps((arguments, keywords), 5), [])
    try:
        return dump((arguments, keywords), to)
    except TypeError as error:
        if not isinstance(error.__cause__, Exception):
            raise
        from .culprit import explain_arguments  # only for failures

        raise explain_arguments(arguments, keywords, error.__cause__, pack) from error.__cause__


def dump_flat(value: Any, limit: int) -> bytes | None:
    """The body of ``dump``, for atoms and small built-in containers of them; None for all else, and beyond the limit.

    Neither this nor opening it runs any code.
    """
    if (type(value) not in _ATOMS and not _is_flat(value)) or (type(value) in _TEXTS and len(value) > limit):
        return None
    body = pickle.dumps(value, 5)
    return body if len(body) <= limit else None


def dump_small(value: object, limit: int, to: int = 0) -> bytes | None:
    """The body of ``dump``, for what needs nothing beside it and takes ``limit`` bytes at most; None for all else."""
    if type(value) in _ATOMS or _is_flat(value):
        return dump_flat(value, limit)
    parcel = _lone(value, to)
    return parcel.body if parcel is not None and len(parcel.body) <= limit else None


def dump_bare(value: object, limit: int) -> bytes | None:
    """As ``dump_small``, but only for what opens without running, looking up or importing anything.

    Returns no bytes for something that might not, though others of its kind do.
    """
    if type(value) in _ATOMS or _is_flat(value):
        return dump_flat(value, limit)
    parcel = _lone(value, 0)
    if parcel is None or parcel.foreign or len(parcel.body) > limit:
        return None
    return b"" if any(opcode in parcel.body for opcode in _LOOKUPS) else parcel.body


# Opcodes that ask for a class or function (STACK_GLOBAL and EXT1 to 4). The same bytes may be part of a number or text.
_LOOKUPS: Final = (b"\x93", b"\x82", b"\x83", b"\x84")


def _lone(value: object, to: int) -> Parcel | None:
    try:
        parcel = dump(value, to)
    except Exception:  # who sends it in another way hears why it cannot be sent
        return None
    return None if parcel.globals or parcel.refs or parcel.buffers else parcel


def is_plain(value: object) -> bool:
    """True when pickling the value runs no code of the user's; False when it may, or when finding out is not cheap."""
    return type(value) in _ATOMS or _is_flat(value) or type(value).__module__ == "numpy"


def goes_by_name(function: object) -> bool:
    """True when it is known already that this function travels as its name alone: its parcel is always the same."""
    return type(function) in _FUNCTIONS and known_functions(function) is not None


def _is_flat(value: Any) -> bool:
    """A small built-in container of atoms, or a few bytes: nothing in it to decide. Saves half of the time."""
    kind = type(value)
    if kind is list or kind is tuple:
        return len(value) <= _FEW and _ATOMS.issuperset(map(type, value))
    if kind is dict:
        kinds = len(value) <= _FEW and {*map(type, value), *map(type, value.values())}
        return kinds is not False and _ATOMS.issuperset(kinds)
    return kind is bytes and len(value) < APART


def load(body: bytes | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Open what `dump` made. Runs whatever code the pickle asks for: only for authenticated peers."""
    return pickle.loads(body, buffers=buffers) if buffers else pickle.loads(body)


def _dump_any(obj: object, to: int) -> Parcel:
    try:
        try:
            return pack(obj, to=to)
        except pickle.PicklingError:
            forget_names()  # perhaps a function was replaced in its module since we looked: look again
            return pack(obj, to=to)
    except (MemoryError, UnsendableGlobal):
        raise
    except Exception as error:
        raise _explained(obj, error) from error


def _explained(obj: object, error: Exception) -> TypeError:
    from .culprit import explain  # only for failures

    return explain(obj, error, pack)


def pack(obj: object, replaced: dict[int, BaseException] | None = None, alone: bool = False, to: int = 0) -> Parcel:
    """`dump` without the fast path and without explaining errors.

    Args:
        replaced: exceptions (by id) with what stands in for them.
        alone: leave out causes, contexts and tracebacks of exceptions.
        to: as for `dump`.
    """
    mentioned = Mentioned()
    context = sending_to
    context.depth += 1
    outer, context.refs = context.refs, None
    outer_pid, context.pid = context.pid, to
    try:
        packer, body, buffers = _pack_one(lift(obj), mentioned, replaced or {}, alone)
        names = _ship(mentioned) if mentioned else None
        return Parcel(body, buffers, names, packer.foreign, context.refs)
    finally:
        context.depth -= 1
        context.refs, context.pid = outer, outer_pid


def _pack_one(
    obj: object, mentioned: Mentioned, replaced: dict[int, BaseException], alone: bool
) -> tuple[Packer, bytes, list[memoryview]]:
    file = io.BytesIO()
    buffers: list[memoryview] = []
    packer = Packer(file, 5, buffer_callback=partial(_keep_apart, buffers))
    packer.mentioned, packer.replaced, packer.alone = mentioned, replaced, alone
    packer.dump(obj)
    return packer, file.getvalue(), buffers


def _keep_apart(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Called for each buffer: True keeps it within the pickle."""
    try:
        raw = buffer.raw()
    except BufferError:  # with gaps: pickle says so itself
        return True
    if raw.nbytes < APART and not is_attachment(raw):
        return True
    buffers.append(raw)
    return False


def _ship(mentioned: Mentioned) -> dict[str, ShippedGlobal]:
    """Pickle the mentioned globals, and those that these mention; the last found come first: they are needed first."""
    shipped: dict[str, ShippedGlobal] = {}
    left_out: set[str] = set()
    waiting = list(mentioned)
    while waiting:
        for name in waiting:
            value = mentioned[name]
            if type(value) in _ATOMS:
                shipped[name] = ShippedGlobal(name, value, pickle.dumps(value, 5), [])
                continue
            try:
                _, body, buffers = _pack_one(lift(value), mentioned, {}, False)
            except Exception as error:
                if name in mentioned.guessed:  # a lock, an open file: most modules have something that cannot travel
                    left_out.add(name)
                    continue
                raise _unsendable(name, value, error) from error
            shipped[name] = ShippedGlobal(name, value, body, buffers)
        waiting = [name for name in mentioned if name not in shipped and name not in left_out]
    return dict(reversed(shipped.items()))


def _unsendable(name: str, value: object, error: Exception) -> UnsendableGlobal:
    from .culprit import explain_global  # only for failures

    return UnsendableGlobal(explain_global(name, value, error, pack))


class Packer(Gathering, pickle.Pickler):
    """The C pickler, asked back for everything but the built-in atoms and containers."""

    def reducer_override(self, obj: Any) -> Any:
        """Decide: NotImplemented leaves the object to pickle's own rules, which send functions and classes by name."""
        kind = type(obj)
        if kind is FunctionType or kind is type:
            foreign = known_functions(obj)
            if foreign is not None:
                if foreign:
                    self.foreign = True
                return NotImplemented
        rule, strange = known_verdict(kind) or judge(kind)
        if strange:
            self.foreign = True
        return NotImplemented if rule is None else rule(self, obj)


class Apart:
    """Large bytes or a large bytearray as a buffer of its own; pickle would copy exact ones into the body unasked."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.value), (pickle.PickleBuffer(self.value),)


def lift(obj: Any) -> Any:
    """Take large bytes out of the body: the object itself, the elements of a tuple, and arguments of a call.

    Only tuples are rebuilt (they have no identity to lose), and a bytearray only where nothing else in the message
    could hold the same one.
    """
    kind = type(obj)
    if kind is tuple:
        if len(obj) == 3 and type(obj[1]) is tuple:  # a call
            arguments = _lift_all(obj[1], obj[2] == {} if type(obj[2]) is dict else False)
            return obj if arguments is obj[1] else (obj[0], arguments, obj[2])
        return _lift_all(obj, True)
    return Apart(obj) if (kind is bytes or kind is bytearray) and len(obj) >= APART else obj


def _lift_all(parts: tuple[Any, ...], closed: bool) -> tuple[Any, ...]:
    found = [index for index, part in enumerate(parts) if type(part) in _RAW and len(part) >= APART]
    if not found:
        return parts
    if not closed or any(type(part) not in _FLAT for part in parts):
        found = [index for index in found if type(parts[index]) is bytes]
    lifted = list(parts)
    stands: dict[int, Apart] = {}
    for index in found:
        part = parts[index]
        lifted[index] = stands.setdefault(id(part), Apart(part))
    return tuple(lifted)


_RAW: Final = (bytes, bytearray)
_FLAT: Final = _ATOMS | {bytes, bytearray}
