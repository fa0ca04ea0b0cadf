"""What to do with an object, judged by its type: the table behind the pickler's one decision.

Used by the pickler in whatever thread pickles. Owns the cache of verdicts for types. Most types have no rule here: the
standard pickle knows what to do, and only the question "does opening it run strange code" is answered. The types are
named by strings so that nothing is imported to mention them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from distpool.light import TYPE_CHECKING, Any, Final, pickle

from .exception_state import reduce_exception
from .functions import import_module, made_module, main_module, member_of_types, reduce_class, reduce_function
from .importable import MAIN_NAMES, foreign_if_known, goes_by_name, is_foreign_name, is_function, travels

if TYPE_CHECKING:
    from types import MethodType, ModuleType

    from .gathering import Gathering

Rule = Callable[["Gathering", Any], Any]
Verdict = tuple["Rule | None", bool]

_CACHE_LIMIT: Final = 2048  # arbitrary; see importable

_registered: dict[str, Rule] = {}  # by full name of the class, what users have said of it and its subclasses
_verdicts: dict[type, Verdict] = {}  # types that go by name -> their rule, and whether they are foreign
known_verdict = _verdicts.get  # for the hot path

# Bytes. Smaller buffers cost more as parts of their own than as a copy within the pickle: through a socket pair, both
# ways take the same time at 4 KB (measured).
APART: Final = 4096


def judge(kind: type) -> Verdict:
    """The verdict for objects of this type."""
    verdict = _verdict(kind)
    # Classes that travel by value come and go: they are not kept here.
    if kind.__module__ == "builtins" or goes_by_name(kind):
        if len(_verdicts) >= _CACHE_LIMIT:
            _verdicts.clear()
        _verdicts[kind] = verdict
    return verdict


def _verdict(kind: type) -> Verdict:
    foreign = is_foreign_name(kind.__module__)
    if issubclass(kind, type):
        return _name_or_value, foreign
    if issubclass(kind, BaseException):
        return reduce_exception, foreign
    bases = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
    registered = next((_registered[base] for base in bases if base in _registered), None)
    if registered is not None:
        return registered, True
    rule = _RULES.get(bases[0])
    if rule is None:
        rule = next((_RULES[base] for base in _ALSO_BELOW if base in bases), None)
    return rule, foreign


def register_reducer(kind: type | str, reduce: Callable[[Any], Any]) -> None:
    """Say how objects of a class and of its subclasses are pickled when they travel in messages of distpool.

    ``reduce(obj)`` returns what ``__reduce__`` would: a callable and its arguments, both of which can be pickled; or
    NotImplemented, for objects that pickle's own rules shall decide about. It runs where the object is pickled, in
    whatever thread does that, and the callable where it is opened. A class may be named ("package.module.Class"), so
    that nothing must be imported before it is needed. The newest registration of a class counts; that of the nearest
    base class comes first. Other pickles are not affected (for those there is ``copyreg``). It holds in this process:
    what workers send on, or back, needs it there, too.

    Raises TypeError for what is no class, nor the name of one, and for a reducer that cannot be called.

    >>> import threading
    >>> from distpool import WorkerPool
    >>> class Shelf:
    ...     def __init__(self, name):
    ...         self.name, self.lock = name, threading.Lock()
    >>> register_reducer(Shelf, lambda shelf: (Shelf, (shelf.name,)))
    >>> with WorkerPool(processes=1) as pool:
    ...     pool.submit(lambda shelf: shelf.name, Shelf("top")).result()
    'top'
    """
    name = f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else kind
    if not isinstance(name, str) or not callable(reduce):
        raise TypeError(f"register_reducer() takes a class, or its full name, and a callable: not {kind!r}, {reduce!r}")
    _registered[name] = lambda packer, obj: reduce(obj)
    _verdicts.clear()


def _name_or_value(packer: Gathering, obj: Any) -> Any:
    """Functions and classes."""
    if goes_by_name(obj):
        if foreign_if_known(obj):
            packer.foreign = True
        return NotImplemented
    if obj in _NAMED_BY_PICKLE:
        return NotImplemented
    packer.foreign = True
    return reduce_function(packer, obj) if is_function(obj) else reduce_class(obj)


_NAMED_BY_PICKLE: Final = (type(None), type(NotImplemented), type(...))  # pickle itself has a way for these


def _builtin(packer: Gathering, function: Any) -> Any:
    """Functions written in C go by name, their bound methods as getattr(object, name); pickle knows both."""
    if goes_by_name(function):
        if foreign_if_known(function):
            packer.foreign = True
    elif function.__module__ is not None and is_foreign_name(function.__module__):
        packer.foreign = True
    return NotImplemented


def _cloudpickled(packer: Gathering, obj: Any) -> Any:
    """By cloudpickle's table, which is part of its pickler's public face."""
    # Needed by few messages, and tens of milliseconds to import.
    import cloudpickle  # type: ignore[import-untyped]  # it has no types

    return cloudpickle.Pickler.dispatch_table[type(obj)](obj)


def _method(packer: Gathering, method: MethodType) -> Any:
    """Pickle sends a method as getattr(object, name); that must lead back to it (not for lambdas and aliases)."""
    function, owner = method.__func__, method.__self__
    name = getattr(function, "__name__", None)
    if name is not None and getattr(owner, name, None) == method:
        return NotImplemented
    return make_method, (function, owner)


def make_method(function: Any, owner: object) -> MethodType:
    """A method bound again."""
    made: MethodType = member_of_types("MethodType")(function, owner)
    return made


def _module(packer: Gathering, module: ModuleType) -> Any:
    name = module.__name__
    if name in MAIN_NAMES or module is sys.modules["__main__"]:
        return main_module, ()
    if sys.modules.get(name) is module and travels(name, module):
        if is_foreign_name(name):
            packer.foreign = True
        return import_module, (name,)
    packer.foreign = True
    packer.guess(f"made:{name}", vars(module), [each for each in vars(module) if not each.startswith("__")])
    return made_module, (name,)


def _cell(packer: Gathering, cell: Any) -> Any:
    return packer.whole_cell(cell)


def _memoryview(packer: Gathering, view: memoryview) -> Any:
    """Arrives as a memoryview of the same shape, writable as here; one with gaps arrives contiguous."""
    if not view.c_contiguous:
        flat = pickle.PickleBuffer(view.tobytes())
    else:
        flat = pickle.PickleBuffer(view.cast("B") if view.nbytes else b"")
    return make_view, (flat, view.format, view.shape)


def make_view(buffer: Any, form: Any, shape: tuple[int, ...]) -> memoryview:
    """A memoryview over what arrived."""
    view = memoryview(buffer)
    if form == "B" and len(shape) == 1:
        return view
    return view.cast(form, shape) if view.nbytes else view.cast(form)


def _array(packer: Gathering, array: Any) -> Any:
    """array.array knows nothing of protocol 5; a large one still need not be copied at the sender."""
    if len(array) * array.itemsize < APART or array.typecode == "u":
        return NotImplemented
    return make_array, (array.typecode, pickle.PickleBuffer(memoryview(array).cast("B")))


def make_array(typecode: str, buffer: Any) -> Any:
    """An array.array over a copy of what arrived (arrays own their memory)."""
    import array  # only where arrays travel

    made = array.array(typecode)
    made.frombytes(buffer)
    return made


def _weak_keys(packer: Gathering, weak: Any) -> Any:
    """What functools.singledispatch remembers its choices in. Arrives with those keys that something there holds."""
    return type(weak), (dict(weak),)


def _cached_function(packer: Gathering, cached: Any) -> Any:
    """Decorated by functools.lru_cache: pickle knows it by name only. Travels with an empty cache."""
    if goes_by_name(cached):
        return NotImplemented
    packer.foreign = True
    parameters = cached.cache_parameters()
    return make_cached, (cached.__wrapped__, parameters["maxsize"], parameters["typed"])


def make_cached(function: Any, size: int | None, typed: bool) -> Any:
    """The function with a cache again."""
    import functools

    return functools.lru_cache(size, typed)(function)


def _cached_property(packer: Gathering, cached: Any) -> Any:
    """Part of a class by value. Before 3.12 it holds a lock."""
    return make_cached_property, (cached.func, cached.attrname)


def make_cached_property(function: Any, name: str | None) -> Any:
    """The property again, with the name that the class statement gave it."""
    import functools

    made: Any = functools.cached_property(function)
    made.attrname = name
    return made


def _standard_stream(packer: Gathering, stream: Any) -> Any:
    """The receiver's own; any other open file cannot travel, and pickle says so."""
    for name in ("stdout", "stderr", "stdin"):
        if stream is getattr(sys, name):
            return getattr, (sys, name)
    return NotImplemented


def _dataclass_mark(packer: Gathering, mark: Any) -> Any:
    """Marks such as dataclasses.MISSING are compared by identity: by name, not as a new object."""
    names = vars(sys.modules["dataclasses"])
    return next((name for name, value in names.items() if value is mark), NotImplemented)


def _new_type(packer: Gathering, new_type: Any) -> Any:
    """typing.NewType: by name where the module can be imported."""
    if new_type.__module__ not in MAIN_NAMES:
        return NotImplemented
    return type(new_type), (new_type.__name__, new_type.__supertype__)


_BY_CLOUDPICKLE: Final = (
    "builtins.code", "builtins.property", "builtins.staticmethod", "builtins.classmethod", "builtins.mappingproxy",
    "builtins.getset_descriptor", "builtins.dict_keys", "builtins.dict_values", "builtins.dict_items",
    "builtins.odict_keys", "builtins.odict_values", "builtins.odict_items", "_weakrefset.WeakSet", "typing.TypeVar",
    "dataclasses._FIELD_BASE", "abc.abstractproperty", "abc.abstractclassmethod", "abc.abstractstaticmethod",
)  # fmt: skip

_RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_BY_CLOUDPICKLE, _cloudpickled),
    "builtins.function": _name_or_value,
    "builtins.builtin_function_or_method": _builtin,
    "builtins.method": _method,
    "builtins.module": _module,
    "builtins.cell": _cell,
    "builtins.memoryview": _memoryview,
    "array.array": _array,
    "functools._lru_cache_wrapper": _cached_function,
    "functools.cached_property": _cached_property,
    "_io._TextIOBase": _standard_stream,
    "weakref.WeakKeyDictionary": _weak_keys,
    "typing.NewType": _new_type,
    "dataclasses._MISSING_TYPE": _dataclass_mark,
    "dataclasses._HAS_DEFAULT_FACTORY_CLASS": _dataclass_mark,
    "dataclasses._KW_ONLY_TYPE": _dataclass_mark,
}

# Lazy modules, and what notebooks and test runners put in the place of sys.stdout.
_ALSO_BELOW: Final = ("builtins.module", "_io._TextIOBase")
